//! Works out what is on top in a part of a volume, from records in any order.
//!
//! A part is a range whose length is a power of two and which begins at a multiple of it, cut off at the volume's end.
//! How long it may be tells the [`Crowd`] around the byte that is asked for. The records that reach into it are gathered;
//! whenever there are twice as many as may be kept, those that are nowhere on top are dropped. If there are still too many,
//! the part is halved towards that byte, and nothing of the other half is gathered any more.
//!
//! Invariant: within a part no record is missing that is on top anywhere. Whichever byte is asked for first, the parts
//! are the same: they lie side by side, and never over each other.

use std::ops::Range;

use crate::bounds::{PART_LEN_MAX, PART_LEN_MIN};
use crate::extents::{Layer, Span, overlay};
use crate::format::Record;
use crate::point::Seq;

/// The longest part is 2 to the power of this.
const BITS_MAX: u32 = PART_LEN_MAX.trailing_zeros();
/// No part is made shorter than 2 to the power of this beforehand.
const BITS_MIN: u32 = PART_LEN_MIN.trailing_zeros();

/// A record, and where its payload is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) seq: Seq,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) payload_position: u64,
    pub(super) payload_crc: u32,
    pub(super) segment: u32,
    pub(super) zero: bool,
}

impl Placed {
    pub(super) fn new(record: &Record, segment: u32) -> Placed {
        Placed {
            seq: record.seq,
            offset: record.offset,
            length: record.length,
            payload_position: record.payload_position,
            payload_crc: record.payload_crc,
            segment,
            zero: record.kind.is_zero(),
        }
    }

    /// Byte behind the last.
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Returns the range of `2^bits` bytes around byte `at` of a volume of `size` bytes.
fn around(at: u64, bits: u32, size: u64) -> Range<u64> {
    let start = at >> bits << bits;
    start..start.saturating_add(1 << bits).min(size)
}

/// How many records begin around a byte, in ever longer ranges.
#[derive(Debug)]
pub(super) struct Crowd {
    at: u64,
    /// In the range of that power of two, and in none that is shorter.
    counts: [usize; BITS_MAX as usize + 1],
}

impl Crowd {
    /// Begins to count around byte `at`.
    pub(super) fn new(at: u64) -> Crowd {
        Crowd {
            at,
            counts: [0; BITS_MAX as usize + 1],
        }
    }

    /// Returns the range beyond which nothing is counted, of a volume of `size` bytes.
    pub(super) fn range(&self, size: u64) -> Range<u64> {
        around(self.at, BITS_MAX, size)
    }

    /// Counts some records that begin at byte `from`.
    pub(super) fn add(&mut self, from: u64, records: usize) {
        let bits = u64::BITS - (from ^ self.at).leading_zeros();
        if let Some(count) = self.counts.get_mut(bits as usize) {
            *count += records;
        }
    }

    /// Returns the power of two of the longest range in which no more than `most` records begin, or the least.
    fn bits(&self, most: usize) -> u32 {
        let mut bits = BITS_MIN;
        let mut sum = 0;
        for (count, longer) in self.counts.iter().zip(0..) {
            sum += count;
            if sum > most {
                break;
            }
            bits = bits.max(longer);
        }
        bits
    }
}

/// Gathers the records of one part.
#[derive(Debug)]
pub(super) struct Gathering {
    at: u64,
    bits: u32,
    size: u64,
    most: usize,
    placed: Vec<Placed>,
}

/// What is on top in a part.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) range: Range<u64>,
    /// In order; they name the records by their place.
    pub(super) spans: Vec<Span>,
    /// In the order in which they come up from the front.
    pub(super) records: Vec<Placed>,
}

impl Gathering {
    /// Begins to gather the part of a volume of `size` bytes in which the crowd's byte lies: one in which about `aim`
    /// records begin, and no more than `most` are on top, which is at least 1.
    pub(super) fn new(crowd: &Crowd, size: u64, aim: usize, most: usize) -> Gathering {
        Gathering {
            at: crowd.at,
            bits: crowd.bits(aim),
            size,
            most,
            placed: Vec::new(),
        }
    }

    /// Returns the part's range; it may yet become shorter.
    pub(super) fn range(&self) -> Range<u64> {
        around(self.at, self.bits, self.size)
    }

    /// Takes a record.
    pub(super) fn add(&mut self, record: Placed) {
        let range = self.range();
        if record.end() <= range.start || record.offset >= range.end {
            return;
        }
        self.placed.push(record);
        if self.placed.len() >= 2 * self.most {
            self.placed = self.on_top().1;
        }
    }

    /// Returns what is on top, when all records were taken.
    pub(super) fn finish(mut self) -> Gathered {
        let (spans, records) = self.on_top();
        let range = self.range();
        Gathered {
            range,
            spans,
            records,
        }
    }

    /// Works out what is on top, and makes the part shorter where that is too much.
    fn on_top(&mut self) -> (Vec<Span>, Vec<Placed>) {
        loop {
            let (spans, records) = visible(&self.placed, &self.range());
            // A range of one byte has one record on top.
            if records.len() <= self.most || self.bits == 0 {
                return (spans, records);
            }
            self.bits -= 1;
            self.placed = records;
        }
    }
}

/// Returns what is on top where within a range, and the records that are, in the order in which they come up from the
/// front; the spans name them by their place there.
pub(super) fn visible(placed: &[Placed], within: &Range<u64>) -> (Vec<Span>, Vec<Placed>) {
    let layers = placed.iter().zip(0..).map(|(record, source)| Layer {
        start: record.offset.max(within.start),
        end: record.end().min(within.end),
        order: record.seq.0,
        source,
    });
    let layers = layers.filter(|layer| layer.start < layer.end).collect();
    let mut spans = overlay(layers);
    let records = keep_visible(&mut spans, placed);
    (spans, records)
}

/// Drops the records that are nowhere on top, and numbers the others anew.
fn keep_visible(spans: &mut [Span], placed: &[Placed]) -> Vec<Placed> {
    let mut numbers = vec![u32::MAX; placed.len()];
    let mut kept = Vec::new();
    for span in spans {
        let old = span.source as usize;
        let (Some(number), Some(record)) = (numbers.get_mut(old), placed.get(old)) else {
            continue;
        };
        if *number == u32::MAX {
            *number = kept.len() as u32;
            kept.push(*record);
        }
        span.source = *number;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    fn placed(seq: u64, range: Range<u64>) -> Placed {
        Placed {
            seq: Seq(seq),
            offset: range.start,
            length: range.end - range.start,
            payload_position: 0,
            payload_crc: 0,
            segment: 0,
            zero: false,
        }
    }

    /// Works out the part with byte `at`.
    fn part(records: &[Placed], at: u64, size: u64, aim: usize, most: usize) -> Gathered {
        let mut crowd = Crowd::new(at);
        let all = crowd.range(size);
        for record in records.iter().filter(|r| all.contains(&r.offset)) {
            crowd.add(record.offset, 1);
        }
        let mut gathering = Gathering::new(&crowd, size, aim, most);
        for record in records {
            gathering.add(*record);
            assert!(gathering.placed.len() < 2 * most.max(2));
        }
        gathering.finish()
    }

    #[test]
    fn all_parts_together_show_what_is_on_top_and_none_has_too_much() {
        for seed in 0..300 {
            let mut chance = Chance::new(seed + 1);
            // Some are longer than the shortest part, and end anywhere.
            let size = 1 + chance.below([300, 200_000][seed as usize % 2]);
            let mut map = vec![0; size as usize];
            let mut records = Vec::new();
            for seq in 1..1 + chance.below(120) {
                let start = chance.below(size);
                let most = if chance.below(8) == 0 { size } else { 20 };
                let end = (start + 1 + chance.below(most)).min(size);
                map[start as usize..end as usize].fill(seq);
                records.push(placed(seq, start..end));
            }
            // A segment's index is not in the order of the numbers.
            records.sort_by_key(|record| record.offset);
            let most = 1 + chance.below(9) as usize;
            let aim = 1 + chance.below(40) as usize;
            let (mut at, mut found) = (0, vec![0; size as usize]);
            while at < size {
                let Gathered {
                    range,
                    spans,
                    records: on_top,
                } = part(&records, at, size, aim, most);
                assert_eq!(range.start, at, "seed {seed}: side by side");
                assert!(range.end > at && on_top.len() <= most, "seed {seed}");
                // Whichever byte of it is asked for, it is the same part.
                let other = range.start + chance.below(range.end - range.start);
                let same = part(&records, other, size, aim, most);
                assert_eq!((same.range, same.spans), (range.clone(), spans.clone()));
                for span in spans {
                    let seq = on_top[span.source as usize].seq.0;
                    found[span.start as usize..span.end as usize].fill(seq);
                }
                at = range.end;
            }
            assert!(found == map, "seed {seed}");
        }
    }

    #[test]
    fn a_part_is_as_long_as_the_crowd_allows() {
        const MIB: u64 = 1 << 20;
        // (byte asked for, aim, range)
        let table = [
            (0, 100, 0..1024 * MIB),
            (0, 20, 0..1024 * MIB),
            (0, 19, 0..512 * MIB),
            (0, 18, 0..256 * MIB),
            (0, 9, 0..PART_LEN_MIN),
            (300 * MIB, 9, 256 * MIB..512 * MIB),
            (600 * MIB, 10, 512 * MIB..1024 * MIB),
            (1100 * MIB, 9, 1024 * MIB..1500 * MIB),
        ];
        for (at, aim, range) in table {
            let mut crowd = Crowd::new(at);
            for (from, records) in [(100, 10), (299 * MIB, 9), (700 * MIB, 1)] {
                if crowd.range(1500 * MIB).contains(&from) {
                    crowd.add(from, records);
                }
            }
            let gathering = Gathering::new(&crowd, 1500 * MIB, aim, 100);
            assert_eq!(gathering.range(), range, "{at} {aim}");
        }
    }
}
