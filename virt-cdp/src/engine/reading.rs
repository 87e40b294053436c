//! Reading a machine's disks while it runs, for the seed and the resync.
//!
//! Seed: what is read becomes the base point; the journal's records since the attach are laid over it
//! (the stream wins). Resync: each 64 KiB cluster is compared with what the harbor had before the
//! attach, and what differs is journaled unless the stream wrote it since. Both end with a drain
//! barrier: from there on, journal and guest agree.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cdp_core::{LatestImage, Recorder, SeedWriter, VolumeId, VolumeRecorder};
use qemu_hook::{
    bitmap,
    disk_read::{self, Piece},
    monitor::Monitor,
    read_export::ReadExports,
};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        capture::{Purpose, ReadProgress},
        errors::{from_harbor, from_monitor, sentence},
    },
};

/// Bytes that are compared, and journaled when they differ, at a time.
const CLUSTER: usize = 64 << 10;

/// What a reader works with.
pub(crate) struct Reading {
    /// The machine's QEMU.
    pub(crate) monitor: Arc<dyn Monitor>,
    /// Where the taps write to.
    pub(crate) recorder: Recorder,
    /// Volume, node, and the name for its export.
    pub(crate) exports: Vec<(VolumeId, String, String)>,
    /// The machine's short tag.
    pub(crate) tag: String,
    /// A directory for the socket that nobody else can enter.
    pub(crate) dir: PathBuf,
    /// Told as it goes.
    pub(crate) progress: Arc<ReadProgress>,
    /// Ends the reading.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// Reads all disks and closes with a barrier.
pub(crate) fn run(reading: &Reading, purpose: Purpose) -> ApiResult<()> {
    // A write that was under way when the mirror came up reaches no tap: it has to land before it is read.
    bitmap::drain(&*reading.monitor).map_err(|e| from_monitor(&e))?;
    match purpose {
        Purpose::Seed(writers) => seed(reading, writers),
        Purpose::Resync(images) => resync(reading, images),
    }
}

fn seed(reading: &Reading, mut writers: Vec<(VolumeId, SeedWriter)>) -> ApiResult<()> {
    reading.read_all(|volume, offset, piece| {
        let writer = writers.iter_mut().find(|(id, _)| *id == volume);
        match (writer, piece) {
            (Some((_, writer)), Piece::Data(data)) => {
                writer.data(offset, data).map_err(from_harbor)
            }
            _ => Ok(()),
        }
    })?;
    bitmap::drain(&*reading.monitor).map_err(|e| from_monitor(&e))?;
    let barrier = reading.recorder.sync().map_err(from_harbor)?;
    for (_, writer) in writers {
        writer.finish(barrier).map_err(from_harbor)?;
    }
    Ok(())
}

fn resync(reading: &Reading, images: Vec<(VolumeId, LatestImage)>) -> ApiResult<()> {
    let mut found = Vec::new();
    for (id, image) in images {
        let recorder = reading.recorder.volume(id).map_err(from_harbor)?;
        found.push(Compare {
            id,
            image,
            recorder,
            old: vec![0; CLUSTER],
            taken: 0,
        });
    }
    reading.read_all(
        |volume, offset, piece| match found.iter_mut().find(|c| c.id == volume) {
            Some(compare) => compare.piece(offset, piece),
            None => Ok(()),
        },
    )?;
    bitmap::drain(&*reading.monitor).map_err(|e| from_monitor(&e))?;
    for compare in found {
        compare.recorder.end_resync();
        tracing::info!(
            volume = compare.id.0,
            bytes = compare.taken,
            "resync: differing bytes journaled"
        );
    }
    reading.recorder.sync().map_err(from_harbor)?;
    Ok(())
}

impl Reading {
    fn read_all(
        &self,
        mut take: impl FnMut(VolumeId, u64, Piece<'_>) -> ApiResult<()>,
    ) -> ApiResult<()> {
        let failed = |e: &(dyn std::error::Error + 'static)| {
            ApiError::new(
                ApiErrorKind::Unavailable,
                format!("cannot read the disk: {}", sentence(e)),
            )
        };
        let mut exports =
            ReadExports::start(&*self.monitor, &self.dir, &self.tag).map_err(|e| failed(&e))?;
        for (id, node, name) in &self.exports {
            let stream = exports.open(node, name).map_err(|e| failed(&e))?;
            let done = |bytes| {
                self.progress.done.fetch_add(bytes, Ordering::Relaxed);
                !self.cancelled.load(Ordering::Relaxed)
            };
            disk_read::read_disk(stream, name, done, |offset, piece| take(*id, offset, piece))
                .map_err(|e| match e {
                    disk_read::ReadError::Taker(e) => e,
                    disk_read::ReadError::Nbd(e) => failed(&e),
                    disk_read::ReadError::Cancelled => {
                        ApiError::new(ApiErrorKind::Unavailable, "stopped")
                    }
                })?;
        }
        Ok(())
    }
}

/// Compares one live disk with what the harbor has of it.
struct Compare {
    id: VolumeId,
    image: LatestImage,
    recorder: VolumeRecorder,
    old: Vec<u8>,
    taken: u64,
}

impl Compare {
    fn piece(&mut self, offset: u64, piece: Piece<'_>) -> ApiResult<()> {
        match piece {
            Piece::Data(data) => self.data(offset, data),
            Piece::Zero(len) => self.zero(offset, len),
        }
    }

    fn data(&mut self, offset: u64, data: &[u8]) -> ApiResult<()> {
        let mut at = offset;
        for now in data.chunks(CLUSTER) {
            let old = self.old.get_mut(..now.len()).unwrap_or_default();
            self.image.read_at(old, at).map_err(from_harbor)?;
            if old != now {
                self.taken += self
                    .recorder
                    .resync_data(at, now)
                    .map_err(|e| from_harbor(e.into()))?;
            }
            at += now.len() as u64;
        }
        Ok(())
    }

    /// Zeros on the disk: only where the harbor has something else.
    fn zero(&mut self, offset: u64, len: u64) -> ApiResult<()> {
        let mut at = offset;
        for extent in self.image.extents(offset, len).map_err(from_harbor)? {
            let end = at + extent.len;
            while !extent.zero && at < end {
                let len = (end - at).min(CLUSTER as u64);
                let old = self.old.get_mut(..len as usize).unwrap_or_default();
                self.image.read_at(old, at).map_err(from_harbor)?;
                if old.iter().any(|b| *b != 0) {
                    self.taken += self
                        .recorder
                        .resync_zero(at, len)
                        .map_err(|e| from_harbor(e.into()))?;
                }
                at += len;
            }
            at = end;
        }
        Ok(())
    }
}
