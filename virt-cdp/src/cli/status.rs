//! `status`: how the daemon is, how its machines are protected, and what somebody should look at.

use super::{
    activity::{age, latency, rate},
    error::CliResult,
    json,
    session::Session,
    text::{Table, local, or_dash, pairs, plain},
};
use crate::{api::v1, units::format_size};

/// Shows how the daemon is, how the machines are protected, and what is wrong
///
/// Rates and latencies are of the last 5 minutes, or since the daemon's start. The latencies are the median and the 99th
/// percentile. Lag is the age of the oldest acknowledged write that is not on stable storage.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, session: &mut Session) -> CliResult {
    let status = session
        .client
        .call(async |api| api.status(v1::StatusRequest {}).await)?;
    let uri = session.client.address().uri();
    session.answer(&json::Status::from(&status), || describe(&status, &uri))
}

fn describe(status: &v1::StatusReply, uri: &str) -> String {
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
        ("Drills running", status.drills_running.to_string()),
        ("Report key", or_dash(&status.report_key)),
    ]);
    if !status.protection.is_empty() {
        text.push('\n');
        text.push_str(&machines(&status.protection));
        text.push('\n');
    }
    for alert in &status.alerts {
        let of = match alert.machine.as_str() {
            "" => String::new(),
            machine => format!("{machine}: "),
        };
        let line = format!(
            "{}: {of}{} ({}, since {})",
            alert.severity,
            alert.text,
            alert.key,
            local(alert.since_ns)
        );
        text.push_str(&plain(&line));
        text.push('\n');
    }
    for problem in &status.problems {
        text.push_str(&format!("problem: {}\n", plain(problem)));
    }
    text
}

fn machines(protection: &[v1::MachineStatus]) -> String {
    let mut table = Table::new([
        "Name",
        "State",
        "Points",
        "Newest",
        "Lag",
        "Gaps",
        "Change rate",
        "Latency",
        "Journal",
        "Base",
        "Base age",
    ]);
    for machine in protection {
        let activity = machine.activity.unwrap_or_default();
        let gaps = match &machine.open_gap {
            Some(gap) => format!("{}, now {}", machine.gaps, gap.reason),
            None => machine.gaps.to_string(),
        };
        table.row([
            machine.name.clone(),
            machine.state.clone(),
            machine.points.to_string(),
            age(machine.newest_point_age_ms),
            age(machine.unsynced_age_ms),
            gaps,
            rate(&activity),
            latency(&activity),
            format_size(machine.journal_bytes),
            format_size(machine.base_bytes),
            age(machine.base_point_age_ms),
        ]);
    }
    table.render()
}
