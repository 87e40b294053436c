//! Verification: reads everything kept of a harbor again, and says what is not as it was written, and what that costs.
//!
//! Files are taken by a thread or two, those that were not verified for longest first: sealed segments ([`segment`]),
//! [`cold`] ones, layers with their hashes ([`layer`]), and the small files ([`small`]). What is found of a file is
//! a list of [`Finding`]s; the [`cost`] of each is the points at which it shows, and where. What was verified when, and
//! what is damaged, is kept in the harbor ([`crate::harbor`]), so a verification that is called off is gone on with.
//!
//! Invariant: nothing of what was recorded is changed. Memory is bounded: of a segment its index, of a layer two bytes
//! for each cluster of its file, and a few pieces; of each file at most [`FINDINGS_MAX`] findings.

use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bounds::FINDINGS_MAX;
use crate::clock::Timestamp;
use crate::error::{HarborError, Result};
use crate::format::Record;
use crate::machine::VolumeId;
use crate::point::{PointId, Seq};

pub(crate) mod cost;
pub(crate) mod run;

mod cold;
mod layer;
mod segment;
mod small;

mod stream;
mod sums;

pub use cost::{Area, Cost};

/// Which files are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scope {
    /// Only files that were not verified since then; none: all.
    pub not_since: Option<Timestamp>,
    /// Only files in which a reader has come upon damage since they were verified.
    pub suspects: bool,
    /// After so many bytes no further file is begun; none: no limit.
    pub bytes: Option<u64>,
}

/// How far a verification is; told after each piece of at most 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verifying {
    /// Bytes that were read.
    pub done: u64,
    /// Bytes of all files that are to be read.
    pub total: u64,
    /// Bytes that were read since it was told last.
    pub read: u64,
}

/// Whoever is told of the progress, and may slow the work down or call it off.
pub(crate) type Control<'a> = &'a mut (dyn FnMut(Verifying) -> ControlFlow<()> + Send);

/// What is lost where something is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lost", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lost {
    /// Nothing that a view reads: it is there twice, or serves to find damage.
    Nothing,
    /// What a record wrote.
    Record {
        /// The volume.
        volume: VolumeId,
        /// Its number.
        seq: Seq,
        /// First byte of the volume.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Records, of which nothing is known any more.
    Records {
        /// The first.
        first: Seq,
        /// The last.
        last: Seq,
    },
    /// What a layer holds of a range.
    Area {
        /// The volume.
        volume: VolumeId,
        /// The layer's last record.
        layer: Seq,
        /// First byte of the volume.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A layer, and so all that stands on it.
    Layer {
        /// The volume.
        volume: VolumeId,
        /// The layer's last record.
        layer: Seq,
    },
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The file, from the harbor's directory on.
    pub file: String,
    /// What is wrong.
    pub what: String,
    /// First byte of the file that it is about; with `bytes` 0 it is not known where in the file.
    pub from: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// What is lost with it.
    #[serde(flatten)]
    pub lost: Lost,
    /// The points it costs; none: it costs nothing that is kept.
    #[serde(default)]
    pub costs: Vec<Cost>,
}

impl Finding {
    /// Tells whether a point shows it.
    pub fn costs_point(&self, point: PointId) -> bool {
        let has = |cost: &Cost| cost.first <= point && point <= cost.last;
        self.costs.iter().any(has)
    }

    /// Lets it cost one row of points and one area of each volume: rather too much than too little.
    pub(crate) fn coarsen(&mut self) {
        let mut coarse: Vec<Cost> = Vec::new();
        for cost in std::mem::take(&mut self.costs) {
            match coarse.iter_mut().find(|known| known.volume == cost.volume) {
                Some(known) => known.widen(cost),
                None => coarse.push(cost),
            }
        }
        coarse.iter_mut().for_each(Cost::join_areas);
        self.costs = coarse;
    }
}

/// A layer of which not all can be checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchecked {
    /// The file, from the harbor's directory on.
    pub file: String,
    /// Clusters of it that have no hash.
    pub clusters: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyReport {
    /// Files that were verified.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files that were to be verified and were not: another one took their place, or the limit was reached.
    pub left: u64,
    /// What is damaged, of the files that were verified.
    pub findings: Vec<Finding>,
    /// What could not be checked, of these files.
    pub unchecked: Vec<Unchecked>,
}

/// What was found of one file.
#[derive(Debug, Default)]
pub(crate) struct Found {
    faults: Vec<Fault>,
    /// More than are told apart.
    more: u64,
}

/// One thing that was found of a file.
#[derive(Debug)]
struct Fault {
    bytes: Range<u64>,
    what: String,
    lost: Lost,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    fn add(&mut self, bytes: Range<u64>, what: &str, lost: Lost) {
        if let Some(last) = self.faults.last_mut()
            && last.what == what
            && last.goes_on_with(&bytes, &lost)
        {
            return;
        }
        if self.faults.len() >= FINDINGS_MAX {
            self.more += 1;
            self.widen(lost);
            return;
        }
        let what = what.to_string();
        self.faults.push(Fault { bytes, what, lost });
    }

    /// Adds a record whose payload is not what was written.
    fn add_record(&mut self, record: &Record) {
        let from = record.payload_position;
        let bytes = from..from + u64::from(record.payload_length);
        if !record.kind.is_data() {
            let what = format!(
                "the label of point {} is not what was written",
                record.offset
            );
            return self.add(bytes, &what, Lost::Nothing);
        }
        let lost = Lost::Record {
            volume: record.volume,
            seq: record.seq,
            offset: record.offset,
            length: record.length,
        };
        let what = format!(
            "the payload of record {} is not what was written",
            record.seq
        );
        self.add(bytes, &what, lost);
    }

    /// Lets the last finding stand for one more, as there are too many: rather too much is lost than too little.
    fn widen(&mut self, lost: Lost) {
        let Some(last) = self.faults.last_mut() else {
            return;
        };
        last.lost = match (&last.lost, lost) {
            (Lost::Nothing, lost) => lost,
            (_, Lost::Nothing) => return,
            (Lost::Layer { .. }, _) => return,
            (_, lost @ Lost::Layer { .. }) => lost,
            (Lost::Area { volume, layer, .. }, _) => {
                let (volume, layer) = (*volume, *layer);
                Lost::Layer { volume, layer }
            }
            (known, lost) => match (known.records(), lost.records()) {
                (Some(a), Some(b)) => Lost::Records {
                    first: a.0.min(b.0),
                    last: a.1.max(b.1),
                },
                _ => return,
            },
        };
    }

    fn findings(self, file: &str) -> Vec<Finding> {
        let more = self.more;
        let last = self.faults.len().saturating_sub(1);
        let finding = |(at, fault): (usize, Fault)| Finding {
            file: file.to_string(),
            what: match more {
                0 => fault.what,
                _ if at < last => fault.what,
                more => format!("{}; and {more} more", fault.what),
            },
            from: fault.bytes.start,
            bytes: fault.bytes.end.saturating_sub(fault.bytes.start),
            lost: fault.lost,
            costs: Vec::new(),
        };
        self.faults.into_iter().enumerate().map(finding).collect()
    }
}

impl Fault {
    /// Takes another one into it, if that is of the same kind and follows on it.
    fn goes_on_with(&mut self, bytes: &Range<u64>, lost: &Lost) -> bool {
        let follows = match (&mut self.lost, lost) {
            (
                Lost::Area {
                    volume,
                    layer,
                    offset,
                    length,
                },
                Lost::Area {
                    volume: next_volume,
                    layer: next_layer,
                    offset: next,
                    length: more,
                },
            ) if volume == next_volume
                && layer == next_layer
                && *offset + *length == *next
                && (self.bytes.end == bytes.start || bytes.is_empty()) =>
            {
                *length += more;
                true
            }
            _ => false,
        };
        if follows {
            self.bytes.end = self.bytes.end.max(bytes.end);
        }
        follows
    }
}

impl Lost {
    fn records(&self) -> Option<(Seq, Seq)> {
        match self {
            Lost::Record { seq, .. } => Some((*seq, *seq)),
            Lost::Records { first, last } => Some((*first, *last)),
            _ => None,
        }
    }
}

/// Tells of the progress of several threads.
pub(crate) struct Telling<'a> {
    control: Control<'a>,
    told: Verifying,
}

impl<'a> Telling<'a> {
    pub(crate) fn new(control: Control<'a>, total: u64) -> Telling<'a> {
        let told = Verifying {
            total,
            ..Verifying::default()
        };
        Telling { control, told }
    }

    pub(crate) fn done(&self) -> u64 {
        self.told.done
    }

    fn read(&mut self, bytes: u64) -> Result<()> {
        self.told.done += bytes;
        // What is read twice, or grows meanwhile, does not make it more than all.
        self.told.total = self.told.total.max(self.told.done);
        self.told.read = bytes;
        match (self.control)(self.told) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(HarborError::Cancelled),
        }
    }
}

/// One thread's part in that.
pub(crate) struct Teller<'a, 'b> {
    telling: &'a Mutex<Telling<'b>>,
}

impl<'a, 'b> Teller<'a, 'b> {
    pub(crate) fn new(telling: &'a Mutex<Telling<'b>>) -> Teller<'a, 'b> {
        Teller { telling }
    }

    /// Tells of bytes that were read; waits while another thread does, so that all keep to a rate.
    ///
    /// # Errors
    /// [`HarborError::Cancelled`] if it is called off.
    pub(crate) fn read(&mut self, bytes: u64) -> Result<()> {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        telling.read(bytes)
    }
}
