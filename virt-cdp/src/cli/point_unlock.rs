//! `point-unlock`: points that a policy may remove again.

use super::{error::CliResult, json, points, session::Session};

/// Unlocks points: from now on a policy may remove them
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
        .call(async |api| api.unlock_points(request).await)?;
    session.answer(&json::PointChanges::from(&changes), || {
        points::each(&changes, "unlocked")
    })
}
