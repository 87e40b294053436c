//! Reading a machine's disks while it runs, for the seed and the resync.
//!
//! Seed: what is read becomes the base point; the journal's records since the attach are laid over it
//! (the stream wins). Resync: what is in doubt is read (what a bitmap marks, or all), each 64 KiB cluster is
//! compared with what the harbor had before the attach, and what differs is journaled unless the stream wrote it since. Both end with a drain
//! barrier: from there on, journal and guest agree.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cdp_core::{
    HarborError, LatestImage, Recorder, SeedWriter, ViewExtent, VolumeId, VolumeRecorder,
};
use qemu_hook::{
    bitmap,
    disk_read::{self, Piece},
    monitor::Monitor,
    read_export::ReadExports,
};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::{from_harbor, from_monitor, sentence},
        machine::{Doubt, Resync, ResyncVolume, now},
        marking::{Marking, ToRead},
    },
};

/// Bytes that are compared, and journaled when they differ, at a time.
const CLUSTER: usize = 64 << 10;

/// How far the reading of the disks has come.
#[derive(Debug, Default)]
pub(crate) struct ReadProgress {
    /// Bytes looked at.
    pub(crate) done: AtomicU64,
    /// Bytes of all volumes.
    pub(crate) total: AtomicU64,
}

/// What the volumes are read for.
#[derive(Default)]
pub(crate) struct Purpose {
    /// For their first base point.
    pub(crate) seed: Vec<(VolumeId, SeedWriter)>,
    /// To find what was missed.
    pub(crate) resync: Vec<(VolumeId, LatestImage)>,
}

/// What a reader works with.
pub(crate) struct Reading {
    /// The machine's QEMU.
    pub(crate) monitor: Arc<dyn Monitor>,
    /// Where the taps write to.
    pub(crate) recorder: Recorder,
    /// The bitmaps.
    pub(crate) marking: Arc<Marking>,
    /// Volume, node, and the name for its export.
    pub(crate) exports: Vec<(VolumeId, String, String)>,
    /// What is in doubt of the volumes.
    pub(crate) to_read: Vec<ToRead>,
    /// The machine's short tag.
    pub(crate) tag: String,
    /// A directory for the socket that nobody else can enter.
    pub(crate) dir: PathBuf,
    /// Told as it goes.
    pub(crate) progress: Arc<ReadProgress>,
    /// Ends the reading.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// Reads the disks, or what is in doubt of them, and closes with a barrier.
pub(crate) fn run(reading: &Reading, purpose: Purpose) -> ApiResult<Option<Resync>> {
    // A write that was under way when the mirror came up reaches no tap: it has to land before it is read.
    bitmap::drain(&*reading.monitor).map_err(|e| from_monitor(&e))?;
    let start = now();
    let mut seeds = purpose.seed;
    let mut found = Vec::new();
    for (id, image) in purpose.resync {
        let recorder = reading.recorder.volume(id).map_err(from_harbor)?;
        found.push(Compare {
            id,
            image,
            recorder,
            old: vec![0; CLUSTER],
            read: 0,
            taken: 0,
        });
    }
    let resynced = !found.is_empty();
    let recorders: Vec<_> = found.iter().map(|c| (c.id, c.recorder.clone())).collect();
    let announce = |volume, window| {
        if let Some((_, recorder)) = recorders.iter().find(|(id, _)| *id == volume) {
            recorder.announce(window);
        }
    };
    let doubt = |id| match seeds.iter().any(|(seed, _)| *seed == id) {
        true => Doubt::Whole(String::new()),
        false => reading.doubt(id),
    };
    let doubts: Vec<(VolumeId, Doubt)> =
        reading.exports.iter().map(|e| (e.0, doubt(e.0))).collect();
    let mut last = None;
    reading.read_all(&doubts, announce, |volume, offset, piece| {
        if last.replace(volume) != Some(volume) {
            found.iter().for_each(|compare| compare.image.let_go());
        }
        if let Some(compare) = found.iter_mut().find(|c| c.id == volume) {
            return compare.piece(offset, piece);
        }
        let writer = seeds.iter_mut().find(|(id, _)| *id == volume);
        match (writer, piece) {
            (Some((_, writer)), Piece::Data(data)) => {
                writer.data(offset, data).map_err(from_harbor)
            }
            _ => Ok(()),
        }
    })?;
    bitmap::drain(&*reading.monitor).map_err(|e| from_monitor(&e))?;
    let mut volumes = Vec::new();
    for compare in found {
        compare.recorder.end_resync();
        let volume = ResyncVolume {
            id: compare.id,
            extent: reading.doubt(compare.id),
            read: compare.read,
            differing: compare.taken,
        };
        tracing::info!(?volume, "resync: differing bytes journaled");
        volumes.push(volume);
    }
    let barrier = reading.recorder.sync().map_err(from_harbor)?;
    for (_, writer) in seeds {
        writer.finish(barrier).map_err(from_harbor)?;
    }
    if let Err(error) = reading.marking.settle() {
        tracing::warn!(%error, "what was in doubt stays so: the next resync reads it again");
    }
    Ok(resynced.then(|| Resync {
        start,
        end: now(),
        volumes,
    }))
}

impl Reading {
    fn doubt(&self, id: VolumeId) -> Doubt {
        let known = self.to_read.iter().find(|v| v.id == id);
        known.map_or_else(
            || Doubt::Whole("nothing is known of it".into()),
            |v| v.doubt.clone(),
        )
    }

    /// Reads of every volume what is in doubt.
    fn read_all(
        &self,
        doubts: &[(VolumeId, Doubt)],
        announce: impl Fn(VolumeId, Range<u64>),
        mut take: impl FnMut(VolumeId, u64, Piece<'_>) -> ApiResult<()>,
    ) -> ApiResult<()> {
        let failed = |e: &(dyn std::error::Error + 'static)| {
            ApiError::new(
                ApiErrorKind::Unavailable,
                format!("cannot read the disk: {}", sentence(e)),
            )
        };
        let mut exports: Option<ReadExports<'_>> = None;
        for (id, node, name) in &self.exports {
            let doubt = doubts.iter().find(|(one, _)| one == id);
            let marked = match doubt {
                Some((_, Doubt::Nothing(_))) => continue,
                None | Some((_, Doubt::Whole(_))) => None,
                // Without B_prev nothing was marked.
                Some((_, Doubt::Marked)) => match self.to_read.iter().find(|v| v.id == *id) {
                    Some(v) if v.bytes > 0 => Some(v.bitmap.as_str()),
                    _ => continue,
                },
            };
            let server = match &mut exports {
                Some(server) => server,
                None => exports.insert(
                    ReadExports::start(&*self.monitor, &self.dir, &self.tag)
                        .map_err(|e| failed(&e))?,
                ),
            };
            let stream = server.open(node, name, marked).map_err(|e| failed(&e))?;
            let done = |bytes| {
                self.progress.done.fetch_add(bytes, Ordering::Relaxed);
                !self.cancelled.load(Ordering::Relaxed)
            };
            let announce = |window| {
                announce(*id, window);
                Ok(())
            };
            let take = |offset, piece: Piece<'_>| take(*id, offset, piece);
            let read = match marked {
                Some(bitmap) => disk_read::read_marked(stream, name, bitmap, done, announce, take),
                None => disk_read::read_disk(stream, name, done, announce, take),
            };
            read.map_err(|e| match e {
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

/// Tells whether the harbor still has what was asked for: what is damaged there is had again from the disk.
fn is_there(known: Result<(), HarborError>) -> ApiResult<bool> {
    match known {
        Err(error @ HarborError::Damaged { .. }) => {
            tracing::warn!(%error, "it is taken from the disk again");
            Ok(false)
        }
        known => known.map(|()| true).map_err(from_harbor),
    }
}

/// Compares one live disk with what the harbor has of it.
struct Compare {
    id: VolumeId,
    image: LatestImage,
    recorder: VolumeRecorder,
    old: Vec<u8>,
    read: u64,
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
        self.read += data.len() as u64;
        let mut at = offset;
        for now in data.chunks(CLUSTER) {
            let old = self.old.get_mut(..now.len()).unwrap_or_default();
            let known = self.image.read_at(old, at);
            if !is_there(known)? || old != now {
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
        let extents = match self.image.extents(offset, len) {
            // Then each cluster is looked at by itself.
            Err(HarborError::Damaged { .. }) => vec![ViewExtent { len, zero: false }],
            known => known.map_err(from_harbor)?,
        };
        let mut at = offset;
        for extent in extents {
            let end = at + extent.len;
            while !extent.zero && at < end {
                let len = (end - at).min(CLUSTER as u64);
                let old = self.old.get_mut(..len as usize).unwrap_or_default();
                let known = self.image.read_at(old, at);
                if !is_there(known)? || old.iter().any(|b| *b != 0) {
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
