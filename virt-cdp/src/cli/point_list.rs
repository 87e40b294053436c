//! `point-list`: the recovery points of a machine.

use super::{
    at, coverage,
    error::CliResult,
    json,
    session::Session,
    text::{Table, local, or_dash},
};
use crate::api::v1;

/// Lists a machine's recovery points, oldest first, and what of their time is covered
///
/// The map below the list shows the time from the first point listed (or --from) to now (or --to): where it can be
/// gone back to, and where there are gaps.
///
/// --from and --to take what --at takes: `latest`, a point id, an age (30s, 5m, 2h, 1d), a local time
/// (YYYY-MM-DD HH:MM:SS[.mmm]) or RFC 3339. Both ends are included.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// Only points from this moment on
    #[arg(long, value_name = "T")]
    from: Option<String>,

    /// Only points up to this moment
    #[arg(long, value_name = "T")]
    to: Option<String>,

    /// Only the newest N of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let parse = |text: &Option<String>| text.as_deref().map(at::parse_here).transpose();
    let request = v1::ListPointsRequest {
        name: args.name,
        from: parse(&args.from)?.map(at::At::oldest),
        to: parse(&args.to)?.map(at::At::newest),
        limit: args.limit.unwrap_or(0),
    };
    let list = session
        .client
        .call(async |api| api.list_points(request).await)?;
    session.answer(&json::Points::from(&list), || {
        let mut table = Table::new(["Id", "Time", "Grade", "Locked", "State", "Label"]);
        for point in &list.points {
            table.row([
                point.id.to_string(),
                local(point.time_ns),
                point.grade.clone(),
                if point.locked { "yes" } else { "-" }.into(),
                if point.damaged { "damaged" } else { "ok" }.into(),
                or_dash(&point.label),
            ]);
        }
        let more = if list.truncated {
            "(there are older ones)\n"
        } else {
            ""
        };
        format!(
            "{}{more}\n{}",
            table.render(),
            coverage::map(&list.coverage)
        )
    })
}
