//! One volume at one record: base point and journal, merged.
//!
//! Opening reads the records of all segments in between and works out which is on top where. A
//! read finds its spans by binary search; what no record covers comes from the base point. A payload is
//! read whole and checked when it is first touched; that it was right is remembered.
//!
//! Invariant: an image holds all its files open, so that nothing that is deleted later can hurt it.
//! No lock is taken by a read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ViewExtent;
use crate::error::{HarborError, Result};
use crate::extents::{Layer, Span, first_after, overlay};
use crate::format::Record;
use crate::harbor::shared::Shared;
use crate::journal::segment::Segment;
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::qcow2::Chain;
use crate::storage::StorageFile;

/// What an image is to be made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) volume: VolumeId,
    pub(crate) size: u64,
    /// What lies underneath; zeros if none.
    pub(crate) base: Option<Arc<Chain>>,
    /// The last record that is underneath already.
    pub(crate) after: Seq,
}

/// One volume at one record.
#[derive(Debug)]
pub(crate) struct Image {
    volume: VolumeId,
    size: u64,
    base: Option<Arc<Chain>>,
    spans: Vec<Span>,
    records: Vec<Placed>,
    /// A bit for each record whose payload was found right.
    checked: Vec<AtomicU64>,
    segments: Arc<Vec<OpenSegment>>,
}

/// A record, and where its payload is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) seq: Seq,
    pub(crate) offset: u64,
    length: u64,
    payload_position: u64,
    payload_crc: u32,
    segment: u32,
    zero: bool,
}

/// A segment that is held open.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn StorageFile>,
}

/// Opens the images of several volumes at record `up_to`.
pub(crate) fn open(shared: &Shared, plans: Vec<Plan>, up_to: Seq) -> Result<Vec<Image>> {
    let _kept = shared.keep_segments();
    let lowest = plans.iter().map(|plan| plan.after).min().unwrap_or(up_to);
    let segments = segments_between(shared, &plans, lowest, up_to)?;
    let mut records: BTreeMap<VolumeId, (Seq, Vec<Placed>)> = plans
        .iter()
        .map(|plan| (plan.volume, (plan.after, Vec::new())))
        .collect();
    for (number, open) in segments.iter().enumerate() {
        open.segment.for_each_data(&*open.file, |record| {
            if let Some((after, list)) = records.get_mut(&record.volume)
                && record.seq > *after
                && record.seq <= up_to
            {
                list.push(Placed::new(record, number as u32));
            }
        })?;
    }
    let segments = Arc::new(segments);
    let images = plans.into_iter().map(|plan| {
        let (_, placed) = records.remove(&plan.volume).unwrap_or_default();
        let whole = 0..plan.size;
        Image::new(plan, placed, whole, Arc::clone(&segments))
    });
    Ok(images.collect())
}

/// Opens the segments with records behind `lowest` up to `up_to`, and checks that none is missing.
pub(crate) fn segments_between(
    shared: &Shared,
    plans: &[Plan],
    lowest: Seq,
    up_to: Seq,
) -> Result<Vec<OpenSegment>> {
    let catalog = shared.catalog();
    for plan in plans {
        if let Some((first, last)) = catalog.first_hole(plan.after, up_to) {
            return Err(HarborError::MissingRecords {
                volume: plan.volume,
                first,
                last,
            });
        }
    }
    let needed =
        |segment: &&Arc<Segment>| segment.first_seq <= up_to && segment.last_seq() > lowest;
    let needed: Vec<Arc<Segment>> = catalog.segments.iter().filter(needed).cloned().collect();
    drop(catalog);
    let open = needed.into_iter().map(|segment| {
        let file = segment.open(&*shared.options.storage)?;
        Ok(OpenSegment { segment, file })
    });
    open.collect()
}

impl Plan {
    /// Checks that a range lies within the volume.
    pub(crate) fn check(&self, offset: u64, len: u64) -> Result<()> {
        check(self.volume, self.size, offset, len)
    }
}

fn check(volume: VolumeId, size: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(HarborError::OutOfBounds {
            volume,
            offset,
            len,
            size,
        }),
    }
}

impl Placed {
    /// Byte behind the last.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    pub(crate) fn new(record: &Record, segment: u32) -> Placed {
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
}

impl Image {
    /// Makes the image of what lies `within` a range, of all records that reach into it.
    pub(crate) fn new(
        plan: Plan,
        placed: Vec<Placed>,
        within: Range<u64>,
        segments: Arc<Vec<OpenSegment>>,
    ) -> Image {
        let (spans, records) = visible(&placed, &within);
        let checked = (0..records.len().div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        let Plan {
            volume, size, base, ..
        } = plan;
        Image {
            volume,
            size,
            base,
            spans,
            records,
            checked,
            segments,
        }
    }

    /// Returns the bytes of the volume.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Calls `each` with every range that a record covers, and whether it is zeros, in order.
    pub(crate) fn covered(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        self.spans.iter().map(|span| {
            let zero = self
                .records
                .get(span.source as usize)
                .is_some_and(|record| record.zero);
            (span.start, span.end, zero)
        })
    }

    /// Fills `buf` from byte `offset`.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        let end = offset + buf.len() as u64;
        let mut spans = self
            .spans
            .iter()
            .skip(first_after(&self.spans, offset))
            .peekable();
        let mut rest = buf;
        let mut at = offset;
        while at < end {
            let (stop, source) = match spans.peek() {
                Some(span) if span.start <= at => (span.end.min(end), Some(span.source)),
                Some(span) => (span.start.min(end), None),
                None => (end, None),
            };
            let (bytes, behind) = rest.split_at_mut((stop - at) as usize);
            match (source, &self.base) {
                (Some(source), _) => {
                    self.read_record(source as usize, bytes, at)?;
                    spans.next_if(|span| span.end <= stop);
                }
                (None, Some(base)) => base.read_at(bytes, at)?,
                (None, None) => bytes.fill(0),
            }
            rest = behind;
            at = stop;
        }
        Ok(())
    }

    /// Returns what a range consists of.
    pub(crate) fn extents(&self, offset: u64, len: u64) -> Result<Vec<ViewExtent>> {
        self.check(offset, len)?;
        let end = offset + len;
        let mut extents: Vec<ViewExtent> = Vec::new();
        let mut spans = self
            .spans
            .iter()
            .skip(first_after(&self.spans, offset))
            .peekable();
        let mut at = offset;
        while at < end {
            let (stop, zero) = match (spans.peek(), &self.base) {
                (Some(span), _) if span.start <= at => {
                    let record = self.records.get(span.source as usize);
                    let stop = span.end.min(end);
                    spans.next();
                    (stop, record.is_some_and(|record| record.zero))
                }
                (next, Some(base)) => {
                    let stop = next.map_or(end, |span| span.start.min(end));
                    let run = base.run(at, stop - at)?;
                    (at + run.len, run.place.is_none())
                }
                (next, None) => (next.map_or(end, |span| span.start.min(end)), true),
            };
            match extents.last_mut() {
                Some(last) if last.zero == zero => last.len += stop - at,
                _ => extents.push(ViewExtent {
                    len: stop - at,
                    zero,
                }),
            }
            at = stop;
        }
        Ok(extents)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check(self.volume, self.size, offset, len)
    }

    /// Reads bytes of the volume at `at`, all of which the record covers.
    fn read_record(&self, number: usize, bytes: &mut [u8], at: u64) -> Result<()> {
        let Some(record) = self.records.get(number).filter(|record| !record.zero) else {
            bytes.fill(0);
            return Ok(());
        };
        let Some(open) = self.segments.get(record.segment as usize) else {
            return Err(HarborError::NoSuchVolume(self.volume));
        };
        let failed = |e| HarborError::storage("read", &open.segment.path, e);
        let skip = at - record.offset;
        if self.is_checked(number) {
            return open
                .file
                .read_at(bytes, record.payload_position + skip)
                .map_err(failed);
        }
        if bytes.len() as u64 == record.length {
            open.file
                .read_at(bytes, record.payload_position)
                .map_err(failed)?;
            self.check_payload(open, number, record, bytes)
        } else {
            let mut payload = vec![0; record.length as usize];
            open.file
                .read_at(&mut payload, record.payload_position)
                .map_err(failed)?;
            self.check_payload(open, number, record, &payload)?;
            let part = payload.get(skip as usize..skip as usize + bytes.len());
            bytes.copy_from_slice(part.unwrap_or_default());
            Ok(())
        }
    }

    fn check_payload(
        &self,
        open: &OpenSegment,
        number: usize,
        record: &Placed,
        payload: &[u8],
    ) -> Result<()> {
        if crc32c::crc32c(payload) != record.payload_crc {
            let what = format!(
                "the payload of record {} is not what was written: {} bytes at {} of volume {}",
                record.seq, record.length, record.offset, self.volume
            );
            return Err(HarborError::damaged(&open.segment.path, what));
        }
        if let Some(word) = self.checked.get(number / 64) {
            word.fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
        Ok(())
    }

    fn is_checked(&self, number: usize) -> bool {
        let word = self.checked.get(number / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (number % 64) & 1 == 1)
    }
}

/// Returns what is on top where within a range, and the records that are, in the order in which they come up from the
/// front; the spans name them by their place there.
pub(crate) fn visible(placed: &[Placed], within: &Range<u64>) -> (Vec<Span>, Vec<Placed>) {
    let layers = placed.iter().enumerate().map(|(source, record)| Layer {
        start: record.offset.max(within.start),
        end: record.end().min(within.end),
        order: record.seq.0,
        source: source as u32,
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
