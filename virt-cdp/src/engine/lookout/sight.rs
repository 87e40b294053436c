//! A machine as it is seen at one moment, and what has to be remembered from one look to the next.
//!
//! Invariant: nothing here waits: a snapshot of the supervisor's, the harbor's catalog in memory, the taps' counters, and
//! sizes as they were measured last.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use cdp_core::{GapReason, PointId, RecorderStats, Timestamp, VolumeId};
use qemu_hook::tap::TapCounts;

use super::{
    rates::{Activity, Growth, Rates},
    sizes::Sizes,
    tally::{GapTally, Tally},
};
use crate::engine::{
    drills::Proof,
    machine::{Machine, State},
    messages,
};

/// What is known of a machine at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    /// Its name.
    pub(crate) name: String,
    /// What it is doing, why, and since when.
    pub(crate) state: State,
    pub(crate) detail: String,
    pub(crate) since: Timestamp,
    /// Why its last capture ended without anybody's wish, until points are made again.
    pub(crate) missing: Option<GapReason>,
    /// Time between two of its points.
    pub(crate) interval: Duration,
    /// Its flush interval.
    pub(crate) flush: Duration,
    /// How many points there are, and the time of the newest.
    pub(crate) points: u64,
    pub(crate) newest: Option<Timestamp>,
    /// Since when the base points in use are.
    pub(crate) base: Option<Timestamp>,
    /// All gaps so far, by reason.
    pub(crate) gaps: BTreeMap<String, Tally>,
    /// The gap it is in.
    pub(crate) open_gap: Option<OpenGap>,
    /// How long it has been in gaps, one after the other, though it is to be captured.
    pub(crate) astray: Duration,
    /// How long it has been written to without a point, while points are made.
    pub(crate) pending: Duration,
    /// Of the recording, while there is one.
    pub(crate) recording: Option<RecorderStats>,
    /// What came through the taps of each volume since the daemon's start.
    pub(crate) volumes: Vec<VolumeSight>,
    /// What the harbor took when it was last measured.
    pub(crate) sizes: Option<Sizes>,
    /// The most the harbor may take; none: what there is.
    pub(crate) limit: Option<u64>,
    /// How fast it is written to.
    pub(crate) activity: Option<Activity>,
    /// How fast its harbor grows.
    pub(crate) growth: Option<Growth>,
    /// What was found damaged when its harbor was opened, and by verifications.
    pub(crate) damage: Arc<Vec<String>>,
    /// When the file was verified that was not verified for longest.
    pub(crate) verified: Option<Timestamp>,
    /// What drills have proved of it.
    pub(crate) proof: Option<Proof>,
    /// Why a drill that is due does not begin, and for how long.
    pub(crate) put_off: Option<(String, Duration)>,
}

/// A gap that lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenGap {
    /// Since when.
    pub(crate) since: Timestamp,
    /// Why; the name of a state where the harbor does not tell yet.
    pub(crate) reason: String,
}

/// A volume and what came through its taps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeSight {
    /// Its target.
    pub(crate) target: String,
    /// What came.
    pub(crate) counts: TapCounts,
}

/// What is remembered of a machine.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    rates: Rates,
    gaps: GapTally,
    /// Since when it has been in gaps that nobody meant.
    astray: Option<Instant>,
    /// The newest point there was, and since when there are writes behind it.
    pending: Option<(Option<PointId>, Instant)>,
}

impl Watched {
    /// Looks at the machine once.
    pub(super) fn look(
        &mut self,
        machine: &Machine,
        taken: &[(VolumeId, TapCounts)],
        instant: Instant,
        at: Timestamp,
    ) -> Sight {
        let (harbor, status) = (machine.harbor(), machine.status());
        let description = harbor.description();
        let (gaps, newest) = (harbor.gaps(), harbor.newest_point());
        let open_gap = messages::gaps(&gaps, newest.as_ref(), status.state)
            .pop()
            .filter(|gap| gap.end_ns == 0)
            .map(|gap| OpenGap {
                since: messages::timestamp(gap.start_ns),
                reason: gap.reason,
            });
        let meant = matches!(
            status.state,
            State::Off | State::Suspended | State::Unprotected
        );
        let is_astray = open_gap.is_some() && !meant;
        let mut all = TapCounts::default();
        taken.iter().for_each(|(_, counts)| all.add(counts));
        self.rates.note_written(instant, all);
        let sizes = machine.sizes();
        match (status.state, sizes) {
            (State::Seeding, _) => self.rates.forget_kept(instant),
            (_, Some(sizes)) => self.rates.note_kept(sizes.at, sizes.kept()),
            (_, None) => {}
        }
        let written = status.stats.map(|stats| stats.head);
        let behind = match (status.state, written, &newest) {
            (State::Protected, Some(head), Some(point)) => head > point.seq,
            _ => false,
        };
        let target = |id: VolumeId| {
            let volume = description.volume(id);
            volume.map_or_else(|| id.to_string(), |volume| volume.target.clone())
        };
        let volumes = taken.iter().map(|(id, counts)| VolumeSight {
            target: target(*id),
            counts: *counts,
        });
        let limit = machine
            .policy()
            .1
            .map(|in_force| in_force.policy.size_limit);
        let limit = limit.filter(|limit| *limit > 0);
        Sight {
            name: machine.name.clone(),
            state: status.state,
            detail: status.detail,
            since: status.since,
            missing: status.missing,
            interval: Duration::from_millis(description.point_interval_ms),
            flush: harbor.flush_interval(),
            points: harbor.point_count() as u64,
            newest: newest.as_ref().map(|point| point.time),
            base: harbor.base_time(),
            gaps: self.gaps.look(&gaps, at),
            open_gap,
            astray: self.astray(is_astray, instant),
            pending: self.pending(newest.map(|point| point.id), behind, instant),
            recording: status.stats,
            volumes: volumes.collect(),
            sizes,
            limit,
            activity: self.rates.activity(instant, &all),
            growth: self.rates.growth(),
            damage: machine.damage(),
            verified: harbor.verified_since(),
            proof: None,
            put_off: None,
        }
    }

    /// Returns for how long it has been in gaps that nobody meant.
    fn astray(&mut self, is_astray: bool, now: Instant) -> Duration {
        if !is_astray {
            self.astray = None;
        }
        let since = is_astray.then(|| *self.astray.get_or_insert(now));
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Returns for how long there have been writes behind the same newest point.
    fn pending(&mut self, newest: Option<PointId>, behind: bool, now: Instant) -> Duration {
        if !behind {
            self.pending = None;
            return Duration::ZERO;
        }
        match self.pending {
            Some((point, since)) if point == newest => now.saturating_duration_since(since),
            _ => {
                self.pending = Some((newest, now));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_wait_for_a_point_from_when_they_are_seen_behind_the_newest() {
        let start = Instant::now();
        let mut watched = Watched::default();
        // seconds, newest point, writes behind it -> seconds they have waited
        for (s, point, behind, waited) in [
            (0, Some(1), false, 0),
            // The point is old, as nothing was written.
            (3600, Some(1), true, 0),
            (3601, Some(1), true, 1),
            (3602, Some(2), true, 0),
            (3605, Some(2), true, 3),
            (3606, Some(2), false, 0),
            (3607, Some(2), true, 0),
            (3617, Some(2), true, 10),
        ] {
            let now = start + Duration::from_secs(s);
            let found = watched.pending(point.map(PointId), behind, now);
            assert_eq!(found, Duration::from_secs(waited), "at {s}");
        }
    }
}
