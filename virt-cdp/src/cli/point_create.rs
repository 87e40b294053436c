//! `point-create`: a recovery point now.

use super::{at::At, error::CliResult, json, session::Session};
use crate::api::v1;

/// Makes a recovery point now
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// A text to find the point by
    #[arg(long, value_name = "L", default_value = "", hide_default_value = true)]
    label: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::CreatePointRequest {
        name: args.name,
        label: args.label,
    };
    let point = session
        .client
        .call(async |api| api.create_point(request).await)?;
    session.answer(&json::Point::from(&point), || At::Latest.picked(&point))
}
