//! How fast a machine writes, and how fast its harbor grows: counters as they were, again and again.
//!
//! The change rate comes from a sample every few seconds of the last minutes. The growth comes from the bytes kept, one
//! sample a minute over a day, beside the first one and the newest: what the base points add, and what merging and
//! retention take away, shows only in a longer time. Each figure carries the time it was measured over.
//!
//! Invariant: memory is bounded, and a figure never spans a time in which the counters began anew.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use qemu_hook::tap::{LatencyCounts, TapCounts};

/// Time between two samples of what was written.
const RATE_STEP: Duration = Duration::from_secs(5);
/// The time a change rate is of, once so much has passed.
const RATE_WINDOW: Duration = Duration::from_secs(300);
/// Samples of it that are kept.
const RATE_SAMPLES: usize = (RATE_WINDOW.as_secs() / RATE_STEP.as_secs()) as usize;

/// Time between two samples of what is kept.
const GROWTH_STEP: Duration = Duration::from_secs(60);
/// Samples of it that are kept: of a day.
const GROWTH_SAMPLES: usize = 24 * 60;
/// The least time a growth is told of.
const GROWTH_LEAST: Duration = Duration::from_secs(60);

const DAY_S: f64 = 86_400.0;

/// What a machine wrote lately.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Activity {
    /// The time it is of.
    pub(crate) window: Duration,
    /// Bytes of data written per second.
    pub(crate) bytes_per_second: f64,
    /// Writes per second, zeroes among them.
    pub(crate) writes_per_second: f64,
    /// How long they waited for their replies.
    pub(crate) latency: LatencyCounts,
}

/// How a harbor grew lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Growth {
    /// The time it was measured over.
    pub(crate) window: Duration,
    /// Bytes per day at that rate; negative where it shrank.
    pub(crate) bytes_per_day: i64,
}

impl Growth {
    /// Returns how long it takes at that rate until `room` bytes are used up; none if it does not grow.
    pub(crate) fn lasts(self, room: u64) -> Option<Duration> {
        let seconds = room as f64 / self.bytes_per_day as f64 * DAY_S;
        let grows = self.bytes_per_day > 0;
        grows
            .then(|| Duration::try_from_secs_f64(seconds).ok())
            .flatten()
    }
}

/// A machine's counters over the last time.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    written: VecDeque<(Instant, TapCounts)>,
    kept: VecDeque<(Instant, u64)>,
    newest_kept: Option<(Instant, u64)>,
    /// What was measured up to here does not count.
    forgotten: Option<Instant>,
}

impl Rates {
    /// Notes what was written so far, since the daemon's start.
    pub(crate) fn note_written(&mut self, now: Instant, counts: TapCounts) {
        let due = |(at, _): &(Instant, TapCounts)| now.saturating_duration_since(*at) >= RATE_STEP;
        if self.written.back().is_none_or(due) {
            if self.written.len() >= RATE_SAMPLES {
                self.written.pop_front();
            }
            self.written.push_back((now, counts));
        }
    }

    /// Returns what was written lately, up to `counts` at this moment; none before some time has passed.
    pub(crate) fn activity(&self, now: Instant, counts: &TapCounts) -> Option<Activity> {
        let (began, before) = self.written.front()?;
        let window = now.saturating_duration_since(*began);
        if window < RATE_STEP {
            return None;
        }
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / window.as_secs_f64();
        Some(Activity {
            window,
            bytes_per_second: rate(counts.bytes, before.bytes),
            writes_per_second: rate(counts.writes + counts.zeroes, before.writes + before.zeroes),
            latency: counts.latency.since(&before.latency),
        })
    }

    /// Notes how many bytes the harbor had at a moment.
    pub(crate) fn note_kept(&mut self, at: Instant, bytes: u64) {
        let known = self.newest_kept.map(|(newest, _)| newest);
        if known.max(self.forgotten).is_some_and(|known| at <= known) {
            return;
        }
        self.newest_kept = Some((at, bytes));
        let due = |(last, _): &(Instant, u64)| at.saturating_duration_since(*last) >= GROWTH_STEP;
        if self.kept.back().is_none_or(due) {
            if self.kept.len() >= GROWTH_SAMPLES {
                self.kept.pop_front();
            }
            self.kept.push_back((at, bytes));
        }
    }

    /// Forgets what was kept up to now: a seed is no measure of what follows on it.
    pub(crate) fn forget_kept(&mut self, now: Instant) {
        self.kept.clear();
        (self.newest_kept, self.forgotten) = (None, Some(now));
    }

    /// Returns how the harbor grew lately; none before a minute has passed.
    pub(crate) fn growth(&self) -> Option<Growth> {
        let (began, before) = self.kept.front()?;
        let (at, bytes) = self.newest_kept?;
        let window = at.saturating_duration_since(*began);
        if window < GROWTH_LEAST {
            return None;
        }
        let grown = bytes as f64 - *before as f64;
        Some(Growth {
            window,
            bytes_per_day: (grown / window.as_secs_f64() * DAY_S) as i64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(bytes: u64, writes: u64) -> TapCounts {
        TapCounts {
            bytes,
            writes,
            ..TapCounts::default()
        }
    }

    #[test]
    fn the_change_rate_is_of_the_last_minutes_and_says_of_how_many() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut rates = Rates::default();
        assert_eq!(rates.activity(at(0), &counts(0, 0)), None);
        rates.note_written(at(0), counts(1000, 10));
        assert_eq!(rates.activity(at(4), &counts(9000, 20)), None, "too short");
        // 100 bytes and 2 writes a second.
        for s in 1..=1000 {
            rates.note_written(at(s), counts(1000 + 100 * s, 10 + 2 * s));
        }
        let activity = rates
            .activity(at(1000), &counts(101_000, 2010))
            .expect("known");
        assert_eq!(activity.window, Duration::from_secs(295));
        assert_eq!(activity.bytes_per_second, 100.0);
        assert_eq!(activity.writes_per_second, 2.0);
        assert!(rates.written.len() <= RATE_SAMPLES);
        // Then nothing: it falls as the window moves on, and is zero when it is through.
        for s in 1001..=1150 {
            rates.note_written(at(s), counts(101_000, 2010));
        }
        let activity = rates
            .activity(at(1150), &counts(101_000, 2010))
            .expect("known");
        assert!(
            (45.0..=55.0).contains(&activity.bytes_per_second),
            "{activity:?}"
        );
        for s in 1151..=1500 {
            rates.note_written(at(s), counts(101_000, 2010));
        }
        let activity = rates.activity(at(1500), &counts(101_000, 2010));
        assert_eq!(activity.expect("known").bytes_per_second, 0.0);
    }

    #[test]
    fn growth_is_what_is_kept_more_over_at_most_a_day() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut rates = Rates::default();
        rates.note_kept(at(0), 5000);
        rates.note_kept(at(59), 6000);
        assert_eq!(rates.growth(), None, "less than a minute");
        rates.note_kept(at(90), 5000 + 900);
        let growth = rates.growth().expect("known");
        assert_eq!(growth.window, Duration::from_secs(90));
        assert_eq!(growth.bytes_per_day, 864_000);
        assert_eq!(growth.lasts(864_000), Some(Duration::from_secs(86_400)));
        assert_eq!(growth.lasts(0), Some(Duration::ZERO));
        // Two days at 10 bytes a second, then a third in which as much goes as comes.
        for minute in 2..=2 * 24 * 60 {
            rates.note_kept(at(minute * 60), 5000 + minute * 600);
        }
        assert_eq!(rates.growth().expect("known").bytes_per_day, 864_000);
        assert_eq!(rates.kept.len(), GROWTH_SAMPLES);
        for minute in 1..=24 * 60 {
            rates.note_kept(at((2 * 24 * 60 + minute) * 60), 5000 + 2 * 864_000);
        }
        let growth = rates.growth().expect("known");
        assert!(growth.window <= Duration::from_secs(86_400), "{growth:?}");
        assert_eq!((growth.bytes_per_day, growth.lasts(1)), (0, None));
        // A measurement that comes again changes nothing, a harbor that shrinks does not fill up.
        let newest = rates.newest_kept;
        rates.note_kept(at(0), 1 << 40);
        assert_eq!(rates.newest_kept, newest);
        rates.forget_kept(at(899_990));
        assert_eq!(rates.growth(), None);
        // Measured before.
        rates.note_kept(at(899_990), 1 << 40);
        rates.note_kept(at(900_000), 1000);
        rates.note_kept(at(900_100), 0);
        let growth = rates.growth().expect("known");
        assert_eq!((growth.bytes_per_day, growth.lasts(1)), (-864_000, None));
    }
}
