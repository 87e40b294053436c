//! `point-delete`: points that are not wanted any more.

use super::{error::CliResult, json, points, session::Session};

/// Deletes points, all of them or none; this cannot be undone
///
/// Locked points, points in use by a view, an export or a takeover, and the newest point are refused. A time means the
/// newest point not later, and the answer names it. What room that makes tells 'virt-cdp space' beforehand.
#[derive(Debug, clap::Args)]
#[command(after_help = super::POINT_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    which: points::Which,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = args.which.request()?;
    let changes = session
        .client
        .call(async |api| api.delete_points(request).await)?;
    session.answer(&json::PointChanges::from(&changes), || {
        points::each(&changes, "deleted")
    })
}
