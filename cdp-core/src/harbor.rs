//! The harbor: the directory in which everything kept of one machine lives.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::{BasePoint, SeedWriter};
use crate::bounds::{
    BUFFER_BUDGET_DEFAULT, BUFFER_BUDGET_MAX, BUFFER_BUDGET_MIN, SEGMENT_DEFAULT, SEGMENT_MAX,
    SEGMENT_MIN,
};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::error::{HarborError, Result};
use crate::machine::{MachineDescription, VolumeId};
use crate::point::{Gap, Point, PointId, Seq, XmlVersion};
use crate::recorder::Recorder;
use crate::storage::{RealStorage, Storage};
use crate::view::{LatestImage, View};

/// Tells when a write may be acknowledged to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AckRule {
    /// From the IO buffer; on stable storage within the flush interval.
    #[default]
    Buffered,
    /// After the journal's sync (group commit).
    Durable,
}

/// How a harbor is worked with; nothing of it is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// When a write may be acknowledged.
    pub ack_rule: AckRule,
    /// Longest time a buffered write waits for its sync.
    pub flush_interval: Duration,
    /// Bytes of the IO buffer.
    pub buffer_bytes: usize,
    /// Length at which a segment is sealed.
    pub segment_bytes: u64,
    /// The door to the storage.
    pub storage: Arc<dyn Storage>,
    /// The door to the clock.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ack_rule: AckRule::Buffered,
            flush_interval: Duration::from_millis(200),
            buffer_bytes: BUFFER_BUDGET_DEFAULT,
            segment_bytes: SEGMENT_DEFAULT,
            storage: Arc::new(RealStorage),
            clock: Arc::new(SystemClock),
        }
    }
}

impl Options {
    /// Checks every option against its bounds.
    ///
    /// # Errors
    /// [`HarborError::InvalidOption`] names the option.
    pub fn validate(&self) -> Result<()> {
        if !(BUFFER_BUDGET_MIN..=BUFFER_BUDGET_MAX).contains(&self.buffer_bytes) {
            let why = format!("{BUFFER_BUDGET_MIN} to {BUFFER_BUDGET_MAX} bytes");
            return Err(HarborError::InvalidOption {
                name: "buffer_bytes",
                why,
            });
        }
        if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&self.segment_bytes) {
            let why = format!("{SEGMENT_MIN} to {SEGMENT_MAX} bytes");
            return Err(HarborError::InvalidOption {
                name: "segment_bytes",
                why,
            });
        }
        Ok(())
    }
}

/// What was found when a harbor was opened, and what was cut.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RecoveryReport {
    /// Segments in the journal.
    pub segments: u64,
    /// Points that can be viewed.
    pub points: u64,
    /// Last record in the journal.
    pub head: Seq,
    /// What was cut off the last segment, if that was not sealed.
    pub cut: Option<Cut>,
    /// Files of unfinished work that were removed.
    pub removed: Vec<String>,
    /// What is not as it was written, in words for the user; the harbor opens nevertheless.
    pub damage: Vec<String>,
}

impl RecoveryReport {
    /// Tells whether the harbor was closed in order and nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.cut.is_none() && self.removed.is_empty() && self.damage.is_empty()
    }
}

/// What recovery did to a segment that was not sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Number of the segment.
    pub segment: u64,
    /// Its last record that is whole.
    pub last: Seq,
    /// Bytes that were cut off behind that; zero if the recording merely was not closed.
    pub bytes: u64,
    /// Why the tail was not taken.
    pub why: String,
}

/// Bytes a harbor takes on its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// The journal's segments.
    pub journal_bytes: u64,
    /// The base points.
    pub base_bytes: u64,
}

/// The directory in which everything kept of one machine lives; a handle that can be cloned.
#[derive(Debug, Clone)]
pub struct Harbor {}

#[allow(unused_variables, reason = "bodies follow")]
impl Harbor {
    /// Makes a harbor in `dir`, which must not exist or be empty, and opens it.
    ///
    /// # Errors
    /// [`HarborError::AlreadyExists`]; the description or an option is not valid; the storage
    /// failed.
    pub fn create(dir: &Path, desc: &MachineDescription, options: Options) -> Result<Harbor> {
        unimplemented!()
    }

    /// Opens a harbor for this process alone, after recovering what a crash left.
    ///
    /// # Errors
    /// Not a harbor, of a newer version, in use by another process; the storage failed.
    pub fn open(dir: &Path, options: Options) -> Result<(Harbor, RecoveryReport)> {
        unimplemented!()
    }

    /// Reads a harbor's description without opening it.
    ///
    /// # Errors
    /// Not a harbor, or of a newer version.
    pub fn peek(dir: &Path) -> Result<MachineDescription> {
        unimplemented!()
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        unimplemented!()
    }

    /// Returns the machine's description.
    pub fn description(&self) -> MachineDescription {
        unimplemented!()
    }

    /// Replaces the machine's description, durable on return.
    ///
    /// # Errors
    /// It is not valid, or has another machine id; the storage failed.
    pub fn set_description(&self, desc: MachineDescription) -> Result<()> {
        unimplemented!()
    }

    /// Returns the bytes kept.
    ///
    /// # Errors
    /// The storage failed.
    pub fn usage(&self) -> Result<Usage> {
        unimplemented!()
    }

    /// Tells whether every volume has a base point.
    pub fn is_seeded(&self) -> bool {
        unimplemented!()
    }

    /// Returns the base points of a volume, oldest first.
    pub fn base_points(&self, volume: VolumeId) -> Vec<BasePoint> {
        unimplemented!()
    }

    /// Returns all points that can be viewed, oldest first.
    pub fn points(&self) -> Vec<Point> {
        unimplemented!()
    }

    /// Returns the newest `limit` points from `from` to `to`, both included, oldest first.
    pub fn points_between(
        &self,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        limit: usize,
    ) -> Vec<Point> {
        unimplemented!()
    }

    /// Returns the newest point.
    pub fn newest_point(&self) -> Option<Point> {
        unimplemented!()
    }

    /// Returns the point of that number, if it can be viewed.
    pub fn point(&self, id: PointId) -> Option<Point> {
        unimplemented!()
    }

    /// Returns the newest point not later than `time`.
    pub fn point_at(&self, time: Timestamp) -> Option<Point> {
        unimplemented!()
    }

    /// Returns the gaps, oldest first.
    pub fn gaps(&self) -> Vec<Gap> {
        unimplemented!()
    }

    /// Keeps a domain XML if it differs from the last one kept; later points carry its version.
    ///
    /// # Errors
    /// It is too long; the storage failed.
    pub fn record_xml(&self, text: &str) -> Result<XmlVersion> {
        unimplemented!()
    }

    /// Returns a domain XML that was kept.
    ///
    /// # Errors
    /// [`HarborError::NoSuchXml`]; the storage failed.
    pub fn xml(&self, version: XmlVersion) -> Result<String> {
        unimplemented!()
    }

    /// Starts a recording, in a new segment, with a writer thread of its own; one at a time.
    ///
    /// # Errors
    /// [`HarborError::Busy`]; an earlier recording failed (open the harbor again); the storage
    /// failed.
    pub fn record(&self) -> Result<Recorder> {
        unimplemented!()
    }

    /// Starts a new full base point of a volume; what is given to it must be read after this call,
    /// while the recording takes the volume's writes.
    ///
    /// # Errors
    /// [`HarborError::Busy`]; no such volume; the storage failed.
    pub fn seed(&self, volume: VolumeId) -> Result<SeedWriter> {
        unimplemented!()
    }

    /// Opens a view of the machine at a point.
    ///
    /// # Errors
    /// [`HarborError::NoSuchPoint`]; records are missing or damaged; the storage failed.
    pub fn view(&self, point: PointId) -> Result<View> {
        unimplemented!()
    }

    /// Opens a volume as of the last record in the journal at this moment.
    ///
    /// # Errors
    /// [`HarborError::NotSeeded`]; otherwise as [`view`](Self::view).
    pub fn latest_image(&self, volume: VolumeId) -> Result<LatestImage> {
        unimplemented!()
    }
}
