//! Recording: takes writes of all volumes in one order, marks points, keeps gaps.
//!
//! [`Recorder`] and [`VolumeRecorder`] are handles on one recording. Dropping the last one closes
//! it in order, as [`Recorder::close`] does, but tells nobody of a failure.
//!
//! Invariant: what is refused was not taken; what was taken is in the journal before anything
//! taken later.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use crate::bounds::LABEL_MAX;
use crate::buffer::Budget;
use crate::clock::Timestamp;
use crate::error::{HarborError, JournalError, Result};
use crate::harbor::shared::Shared;
use crate::journal::sequencer::{Sequencer, Start};
use crate::journal::writer::Writer;
use crate::machine::VolumeId;
use crate::point::{GapReason, Grade, GradeRule, Point, Seq};

mod underway;
mod volume;

pub use underway::PointUnderWay;
pub use volume::{Ack, VolumeRecorder};

/// What the handles of a recording share.
#[derive(Debug)]
pub(crate) struct Recording {
    shared: Arc<Shared>,
    sequencer: Arc<Sequencer>,
    budget: Arc<Budget>,
    thread: Mutex<Option<JoinHandle<()>>>,
    keeper: Option<ThreadId>,
}

impl Recording {
    pub(crate) fn head(&self) -> Seq {
        self.sequencer.counts().head
    }

    pub(crate) fn is_running(&self) -> bool {
        self.sequencer.is_running()
    }

    pub(crate) fn sync(&self) -> Result<Seq> {
        let head = self.head();
        self.sequencer.wait_durable(head)?;
        Ok(head)
    }

    /// Has the writer keep to the present flush interval.
    pub(crate) fn pace_changed(&self) {
        self.sequencer.pace_changed();
    }

    /// Ends the recording and waits for the writer, unless it is the writer that asks, or its keeper.
    fn close(&self) -> Result<()> {
        self.sequencer.close();
        let mut slot = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let asks = thread::current().id();
        let other =
            |handle: &JoinHandle<()>| handle.thread().id() != asks && self.keeper != Some(asks);
        if slot.as_ref().is_some_and(other)
            && let Some(handle) = slot.take()
            && handle.join().is_err()
        {
            tracing::error!("the journal's writer has panicked");
        }
        match self.sequencer.failure() {
            Some(cause) => Err(HarborError::JournalFailed(cause)),
            None => Ok(()),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::debug!(%error, "a failed recording is dropped");
        }
    }
}

/// Takes the writes of a machine; a handle that can be cloned.
#[derive(Debug, Clone)]
pub struct Recorder {
    recording: Arc<Recording>,
}

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
    /// Age of the oldest record not on stable storage, at this moment; zero without one.
    pub unsynced_age: Duration,
    /// Age that the oldest write not on stable storage did not exceed at 99 of 100 syncs, to an eighth.
    pub unsynced_age_p99: Duration,
    /// The same, at all of them.
    pub unsynced_age_max: Duration,
    /// Last record taken.
    pub head: Seq,
    /// Last record on stable storage.
    pub durable: Seq,
}

impl Recorder {
    /// Begins a segment and starts the writer.
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Recorder> {
        end_earlier(shared)?;
        let mut slot = shared.recording();
        if slot.upgrade().is_some_and(|other| other.is_running()) {
            return Err(HarborError::Busy("a recording"));
        }
        let budget = Budget::new(shared.options.buffer_bytes);
        let sequencer = Arc::new(sequencer(shared, &budget)?);
        let writer = Writer::start(Arc::clone(shared), Arc::clone(&sequencer))
            .map_err(|e| HarborError::storage(e.action, &e.path, e.source))?;
        let keeper = writer.keeper();
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(|| writer.run())
            .map_err(|source| {
                // A segment was begun, which a recovery has to seal.
                let (action, path) = ("start the writer for", shared.dir.clone());
                let cause = Arc::new(JournalError {
                    action,
                    path,
                    source,
                });
                shared.catalog().failure = Some(Arc::clone(&cause));
                HarborError::JournalFailed(cause)
            })?;
        let thread = Mutex::new(Some(thread));
        let shared = Arc::clone(shared);
        let recording = Arc::new(Recording {
            shared,
            sequencer,
            budget,
            thread,
            keeper,
        });
        *slot = Arc::downgrade(&recording);
        drop(slot);
        Ok(Recorder { recording })
    }

    fn make_point(
        &self,
        grade: GradeRule,
        label: Option<&str>,
        always: bool,
    ) -> Result<Option<Point>> {
        if let Some(len) = label.map(str::len).filter(|len| *len > LABEL_MAX) {
            let (len, max) = (len as u64, LABEL_MAX as u64);
            return Err(HarborError::TooLong {
                what: "a label",
                len,
                max,
            });
        }
        let Recording {
            shared, sequencer, ..
        } = &*self.recording;
        Ok(sequencer.take_point(grade, label, shared.xml_version(), always)?)
    }

    fn wait(&self, point: Option<Point>) -> Result<Option<Point>> {
        if let Some(point) = &point {
            self.recording.sequencer.wait_durable(point.seq)?;
        }
        Ok(point)
    }

    /// Returns what takes the writes of one volume.
    ///
    /// # Errors
    /// [`NoSuchVolume`](crate::HarborError::NoSuchVolume).
    pub fn volume(&self, id: VolumeId) -> Result<VolumeRecorder> {
        let description = self.recording.shared.description();
        let size = description
            .volume(id)
            .ok_or(HarborError::NoSuchVolume(id))?
            .size;
        Ok(VolumeRecorder {
            recording: Arc::clone(&self.recording),
            volume: id,
            size,
        })
    }

    /// Makes a recovery point after everything taken so far; returns once it is on stable storage.
    ///
    /// # Errors
    /// The label is too long; the recording is closed or has failed.
    pub fn point(&self, grade: Grade, label: Option<&str>) -> Result<Point> {
        let point = self.wait(self.make_point(GradeRule::Given(grade), label, true)?)?;
        point.ok_or(HarborError::RecordingClosed)
    }

    /// Makes a point like [`point`](Self::point) while the guest's file systems are frozen: of grade quiesced if no
    /// guest write was taken since `writes` had been ([`RecorderStats::writes`], asked after the freeze), else crash.
    ///
    /// # Errors
    /// As [`point`](Self::point).
    pub fn point_if_still(&self, writes: u64, label: Option<&str>) -> Result<Point> {
        let rule = GradeRule::QuiescedIfStill { writes };
        let point = self.wait(self.make_point(rule, label, true)?)?;
        point.ok_or(HarborError::RecordingClosed)
    }

    /// Makes a crash-grade point like [`point`](Self::point); none if nothing was written since
    /// the last.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn point_if_written(&self) -> Result<Option<Point>> {
        self.wait(self.make_point(GradeRule::Given(Grade::Crash), None, false)?)
    }

    /// Begins a point as [`point_if_written`](Self::point_if_written) makes it: it is offered as soon as it is on
    /// stable storage, for which this does not wait. False when nothing was written.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn begin_point_if_written(&self) -> Result<bool> {
        let point = self.make_point(GradeRule::Given(Grade::Crash), None, false)?;
        if let Some(point) = &point {
            self.recording.sequencer.want_durable(point.seq);
        }
        Ok(point.is_some())
    }

    /// Records that writes may be missing since `start`; durable on return. Does nothing while a
    /// gap is open: the first start and reason stand. Only [`GapReason::Resync`] follows directly on any other
    /// open gap, and any other on it.
    ///
    /// Everything taken before is valid; a `start` before the last of it is moved up to that.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn open_gap(&self, reason: GapReason, start: Timestamp) -> Result<()> {
        self.open(reason, start, None)
    }

    /// Records a gap that began before it was noticed: points made after the record `sound` are taken
    /// back. Otherwise as [`open_gap`](Self::open_gap).
    ///
    /// # Errors
    /// As [`open_gap`](Self::open_gap).
    pub fn open_gap_since(&self, reason: GapReason, start: Timestamp, sound: Seq) -> Result<()> {
        self.open(reason, start, Some(sound))
    }

    fn open(&self, reason: GapReason, start: Timestamp, sound: Option<Seq>) -> Result<()> {
        let Recording {
            shared, sequencer, ..
        } = &*self.recording;
        if let Some(sound) = sound {
            let mut catalog = shared.catalog();
            if catalog.open_gap().is_none() {
                // What is wrong is not offered while the disk is waited for.
                catalog.take_back(sound);
            }
        }
        let seq = sequencer.take_gap_open(reason, start, sound)?;
        Ok(sequencer.wait_durable(seq)?)
    }

    /// Records that all missing writes were made up for; durable on return. Does nothing when no
    /// gap is open.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn close_gap(&self) -> Result<()> {
        let sequencer = &self.recording.sequencer;
        let seq = sequencer.take_gap_close()?;
        Ok(sequencer.wait_durable(seq)?)
    }

    /// Puts everything taken before on stable storage; returns the last record of that.
    ///
    /// # Errors
    /// The recording is closed or has failed.
    pub fn sync(&self) -> Result<Seq> {
        self.recording.sync()
    }

    /// Returns the last record taken.
    pub fn head(&self) -> Seq {
        self.recording.head()
    }

    /// Returns the failure that stopped the recording, if one did.
    pub fn failure(&self) -> Option<Arc<JournalError>> {
        self.recording.sequencer.failure()
    }

    /// Has `call` called once, from the writer thread, when the recording fails; at once if it has.
    pub fn on_failure(&self, call: impl FnOnce(Arc<JournalError>) + Send + 'static) {
        self.recording.sequencer.on_failure(Box::new(call));
    }

    /// Returns what was done so far.
    pub fn stats(&self) -> RecorderStats {
        let counts = self.recording.sequencer.counts();
        RecorderStats {
            buffer_used: self.recording.budget.used() as u64,
            buffer_limit: self.recording.budget.limit() as u64,
            writes: counts.writes,
            write_bytes: counts.write_bytes,
            points: counts.points,
            journal_bytes: counts.journal_bytes,
            syncs: counts.syncs,
            sync_last: counts.sync_last,
            sync_max: counts.sync_max,
            unsynced_age: self.recording.sequencer.unsynced_age(),
            unsynced_age_p99: counts.ages.p99(),
            unsynced_age_max: counts.ages.max(),
            head: counts.head,
            durable: counts.durable,
        }
    }

    /// Writes out everything taken, seals the segment and ends the recording; a second call does
    /// nothing.
    ///
    /// # Errors
    /// The recording has failed, now or before.
    pub fn close(&self) -> Result<()> {
        self.recording.close()
    }
}

/// Waits until the writer of an earlier recording has ended; whether it failed is in the catalog.
///
/// # Errors
/// [`HarborError::Busy`] if that recording still runs.
pub(crate) fn end_earlier(shared: &Shared) -> Result<()> {
    // The lock is let go at once: who is told of a failure, by the writer, may ask for it.
    let earlier = shared.recording().upgrade();
    match earlier {
        Some(earlier) if earlier.is_running() => Err(HarborError::Busy("a recording")),
        Some(earlier) => earlier.close().or(Ok(())),
        None => Ok(()),
    }
}

/// Makes the sequencer that goes on where the journal ends.
fn sequencer(shared: &Shared, budget: &Arc<Budget>) -> Result<Sequencer> {
    let catalog = shared.catalog();
    if let Some(cause) = &catalog.failure {
        return Err(HarborError::JournalFailed(Arc::clone(cause)));
    }
    let start = Start {
        last_seq: catalog.end.last_seq,
        last_time: catalog.end.last_time,
        next_point: catalog.end.next_point,
        open_gap: catalog.open_gap().map(|gap| (gap.start, gap.reason)),
        written_since_point: catalog
            .points
            .last()
            .is_none_or(|p| p.seq < catalog.end.last_seq),
    };
    drop(catalog);
    let clock = Arc::clone(&shared.options.clock);
    let (budget, pace) = (Arc::clone(budget), Arc::clone(&shared.pace));
    Ok(Sequencer::new(start, clock, budget, pace))
}
