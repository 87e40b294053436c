//! What the stream wrote of a part of a volume since the reading of that part began.
//!
//! A resync announces each part before it reads it ([`Window`]). Nothing need be remembered from before: a write
//! whose record was taken by then was on the disk by then, so what is read afterwards has it, or a later one.
//!
//! Whole clusters are kept as ranges, other whole sectors as the bits of their cluster, and what is
//! left at unaligned edges as exact byte ranges. Memory: at most 48 bytes or so for each cluster of the window
//! that was written in part, however large the volume is and however long the resync takes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::bounds::{CLUSTER, SECTOR};

const CLUSTER_LEN: u64 = CLUSTER as u64;
const SECTOR_LEN: u64 = SECTOR as u64;

/// A part of a volume that is being read, and what the stream has written of it since that began.
#[derive(Debug)]
pub(crate) struct Window {
    range: Range<u64>,
    touched: Touched,
}

impl Window {
    /// Makes the window of a part whose reading is about to begin.
    pub(crate) fn new(range: Range<u64>) -> Window {
        let touched = Touched::default();
        Window { range, touched }
    }

    /// Remembers that the stream wrote `range`, as far as it lies within.
    pub(crate) fn mark(&mut self, range: Range<u64>) {
        self.touched
            .mark(range.start.max(self.range.start)..range.end.min(self.range.end));
    }

    /// Returns the parts of `range` that the stream did not write, in order, neighbours apart; none if it does not lie
    /// within.
    pub(crate) fn untouched(&self, range: Range<u64>) -> Option<Vec<Range<u64>>> {
        let is_within = self.range.start <= range.start && range.end <= self.range.end;
        is_within.then(|| self.touched.untouched(range))
    }
}

/// The bytes of a volume that were written.
#[derive(Debug, Default)]
struct Touched {
    clusters: Ranges,
    sectors: HashMap<u64, u128>,
    edges: Ranges,
}

impl Touched {
    /// Remembers that `range` was written.
    fn mark(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = range.start.next_multiple_of(CLUSTER_LEN);
        let end = range.end - range.end % CLUSTER_LEN;
        if first < end {
            self.clusters.insert(first..end);
            self.mark_part(range.start..first);
            self.mark_part(end..range.end);
        } else {
            let middle = first.clamp(range.start, range.end);
            self.mark_part(range.start..middle);
            self.mark_part(middle..range.end);
        }
    }

    /// Remembers a range within one cluster.
    fn mark_part(&mut self, range: Range<u64>) {
        let first = range.start.next_multiple_of(SECTOR_LEN);
        let end = range.end - range.end % SECTOR_LEN;
        if first >= end {
            self.edges.insert(range);
            return;
        }
        self.edges.insert(range.start..first);
        self.edges.insert(end..range.end);
        let cluster = first / CLUSTER_LEN;
        let bits = self.sectors.entry(cluster).or_default();
        *bits |= sector_bits(first % CLUSTER_LEN, end - first);
        if *bits == u128::MAX {
            self.sectors.remove(&cluster);
            self.clusters
                .insert(cluster * CLUSTER_LEN..(cluster + 1) * CLUSTER_LEN);
        }
    }

    /// Returns the parts of `range` that were not written, in order, neighbours apart.
    fn untouched(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        for outer in self.clusters.missing(range) {
            let mut start = outer.start;
            while start < outer.end {
                let end = outer.end.min((start / CLUSTER_LEN + 1) * CLUSTER_LEN);
                self.untouched_in_cluster(start..end, &mut parts);
                start = end;
            }
        }
        parts
    }

    fn untouched_in_cluster(&self, range: Range<u64>, parts: &mut Vec<Range<u64>>) {
        let Some(bits) = self.sectors.get(&(range.start / CLUSTER_LEN)) else {
            self.push_without_edges(range, parts);
            return;
        };
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start / SECTOR_LEN + 1) * SECTOR_LEN);
            let written = bits >> (start % CLUSTER_LEN / SECTOR_LEN) & 1 == 1;
            if !written {
                self.push_without_edges(start..end, parts);
            }
            start = end;
        }
    }

    fn push_without_edges(&self, range: Range<u64>, parts: &mut Vec<Range<u64>>) {
        for part in self.edges.missing(range) {
            match parts.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push(part),
            }
        }
    }
}

/// Bits of the whole sectors from byte `start` of a cluster on, over `len` bytes.
fn sector_bits(start: u64, len: u64) -> u128 {
    let count = len / SECTOR_LEN;
    let ones = if count >= 128 {
        u128::MAX
    } else {
        (1 << count) - 1
    };
    ones << (start / SECTOR_LEN)
}

/// A set of ranges, neighbours merged.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn insert(&mut self, mut range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((start, end)) = self.last_up_to(range.end)
            && end >= range.start
        {
            self.0.remove(&start);
            range = range.start.min(start)..range.end.max(end);
        }
        self.0.insert(range.start, range.end);
    }

    /// The last range that starts at `at` or before.
    fn last_up_to(&self, at: u64) -> Option<(u64, u64)> {
        self.0
            .range(..=at)
            .next_back()
            .map(|(start, end)| (*start, *end))
    }

    /// The parts of `range` that are not in the set.
    fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = range.start;
        if let Some((_, end)) = self.last_up_to(at) {
            at = at.max(end);
        }
        for (start, end) in self
            .0
            .range(range.start.saturating_add(1)..)
            .map(|(s, e)| (*s, *e))
        {
            if start >= range.end {
                break;
            }
            if at < start {
                parts.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            parts.push(at..range.end);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_knows_its_own_part_only() {
        let mut window = Window::new(1000..5000);
        window.mark(0..1200);
        window.mark(3000..3100);
        window.mark(4900..9000);
        window.mark(6000..7000);
        assert_eq!(
            window.untouched(1000..5000),
            Some(vec![1200..3000, 3100..4900])
        );
        assert_eq!(window.untouched(900..1300), None);
        assert_eq!(window.untouched(4000..5001), None);
    }

    #[test]
    fn what_is_untouched_equals_a_byte_map() {
        let size = 5 * CLUSTER_LEN;
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695);
            (state >> 33) % below
        };
        for round in 0..60 {
            let mut touched = Touched::default();
            let mut map = vec![false; size as usize];
            for _ in 0..40 {
                let (grain, longest) = match random(4) {
                    0 => (1, 2_000),
                    1 => (512, 8_192),
                    2 => (4_096, 65_536),
                    _ => (CLUSTER_LEN, 2 * CLUSTER_LEN),
                };
                let start = random(size) / grain * grain;
                let end = (start + (random(longest) / grain + 1) * grain).min(size);
                touched.mark(start..end);
                map[start as usize..end as usize].fill(true);
                let asked = random(size)..0;
                let asked = asked.start..(asked.start + random(200_000)).min(size);
                let mut answer = vec![true; size as usize];
                let parts = touched.untouched(asked.clone());
                for pair in parts.windows(2) {
                    assert!(pair[0].end < pair[1].start, "round {round}: {parts:?}");
                }
                for part in parts {
                    answer[part.start as usize..part.end as usize].fill(false);
                }
                let asked = asked.start as usize..asked.end as usize;
                assert_eq!(answer[asked.clone()], map[asked], "round {round}");
            }
        }
    }
}
