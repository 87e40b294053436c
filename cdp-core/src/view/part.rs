//! A part of a volume at one record: which record is on top where, small.
//!
//! Places are kept relative to the part's beginning, and of a record only what is needed to read its payload and to
//! check it. Where no record is, the base point shows. A payload is read whole and checked when it is first touched; that
//! it was right is remembered for as long as the part is. What lies next to each other in the volume and in a segment
//! is read at once.
//!
//! Invariant: no lock is taken by a read, and no byte of a payload is given out that was not found right.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gathering::{Gathered, Placed};
use super::image::{OpenSegment, Plan};
use crate::bounds::{PART_COST_MIN, SECTOR};
use crate::error::{HarborError, Result};
use crate::journal::lookup::Lookups;

/// A part of a volume, and what it consists of there.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    spans: Vec<Stretch>,
    records: Vec<Held>,
    /// A bit for each record whose payload was found right.
    checked: Vec<AtomicU64>,
}

/// A stretch of a part in which one record is on top.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: u32,
    end: u32,
    record: u32,
}

/// A record, as far as its payload is concerned.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Its first byte, from the part's beginning.
    offset: i32,
    length: u32,
    /// Of the payload in the segment, in sectors; 0 where there is none, as it is zeros.
    sector: u32,
    crc: u32,
    segment: u32,
}

/// What a part is read from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) plan: &'a Plan,
    pub(super) segments: &'a [OpenSegment],
    pub(super) lookups: &'a Lookups,
}

/// A piece of a part in which one thing is on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) end: u64,
    /// The record that is; none where no record is.
    pub(super) record: Option<u32>,
}

/// The pieces of a part, in order.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    spans: &'a [Stretch],
    part_start: u64,
    at: u64,
    end: u64,
}

/// How a piece is read.
#[derive(Debug, Clone, Copy)]
enum Way<'a> {
    Base,
    Zeros,
    /// Its record must be read whole, to be checked.
    Whole(u32, &'a Held),
    /// From a byte of a segment.
    At(u32, u64),
}

impl Part {
    /// Makes a part of what was gathered.
    pub(super) fn new(gathered: Gathered, segments: &[OpenSegment]) -> Result<Part> {
        let Gathered {
            range,
            spans,
            records,
        } = gathered;
        let place = |at: u64| u32::try_from(at - range.start).unwrap_or(u32::MAX);
        let spans = spans.iter().map(|span| Stretch {
            start: place(span.start),
            end: place(span.end),
            record: span.source,
        });
        let held = |placed: &Placed| {
            held(placed, range.start).ok_or_else(|| {
                let what = format!("record {} has an impossible place", placed.seq);
                damaged(segments, placed.segment, what)
            })
        };
        let mut records: Vec<Held> = records.iter().map(held).collect::<Result<_>>()?;
        records.shrink_to_fit();
        let words = records.len().div_ceil(64);
        Ok(Part {
            spans: spans.collect(),
            checked: (0..words).map(|_| AtomicU64::new(0)).collect(),
            records,
            range,
        })
    }

    /// Returns the bytes of memory it is counted for.
    pub(super) fn cost(&self) -> usize {
        let needed = size_of::<Part>()
            + self.spans.capacity() * size_of::<Stretch>()
            + self.records.capacity() * size_of::<Held>()
            + self.checked.capacity() * size_of::<AtomicU64>();
        needed.max(PART_COST_MIN)
    }

    /// Returns the number of records on top.
    #[cfg(test)]
    pub(super) fn records(&self) -> usize {
        self.records.len()
    }

    /// Returns every range that a record covers, and whether it is zeros, in order.
    pub(crate) fn covered(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        self.spans.iter().map(|span| {
            let start = self.range.start;
            (
                start + u64::from(span.start),
                start + u64::from(span.end),
                self.is_zero(span.record),
            )
        })
    }

    /// Returns what a range of the part consists of, in order and without holes.
    pub(super) fn pieces(&self, range: Range<u64>) -> Pieces<'_> {
        let from = range.start.saturating_sub(self.range.start);
        Pieces {
            spans: self
                .spans
                .get(self.first_behind(from)..)
                .unwrap_or_default(),
            part_start: self.range.start,
            at: range.start,
            end: range.end,
        }
    }

    /// Returns the place of the first span that ends behind a byte of the part.
    ///
    /// Looked for from where it would be if they were spread evenly: a search by halves goes through as much memory as
    /// there is, and most of what it looks at is in no cache.
    fn first_behind(&self, byte: u64) -> usize {
        let count = self.spans.len();
        let is_before = |at: usize| {
            let span = self.spans.get(at);
            span.is_some_and(|span| u64::from(span.end) <= byte)
        };
        let len = (self.range.end - self.range.start).max(1);
        let guess = (u128::from(byte) * count as u128 / u128::from(len)) as usize;
        // It lies from `low` to `high`.
        let mut low = guess + 1;
        let mut high = count;
        let mut step = 4;
        if is_before(guess) {
            while is_before(low + step) {
                low += step + 1;
                step *= 2;
            }
            high = high.min(low + step);
        } else {
            high = high.min(guess);
            while high > step && !is_before(high - step) {
                high -= step;
                step *= 2;
            }
            low = high.saturating_sub(step);
        }
        let spans = self.spans.get(low..high).unwrap_or_default();
        low + spans.partition_point(|span| u64::from(span.end) <= byte)
    }

    /// Tells whether a record fills its range with zeros.
    pub(super) fn is_zero(&self, record: u32) -> bool {
        let held = self.records.get(record as usize);
        held.is_some_and(|held| held.sector == 0)
    }

    /// Fills `buf` from byte `offset`; all of it lies within the part.
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64, source: Source<'_>) -> Result<()> {
        let mut rest = buf;
        let mut pieces = self.pieces(offset..offset + rest.len() as u64).peekable();
        while let Some(piece) = pieces.next() {
            let way = self.way(&piece);
            let mut end = piece.end;
            if let Way::At(segment, place) = way {
                let goes_on = |next: &Piece| match self.way(next) {
                    Way::At(other, at) => {
                        other == segment && at == place + (next.start - piece.start)
                    }
                    _ => false,
                };
                while let Some(next) = pieces.next_if(goes_on) {
                    end = next.end;
                }
            }
            let (bytes, behind) = rest.split_at_mut((end - piece.start) as usize);
            rest = behind;
            match (way, &source.plan.base) {
                (Way::Base, Some(base)) => base.read_at(bytes, piece.start)?,
                (Way::Base, None) | (Way::Zeros, _) => bytes.fill(0),
                (Way::Whole(number, held), _) => {
                    self.read_of_whole(number, held, bytes, piece.start, source)?;
                }
                (Way::At(segment, place), _) => {
                    source.read(segment, bytes, place)?;
                    match piece.record {
                        Some(number) if piece.end == end && self.is_checked(number) => {}
                        _ => self.check_all(piece.start..end, bytes, source)?,
                    }
                }
            }
        }
        Ok(())
    }

    fn way(&self, piece: &Piece) -> Way<'_> {
        let Some(number) = piece.record else {
            return Way::Base;
        };
        let Some(held) = self.records.get(number as usize) else {
            return Way::Base;
        };
        if held.sector == 0 {
            return Way::Zeros;
        }
        let len = piece.end - piece.start;
        if len < u64::from(held.length) && !self.is_checked(number) {
            return Way::Whole(number, held);
        }
        Way::At(
            held.segment,
            held.position() + self.skip(held, piece.start) as u64,
        )
    }

    /// Returns how many bytes of a record lie before byte `at`.
    fn skip(&self, held: &Held, at: u64) -> usize {
        let from_start = (at - self.range.start) as i64;
        usize::try_from(from_start - i64::from(held.offset)).unwrap_or_default()
    }

    /// Fills `bytes`, from byte `at` of the volume, from a record that was not checked yet.
    fn read_of_whole(
        &self,
        number: u32,
        held: &Held,
        bytes: &mut [u8],
        at: u64,
        source: Source<'_>,
    ) -> Result<()> {
        let mut payload = vec![0; held.length as usize];
        source.read(held.segment, &mut payload, held.position())?;
        self.check(number, held, &payload, source)?;
        let skip = self.skip(held, at);
        let part = payload.get(skip..skip + bytes.len());
        bytes.copy_from_slice(part.unwrap_or_default());
        Ok(())
    }

    /// Checks the records of a range of which all bytes were read, and which were not checked yet.
    fn check_all(&self, range: Range<u64>, bytes: &[u8], source: Source<'_>) -> Result<()> {
        let mut rest = bytes;
        for piece in self.pieces(range) {
            let (payload, behind) = rest.split_at((piece.end - piece.start) as usize);
            rest = behind;
            let held = piece
                .record
                .and_then(|number| Some((number, self.records.get(number as usize)?)));
            if let Some((number, held)) = held
                && !self.is_checked(number)
            {
                self.check(number, held, payload, source)?;
            }
        }
        Ok(())
    }

    /// Checks the payload of a record, and remembers that it is right.
    fn check(&self, number: u32, held: &Held, payload: &[u8], source: Source<'_>) -> Result<()> {
        if crc32c::crc32c(payload) != held.crc {
            let offset = self.range.start.wrapping_add_signed(held.offset.into());
            return Err(source.damage(held, offset));
        }
        if let Some(word) = self.checked.get(number as usize / 64) {
            word.fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
        Ok(())
    }

    fn is_checked(&self, number: u32) -> bool {
        let word = self.checked.get(number as usize / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (number % 64) & 1 == 1)
    }
}

impl Held {
    /// Returns the payload's place in the segment, in bytes.
    fn position(&self) -> u64 {
        u64::from(self.sector) * SECTOR as u64
    }
}

/// Takes of a record what is held in a part that begins at byte `start`; nothing if it has an impossible place.
fn held(placed: &Placed, start: u64) -> Option<Held> {
    if placed.zero {
        // Where it begins does not matter, and may be too far.
        return Some(Held {
            offset: 0,
            length: 0,
            sector: 0,
            crc: 0,
            segment: placed.segment,
        });
    }
    let sector = u32::try_from(placed.payload_position / SECTOR as u64).ok()?;
    let offset = placed.offset.wrapping_sub(start) as i64;
    (sector > 0).then_some(Held {
        offset: i32::try_from(offset).ok()?,
        length: u32::try_from(placed.length).ok()?,
        sector,
        crc: placed.payload_crc,
        segment: placed.segment,
    })
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let (stop, record) = match self.spans.first() {
            Some(span) if self.part_start + u64::from(span.start) <= self.at => {
                self.spans = self.spans.get(1..).unwrap_or_default();
                (u64::from(span.end), Some(span.record))
            }
            Some(span) => (u64::from(span.start), None),
            None => (u64::MAX - self.part_start, None),
        };
        let start = self.at;
        self.at = self.end.min(self.part_start + stop);
        Some(Piece {
            start,
            end: self.at,
            record,
        })
    }
}

impl Source<'_> {
    /// Reads bytes of a segment.
    fn read(&self, segment: u32, bytes: &mut [u8], place: u64) -> Result<()> {
        let Some(open) = self.segments.get(segment as usize) else {
            return Err(HarborError::NoSuchVolume(self.plan.volume));
        };
        open.file
            .read_at(bytes, place)
            .map_err(|e| HarborError::storage("read", &open.segment.path, e))
    }

    /// Says whose payload is damaged.
    fn damage(&self, held: &Held, offset: u64) -> HarborError {
        let mut name = "a record".to_string();
        if let Some(open) = self.segments.get(held.segment as usize) {
            let range = offset..offset + 1;
            let position = held.position();
            // What cannot be found out does not keep the damage from being told.
            let _ = open.segment.for_each_reaching(
                &*open.file,
                self.lookups,
                self.plan.volume,
                &range,
                |record| {
                    if record.payload_position == position {
                        name = format!("record {}", record.seq);
                    }
                },
            );
        }
        let what = format!(
            "the payload of {name} is not what was written: {} bytes at {offset} of volume {}",
            held.length, self.plan.volume
        );
        damaged(self.segments, held.segment, what)
    }
}

fn damaged(segments: &[OpenSegment], segment: u32, what: String) -> HarborError {
    let path = segments
        .get(segment as usize)
        .map(|open| &open.segment.path);
    HarborError::Damaged {
        path: path.cloned().unwrap_or_default(),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use crate::extents::Span;

    #[test]
    fn the_first_span_behind_a_byte_is_found_however_they_are_spread() {
        let mut chance = Chance::new(5);
        for (count, most_gap) in [
            (0, 1),
            (1, 9),
            (2, 70_000),
            (300, 5),
            (300, 9000),
            (3000, 40),
        ] {
            let (mut spans, mut at) = (Vec::new(), 0);
            // Crowded at its beginning or at its end, or nowhere.
            let turn = chance.below(3) * count / 2;
            for number in 0..count {
                let gap = if number < turn { 1 } else { most_gap };
                let start = at + chance.below(gap);
                at = start + 1 + chance.below(gap);
                spans.push(Span {
                    start,
                    end: at,
                    source: 0,
                });
            }
            let gathered = Gathered {
                range: 0..at + 10,
                spans,
                records: Vec::new(),
            };
            let part = Part::new(gathered, &[]).unwrap();
            for byte in (0..at + 11).step_by(1 + at as usize / 5000) {
                let right = part.spans.partition_point(|s| u64::from(s.end) <= byte);
                assert_eq!(part.first_behind(byte), right, "{byte} of {count}");
            }
        }
    }
}
