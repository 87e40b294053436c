//! `list`: the protected machines.

use super::{
    error::CliResult,
    json,
    session::Session,
    text::{Table, local},
};
use crate::{api::v1, units::format_size};

/// Lists the protected machines
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, session: &mut Session) -> CliResult {
    let list = session
        .client
        .call(async |api| api.list_machines(v1::Empty {}).await)?;
    session.answer(&json::Machines::from(&list), || {
        let mut table = Table::new(["Name", "State", "Volumes", "Points", "Newest point", "Kept"]);
        for machine in &list.machines {
            table.row([
                machine.name.clone(),
                state(machine),
                machine.volumes.len().to_string(),
                machine.points.to_string(),
                local(
                    machine
                        .newest_point
                        .as_ref()
                        .map_or(0, |point| point.time_ns),
                ),
                format_size(machine.journal_bytes.saturating_add(machine.base_bytes)),
            ]);
        }
        table.render()
    })
}

/// Returns a machine's state, with its progress where it has one: `seeding 42 %`.
pub(super) fn state(machine: &v1::Machine) -> String {
    match &machine.progress {
        Some(progress) if progress.total_bytes > 0 => {
            let percent = u128::from(progress.done_bytes) * 100 / u128::from(progress.total_bytes);
            format!("{} {percent} %", machine.state)
        }
        _ => machine.state.clone(),
    }
}
