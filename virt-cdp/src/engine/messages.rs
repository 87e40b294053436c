//! What the engine knows, as the API's messages.

use std::{sync::atomic::Ordering, time::Duration};

use cdp_core::{
    AckRule, Gap, GapReason, Grade, MachineDescription, MachineSource, Point, Timestamp,
};

use crate::{
    api::v1,
    engine::{
        coverage,
        machine::{Doubt, Machine, Resync, State, Status, now},
        policies::InForce,
        tidy,
    },
};

/// The newest gaps that a machine's message carries.
const GAPS_MAX: usize = 100;

/// A time in nanoseconds.
pub(crate) fn time(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// A time from nanoseconds; what lies before 1970 is 1970.
pub(crate) fn timestamp(ns: i64) -> Timestamp {
    Timestamp(u64::try_from(ns).unwrap_or(0))
}

/// A recovery point.
pub(crate) fn point(point: &Point) -> v1::Point {
    v1::Point {
        id: point.id.0,
        time_ns: time(point.time),
        grade: match point.grade {
            Grade::Crash => "crash".into(),
            Grade::Quiesced => "quiesced".into(),
        },
        label: point.label.clone().unwrap_or_default(),
        seq: point.seq.0,
        locked: point.locked,
        damaged: point.damaged,
    }
}

/// The stable name of a gap's reason.
pub(crate) fn reason_name(reason: GapReason) -> String {
    let value = serde_json::to_value(reason).ok();
    let name = value.as_ref().and_then(|value| value.as_str());
    name.unwrap_or_default().to_owned()
}

/// A gap.
pub(crate) fn gap(gap: &Gap) -> v1::Gap {
    v1::Gap {
        start_ns: time(gap.start),
        end_ns: gap.end.map_or(0, time),
        reason: reason_name(gap.reason),
    }
}

/// All gaps, and the time since the newest point where the machine is not captured and no gap tells of it yet.
pub(crate) fn gaps(gaps: &[Gap], newest: Option<&Point>, state: State) -> Vec<v1::Gap> {
    let mut all: Vec<v1::Gap> = gaps.iter().map(gap).collect();
    let told = state == State::Protected || all.last().is_some_and(|gap| gap.end_ns == 0);
    if let Some(newest) = newest.filter(|_| !told) {
        all.push(v1::Gap {
            start_ns: time(newest.time),
            end_ns: 0,
            reason: state.name().into(),
        });
    }
    all
}

/// The coverage of a machine's last hours, from its first point on.
fn recent(points: &[Point], gaps: &[v1::Gap]) -> Vec<v1::Span> {
    let Some(first) = points.first() else {
        return Vec::new();
    };
    let to_ns = time(now());
    let from_ns = time(first.time).max(to_ns - coverage::MACHINE_SPAN_NS);
    let times: Vec<i64> = points.iter().map(|point| time(point.time)).collect();
    coverage::spans((from_ns, to_ns), &times, gaps)
}

fn resync(resync: &Resync, description: &MachineDescription) -> v1::Resync {
    let volumes: Vec<v1::ResyncVolume> = resync
        .volumes
        .iter()
        .map(|v| {
            let (how, reason) = match &v.extent {
                Doubt::Marked => ("bitmap", ""),
                Doubt::Whole(reason) => ("whole", reason.as_str()),
                Doubt::Nothing(reason) => ("nothing", reason.as_str()),
            };
            v1::ResyncVolume {
                target: description
                    .volume(v.id)
                    .map_or_else(|| v.id.to_string(), |d| d.target.clone()),
                how: how.into(),
                reason: reason.into(),
                read_bytes: v.read,
                differing_bytes: v.differing,
            }
        })
        .collect();
    v1::Resync {
        start_ns: time(resync.start),
        end_ns: time(resync.end),
        read_bytes: volumes.iter().map(|v| v.read_bytes).sum(),
        differing_bytes: volumes.iter().map(|v| v.differing_bytes).sum(),
        volumes,
    }
}

/// Where a machine runs, in words.
pub(crate) fn source(source: &MachineSource) -> String {
    match source {
        MachineSource::Libvirt { uri, uuid } => format!("{uri} {uuid}"),
        MachineSource::Qmp { socket } => format!("qmp:{}", socket.display()),
    }
}

/// Why a machine is in its state, and whether it goes by another name now.
fn detail(name: &str, status: &Status) -> String {
    let renamed = status.called.as_ref().filter(|called| *called != name);
    let renamed = renamed.map(|called| format!("its domain is named '{called}' now"));
    let said = Some(status.detail.clone()).filter(|detail| !detail.is_empty());
    let parts: Vec<String> = said.into_iter().chain(renamed).collect();
    parts.join("; ")
}

/// A policy, and the machines whose points are kept by it.
pub(crate) fn policy(name: &str, in_force: InForce, machines: Vec<String>) -> v1::Policy {
    let keep = in_force.policy.keep;
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    v1::Policy {
        name: name.to_owned(),
        all_ms: ms(keep.all),
        hourly_ms: ms(keep.hourly),
        daily_ms: ms(keep.daily),
        weekly_ms: ms(keep.weekly),
        monthly_ms: ms(keep.monthly),
        size_limit_bytes: in_force.policy.size_limit,
        origin: in_force.origin.name().into(),
        drill: in_force
            .policy
            .drill
            .map(|rule| rule.words())
            .unwrap_or_default(),
        machines,
    }
}

/// A machine with all there is to tell.
pub(crate) fn machine(machine: &Machine) -> v1::Machine {
    let harbor = machine.harbor();
    let description = harbor.description();
    let status = machine.status();
    let usage = harbor.usage().unwrap_or_default();
    let points = harbor.points();
    let gaps = harbor.gaps();
    let stats = status.stats.unwrap_or_default();
    let detail = detail(&description.name, &status);
    let reading = matches!(status.state, State::Seeding | State::Resyncing);
    let progress = status.progress.filter(|_| reading).map(|p| v1::Progress {
        what: if status.state == State::Seeding {
            "seed".into()
        } else {
            "resync".into()
        },
        done_bytes: p.done.load(Ordering::Relaxed),
        total_bytes: p.total.load(Ordering::Relaxed),
    });
    let (policy_name, in_force) = machine.policy();
    let (files_verified, files) = harbor.verified_files();
    let all_gaps = self::gaps(&gaps, points.last(), status.state);
    v1::Machine {
        name: description.name.clone(),
        id: description.machine_id.clone(),
        source: source(&description.source),
        state: status.state.name().into(),
        state_detail: detail,
        state_since_ns: time(status.since),
        volumes: description
            .volumes
            .iter()
            .map(|v| v1::Volume {
                id: v.id.0.into(),
                target: v.target.clone(),
                size_bytes: v.size,
                node: v.node.clone().unwrap_or_default(),
                image: v.original_path.clone().unwrap_or_default(),
                attached: status.attached.contains(&v.id),
            })
            .collect(),
        left_out: status.left_out,
        points: points.len() as u64,
        first_point: points.first().map(point),
        newest_point: points.last().map(point),
        progress,
        journal_bytes: usage.journal_bytes,
        base_bytes: usage.base_bytes,
        buffer_bytes: stats.buffer_used,
        buffer_limit_bytes: stats.buffer_limit,
        writes: stats.writes,
        written_bytes: stats.write_bytes,
        point_interval_ms: description.point_interval_ms,
        harbor: harbor.dir().display().to_string(),
        gaps: gaps
            .iter()
            .skip(gaps.len().saturating_sub(GAPS_MAX))
            .map(gap)
            .collect(),
        created_ns: time(description.created),
        last_resync: status.last_resync.map(|r| resync(&r, &description)),
        coverage: recent(&points, &all_gaps),
        ack: match harbor.ack_rule() {
            AckRule::Buffered => "buffered".into(),
            AckRule::Durable => "durable".into(),
        },
        ack_own: description.ack.is_some(),
        flush_interval_ms: u64::try_from(harbor.flush_interval().as_millis()).unwrap_or(u64::MAX),
        flush_interval_own: description.flush_interval_ms.is_some(),
        policy: policy_name,
        policy_problem: tidy::policy_problem(machine).unwrap_or_default(),
        size_limit_bytes: in_force
            .as_ref()
            .map_or(0, |in_force| in_force.policy.size_limit),
        size_state: tidy::size_state(usage, in_force).name().into(),
        activity: machine.activity(),
        damage: machine.damage().to_vec(),
        points_damaged: points.iter().filter(|point| point.damaged).count() as u64,
        files_verified,
        files,
        verified_since_ns: harbor.verified_since().map_or(0, time),
        drills: machine.drill_message(),
    }
}
