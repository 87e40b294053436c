//! One volume at one record, worked out part by part: the memory does not grow with the journal.
//!
//! A part is what a bounded number of records on top describe, from some byte on. To find it, the records of all segments
//! are gone through: those that reach into the part are gathered, and whenever there are twice as many as may be
//! kept, those that are nowhere on top are dropped; if there are still too many, the part ends before the first that is
//! too much, and nothing behind it is gathered any more. The next part begins there.
//!
//! Invariant: within a part no record is missing that is on top anywhere. A part is never empty.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::ViewExtent;
use super::image::{Image, OpenSegment, Placed, Plan, segments_between, visible};
use crate::bounds::{PART_RECORDS_MAX, PARTS_KEPT_MAX};
use crate::error::Result;
use crate::harbor::shared::Shared;
use crate::point::Seq;

/// One volume at one record, of which only some parts are worked out at a time.
#[derive(Debug)]
pub(crate) struct Parts {
    plan: Plan,
    up_to: Seq,
    segments: Arc<Vec<OpenSegment>>,
    /// The parts used last, newest last.
    kept: Mutex<VecDeque<Arc<Part>>>,
}

/// A part of a volume, and what it consists of there.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    pub(crate) image: Image,
}

/// Gathers the records of one part.
struct Gathering {
    range: Range<u64>,
    placed: Vec<Placed>,
    most: usize,
}

impl Parts {
    /// Opens what a volume at record `up_to` is made of.
    pub(crate) fn open(shared: &Shared, plan: Plan, up_to: Seq) -> Result<Parts> {
        let _kept = shared.keep_segments();
        let segments = segments_between(shared, std::slice::from_ref(&plan), plan.after, up_to)?;
        Ok(Parts {
            plan,
            up_to,
            segments: Arc::new(segments),
            kept: Mutex::default(),
        })
    }

    /// Returns the bytes of the volume.
    pub(crate) fn size(&self) -> u64 {
        self.plan.size
    }

    /// Fills `buf` from byte `offset`.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.plan.check(offset, buf.len() as u64)?;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let part = self.part(at)?;
            let len = (part.range.end - at).min(rest.len() as u64);
            let (bytes, behind) = rest.split_at_mut(len as usize);
            part.image.read_at(bytes, at)?;
            at += len;
            rest = behind;
        }
        Ok(())
    }

    /// Returns what a range consists of.
    pub(crate) fn extents(&self, offset: u64, len: u64) -> Result<Vec<ViewExtent>> {
        self.plan.check(offset, len)?;
        let mut extents: Vec<ViewExtent> = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let part = self.part(at)?;
            let len = (part.range.end - at).min(end - at);
            for extent in part.image.extents(at, len)? {
                match extents.last_mut() {
                    Some(last) if last.zero == extent.zero => last.len += extent.len,
                    _ => extents.push(extent),
                }
            }
            at += len;
        }
        Ok(extents)
    }

    /// Returns the part in which byte `at` lies.
    pub(crate) fn part(&self, at: u64) -> Result<Arc<Part>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = kept.iter().find(|part| part.range.contains(&at)) {
            return Ok(Arc::clone(part));
        }
        let part = Arc::new(self.gather(at)?);
        if kept.len() == PARTS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&part));
        Ok(part)
    }

    /// Lets go of the parts; they are worked out again when they are asked for.
    pub(crate) fn let_go(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
    }

    /// Works out the part that begins at byte `from`.
    fn gather(&self, from: u64) -> Result<Part> {
        let mut gathering = Gathering {
            range: from..self.plan.size,
            placed: Vec::new(),
            most: PART_RECORDS_MAX,
        };
        for (number, open) in self.segments.iter().enumerate() {
            open.segment.for_each_data(&*open.file, |record| {
                let is_ours = record.volume == self.plan.volume
                    && record.seq > self.plan.after
                    && record.seq <= self.up_to;
                if is_ours {
                    gathering.add(Placed::new(record, number as u32));
                }
            })?;
        }
        gathering.thin_out();
        let Gathering { range, placed, .. } = gathering;
        let segments = Arc::clone(&self.segments);
        let image = Image::new(self.plan.clone(), placed, range.clone(), segments);
        Ok(Part { range, image })
    }
}

impl Gathering {
    fn add(&mut self, record: Placed) {
        if record.end() <= self.range.start || record.offset >= self.range.end {
            return;
        }
        self.placed.push(record);
        if self.placed.len() >= 2 * self.most {
            self.thin_out();
        }
    }

    /// Drops what is nowhere on top, and ends the part where there is too much.
    fn thin_out(&mut self) {
        let (spans, mut records) = visible(&self.placed, &self.range);
        // They are in the order in which they come up from the front.
        let too_much = spans.iter().find(|span| span.source as usize >= self.most);
        if let Some(span) = too_much {
            self.range.end = span.start;
            records.truncate(self.most);
        }
        self.placed = records;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use crate::format::{Kind, Record};
    use crate::machine::VolumeId;

    fn placed(seq: u64, range: Range<u64>) -> Placed {
        let record = Record {
            seq: Seq(seq),
            time: crate::Timestamp(0),
            offset: range.start,
            length: range.end - range.start,
            payload_position: 0,
            payload_length: 0,
            payload_crc: 0,
            volume: VolumeId(0),
            kind: Kind::Write,
            detail: 0,
            xml: 0,
        };
        Placed::new(&record, 0)
    }

    #[test]
    fn all_parts_together_show_what_is_on_top_and_none_has_too_much() {
        const SIZE: u64 = 300;
        for seed in 0..200 {
            let mut chance = Chance::new(seed + 1);
            let mut map = vec![0; SIZE as usize];
            let mut records = Vec::new();
            for seq in 1..1 + chance.below(120) {
                let start = chance.below(SIZE);
                let most = if chance.below(8) == 0 { SIZE } else { 20 };
                let end = (start + 1 + chance.below(most)).min(SIZE);
                map[start as usize..end as usize].fill(seq);
                records.push(placed(seq, start..end));
            }
            // A segment's index is not in the order of the numbers.
            records.sort_by_key(|record| record.offset);
            let most = 1 + chance.below(9) as usize;
            let (mut at, mut found) = (0, vec![0; SIZE as usize]);
            while at < SIZE {
                let mut gathering = Gathering {
                    range: at..SIZE,
                    placed: Vec::new(),
                    most,
                };
                records.iter().for_each(|record| {
                    gathering.add(*record);
                    assert!(gathering.placed.len() < 2 * most);
                });
                gathering.thin_out();
                let range = gathering.range;
                assert!(
                    range.start == at && range.end > at,
                    "seed {seed}: {range:?}"
                );
                assert!(gathering.placed.len() <= most);
                let (spans, visible) = visible(&gathering.placed, &range);
                for span in spans {
                    let seq = visible[span.source as usize].seq.0;
                    found[span.start as usize..span.end as usize].fill(seq);
                }
                at = range.end;
            }
            assert_eq!(found, map, "seed {seed}");
        }
    }
}
