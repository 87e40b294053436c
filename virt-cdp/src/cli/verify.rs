//! `verify`: reads what is kept of a machine again.

use super::{
    error::{CliError, CliResult},
    job::{OnInterrupt, follow},
    json,
    session::Session,
    text::plain,
};
use crate::{
    api::v1,
    units::{self, format_size},
};

/// Reads what is kept of a machine again, and says what is damaged and which points that costs
///
/// Without --all, what was verified within the last day is left out; damage that is known is told all the same. Points
/// that are damaged are marked, and are not opened any more without --damaged. The exit code is 1 where there is damage.
/// Ctrl-C cancels it; what was verified until then counts.
///
/// What the live disks of a protected machine still have of what is damaged is had again from them: it is put back where it
/// was if it is the very same, else points from now on have it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// Verifies everything, whenever it was verified last
    #[arg(long)]
    all: bool,

    /// Compares the newest that is kept with the live disks, too; the machine must be protected
    #[arg(long)]
    live: bool,

    /// The most that is read in a second, as 64MiB [default: as fast as it goes]
    #[arg(long, value_name = "SIZE")]
    rate: Option<String>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let rate = args.rate.as_deref().map(rate).transpose()?.unwrap_or(0);
    let request = v1::VerifyRequest {
        name: args.name,
        all: args.all,
        rate,
        live: args.live,
    };
    let job = session.client.call(async |api| api.verify(request).await)?;
    let job = follow(session, job, OnInterrupt::Cancel)?;
    let report = job.report.clone().unwrap_or_default();
    session.answer(&json::Job::from(&job), || summary(&report))?;
    match report.findings.len() {
        0 => Ok(()),
        count => Err(CliError::failure(format!(
            "{} is damaged in {count} {}",
            job.machine,
            if count == 1 { "place" } else { "places" }
        ))
        .hint("see which points are whole with point-list; a damaged one is opened with --damaged only")),
    }
}

fn rate(text: &str) -> CliResult<u64> {
    match units::parse_size(text)? {
        0 => Err(CliError::usage("--rate 0 would never end")),
        bytes => Ok(bytes),
    }
}

fn summary(report: &v1::VerifyReport) -> String {
    let mut text = format!(
        "verified: {} files, {}\n",
        report.files,
        format_size(report.bytes)
    );
    if report.left > 0 {
        text.push_str(&format!(
            "left for the next time: {} files that others took the place of\n",
            report.left
        ));
    }
    for one in &report.unchecked {
        text.push_str(&format!(
            "without hashes: {} clusters of {}\n",
            one.clusters,
            plain(&one.file)
        ));
    }
    for volume in &report.live {
        text.push_str(&live_text(volume));
    }
    for finding in &report.findings {
        text.push_str(&finding_text(finding));
    }
    if !report.not_healed.is_empty() {
        let why = plain(&report.not_healed);
        text.push_str(&format!(
            "nothing was had again from the live disks: {why}\n"
        ));
    }
    if report.findings.is_empty() {
        text.push_str(
            match report.live.iter().any(|one| one.differing_bytes > 0) {
                true => "no damage is left\n",
                false => "no damage\n",
            },
        );
    }
    text
}

fn live_text(volume: &v1::LiveVolume) -> String {
    let target = plain(&volume.target);
    let compared = format_size(volume.read_bytes);
    if volume.differing_bytes == 0 {
        return format!("live disk {target}: {compared} compared, no difference\n");
    }
    format!(
        "live disk {target}: {compared} compared, {} damaged or different: {} put back where it was, {} journaled for points \
         from now on\n",
        format_size(volume.differing_bytes),
        format_size(volume.put_back_bytes),
        format_size(volume.journaled_bytes),
    )
}

fn finding_text(finding: &v1::Finding) -> String {
    let place = match finding.length {
        0 => String::new(),
        length => format!(", {length} bytes at {}", finding.offset),
    };
    let mut text = format!(
        "damaged: {}{place}: {}\n",
        plain(&finding.file),
        plain(&finding.what)
    );
    for cost in &finding.costs {
        let points = match cost.first == cost.last {
            true => format!("point {}", cost.first),
            false => format!("points {} to {}", cost.first, cost.last),
        };
        let bytes: u64 = cost.areas.iter().map(|area| area.length).sum();
        let first = cost.areas.first().map_or(0, |area| area.offset);
        text.push_str(&format!(
            "  costs {points}: {bytes} bytes of {}, from {first} on\n",
            plain(&cost.volume)
        ));
    }
    if finding.costs.is_empty() {
        text.push_str("  costs no point\n");
    }
    text
}
