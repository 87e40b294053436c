//! `policy-assign`: has a machine's points kept by a policy.

use super::{error::CliResult, json, session::Session};
use crate::api::v1;

/// Has a machine's points kept by a policy, from now on
///
/// Points that the policy does not want are removed within a minute: see policy-preview. `default` is the policy of
/// every machine that has none assigned.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The policy
    #[arg(value_name = "POLICY")]
    policy: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::AssignPolicyRequest {
        name: args.name,
        policy: args.policy,
    };
    let machine = session
        .client
        .call(async |api| api.assign_policy(request).await)?;
    session.answer(&json::Machine::from(&machine), || {
        format!(
            "the points of {} are kept by policy {}",
            machine.name, machine.policy
        )
    })
}
