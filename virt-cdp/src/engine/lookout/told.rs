//! What was seen, as the API's messages.

use std::time::Duration;

use cdp_core::Timestamp;

use super::{Outlook, Sight};
use crate::{
    api::v1,
    engine::{alerts::Alert, messages::time},
};

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Outlook {
    /// Everything there is to tell of the machines, as it was seen last.
    pub(crate) fn protection(&self) -> Vec<v1::MachineStatus> {
        let (machines, lasts) = (self.machines.iter(), self.room_lasts());
        machines.map(|m| m.message(self.at, lasts)).collect()
    }

    /// The alerts that stand.
    pub(crate) fn alert_list(&self) -> Vec<v1::Alert> {
        self.alerts.iter().map(alert).collect()
    }
}

fn alert(alert: &Alert) -> v1::Alert {
    v1::Alert {
        key: alert.key.into(),
        machine: alert.machine.clone(),
        severity: alert.severity.name().into(),
        since_ns: time(alert.since),
        text: alert.text.clone(),
    }
}

impl Sight {
    fn message(&self, at: Timestamp, room_lasts: Option<Duration>) -> v1::MachineStatus {
        let usage = self.sizes.map(|sizes| sizes.usage).unwrap_or_default();
        let age = |of: Option<Timestamp>| of.map(|time| ms(at.since(time)));
        let gaps = self.gaps.values();
        v1::MachineStatus {
            name: self.name.clone(),
            state: self.state.name().into(),
            state_detail: self.detail.clone(),
            state_since_ns: time(self.since),
            points: self.points,
            newest_point_ns: self.newest.map_or(0, time),
            newest_point_age_ms: age(self.newest),
            unsynced_age_ms: self.recording.map(|r| ms(r.unsynced_age)),
            gaps: gaps.clone().map(|tally| tally.gaps).sum(),
            gap_ms: ms(gaps.map(|tally| tally.time).sum()),
            open_gap: self.open_gap.as_ref().map(|gap| v1::Gap {
                start_ns: time(gap.since),
                end_ns: 0,
                reason: gap.reason.clone(),
            }),
            journal_bytes: usage.journal_bytes,
            base_bytes: usage.base_bytes,
            base_point_ns: self.base.map_or(0, time),
            base_point_age_ms: age(self.base),
            buffer_bytes: self.recording.map_or(0, |r| r.buffer_used),
            buffer_limit_bytes: self.recording.map_or(0, |r| r.buffer_limit),
            activity: Some(self.activity_message(room_lasts)),
        }
    }

    /// How fast the machine is written to, and how its harbor grows; the file system's room lasts for `room_lasts` at the
    /// rate of all machines.
    pub(crate) fn activity_message(&self, room_lasts: Option<Duration>) -> v1::Activity {
        let latency = self.activity.as_ref().map(|activity| &activity.latency);
        let quantile = |of| latency?.quantile(of).map(us);
        let activity = self.activity.as_ref();
        let room = self
            .limit
            .zip(self.sizes)
            .map(|(limit, sizes)| limit.saturating_sub(sizes.kept()));
        v1::Activity {
            window_ms: activity.map_or(0, |a| ms(a.window)),
            bytes_per_second: activity.map_or(0.0, |a| a.bytes_per_second),
            writes_per_second: activity.map_or(0.0, |a| a.writes_per_second),
            latency_p50_us: quantile(0.5),
            latency_p99_us: quantile(0.99),
            growth: self.growth.map(|growth| v1::Growth {
                window_ms: ms(growth.window),
                bytes_per_day: growth.bytes_per_day,
                limit_bytes: self.limit.unwrap_or(0),
                limit_in_ms: room.and_then(|room| growth.lasts(room)).map(ms),
                file_system_in_ms: room_lasts.map(ms),
            }),
        }
    }
}
