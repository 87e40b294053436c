//! `point-unlock`: points that a policy may remove again.

use super::{at, error::CliResult, json, points, session::Session};
use crate::api::v1;

/// Unlocks points: from now on a policy may remove them
#[derive(Debug, clap::Args)]
#[command(after_help = super::POINT_HELP)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The points, each as --at of other commands takes it; may be several
    #[arg(value_name = "POINT", required = true)]
    points: Vec<String>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let at = at::parse_all(&args.points)?;
    let request = v1::PointsRequest {
        name: args.name,
        at: at.iter().map(|at| at.newest()).collect(),
    };
    let changes = session
        .client
        .call(async |api| api.unlock_points(request).await)?;
    session.answer(&json::PointChanges::from(&changes), || {
        points::each(&changes, "unlocked")
    })
}
