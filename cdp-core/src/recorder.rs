//! Recording: takes writes of all volumes in one order, marks points, keeps gaps.

use std::sync::Arc;
use std::time::Duration;

use crate::buffer::IoBuf;
use crate::clock::Timestamp;
use crate::error::{JournalError, Refused, Result};
use crate::machine::VolumeId;
use crate::point::{GapReason, Grade, Point, Seq};

/// Takes the writes of a machine; a handle that can be cloned.
#[derive(Debug, Clone)]
pub struct Recorder {}

/// What a recording did so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecorderStats {
    /// Bytes of the IO buffer in use.
    pub buffer_used: u64,
    /// Bytes of the IO buffer.
    pub buffer_limit: u64,
    /// Guest writes taken, zeroes among them.
    pub writes: u64,
    /// Bytes of guest writes taken, without zeroes.
    pub write_bytes: u64,
    /// Points made.
    pub points: u64,
    /// Bytes written to the journal, all overhead included.
    pub journal_bytes: u64,
    /// Number of syncs.
    pub syncs: u64,
    /// Time the last sync took.
    pub sync_last: Duration,
    /// Time the slowest sync took.
    pub sync_max: Duration,
    /// Last record taken.
    pub head: Seq,
    /// Last record on stable storage.
    pub durable: Seq,
}

impl Recorder {
    /// Returns what takes the writes of one volume.
    ///
    /// # Errors
    /// [`NoSuchVolume`](crate::HarborError::NoSuchVolume).
    pub fn volume(&self, id: VolumeId) -> Result<VolumeRecorder> {
        let _ = id;
        unimplemented!()
    }

    /// Makes a recovery point after everything taken so far; returns once it is on stable storage.
    ///
    /// # Errors
    /// The label is too long; the recording is closed or has failed.
    pub fn point(&self, grade: Grade, label: Option<&str>) -> Result<Point> {
        let _ = (grade, label);
        unimplemented!()
    }

    /// Makes a crash-grade point like [`point`](Self::point); none if nothing was written since
    /// the last.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn point_if_written(&self) -> Result<Option<Point>> {
        unimplemented!()
    }

    /// Records that writes may be missing since `start`; durable on return. Does nothing while a
    /// gap is open: the first start and reason stand.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn open_gap(&self, reason: GapReason, start: Timestamp) -> Result<()> {
        let _ = (reason, start);
        unimplemented!()
    }

    /// Records that all missing writes were made up for; durable on return. Does nothing when no
    /// gap is open.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn close_gap(&self) -> Result<()> {
        unimplemented!()
    }

    /// Puts everything taken before on stable storage; returns the last record of that.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn sync(&self) -> Result<Seq> {
        unimplemented!()
    }

    /// Returns the last record taken.
    pub fn head(&self) -> Seq {
        unimplemented!()
    }

    /// Returns the failure that stopped the recording, if one did.
    pub fn failure(&self) -> Option<Arc<JournalError>> {
        unimplemented!()
    }

    /// Has `call` called once, from the writer thread, when the recording fails; at once if it has.
    pub fn on_failure(&self, call: impl FnOnce(Arc<JournalError>) + Send + 'static) {
        drop(call);
        unimplemented!()
    }

    /// Returns what was done so far.
    pub fn stats(&self) -> RecorderStats {
        unimplemented!()
    }

    /// Writes out everything taken, seals the segment and ends the recording; a second call does
    /// nothing.
    ///
    /// # Errors
    /// The recording has failed, now or before.
    pub fn close(&self) -> Result<()> {
        unimplemented!()
    }
}

/// Takes the writes of one volume; a handle that can be cloned.
#[derive(Debug, Clone)]
pub struct VolumeRecorder {}

impl VolumeRecorder {
    /// Returns memory for exactly `len` bytes, waiting until there is room (back-pressure).
    ///
    /// # Errors
    /// Larger than [`REQUEST_MAX`](crate::bounds::REQUEST_MAX); closed or failed, also while waiting.
    pub fn buffer(&self, len: usize) -> Result<IoBuf, Refused> {
        let _ = len;
        unimplemented!()
    }

    /// Takes a write of all bytes of `data` at byte `offset`; acknowledge it when this returns.
    ///
    /// # Errors
    /// Not within the volume; the recording is closed or has failed. Nothing was taken then.
    pub fn write(&self, offset: u64, data: IoBuf) -> Result<Seq, Refused> {
        let _ = (offset, data);
        unimplemented!()
    }

    /// Takes a write of `len` zero bytes at byte `offset`; acknowledge it when this returns.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&self, offset: u64, len: u64) -> Result<Seq, Refused> {
        let _ = (offset, len);
        unimplemented!()
    }

    /// Starts to remember what the stream writes, forgetting what was remembered before.
    pub fn begin_resync(&self) {
        unimplemented!()
    }

    /// Takes bytes read from the live disk, except where the stream wrote since
    /// [`begin_resync`](Self::begin_resync); returns how many bytes were taken.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn resync_data(&self, offset: u64, data: &[u8]) -> Result<u64, Refused> {
        let _ = (offset, data);
        unimplemented!()
    }

    /// Takes zeros read from the live disk, like [`resync_data`](Self::resync_data).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn resync_zero(&self, offset: u64, len: u64) -> Result<u64, Refused> {
        let _ = (offset, len);
        unimplemented!()
    }

    /// Stops to remember what the stream writes.
    pub fn end_resync(&self) {
        unimplemented!()
    }
}
