//! `takeover-list`: the taken-over machines.

use super::{
    error::CliResult,
    json,
    session::Session,
    text::{Table, local, or_dash},
};
use crate::{api::v1, units::format_size};

/// Lists the taken-over machines
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, session: &mut Session) -> CliResult {
    let list = session
        .client
        .call(async |api| api.list_takeovers(v1::Empty {}).await)?;
    session.answer(&json::Takeovers::from(&list), || {
        let mut table = Table::new([
            "Name",
            "State",
            "From",
            "Point",
            "Point's time",
            "Started",
            "Written",
            "Detail",
        ]);
        for takeover in &list.takeovers {
            let (point, time_ns) = takeover
                .point
                .as_ref()
                .map_or((0, 0), |point| (point.id, point.time_ns));
            table.row([
                takeover.name.clone(),
                takeover.state.clone(),
                takeover.machine.clone(),
                point.to_string(),
                local(time_ns),
                local(takeover.created_ns),
                format_size(takeover.overlay_bytes),
                or_dash(&takeover.detail),
            ]);
        }
        table.render()
    })
}
