//! How long requests waited at a tap for their replies: a histogram that is added to without a lock.
//!
//! A request's wait begins when the read returned that brought its head, and ends when its reply was sent. The clock is
//! read once for each read and once for each send, however many requests they carry, so a request costs a comparison
//! and an addition.
//!
//! Invariant: counts only grow. Who reads them while the tap runs may see one request more or less in one bucket than
//! in another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper ends of the buckets in microseconds, each included; one more bucket has what waited longer.
pub const LATENCY_BOUNDS_US: [u64; 20] = [
    5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// Buckets, the one of what waited longer than all bounds included.
const BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// Waits counted so far, by bucket; may be read from any thread.
#[derive(Debug, Default)]
pub(super) struct Latency {
    counts: [AtomicU64; BUCKETS],
    total_ns: AtomicU64,
}

impl Latency {
    /// Counts `requests` that waited for `wait`.
    pub(super) fn add(&self, wait: Duration, requests: u64) {
        let wait_ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound_us| bound_us * 1000 < wait_ns);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(requests, Ordering::Relaxed);
        }
        let all_ns = wait_ns.saturating_mul(requests);
        self.total_ns.fetch_add(all_ns, Ordering::Relaxed);
    }

    /// Returns the counts as they are now.
    pub(super) fn counts(&self) -> LatencyCounts {
        let mut counts = LatencyCounts {
            total_ns: self.total_ns.load(Ordering::Relaxed),
            ..LatencyCounts::default()
        };
        for (count, now) in counts.counts.iter_mut().zip(&self.counts) {
            *count = now.load(Ordering::Relaxed);
        }
        counts
    }
}

/// How many requests waited how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LatencyCounts {
    /// Requests in each bucket alone: up to each of [`LATENCY_BOUNDS_US`], and longer than all.
    pub counts: [u64; BUCKETS],
    /// All waits together, in nanoseconds.
    pub total_ns: u64,
}

impl LatencyCounts {
    /// Returns the number of requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds the requests of another histogram.
    pub fn add(&mut self, other: &LatencyCounts) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
    }

    /// Returns what was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &LatencyCounts) -> LatencyCounts {
        let mut counted = *self;
        for (count, before) in counted.counts.iter_mut().zip(&earlier.counts) {
            *count = count.saturating_sub(*before);
        }
        counted.total_ns = self.total_ns.saturating_sub(earlier.total_ns);
        counted
    }

    /// Returns the wait that the share `of_all` (0 to 1) of the requests did not exceed, taken evenly within its bucket;
    /// none without requests. A wait beyond the last bound is told as that bound.
    #[must_use]
    pub fn quantile(&self, of_all: f64) -> Option<Duration> {
        let requests = self.requests();
        if requests == 0 {
            return None;
        }
        let wanted = of_all.clamp(0.0, 1.0) * requests as f64;
        let (mut below, mut from_us) = (0.0, 0);
        for (count, bound_us) in self.counts.iter().zip(LATENCY_BOUNDS_US) {
            let in_it = *count as f64;
            if *count > 0 && below + in_it >= wanted {
                let part = (wanted - below) / in_it;
                let us = from_us as f64 + (bound_us - from_us) as f64 * part;
                return Some(Duration::from_secs_f64(us / 1e6));
            }
            below += in_it;
            from_us = bound_us;
        }
        Some(Duration::from_micros(from_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: fn(u64) -> Duration = Duration::from_micros;

    #[test]
    fn a_wait_is_counted_in_the_first_bucket_that_holds_it() {
        // wait in ns -> bucket
        for (wait_ns, bucket) in [
            (0, 0),
            (5_000, 0),
            (5_001, 1),
            (10_000, 1),
            (999_999, 7),
            (1_000_000, 7),
            (1_000_001, 8),
            (10_000_000_000, 19),
            (10_000_000_001, 20),
            (u64::MAX, 20),
        ] {
            let latency = Latency::default();
            latency.add(Duration::from_nanos(wait_ns), 3);
            let counts = latency.counts();
            assert_eq!(counts.counts[bucket], 3, "{wait_ns} ns");
            assert_eq!(counts.requests(), 3, "{wait_ns} ns");
            assert_eq!(counts.total_ns, wait_ns.saturating_mul(3));
        }
    }

    #[test]
    fn quantiles_are_taken_within_their_bucket() {
        let counts = |of: &[(u64, u64)]| {
            let latency = Latency::default();
            of.iter().for_each(|(us, n)| latency.add(US(*us), *n));
            latency.counts()
        };
        /// Waits as (us, how many), share -> us.
        type Row = (&'static [(u64, u64)], f64, Option<u64>);
        let table: [Row; 7] = [
            (&[], 0.5, None),
            (&[(15, 100)], 0.5, Some(15)),
            (&[(15, 100)], 1.0, Some(20)),
            (&[(3, 90), (150, 10)], 0.9, Some(5)),
            (&[(3, 90), (150, 10)], 0.95, Some(150)),
            (&[(3, 99), (60_000_000, 1)], 0.999, Some(10_000_000)),
            (&[(3, 1), (150, 1)], 0.0, Some(0)),
        ];
        for (waits, share, expected) in table {
            let found = counts(waits).quantile(share);
            assert_eq!(found, expected.map(US), "{waits:?} at {share}");
        }
    }

    #[test]
    fn a_later_count_less_an_earlier_one_is_what_came_between() {
        let latency = Latency::default();
        latency.add(US(7), 2);
        let earlier = latency.counts();
        latency.add(US(7), 1);
        latency.add(US(70), 5);
        let between = latency.counts().since(&earlier);
        assert_eq!((between.requests(), between.total_ns), (6, 7_000 + 350_000));
        let mut both = earlier;
        both.add(&between);
        assert_eq!(both, latency.counts());
        assert_eq!(earlier.since(&both), LatencyCounts::default());
    }
}
