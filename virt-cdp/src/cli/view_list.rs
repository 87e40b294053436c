//! `view-list`: the open views.

use super::{
    error::CliResult,
    json,
    session::Session,
    text::{Table, local},
};
use crate::api::v1;

/// Lists the open views
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, session: &mut Session) -> CliResult {
    let list = session
        .client
        .call(async |api| api.list_views(v1::Empty {}).await)?;
    session.answer(&json::Views::from(&list), || {
        let mut table = Table::new([
            "Id",
            "Machine",
            "Point",
            "Point's time",
            "Opened",
            "Clients",
            "Holder",
        ]);
        for view in &list.views {
            let (point, time_ns) = view
                .point
                .as_ref()
                .map_or((0, 0), |point| (point.id, point.time_ns));
            table.row([
                view.id.clone(),
                view.machine.clone(),
                point.to_string(),
                local(time_ns),
                local(view.opened_ns),
                view.connections.to_string(),
                view.holder.clone(),
            ]);
        }
        table.render()
    })
}
