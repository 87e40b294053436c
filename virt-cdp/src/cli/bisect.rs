//! `bisect`: the newest point at which something holds.

use std::path::PathBuf;

use super::{
    at,
    drills::took,
    error::{CliError, CliResult, Fault},
    job::{OnInterrupt, watch},
    json_drill,
    session::{Reader, Session},
    text::{local, plain},
};
use crate::api::v1;

/// Finds the newest point at which checks pass, by drills, or by a program that looks at the disks
///
/// Each probe halves the span that is left: a week of one-second points takes about 20. A program of --script gets the disks
/// of the point as read-only views (VIRT_CDP_VIEW_vda and so on, NBD URIs); it exits with 0 where the point is good. Ctrl-C
/// breaks the search off; the same command goes on where it was.
///
/// A point that cannot be looked at (a drill of it cannot be held, the program does not run) is neither good nor bad: another
/// beside it is looked at, and the answer names it. Where that is so of 8 in a row, the search ends with the cause.
#[derive(Debug, clap::Args)]
#[command(after_long_help = super::AT_HELP)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The oldest moment
    #[arg(long, value_name = "T")]
    from: String,

    /// The newest moment
    #[arg(long, value_name = "T", default_value = "latest")]
    to: String,

    /// What must hold, as of drill-run; each probe is a drill
    #[arg(
        long = "check",
        value_name = "CHECK",
        required_unless_present = "script"
    )]
    checks: Vec<String>,

    /// A program that looks at the disks; nothing is booted
    #[arg(long, value_name = "PATH", conflicts_with = "checks")]
    script: Option<PathBuf>,

    /// How many probes run at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    parallel: u32,

    /// Forgets what an earlier search for the same has found
    #[arg(long)]
    restart: bool,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let script = args.script.as_ref().map(|path| {
        path.canonicalize().map_err(|error| {
            CliError::failure(format!("cannot find {}: {error}", path.display()))
                .hint("give the path of a program")
        })
    });
    let script = script.transpose()?.map(|path| path.display().to_string());
    let request = v1::BisectRequest {
        name: args.name.clone(),
        from: Some(at::parse_here(&args.from)?.oldest()),
        to: Some(at::parse_here(&args.to)?.newest()),
        checks: args.checks,
        script: script.unwrap_or_default(),
        parallel: args.parallel,
        restart: args.restart,
    };
    let job = session.client.call(async |api| api.bisect(request).await)?;
    let (reader, mut told) = (session.reader, 0);
    let done = watch(session, job, OnInterrupt::Cancel, &mut |job| {
        if reader == Reader::People {
            tell(job.bisect.as_ref(), &mut told);
        }
    });
    let job = done.map_err(|error| match error.fault {
        Fault::Interrupted => error.hint("the same command goes on where it was"),
        _ => error,
    })?;
    let state = job.bisect.unwrap_or_default();
    session.answer(&json_drill::Bisected::from(&state), || {
        answer(&args.name, &state)
    })?;
    match state.newest_good {
        Some(_) => Ok(()),
        None => Err(
            CliError::unproved(format!("no point of {} in that span passes", args.name))
                .hint("begin earlier: --from"),
        ),
    }
}

/// Tells people of the probes since it was told last.
fn tell(state: Option<&v1::BisectState>, told: &mut usize) {
    let Some(state) = state else {
        return;
    };
    for (number, probe) in state.probes.iter().enumerate().skip(*told) {
        let point = probe.point.clone().unwrap_or_default();
        let outcome = outcome(probe);
        let why = match probe.why.as_str() {
            "" => String::new(),
            why => format!(": {}", plain(why)),
        };
        let how = if probe.remembered {
            "known already".into()
        } else {
            took(probe.took_ms)
        };
        eprintln!(
            "probe {}: point {}, {}: {outcome} ({how}){why}",
            number + 1,
            point.id,
            local(point.time_ns)
        );
    }
    *told = state.probes.len();
}

/// What came of a probe.
pub(super) fn outcome(probe: &v1::BisectProbe) -> &'static str {
    match (probe.skipped, probe.passed) {
        (true, _) => "not looked at",
        (false, true) => "good",
        (false, false) => "bad",
    }
}

/// The points behind the newest good one and before the first bad one of which nothing is known.
pub(super) fn unknown(state: &v1::BisectState) -> Vec<&v1::Point> {
    let id = |point: &Option<v1::Point>| point.as_ref().map(|point| point.id);
    let after = id(&state.newest_good).unwrap_or(0);
    let before = id(&state.oldest_bad).unwrap_or(u64::MAX);
    let skipped = state.probes.iter().filter(|probe| probe.skipped);
    let points = skipped.filter_map(|probe| probe.point.as_ref());
    let mut between: Vec<&v1::Point> = points
        .filter(|point| after < point.id && point.id < before)
        .collect();
    between.sort_by_key(|point| point.id);
    between
}

fn answer(name: &str, state: &v1::BisectState) -> String {
    let point = |point: &v1::Point| format!("point {}, {}", point.id, local(point.time_ns));
    let probes = format!(
        "{} probes among {} points",
        state.probes.len(),
        state.points
    );
    let unknown: Vec<String> = unknown(state)
        .iter()
        .map(|point| point.id.to_string())
        .collect();
    let unknown = match unknown.as_slice() {
        [] => String::new(),
        [one] => format!("not looked at: point {one}, which may be either\n"),
        more => format!(
            "not looked at: points {}, each may be either\n",
            more.join(", ")
        ),
    };
    match (&state.newest_good, &state.oldest_bad) {
        (Some(good), Some(bad)) => format!(
            "newest good: {}\nfirst bad:   {}\n{unknown}{probes}\ntake it over: virt-cdp takeover {} --at {}\n",
            point(good),
            point(bad),
            super::text::quoted(name),
            good.id
        ),
        (Some(good), None) => format!(
            "all are good; the newest: {}\n{unknown}{probes}\n",
            point(good)
        ),
        (None, _) => format!("none is good\n{unknown}{probes}\n"),
    }
}
