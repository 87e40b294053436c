//! `policy-show`: one policy.

use super::{error::CliResult, json, policy::describe, session::Session};
use crate::api::v1;

/// Shows a policy: how long which points are kept by it, and the machines it is assigned to
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy
    #[arg(value_name = "POLICY")]
    name: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::PolicyRequest { name: args.name };
    let policy = session
        .client
        .call(async |api| api.get_policy(request).await)?;
    session.answer(&json::Policy::from(&policy), || describe(&policy))
}
