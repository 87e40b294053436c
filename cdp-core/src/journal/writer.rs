//! The writer: the one thread that writes to the journal.
//!
//! It asks the sequencer for work: a batch becomes a frame, in one write; a sync puts the file on
//! stable storage and tells the catalog which points are there now. When a frame would make the
//! segment longer than wanted, the segment is sealed and the next one begun.
//!
//! Invariant: a segment is sealed, and that on stable storage, before the next one is begun. So a
//! sync of the last segment makes everything before it durable too. The first operation that fails
//! ends the thread; what was there stays as it is.
//! A crash leaves one unsealed segment, with at most a torn tail, and perhaps a `.part`.

use std::io::{self, IoSlice};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::catalog::segment_path;
use super::seal::Sealing;
use super::segment::Segment;
use super::sequencer::{Pending, Sequencer, Work};
use crate::bounds::{BLOCK, SECTOR};
use crate::error::JournalError;
use crate::format::{FrameHeader, HEADER_LEN, Kind, Record, SegmentHeader, table_len};
use crate::harbor::shared::Shared;
use crate::point::{PointId, Seq};
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::storage::{OpenMode, StorageFile};

/// Writes to the journal; lives in a thread of its own.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    sequencer: Arc<Sequencer>,
    active: Active,
}

/// The segment that is written to.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn StorageFile>,
    hasher: blake3::Hasher,
    sealing: Sealing,
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
                Work::Write(batch) => self.write(batch)?,
                Work::Sync => self.sync()?,
                Work::End => return self.seal(),
            }
        }
    }

    fn write(&mut self, mut batch: Vec<Pending>) -> Step<()> {
        let mut length = place(&mut batch, self.active.sealing.end);
        let begun = self.active.sealing.end > HEADER_LEN as u64;
        if begun && self.active.sealing.end + length > self.shared.options.segment_bytes {
            self.seal()?;
            self.active = begin_segment(&self.shared)?;
            length = place(&mut batch, self.active.sealing.end);
        }
        self.write_frame(&batch, length)?;
        let records: Vec<Record> = batch.iter().map(|pending| pending.record).collect();
        self.active.segment.publish(&records);
        if let Some(last) = records.last() {
            self.sequencer.written(last.seq, length);
        }
        Ok(())
    }

    fn write_frame(&mut self, batch: &[Pending], length: u64) -> Step<()> {
        let active = &mut self.active;
        let records: Vec<Record> = batch.iter().map(|pending| pending.record).collect();
        let header = FrameHeader {
            records: records.len(),
            salt: active.sealing.salt,
            segment: active.segment.number,
            position: active.sealing.end,
            length,
            first_seq: records.first().map_or(Seq(0), |record| record.seq),
        };
        let table = header.encode(&records);
        let mut parts = vec![IoSlice::new(&table)];
        let payloads = batch.iter().map(|pending| pending.payload.padded());
        parts.extend(payloads.filter(|bytes| !bytes.is_empty()).map(IoSlice::new));
        let used: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let padding = [0; BLOCK];
        let padding = padding.get(..(length - used) as usize).unwrap_or_default();
        parts.push(IoSlice::new(padding));
        for part in &parts {
            active.hasher.update(part);
        }
        let path = &active.segment.path;
        active
            .file
            .write_at(&parts, active.sealing.end)
            .map_err(failed("write", path))?;
        active.sealing.end += length;
        for record in &records {
            active.sealing.last_time = record.time;
            if record.kind == Kind::Point {
                active.sealing.next_point = PointId(record.offset + 1);
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Step<()> {
        let begin = Instant::now();
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

/// Gives every payload its place in a frame at `position`, and its checksum; returns the frame's
/// length.
fn place(batch: &mut [Pending], position: u64) -> u64 {
    let mut at = position + table_len(batch.len()) as u64;
    for Pending { record, payload } in batch {
        let len = payload.len();
        if len > 0 {
            record.payload_position = at;
            record.payload_length = len as u32;
            record.payload_crc = crc32c::crc32c(payload.as_ref());
            at += len.next_multiple_of(SECTOR) as u64;
        }
    }
    at.next_multiple_of(BLOCK as u64) - position
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
    let file = storage.open(&part, OpenMode::New).map_err(create)?;
    file.write_at(&[IoSlice::new(&bytes)], 0).map_err(create)?;
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
    })
}

/// Random bytes from the operating system.
fn salt() -> io::Result<[u8; 16]> {
    use std::io::Read;
    let mut salt = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut salt)?;
    Ok(salt)
}
