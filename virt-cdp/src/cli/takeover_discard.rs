//! `takeover-discard`: removes a taken-over machine and all its traces.

use super::{
    error::CliResult,
    session::{Done, Session},
};
use crate::api::v1;

/// Stops and removes a taken-over machine, its disks and everything it has written
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The taken-over machine
    #[arg(value_name = "TAKEOVER")]
    name: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::TakeoverNameRequest {
        name: args.name.clone(),
    };
    session
        .client
        .call(async |api| api.discard_takeover(request).await)?;
    session.answer(
        &Done {
            name: &args.name,
            done: "discarded",
        },
        || format!("{} is discarded", args.name),
    )
}
