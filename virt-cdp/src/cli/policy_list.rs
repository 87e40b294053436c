//! `policy-list`: the policies there are.

use super::{
    error::CliResult,
    json,
    policy::{limit, span},
    session::Session,
    text::{Table, or_dash},
};
use crate::api::v1;

/// Lists the policies by which points are kept
///
/// Each column says how far back from now that class of points is kept: every point, or the last one of each hour, day,
/// ISO week and month, by UTC. Policies are made with policy-set, or stand in the daemon's configuration; what policy-set
/// has set goes before that.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, session: &mut Session) -> CliResult {
    let list = session
        .client
        .call(async |api| api.list_policies(v1::Empty {}).await)?;
    session.answer(&json::Policies::from(&list), || {
        let mut table = Table::new([
            "Name",
            "All",
            "Hourly",
            "Daily",
            "Weekly",
            "Monthly",
            "Size limit",
            "From",
            "Machines",
        ]);
        for policy in &list.policies {
            table.row([
                policy.name.clone(),
                span(policy.all_ms),
                span(policy.hourly_ms),
                span(policy.daily_ms),
                span(policy.weekly_ms),
                span(policy.monthly_ms),
                limit(policy.size_limit_bytes),
                policy.origin.clone(),
                or_dash(&policy.machines.join(", ")),
            ]);
        }
        table.render()
    })
}
