//! `point-lock`: points that stay until they are unlocked.

use super::{error::CliResult, json, points, session::Session};

/// Locks points: they stay until they are unlocked, whatever a policy says
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
        .call(async |api| api.lock_points(request).await)?;
    session.answer(&json::PointChanges::from(&changes), || {
        points::each(&changes, "locked")
    })
}
