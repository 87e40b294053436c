//! `drill-discard`: removes a drill that was kept.

use super::{
    error::CliResult,
    session::{Done, Session},
    text::plain,
};
use crate::api::v1;

/// Removes the machines and the network of a drill that failed and was kept
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The drill's number
    #[arg(value_name = "ID")]
    id: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::DrillIdRequest {
        id: args.id.clone(),
    };
    session
        .client
        .call(async |api| api.discard_drill(request).await)?;
    let done = Done {
        name: &args.id,
        done: "removed",
    };
    session.answer(&done, || {
        format!("drill {} is removed; its report stays", plain(&args.id))
    })
}
