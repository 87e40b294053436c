//! `resume`: puts a suspended machine's taps on again.

use super::{error::CliResult, json, list::state, session::Session};
use crate::api::v1;

/// Resumes a suspended machine's protection and catches up
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::MachineRequest { name: args.name };
    let machine = session.client.call(async |api| api.resume(request).await)?;
    session.answer(&json::Machine::from(&machine), || {
        format!("{} is {}", machine.name, state(&machine))
    })
}
