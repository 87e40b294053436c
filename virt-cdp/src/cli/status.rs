//! `status`: how the daemon is.

use super::{
    error::CliResult,
    json,
    session::Session,
    text::{local, pairs, plain},
};
use crate::{api::v1, units::format_size};

/// Shows how the daemon is
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, session: &mut Session) -> CliResult {
    let status = session
        .client
        .call(async |api| api.status(v1::StatusRequest {}).await)?;
    let uri = session.client.address().uri();
    session.answer(&json::Status::from(&status), || {
        let mut text = pairs(&[
            (
                "Daemon",
                format!("virtcdpd {}, pid {}, at {uri}", status.version, status.pid),
            ),
            ("Started", local(status.started_ns)),
            (
                "State directory",
                format!(
                    "{}, {} free",
                    status.state_dir,
                    format_size(status.free_bytes)
                ),
            ),
            (
                "Machines",
                format!(
                    "{}, {} of them protected",
                    status.machines, status.machines_protected
                ),
            ),
            ("Views", status.views.to_string()),
            ("Takeovers", status.takeovers.to_string()),
            ("Jobs running", status.jobs_running.to_string()),
        ]);
        for problem in &status.problems {
            text.push_str(&format!("problem: {}\n", plain(problem)));
        }
        text
    })
}
