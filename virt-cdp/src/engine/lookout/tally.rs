//! Gaps by their reasons: how many there were, and how long they lasted.
//!
//! The harbor has the gaps themselves. What is told of them here never falls, as a counter must not: a gap that has
//! ended is counted once, and the one that is open is added as far as it has come.
//!
//! Invariant: neither a gap that retention takes out of the list later, nor one whose end turns out to lie a little
//! before the moment it was last looked at, makes a figure smaller.

use std::{collections::BTreeMap, time::Duration};

use cdp_core::{Gap, Timestamp};

use crate::engine::messages::reason_name;

/// Gaps of one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// How many there were, the open one among them.
    pub(crate) gaps: u64,
    /// How long they lasted together.
    pub(crate) time: Duration,
}

/// The gaps of a machine, counted.
#[derive(Debug, Default)]
pub(crate) struct GapTally {
    /// Ends of gaps up to this moment are counted.
    counted: Timestamp,
    closed: BTreeMap<String, Tally>,
    told: BTreeMap<String, Tally>,
}

impl GapTally {
    /// Counts what is new among the gaps; returns all there were, by reason.
    pub(crate) fn look(&mut self, gaps: &[Gap], now: Timestamp) -> BTreeMap<String, Tally> {
        let fresh = gaps
            .iter()
            .filter_map(|gap| Some((gap, gap.end?)))
            .filter(|(_, end)| *end > self.counted);
        for (gap, end) in fresh {
            let of_reason = self.closed.entry(reason_name(gap.reason)).or_default();
            of_reason.gaps += 1;
            of_reason.time += end.since(gap.start);
        }
        let newest = gaps.iter().filter_map(|gap| gap.end).max();
        self.counted = self.counted.max(newest.unwrap_or_default());
        let mut all = self.closed.clone();
        if let Some(open) = gaps.last().filter(|gap| gap.end.is_none()) {
            let of_reason = all.entry(reason_name(open.reason)).or_default();
            of_reason.gaps += 1;
            of_reason.time += now.since(open.start);
        }
        for (reason, tally) in all {
            let told = self.told.entry(reason).or_default();
            told.gaps = told.gaps.max(tally.gaps);
            told.time = told.time.max(tally.time);
        }
        self.told.clone()
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::GapReason::{self, GuestOff, Resync, TapLost};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn gap(start: u64, end: Option<u64>, reason: GapReason) -> Gap {
        Gap {
            start: Timestamp(start * SECOND),
            end: end.map(|end| Timestamp(end * SECOND)),
            reason,
        }
    }

    fn told(tally: &mut GapTally, gaps: &[Gap], now: u64) -> String {
        let all = tally.look(gaps, Timestamp(now * SECOND));
        let told = all
            .iter()
            .map(|(reason, t)| format!("{reason} {} {}", t.gaps, t.time.as_secs()));
        told.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn every_gap_counts_once_and_nothing_ever_falls() {
        let mut tally = GapTally::default();
        assert_eq!(told(&mut tally, &[], 5), "");
        let first = gap(10, Some(20), TapLost);
        assert_eq!(
            told(&mut tally, &[gap(10, None, TapLost)], 25),
            "tap-lost 1 15"
        );
        // It ended before it was looked at: the clock of a counter does not go back.
        assert_eq!(
            told(&mut tally, &[first, gap(20, None, Resync)], 26),
            "resync 1 6, tap-lost 1 15"
        );
        let second = gap(20, Some(30), Resync);
        for now in [31, 32] {
            assert_eq!(
                told(&mut tally, &[first, second], now),
                "resync 1 10, tap-lost 1 15"
            );
        }
        let third = gap(40, Some(47), TapLost);
        assert_eq!(
            told(&mut tally, &[first, second, third], 50),
            "resync 1 10, tap-lost 2 17"
        );
        // Retention takes the old ones away.
        assert_eq!(
            told(&mut tally, &[third, gap(60, None, GuestOff)], 70),
            "guest-off 1 10, resync 1 10, tap-lost 2 17"
        );
        assert_eq!(
            told(&mut tally, &[gap(60, Some(75), GuestOff)], 80),
            "guest-off 1 15, resync 1 10, tap-lost 2 17"
        );
    }
}
