//! `suspend`: takes a machine's taps off.

use super::{error::CliResult, json, list::state, session::Session};
use crate::api::v1;

/// Suspends a machine's protection: its taps are taken off until `resume`
///
/// What QEMU refuses while writes are captured (snapshot, block copy, backup) is done between `suspend` and
/// `resume`. The time between is a gap; `resume` catches up.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::MachineRequest { name: args.name };
    let machine = session
        .client
        .call(async |api| api.suspend(request).await)?;
    session.answer(&json::Machine::from(&machine), || {
        format!("{} is {}", machine.name, state(&machine))
    })
}
