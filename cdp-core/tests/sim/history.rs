//! The oracle: a history in memory of everything that was given to the recorder, and what must be
//! found of it.
//!
//! Records are kept by their number. Which of them survived a crash is the harbor's to say, within
//! what was promised; what follows from that (points, gaps, the content of every volume) is worked
//! out here, by other means than the harbor's: by laying bytes over bytes.

use std::ops::Range;
use std::sync::Arc;

use cdp_core::{GapReason, Grade, Point};

use crate::said::{Said, Sayings};

/// The content of all volumes.
pub(crate) type Disks = Arc<Vec<Vec<u8>>>;

/// What a record tells.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Data {
        volume: usize,
        offset: usize,
        bytes: Vec<u8>,
    },
    Point {
        id: u64,
        grade: Grade,
        label: Option<String>,
        xml: Option<u32>,
        /// As the recorder gave it, if it came to that.
        made: Option<Point>,
        disks: Disks,
    },
    GapOpen {
        sound: u64,
        reason: GapReason,
    },
    GapClose,
}

/// A base point: the volume, the last record in it, its content.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) volume: usize,
    pub(crate) seq: u64,
    pub(crate) content: Vec<u8>,
    /// Whether it was said to be in place; otherwise it may be.
    pub(crate) is_promised: bool,
}

/// What was given to a recorder, in the order of its records.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) sizes: Vec<usize>,
    /// Record n is at n - 1.
    told: Vec<Told>,
    pub(crate) bases: Vec<Base>,
    /// The record from which on points are offered for good, once all volumes have a base point.
    pub(crate) first_offered: Option<u64>,
    /// Segments with nothing but records before this one may be gone, and the gaps that they told of with them.
    pub(crate) gone_before: u64,
    pub(crate) sayings: Sayings,
    /// The last record that was said to be on stable storage.
    pub(crate) promised: u64,
    pub(crate) next_point: u64,
    /// Domain XMLs that were said to be kept, and whether that is certain.
    pub(crate) xml: Vec<(String, bool)>,
}

/// A point that must be offered.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) seq: u64,
    pub(crate) told: &'a Told,
    pub(crate) disks: &'a Disks,
}

impl Expected<'_> {
    pub(crate) fn id(&self) -> u64 {
        match self.told {
            Told::Point { id, .. } => *id,
            _ => 0,
        }
    }
}

impl History {
    pub(crate) fn new(sizes: Vec<usize>) -> History {
        History {
            sizes,
            told: Vec::new(),
            bases: Vec::new(),
            first_offered: None,
            gone_before: 0,
            sayings: Sayings::default(),
            promised: 0,
            next_point: 1,
            xml: Vec::new(),
        }
    }

    /// Returns the last record.
    pub(crate) fn head(&self) -> u64 {
        self.told.len() as u64
    }

    pub(crate) fn push(&mut self, told: Told) -> u64 {
        if let Told::Point { id, .. } = &told {
            self.next_point = id + 1;
        }
        self.told.push(told);
        self.head()
    }

    /// Puts what the recorder said of a point to its record.
    pub(crate) fn made(&mut self, point: &Point) {
        if let Some(Told::Point { made, .. }) = self.told.get_mut(point.seq.0 as usize - 1) {
            *made = Some(point.clone());
        }
    }

    pub(crate) fn promise(&mut self, seq: u64) {
        self.promised = self.promised.max(seq);
    }

    /// Forgets the records behind `head`, which did not survive.
    pub(crate) fn cut(&mut self, head: u64) {
        self.told.truncate(head as usize);
        let ids = self.told.iter().filter_map(|told| match told {
            Told::Point { id, .. } => Some(*id),
            _ => None,
        });
        self.next_point = ids.max().unwrap_or(0) + 1;
        self.sayings.forget_from(self.next_point);
        self.promised = head;
    }

    /// Returns the gap that is open after all records.
    pub(crate) fn open_gap(&self) -> Option<GapReason> {
        self.gaps()
            .last()
            .copied()
            .filter(|gap| !gap.1)
            .map(|gap| gap.0)
    }

    /// Tells whether a gap of that reason is a new one now: a resync follows on its cause, and any
    /// other cause on a resync.
    pub(crate) fn is_new_gap(&self, next: GapReason) -> bool {
        let is_resync = |reason| reason == GapReason::Resync;
        self.open_gap()
            .is_none_or(|open| is_resync(open) != is_resync(next))
    }

    /// Returns all gaps: the reason, and whether each is closed.
    pub(crate) fn gaps(&self) -> Vec<(GapReason, bool)> {
        let mut gaps: Vec<(GapReason, bool)> = Vec::new();
        for told in &self.told {
            match told {
                Told::GapOpen { reason, .. } => {
                    if let Some(gap) = gaps.last_mut() {
                        gap.1 = true;
                    }
                    gaps.push((*reason, false));
                }
                Told::GapClose => {
                    if let Some(gap) = gaps.last_mut() {
                        gap.1 = true;
                    }
                }
                _ => {}
            }
        }
        gaps
    }

    /// Returns how many of the oldest gaps may be told of no more: their beginnings are gone.
    pub(crate) fn gaps_forgotten(&self) -> usize {
        let before = self.told.iter().take(self.gone_before as usize);
        before
            .filter(|told| matches!(told, Told::GapOpen { .. }))
            .count()
    }

    /// Takes note of the first record at which all volumes have a base point, once there is one.
    pub(crate) fn note_first_offered(&mut self) {
        self.first_offered = self.first_offered.or(self.first_valid());
    }

    fn first_valid(&self) -> Option<u64> {
        let firsts = (0..self.sizes.len()).map(|volume| {
            let bases = self
                .bases
                .iter()
                .filter(|base| base.volume == volume && base.is_promised);
            bases.map(|base| base.seq).min()
        });
        firsts.collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    /// Returns the points that must be offered, oldest first.
    pub(crate) fn points(&self) -> Vec<Expected<'_>> {
        self.points_by(self.sayings.now())
    }

    /// The same, if that was what had been said of them.
    pub(crate) fn points_by(&self, said: &Said) -> Vec<Expected<'_>> {
        let Some(first) = self.first_offered else {
            return Vec::new();
        };
        let mut points: Vec<Expected<'_>> = Vec::new();
        let mut in_gap = false;
        for (number, told) in self.told.iter().enumerate() {
            let seq = number as u64 + 1;
            match told {
                Told::Point { disks, .. } if !in_gap => points.push(Expected { seq, told, disks }),
                Told::GapOpen { sound, .. } => {
                    points.retain(|point| point.seq <= *sound);
                    in_gap = true;
                }
                Told::GapClose => in_gap = false,
                _ => {}
            }
        }
        points.retain(|point| point.seq >= first && !said.deleted.contains(&point.id()));
        points
    }

    /// Returns a volume's content as of its last record; none before it has a base point.
    pub(crate) fn volume(&self, volume: usize) -> Option<Vec<u8>> {
        let bases = self
            .bases
            .iter()
            .filter(|base| base.volume == volume && base.is_promised);
        let base = bases
            .filter(|base| base.seq <= self.head())
            .max_by_key(|base| base.seq)?;
        let mut content = base.content.clone();
        for told in self.told.get(base.seq as usize..).unwrap_or_default() {
            if let Told::Data {
                volume: of,
                offset,
                bytes,
            } = told
                && *of == volume
            {
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        Some(content)
    }
}

/// What a resync must leave alone: the bytes that were written since it began.
#[derive(Debug, Default)]
pub(crate) struct Untouchable(Vec<Option<Vec<bool>>>);

impl Untouchable {
    pub(crate) fn none(volumes: usize) -> Untouchable {
        Untouchable(vec![None; volumes])
    }

    pub(crate) fn begin(&mut self, volume: usize, size: usize) {
        self.0[volume] = Some(vec![false; size]);
    }

    pub(crate) fn end(&mut self, volume: usize) {
        self.0[volume] = None;
    }

    pub(crate) fn mark(&mut self, volume: usize, range: Range<usize>) {
        if let Some(bytes) = &mut self.0[volume] {
            bytes[range].fill(true);
        }
    }

    /// Returns the parts of a range that may be taken, in order, neighbours apart.
    pub(crate) fn free(&self, volume: usize, range: Range<usize>) -> Vec<Range<usize>> {
        let Some(bytes) = &self.0[volume] else {
            return vec![range];
        };
        let mut parts: Vec<Range<usize>> = Vec::new();
        for at in range.filter(|at| !bytes[*at]) {
            match parts.last_mut() {
                Some(last) if last.end == at => last.end = at + 1,
                _ => parts.push(at..at + 1),
            }
        }
        parts
    }
}
