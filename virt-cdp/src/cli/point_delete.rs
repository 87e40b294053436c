//! `point-delete`: points that are not wanted any more.

use super::{at, error::CliResult, json, points, session::Session};
use crate::api::v1;

/// Deletes points, all of them or none; this cannot be undone
///
/// Locked points, points in use by a view, an export or a takeover, and the newest point are refused. A time means the
/// newest point not later, and the answer names it.
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
        .call(async |api| api.delete_points(request).await)?;
    session.answer(&json::DeletedPoints::from(&changes), || {
        points::deleted(&changes)
    })
}
