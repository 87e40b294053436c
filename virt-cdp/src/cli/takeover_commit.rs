//! `takeover-commit`: makes a taken-over machine stand on its own.

use super::{
    error::CliResult,
    job::{OnInterrupt, follow},
    json,
    session::Session,
};
use crate::api::v1;

/// Copies the rest of a taken-over machine's disks, so that it needs virt-cdp no more
///
/// The machine goes on running. Ctrl-C leaves the commit running.
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
    let job = session
        .client
        .call(async |api| api.commit_takeover(request).await)?;
    let job = follow(
        session,
        job,
        OnInterrupt::Leave("see how it is: virt-cdp takeover-list"),
    )?;
    session.answer(&json::Job::from(&job), || {
        format!("{} stands on its own; its view is closed", args.name)
    })
}
