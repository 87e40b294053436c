//! Which records a cold segment keeps: a pure function.
//!
//! The kept points cut the sequence of records into groups: what is behind one point, up to the next. A point shows of
//! each group before it only what is on top there when the group ends, so a record that others of its own group cover
//! wholly is shown by nobody. What lies behind the last kept point is a group too, which later segments may go on with:
//! what they cover is not known here, and stays.

use std::collections::BTreeMap;

use crate::extents::{Layer, overlay};
use crate::format::Record;
use crate::point::Seq;

/// A record, and which of the sources has its payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sourced {
    pub(super) record: Record,
    pub(super) source: usize,
}

/// Returns the records that are to be kept for points at the records `kept`, sorted by volume, offset and number.
/// `kept` is sorted; all records change a volume.
pub(super) fn thin(records: Vec<Sourced>, kept: &[Seq]) -> Vec<Sourced> {
    let mut groups: BTreeMap<(u16, usize), Vec<Sourced>> = BTreeMap::new();
    for one in records {
        let group = kept.partition_point(|point| *point < one.record.seq);
        let key = (one.record.volume.0, group);
        groups.entry(key).or_default().push(one);
    }
    let mut on_top: Vec<Sourced> = groups.into_values().flat_map(visible).collect();
    on_top.sort_unstable_by_key(|one| (one.record.volume.0, one.record.offset, one.record.seq));
    on_top
}

/// Returns those of a group's records that are on top somewhere.
fn visible(group: Vec<Sourced>) -> Vec<Sourced> {
    let layers = group.iter().enumerate().map(|(number, one)| Layer {
        start: one.record.offset,
        end: one.record.offset.saturating_add(one.record.length),
        order: one.record.seq.0,
        source: number as u32,
    });
    let mut shown = vec![false; group.len()];
    for span in overlay(layers.collect()) {
        if let Some(shown) = shown.get_mut(span.source as usize) {
            *shown = true;
        }
    }
    let with_mark = group.into_iter().zip(shown);
    with_mark
        .filter_map(|(one, shown)| shown.then_some(one))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use crate::format::Kind;
    use crate::machine::VolumeId;

    fn record(seq: u64, volume: u16, start: u64, end: u64) -> Sourced {
        let record = Record {
            seq: Seq(seq),
            time: crate::Timestamp(0),
            offset: start,
            length: end - start,
            payload_position: 0,
            payload_length: 0,
            payload_crc: 0,
            volume: VolumeId(volume),
            kind: Kind::Zero,
            detail: 0,
            xml: 0,
        };
        Sourced { record, source: 0 }
    }

    #[test]
    fn what_no_kept_point_shows_goes() {
        // (seq, start, end) of the records, the kept points, the records that stay
        type Case = (&'static [(u64, u64, u64)], &'static [u64], &'static [u64]);
        let cases: [Case; 7] = [
            (&[(1, 0, 4), (2, 0, 4)], &[2], &[2]),
            (&[(1, 0, 4), (2, 0, 4)], &[1, 2], &[1, 2]),
            (&[(1, 0, 4), (2, 0, 4)], &[1], &[1, 2]),
            (&[(1, 0, 4), (2, 0, 3)], &[5], &[1, 2]),
            (&[(1, 0, 4), (2, 0, 2), (3, 2, 4)], &[3], &[2, 3]),
            (&[(1, 0, 4), (2, 0, 4), (3, 0, 4)], &[], &[3]),
            (&[(4, 0, 4), (5, 0, 4), (6, 0, 4)], &[1, 5, 9], &[5, 6]),
        ];
        for (records, kept, expected) in cases {
            let sourced = records.iter().map(|(seq, a, b)| record(*seq, 0, *a, *b));
            let kept: Vec<Seq> = kept.iter().copied().map(Seq).collect();
            let mut left: Vec<u64> = thin(sourced.collect(), &kept)
                .iter()
                .map(|one| one.record.seq.0)
                .collect();
            left.sort_unstable();
            assert_eq!(left, expected, "{records:?} {kept:?}");
        }
    }

    #[test]
    fn every_kept_point_is_shown_as_before() {
        const SIZE: u64 = 40;
        let paint = |records: &[Sourced], up_to: u64| {
            let mut canvas = [[0; SIZE as usize]; 2];
            let mut sorted: Vec<_> = records.iter().map(|one| one.record).collect();
            sorted.sort_unstable_by_key(|record| record.seq);
            for record in sorted.iter().filter(|record| record.seq.0 <= up_to) {
                let range = record.offset as usize..(record.offset + record.length) as usize;
                canvas[usize::from(record.volume.0)][range].fill(record.seq.0);
            }
            canvas
        };
        let mut dropped = 0;
        for seed in 1..300 {
            let mut chance = Chance::new(seed);
            let count = 1 + chance.below(60);
            let records: Vec<Sourced> = (1..=count)
                .map(|seq| {
                    let start = chance.below(SIZE);
                    let end = (start + 1 + chance.below(10)).min(SIZE);
                    record(seq, chance.below(2) as u16, start, end)
                })
                .collect();
            let kept: Vec<Seq> = (1..=count)
                .filter(|_| chance.below(9) == 0)
                .map(Seq)
                .collect();
            let left = thin(records.clone(), &kept);
            dropped += records.len() - left.len();
            for point in kept.iter().map(|point| point.0).chain([count]) {
                assert_eq!(
                    paint(&left, point),
                    paint(&records, point),
                    "seed {seed}, {point}"
                );
            }
        }
        assert!(dropped > 1000, "{dropped}");
    }
}
