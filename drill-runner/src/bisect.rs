//! The search for the newest point at which something holds, with as few looks as can be. Pure.
//!
//! How: up to some point it holds, from there on it does not, and every look halves what is left between. Several looks at
//! once divide it into as many parts and one. Where it holds at a point and does not at an earlier one, the newest is what is
//! wanted: the search goes on behind it.
//!
//! Invariant: no point is looked at twice, and among `n` points one look at a time takes at most as many as the digits of `n`
//! in binary.

use std::collections::{BTreeMap, BTreeSet};

/// A search among points, which are numbered from 0, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    count: usize,
    known: BTreeMap<usize, bool>,
    skipped: BTreeSet<usize>,
}

impl Search {
    /// A search among `count` points.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            count,
            known: BTreeMap::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// Notes whether it holds at a point.
    pub fn note(&mut self, point: usize, holds: bool) {
        self.known.insert(point, holds);
    }

    /// Notes that a point cannot be looked at.
    pub fn skip(&mut self, point: usize) {
        self.skipped.insert(point);
    }

    /// The newest point known to hold.
    #[must_use]
    pub fn newest_good(&self) -> Option<usize> {
        let mut good = self.known.iter().filter(|(_, holds)| **holds);
        good.next_back().map(|(point, _)| *point)
    }

    /// The oldest point behind that at which it is known not to hold.
    #[must_use]
    pub fn oldest_bad(&self) -> Option<usize> {
        let first = self.newest_good().map_or(0, |good| good + 1);
        let mut bad = self.known.range(first..).filter(|(_, holds)| !**holds);
        bad.next().map(|(point, _)| *point)
    }

    /// The points of which one may be the newest that holds.
    fn open(&self) -> std::ops::Range<usize> {
        let first = self.newest_good().map_or(0, |good| good + 1);
        first..self.oldest_bad().unwrap_or(self.count).max(first)
    }

    /// The points to look at next, at most `at_once`; none when it is found.
    #[must_use]
    pub fn next(&self, at_once: usize) -> Vec<usize> {
        let open = self.open();
        let parts = at_once.max(1) + 1;
        let mut chosen: Vec<usize> = Vec::new();
        for part in 1..parts {
            let wanted = open.start + open.len() * part / parts;
            if let Some(point) = self.nearest(wanted, &open, &chosen) {
                chosen.push(point);
            }
        }
        chosen.sort_unstable();
        chosen
    }

    /// The point nearest to a wanted one that can be looked at and is not chosen yet.
    fn nearest(
        &self,
        wanted: usize,
        open: &std::ops::Range<usize>,
        chosen: &[usize],
    ) -> Option<usize> {
        let can = |point: &usize| {
            open.contains(point) && !self.skipped.contains(point) && !chosen.contains(point)
        };
        let below = (open.start..=wanted).rev().find(can);
        let above = (wanted..open.end).find(can);
        match (below, above) {
            (Some(below), Some(above)) if wanted - below > above - wanted => Some(above),
            (below, above) => below.or(above),
        }
    }

    /// How many looks there may be still, one at a time.
    #[must_use]
    pub fn left_most(&self) -> u32 {
        let skipped = self.skipped.range(self.open()).count();
        let left = self.open().len().saturating_sub(skipped);
        usize::BITS - left.leading_zeros()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches among `count` points of which the first `good` hold; returns the answer, and how many looks it took.
    fn search(count: usize, good: usize, at_once: usize) -> (Option<usize>, usize) {
        let mut search = Search::new(count);
        let mut looks = 0;
        loop {
            let next = search.next(at_once);
            if next.is_empty() {
                assert_eq!(search.oldest_bad(), (good < count).then_some(good));
                return (search.newest_good(), looks);
            }
            assert!(next.len() <= at_once);
            for point in next {
                assert!(!search.known.contains_key(&point), "{point} again");
                search.note(point, point < good);
                looks += 1;
            }
        }
    }

    #[test]
    fn the_newest_good_point_is_found_in_as_many_looks_as_its_digits() {
        for count in [0, 1, 2, 3, 7, 8, 100] {
            for good in 0..=count {
                for at_once in [1, 2, 3, 8] {
                    let (found, looks) = search(count, good, at_once);
                    assert_eq!(found, good.checked_sub(1), "{good} of {count}");
                    if at_once == 1 {
                        let most = usize::BITS - count.leading_zeros();
                        assert!(
                            looks <= most as usize,
                            "{looks} looks for {good} of {count}"
                        );
                    }
                }
            }
        }
        for good in [0, 1, 43_210, 86_399, 86_400] {
            let (found, looks) = search(86_400, good, 1);
            assert_eq!(found, good.checked_sub(1));
            assert!(looks <= 17, "{looks}");
        }
        assert!(search(604_800, 77_777, 1).1 <= 20);
    }

    #[test]
    fn points_that_cannot_be_looked_at_are_passed_over() {
        for good in 0..=20_usize {
            let mut search = Search::new(20);
            while let Some(point) = search.next(1).first().copied() {
                assert!(search.left_most() > 0);
                if point % 3 == 0 {
                    search.skip(point);
                } else {
                    search.note(point, point < good);
                }
            }
            assert_eq!(search.left_most(), 0);
            let right = (0..good).rev().find(|point| point % 3 != 0);
            assert_eq!(search.newest_good(), right, "{good}");
        }
    }

    #[test]
    fn the_newest_counts_where_it_holds_again() {
        let mut search = Search::new(100);
        search.note(50, false);
        search.note(70, true);
        assert_eq!(
            (search.newest_good(), search.oldest_bad()),
            (Some(70), None)
        );
        assert!(search.next(1).iter().all(|point| *point > 70));
        assert_eq!(search.left_most(), 5);
    }
}
