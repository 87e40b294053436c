//! `export`: a machine's volumes as they were, as files that need nothing of ours.

use std::path::PathBuf;

use super::{
    at,
    error::CliResult,
    job::{OnInterrupt, follow},
    json,
    protect::absolute_text,
    session::Session,
};
use crate::api::v1;

/// Writes a machine's volumes as they were to DIR, one standalone qcow2 image each
///
/// Ctrl-C cancels the export.
#[derive(Debug, clap::Args)]
#[command(after_long_help = super::AT_HELP)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The moment: the newest point not later than T is taken
    #[arg(long, value_name = "T")]
    at: String,

    /// Only this volume (by its target, as `vda`); may be given several times [default: all]
    #[arg(long, value_name = "TARGET")]
    disk: Vec<String>,

    /// Also if the point is damaged: what is damaged of it cannot be read, all else can
    #[arg(long)]
    damaged: bool,

    /// The directory for the images; as the daemon sees it
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let at = at::parse_here(&args.at)?;
    let dir = absolute_text(&args.dir)?;
    let request = v1::ExportRequest {
        name: args.name,
        at: Some(at.newest()),
        disks: args.disk,
        damaged: args.damaged,
        dir,
    };
    let job = session.client.call(async |api| api.export(request).await)?;
    if let Some(point) = &job.point {
        session.say(&at.picked(point));
    }
    let job = follow(session, job, OnInterrupt::Cancel)?;
    session.answer(&json::Job::from(&job), || {
        let lines: Vec<_> = job
            .files
            .iter()
            .map(|file| format!("written: {}", super::text::plain(file)))
            .collect();
        lines.join("\n")
    })
}
