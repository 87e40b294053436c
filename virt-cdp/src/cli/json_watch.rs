//! What `--json` prints of alerts, rates and growth: parts of `status` and `info`, by the rules of [`json`](super::json).

use serde::Serialize;

use super::json::{Gap, document, time};
use crate::api::v1;

document! {
    /// What somebody should look at; `machine` is `""` where it is about the daemon.
    Alert(a: v1::Alert) {
        key: String = a.key.clone(),
        machine: String = a.machine.clone(),
        severity: String = a.severity.clone(),
        since: Option<String> = time(a.since_ns),
        text: String = a.text.clone(),
    }
}

document! {
    /// How a machine is protected; in `status` as `protection`.
    Protection(p: v1::MachineStatus) {
        name: String = p.name.clone(),
        state: String = p.state.clone(),
        state_detail: String = p.state_detail.clone(),
        state_since: Option<String> = time(p.state_since_ns),
        points: u64 = p.points,
        newest_point: Option<String> = time(p.newest_point_ns),
        newest_point_age_ms: Option<u64> = p.newest_point_age_ms,
        unsynced_age_ms: Option<u64> = p.unsynced_age_ms,
        gaps: u64 = p.gaps,
        gap_ms: u64 = p.gap_ms,
        open_gap: Option<Gap> = p.open_gap.as_ref().map(Into::into),
        journal_bytes: u64 = p.journal_bytes,
        base_bytes: u64 = p.base_bytes,
        base_point: Option<String> = time(p.base_point_ns),
        base_point_age_ms: Option<u64> = p.base_point_age_ms,
        buffer_bytes: u64 = p.buffer_bytes,
        buffer_limit_bytes: u64 = p.buffer_limit_bytes,
        activity: Option<Activity> = p.activity.as_ref().map(Into::into),
    }
}

document! {
    /// How fast a machine is written to; `window_ms` is the time the figures are of, 0 while nothing is known.
    Activity(a: v1::Activity) {
        window_ms: u64 = a.window_ms,
        bytes_per_second: f64 = a.bytes_per_second,
        writes_per_second: f64 = a.writes_per_second,
        latency_p50_us: Option<u64> = a.latency_p50_us,
        latency_p99_us: Option<u64> = a.latency_p99_us,
        growth: Option<Growth> = a.growth.as_ref().map(Into::into),
    }
}

document! {
    /// How a harbor grew over `window_ms`, and how long the room lasts at that rate; null: for ever, or there is no limit.
    Growth(g: v1::Growth) {
        window_ms: u64 = g.window_ms,
        bytes_per_day: i64 = g.bytes_per_day,
        limit_bytes: u64 = g.limit_bytes,
        limit_in_ms: Option<u64> = g.limit_in_ms,
        file_system_in_ms: Option<u64> = g.file_system_in_ms,
    }
}
