//! `point-label`: another label for a point.

use super::{at, error::CliResult, json, points, session::Session};
use crate::api::v1;

/// Gives a point another label, or takes it away
///
/// A label alone does not keep a point: see point-lock.
#[derive(Debug, clap::Args)]
#[command(after_help = super::POINT_HELP)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The point, as --at of other commands takes it
    #[arg(value_name = "POINT")]
    point: String,

    /// A text to find the point by; '' for none
    #[arg(value_name = "LABEL")]
    label: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::LabelPointRequest {
        name: args.name,
        at: Some(at::parse_here(&args.point)?.newest()),
        label: args.label,
    };
    let changes = session
        .client
        .call(async |api| api.label_point(request).await)?;
    session.answer(&json::PointChanges::from(&changes), || {
        points::each(&changes, "labelled")
    })
}
