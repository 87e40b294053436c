//! The writer: the one thread that writes frames to the journal.
//!
//! It asks the sequencer for work: a frame is handed to the disk in one write, and the next may follow before that is
//! done. What has to get to stable storage is the [`keeper`](super::keeper)'s job, given to it as soon as the
//! writes before are done; the writer goes on meanwhile. When a frame would make the segment longer than wanted, the next
//! one is begun under another name, and the keeper seals the one and names the other.
//!
//! Invariant: a job is given to the keeper only when all writes begun before it are done, and none failed. At most one
//! segment is written to that has no name. The first operation that fails ends the thread; what was there stays as it is.

use std::collections::VecDeque;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::thread::ThreadId;

use super::catalog::{JournalEnd, segment_path};
use super::draft::Draft;
use super::keeper::{Full, Job, Keeper, Nameless, name};
use super::seal::Sealing;
use super::segment::Segment;
use super::sequencer::{Sequencer, Work};
use crate::bounds::{BLOCK, FRAMES_UNDER_WAY_MAX, RESERVED_SHARE, SEGMENT_RECORDS_MAX};
use crate::buffer::Memory;
use crate::error::JournalError;
use crate::format::{FrameHeader, HEADER_LEN, Kind, SegmentHeader};
use crate::harbor::shared::Shared;
use crate::point::{PointId, Seq};
use crate::storage::append::{Appender, Mark};
use crate::storage::replace::{part_of, remove_if_there};
use crate::storage::{OpenMode, StorageFile};

/// Writes to the journal; lives in a thread of its own.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    sequencer: Arc<Sequencer>,
    active: Active,
    appender: Appender<Draft>,
    keeper: Keeper,
    /// What the keeper is to do once the writes up to a mark are done.
    jobs: VecDeque<(Mark, Job)>,
    /// The segment that is written to has no name yet.
    is_turning: bool,
}

/// The segment that is written to.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn StorageFile>,
    header: Vec<u8>,
    sealing: Sealing,
    records: usize,
}

pub(crate) type Step<T> = Result<T, JournalError>;

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_path_buf();
    move |source| JournalError {
        action,
        path,
        source,
    }
}

impl Writer {
    /// Begins a new segment, durable, to which the records of `sequencer` will go.
    pub(crate) fn start(shared: Arc<Shared>, sequencer: Arc<Sequencer>) -> Step<Writer> {
        // First what leaves nothing behind when it fails.
        let keeper = Keeper::start(Arc::clone(&shared), Arc::clone(&sequencer))
            .map_err(failed("start a thread for", &shared.journal_dir()))?;
        let end = shared.catalog().end;
        let (active, nameless) = begin_segment(&shared, end)?;
        name(&shared, &nameless)?;
        Ok(Writer {
            shared,
            sequencer,
            active,
            appender: Appender::new(FRAMES_UNDER_WAY_MAX),
            keeper,
            jobs: VecDeque::new(),
            is_turning: false,
        })
    }

    /// Returns the keeper's thread.
    pub(crate) fn keeper(&self) -> Option<ThreadId> {
        self.keeper.thread()
    }

    /// Works until the recording ends, in order or by a failure.
    pub(crate) fn run(mut self) {
        let path = self.active.segment.path.clone();
        // A panic is a bug, but one that must not leave others waiting for ever.
        let ended = panic::catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(|_| {
            Err(failed("go on with", &path)(io::Error::other(
                "the journal's writer has panicked",
            )))
        });
        match ended {
            Ok(()) => self.sequencer.closed(),
            Err(cause) => {
                tracing::error!(error = %cause, "the journal has failed");
                let shared = Arc::clone(&self.shared);
                let sequencer = Arc::clone(&self.sequencer);
                // Nothing is written any more when the failure is told.
                drop(self);
                sequencer.fail(cause, |cause| shared.catalog().failure = Some(cause));
            }
        }
    }

    fn work(&mut self) -> Step<()> {
        loop {
            match self.sequencer.next_work() {
                Work::Write(draft) => self.write(draft)?,
                Work::Settle => self.settle()?,
                Work::Sync(up_to) => self.sync(up_to)?,
                Work::Fail(cause) => return Err(cause),
                Work::End => return self.end(),
            }
        }
    }

    fn write(&mut self, mut draft: Draft) -> Step<()> {
        let length = draft.length();
        let end = self.active.sealing.end + length;
        let full = end > self.shared.options.segment_bytes
            || self.active.records + draft.records.len() > SEGMENT_RECORDS_MAX;
        if full && self.active.records > 0 && !self.turn()? {
            return Ok(());
        }
        let active = &mut self.active;
        let header = FrameHeader {
            records: draft.records.len(),
            salt: active.sealing.salt,
            segment: active.segment.number,
            position: active.sealing.end,
            length,
            first_seq: draft.first_seq(),
        };
        let (records, oldest) = (draft.place(&header), draft.since);
        self.appender
            .write(&active.file, draft, header.position)
            .map_err(failed("write", &active.segment.path))?;
        active.sealing.end += length;
        active.records += records.len();
        for record in &records {
            active.sealing.last_time = record.time;
            if record.kind == Kind::Point {
                active.sealing.next_point = PointId(record.offset + 1);
            }
        }
        active.segment.publish(&records);
        if let Some(last) = records.last() {
            self.sequencer.written(last.seq, length, oldest);
        }
        self.give_jobs();
        Ok(())
    }

    /// Gives the keeper those jobs whose writes are done.
    fn give_jobs(&mut self) {
        let done = self.appender.done();
        while self.jobs.front().is_some_and(|(mark, _)| *mark <= done)
            && let Some((_, job)) = self.jobs.pop_front()
        {
            self.keeper.give(job);
        }
    }

    /// Waits for the writes under way.
    fn settle(&mut self) -> Step<()> {
        let path = &self.active.segment.path;
        self.appender.finish().map_err(failed("write", path))?;
        self.give_jobs();
        Ok(())
    }

    fn sync(&mut self, up_to: Seq) -> Step<()> {
        let job = Job::Sync {
            up_to,
            file: Arc::clone(&self.active.file),
            path: self.active.segment.path.clone(),
        };
        self.jobs.push_back((self.appender.mark(), job));
        self.give_jobs();
        Ok(())
    }

    /// Goes on with the next segment; false if the keeper has failed, of which the sequencer knows more.
    fn turn(&mut self) -> Step<bool> {
        if self.is_turning && !self.keeper.has_turned(false) {
            self.settle()?;
            if !self.keeper.has_turned(true) {
                return Ok(false);
            }
        }
        let full = self.active.fill();
        let footer = full.seal.footer;
        let end = JournalEnd {
            next_segment: self.active.segment.number + 1,
            last_seq: footer.last_seq,
            last_time: footer.last_time,
            next_point: footer.next_point,
            hash: footer.hash,
        };
        let (active, nameless) = begin_segment(&self.shared, end)?;
        self.active = active;
        self.is_turning = true;
        let job = Job::Turn(Box::new((full, nameless)));
        self.jobs.push_back((self.appender.mark(), job));
        self.give_jobs();
        Ok(true)
    }

    /// Seals the last segment; the recording is over.
    fn end(&mut self) -> Step<()> {
        self.settle()?;
        self.keeper.give(Job::Seal(Box::new(self.active.fill())));
        self.keeper.finish();
        match self.sequencer.why_broken() {
            Some(cause) => Err(cause),
            None => Ok(()),
        }
    }
}

impl Active {
    /// What the keeper seals it with.
    fn fill(&self) -> Full {
        let records = self.segment.records_in_memory();
        Full {
            segment: Arc::clone(&self.segment),
            file: Arc::clone(&self.file),
            seal: self.sealing.prepare(&self.header, records),
        }
    }
}

/// Reserves the room of a segment, but never most of what is left, and nothing of what is to be kept free: a journal
/// that still fits must not fail or end for it.
fn reserve(shared: &Shared, file: &dyn StorageFile, dir: &Path) -> io::Result<()> {
    let options = &shared.options;
    let spare = options.storage.space(dir)?.spare(options.kept_free);
    let share = spare / RESERVED_SHARE;
    let room = options.segment_bytes.min(share) / BLOCK as u64 * BLOCK as u64;
    if room <= HEADER_LEN as u64 {
        return Ok(());
    }
    match file.preallocate(room) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        other => other,
    }
}

/// Makes the segment that follows on `end`, under another name, with its room; the header is yet to be written.
fn begin_segment(shared: &Shared, end: JournalEnd) -> Step<(Active, Nameless)> {
    let storage = &*shared.options.storage;
    let dir = shared.journal_dir();
    let path = segment_path(&dir, end.next_segment);
    let create = |e| failed("create", &path)(e);
    let header = SegmentHeader {
        machine_id: shared.machine_id(),
        salt: salt().map_err(create)?,
        number: end.next_segment,
        first_seq: end.last_seq.next(),
        next_point: end.next_point,
        last_time: end.last_time,
        created: shared.options.clock.now(),
        previous: end.hash,
    };
    let part = part_of(&path);
    remove_if_there(storage, &part).map_err(create)?;
    let file = storage.open(&part, OpenMode::NewDirect).map_err(create)?;
    reserve(shared, &*file, &dir).map_err(create)?;

    let bytes = header.encode();
    let mut block = Memory::zeroed(HEADER_LEN);
    block.get_mut().copy_from_slice(&bytes);
    let segment = Segment::in_memory(header.number, path, header.first_seq, Vec::new());
    let segment = Arc::new(segment);
    let sealing = Sealing {
        number: header.number,
        salt: header.salt,
        first_seq: header.first_seq,
        next_point: header.next_point,
        last_time: header.last_time,
        end: HEADER_LEN as u64,
    };
    let nameless = Nameless {
        segment: Arc::clone(&segment),
        file: Arc::clone(&file),
        header: block,
    };
    let active = Active {
        segment,
        file,
        header: bytes,
        sealing,
        records: 0,
    };
    Ok((active, nameless))
}

/// Random bytes from the operating system.
fn salt() -> io::Result<[u8; 16]> {
    use std::io::Read;
    let mut salt = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut salt)?;
    Ok(salt)
}
