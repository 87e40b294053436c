//! The writer: the one thread that writes to the journal.
//!
//! It asks the sequencer for work: a frame is handed to the disk in one write, and the next may follow before that is
//! done; a sync waits for all of them, puts the file on stable storage, and tells the catalog which points are there
//! now. When a frame would make the segment longer than wanted, the segment is sealed and the next one begun.
//!
//! Invariant: a segment is sealed, and that on stable storage, before the next one is begun. So a
//! sync of the last segment makes everything before it durable too. The first operation that fails
//! ends the thread; what was there stays as it is.
//! A crash leaves one unsealed segment, whose tail may be torn, incomplete, or never written at all (it reads as zeros),
//! and perhaps a `.part`.

use std::io::{self, IoSlice};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::catalog::segment_path;
use super::draft::Draft;
use super::seal::Sealing;
use super::segment::Segment;
use super::sequencer::{Sequencer, Work};
use crate::bounds::{BLOCK, FRAMES_UNDER_WAY_MAX, RESERVED_SHARE, SEGMENT_RECORDS_MAX};
use crate::buffer::Memory;
use crate::error::JournalError;
use crate::format::{FrameHeader, HEADER_LEN, Kind, SegmentHeader};
use crate::harbor::shared::Shared;
use crate::point::PointId;
use crate::storage::append::{Appender, Parts};
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::storage::{OpenMode, StorageFile};

/// Writes to the journal; lives in a thread of its own.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    sequencer: Arc<Sequencer>,
    active: Active,
    appender: Appender<Draft>,
}

/// The segment that is written to.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn StorageFile>,
    hasher: blake3::Hasher,
    sealing: Sealing,
    records: usize,
}

type Step<T> = Result<T, JournalError>;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
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
        let active = begin_segment(&shared)?;
        Ok(Writer {
            shared,
            sequencer,
            active,
            appender: Appender::new(FRAMES_UNDER_WAY_MAX),
        })
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
                Work::Sync => self.sync()?,
                Work::End => return self.seal(),
            }
        }
    }

    fn write(&mut self, mut draft: Draft) -> Step<()> {
        let length = draft.length();
        let end = self.active.sealing.end + length;
        let full = end > self.shared.options.segment_bytes
            || self.active.records + draft.records.len() > SEGMENT_RECORDS_MAX;
        if full && self.active.records > 0 {
            self.seal()?;
            self.active = begin_segment(&self.shared)?;
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
        for part in draft.parts() {
            active.hasher.update(&part);
        }
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
        Ok(())
    }

    /// Waits for the writes under way.
    fn settle(&mut self) -> Step<()> {
        let path = &self.active.segment.path;
        self.appender.finish().map_err(failed("write", path))
    }

    fn sync(&mut self) -> Step<()> {
        let begin = Instant::now();
        self.settle()?;
        self.active
            .file
            .sync()
            .map_err(failed("sync", &self.active.segment.path))?;
        let notices = self.sequencer.notices();
        if !notices.is_empty() {
            let mut catalog = self.shared.catalog();
            notices.into_iter().for_each(|notice| catalog.learn(notice));
        }
        self.sequencer.synced(begin.elapsed());
        Ok(())
    }

    fn seal(&mut self) -> Step<()> {
        self.settle()?;
        let active = &mut self.active;
        let segment = &active.segment;
        let footer = active
            .sealing
            .seal(
                &*active.file,
                segment.records_in_memory(),
                active.hasher.clone(),
            )
            .map_err(failed("seal", &segment.path))?;
        segment.set_sealed(footer);
        let mut catalog = self.shared.catalog();
        catalog.end.hash = footer.hash;
        catalog.end.last_seq = footer.last_seq;
        catalog.end.last_time = footer.last_time;
        catalog.end.next_point = footer.next_point;
        Ok(())
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

/// Makes the next segment: written under another name, synced, renamed, its directory synced.
fn begin_segment(shared: &Shared) -> Step<Active> {
    let storage = &*shared.options.storage;
    let end = shared.catalog().end;
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
    let bytes = header.encode();
    let part = part_of(&path);
    remove_if_there(storage, &part).map_err(create)?;
    let file = storage.open(&part, OpenMode::NewDirect).map_err(create)?;
    reserve(shared, &*file, &dir).map_err(create)?;
    let mut block = Memory::zeroed(HEADER_LEN);
    block.get_mut().copy_from_slice(&bytes);
    file.write_at(&[IoSlice::new(block.get())], 0)
        .map_err(create)?;
    file.sync().map_err(create)?;
    put_in_place(storage, &part, &path).map_err(create)?;

    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes);
    let segment = Segment::in_memory(header.number, path, header.first_seq, Vec::new());
    let segment = Arc::new(segment);
    let mut catalog = shared.catalog();
    catalog.segments.push(Arc::clone(&segment));
    catalog.end.next_segment += 1;
    let sealing = Sealing {
        number: header.number,
        salt: header.salt,
        first_seq: header.first_seq,
        next_point: header.next_point,
        last_time: header.last_time,
        end: HEADER_LEN as u64,
    };
    Ok(Active {
        segment,
        file,
        hasher,
        sealing,
        records: 0,
    })
}

/// Random bytes from the operating system.
fn salt() -> io::Result<[u8; 16]> {
    use std::io::Read;
    let mut salt = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut salt)?;
    Ok(salt)
}
