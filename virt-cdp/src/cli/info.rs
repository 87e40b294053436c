//! `info`: everything about one machine.

use super::{
    activity, coverage,
    error::CliResult,
    json,
    list::state,
    session::Session,
    text::{Table, local, or_dash, pairs},
};
use crate::{
    api::v1,
    units::{format_duration, format_size},
};

/// How many gaps people are shown; programs get all.
const GAPS_SHOWN: usize = 10;

/// Shows a machine: its state, volumes, points, gaps and what is kept of it
///
/// The coverage map shows the last 24 hours: where they can be gone back to, and where there are gaps.
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
        .call(async |api| api.get_machine(request).await)?;
    session.answer(&json::Machine::from(&machine), || describe(&machine))
}

/// Describes a machine to people.
pub(super) fn describe(machine: &v1::Machine) -> String {
    let mut text = pairs(&[of_machine(machine), of_activity(machine)].concat());
    if !machine.coverage.is_empty() {
        text.push('\n');
        text.push_str(&coverage::map(&machine.coverage));
    }
    let mut volumes = Table::new(["Volume", "Size", "Tap", "Node", "Image"]);
    for volume in &machine.volumes {
        let tap = if volume.attached { "attached" } else { "-" };
        let size = format_size(volume.size_bytes);
        volumes.row([
            volume.target.clone(),
            size,
            tap.into(),
            or_dash(&volume.node),
            or_dash(&volume.image),
        ]);
    }
    text.push('\n');
    text.push_str(&volumes.render());
    for left_out in &machine.left_out {
        text.push_str(&format!("left out: {}\n", super::text::plain(left_out)));
    }
    if let Some(resync) = &machine.last_resync {
        text.push_str(&format!("\nLast resync: {}\n", describe_resync(resync)));
        for volume in &resync.volumes {
            text.push_str(&format!("  {}\n", describe_volume(volume)));
        }
    }
    if !machine.gaps.is_empty() {
        let mut gaps = Table::new(["Gap from", "To", "Reason"]);
        for gap in machine
            .gaps
            .iter()
            .skip(machine.gaps.len().saturating_sub(GAPS_SHOWN))
        {
            gaps.row([local(gap.start_ns), local(gap.end_ns), gap.reason.clone()]);
        }
        text.push('\n');
        text.push_str(&gaps.render());
    }
    text
}

/// What stands at the top, as pairs.
fn of_machine(machine: &v1::Machine) -> Vec<(&'static str, String)> {
    vec![
        ("Name", machine.name.clone()),
        ("Id", machine.id.clone()),
        ("Source", machine.source.clone()),
        (
            "State",
            format!("{} since {}", state(machine), local(machine.state_since_ns)),
        ),
        ("Detail", or_dash(&machine.state_detail)),
        ("Protected", format!("since {}", local(machine.created_ns))),
        (
            "Points",
            format!(
                "{}, one every {}",
                machine.points,
                every(machine.point_interval_ms)
            ),
        ),
        ("First point", point(machine.first_point.as_ref())),
        ("Newest point", point(machine.newest_point.as_ref())),
        (
            "Captured",
            format!(
                "{} in {} writes",
                format_size(machine.written_bytes),
                machine.writes
            ),
        ),
        ("Journal", format_size(machine.journal_bytes)),
        ("Base points", format_size(machine.base_bytes)),
        ("Verified", verified(machine)),
        ("Damage", damage(machine)),
        ("Proven", proven(machine)),
        ("Drills", drills(machine)),
        ("Policy", policy(machine)),
        ("Size limit", size_limit(machine)),
        (
            "IO buffer",
            format!(
                "{} of {}",
                format_size(machine.buffer_bytes),
                format_size(machine.buffer_limit_bytes)
            ),
        ),
        ("Ack", ack(machine)),
        ("Flush interval", flush_interval(machine)),
        ("Harbor", machine.harbor.clone()),
    ]
}

/// How fast it is written to, how long the guest waits for us, and how its harbor grows.
fn of_activity(machine: &v1::Machine) -> Vec<(&'static str, String)> {
    let Some(known) = &machine.activity else {
        return Vec::new();
    };
    let measured = match known.window_ms {
        0 => String::new(),
        ms => format!(", in {}", activity::window(ms)),
    };
    let rate = format!("{}{measured}", activity::rate(known));
    let latency = match known.latency_p50_us {
        Some(_) => format!("{} (median, 99 of 100)", activity::latency(known)),
        None => "-".into(),
    };
    let mut pairs = vec![("Change rate", rate), ("Capture latency", latency)];
    pairs.extend(activity::growth(known.growth.as_ref()));
    pairs
}

/// When writes are acknowledged, and who said so.
pub(super) fn ack(machine: &v1::Machine) -> String {
    format!("{}, {}", machine.ack, chosen(machine.ack_own))
}

/// The longest time a buffered write waits, and who said so.
pub(super) fn flush_interval(machine: &v1::Machine) -> String {
    let interval = every(machine.flush_interval_ms);
    format!("{interval}, {}", chosen(machine.flush_interval_own))
}

/// How much of what is kept was verified, and since when.
fn verified(machine: &v1::Machine) -> String {
    match machine.files_verified {
        0 => "nothing yet".into(),
        verified => format!(
            "{verified} of {} files, each since {}",
            machine.files,
            local(machine.verified_since_ns)
        ),
    }
}

/// What is known to be damaged, the first of it in words.
fn damage(machine: &v1::Machine) -> String {
    let Some(first) = machine.damage.first() else {
        return "none known".into();
    };
    let more = match machine.damage.len() {
        1 => String::new(),
        count => format!(" (and {} more, see verify)", count - 1),
    };
    let points = match machine.points_damaged {
        0 => "no point shows it".into(),
        1 => "1 point is damaged".into(),
        count => format!("{count} points are damaged"),
    };
    format!("{}{more}; {points}", super::text::plain(first))
}

/// The newest point that a drill has proved.
fn proven(machine: &v1::Machine) -> String {
    let drills = machine.drills.clone().unwrap_or_default();
    match drills.proven_point {
        None => "no point yet".into(),
        Some(id) => format!("point {id}, {}", local(drills.proven_point_ns)),
    }
}

/// When it is drilled, and how the last one went.
fn drills(machine: &v1::Machine) -> String {
    let drills = machine.drills.clone().unwrap_or_default();
    let mut text = match drills.rule.as_str() {
        "" => "when asked for".to_owned(),
        rule => rule.to_owned(),
    };
    if !drills.last.is_empty() {
        let verdict = match (drills.last_proved, drills.rto_ms) {
            (true, Some(rto)) => format!("proved in {}", super::drills::took(rto)),
            (true, None) => "proved".into(),
            (false, _) => format!("FAILED: {}", super::text::plain(&drills.last_why)),
        };
        text += &format!("; the last, {}, {verdict}", local(drills.last_ns));
    }
    if !drills.put_off.is_empty() {
        text += &format!("; put off: {}", super::text::plain(&drills.put_off));
    }
    text
}

/// The policy its points are kept by, and what is wrong with that.
fn policy(machine: &v1::Machine) -> String {
    match machine.policy_problem.as_str() {
        "" => machine.policy.clone(),
        problem => format!("{}; {problem}", machine.policy),
    }
}

/// How large its harbor may be before that is told, and how it stands to that.
fn size_limit(machine: &v1::Machine) -> String {
    match machine.size_limit_bytes {
        0 => "-".into(),
        limit => format!("{}, {}", format_size(limit), machine.size_state),
    }
}

fn chosen(own: bool) -> &'static str {
    if own {
        "chosen for this machine"
    } else {
        "as configured"
    }
}

fn describe_resync(resync: &v1::Resync) -> String {
    let took = u64::try_from(resync.end_ns.saturating_sub(resync.start_ns)).unwrap_or(0);
    format!(
        "{} read, {} differed, in {:.1} s, {}",
        format_size(resync.read_bytes),
        format_size(resync.differing_bytes),
        took as f64 / 1e9,
        local(resync.end_ns)
    )
}

fn describe_volume(volume: &v1::ResyncVolume) -> String {
    let reason = super::text::plain(&volume.reason);
    let how = match volume.how.as_str() {
        "bitmap" => "what was marked".to_owned(),
        "nothing" => format!("nothing, because {reason}"),
        _ => format!("whole disk, because {reason}"),
    };
    format!(
        "{}: {how}: {} read, {} differed",
        volume.target,
        format_size(volume.read_bytes),
        format_size(volume.differing_bytes)
    )
}

fn every(ms: u64) -> String {
    format_duration(std::time::Duration::from_millis(ms))
}

fn point(point: Option<&v1::Point>) -> String {
    point.map_or("-".into(), |point| {
        format!("{}, {}", point.id, local(point.time_ns))
    })
}
