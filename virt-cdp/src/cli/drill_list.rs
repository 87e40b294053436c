//! `drill-list`: the drills that were held.

use super::{
    drills::{age, took},
    error::CliResult,
    json_drill,
    session::Session,
    text::{Table, or_dash},
};
use crate::api::v1;

/// Lists the drills that were held, and those that run
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only those of this machine or plan
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// The newest N
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::ListDrillsRequest {
        name: args.name.unwrap_or_default(),
        limit: args.limit.max(1),
    };
    let list = session
        .client
        .call(async |api| api.list_drills(request).await)?;
    session.answer(&json_drill::Drills::from(&list), || {
        let mut table = Table::new(["Drill", "Of", "Verdict", "RTO", "Data", "Reason", "Why"]);
        for drill in &list.drills {
            let verdict = match (drill.state.as_str(), drill.verdict.as_str()) {
                ("kept", verdict) => format!("{verdict}, kept"),
                ("running", _) => "running".into(),
                (_, verdict) => verdict.to_owned(),
            };
            table.row([
                drill.id.clone(),
                drill.name.clone(),
                verdict,
                drill.rto_ms.map(took).unwrap_or_else(|| "-".into()),
                drill.rpo_ms.map(age).unwrap_or_else(|| "-".into()),
                drill.reason.clone(),
                or_dash(&drill.why),
            ]);
        }
        let more = if list.truncated {
            "older ones are left out; see --limit\n"
        } else {
            ""
        };
        format!("{}{more}", table.render())
    })
}
