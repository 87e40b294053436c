//! What is kept last, compared with the live disks; and what is damaged, had again from them.
//!
//! A window of a disk is announced, QEMU is drained, and what is kept then is read beside what the disk has. What differs
//! is only looked at once more: after another drain every write that was under way has reached its tap, and what was
//! written since the announcement is left out. What differs still is damage of what is kept, or was missed: the points that
//! show it are marked first, and then what the disk has is journaled, so that later points have it. A cluster that a layer
//! cannot give any more is put back into it where the hashes say that the disk has the very same.
//!
//! Invariant: a difference is believed only while the mirrors stand. The guest is never held up: all of it is reading,
//! and at most a drain at a time.

use std::{
    cell::RefCell,
    ops::{ControlFlow, Range},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use cdp_core::{
    Harbor, HarborError, LatestImage, Scope, Verifying, ViewExtent, VolumeId, VolumeRecorder,
};
use qemu_hook::{
    disk_read::{self, Piece},
    read_export::ReadExports,
};
use serde_json::Value;

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::{from_harbor, sentence},
        machine::{Command, Machine, PointWish},
        upkeep::QemuSide,
    },
};

/// Bytes that are compared at a time: a cluster of a layer.
const CLUSTER: usize = 64 << 10;
/// What differs is told apart to so many bytes.
const SECTOR: usize = 512;
/// Bytes after which it is looked whether the capture has ended.
const STEP: u64 = 1 << 20;
/// Clusters that differ are settled once they are so many.
const UNSETTLED_MAX: usize = 256;
/// How often it is tried to put back clusters while layers are built, and the pause in between.
const PUT_BACK_TRIES: u32 = 50;
const PUT_BACK_PAUSE: Duration = Duration::from_millis(100);

/// What it takes to compare what is kept with the disks of a machine that is captured.
pub(crate) struct LiveSide {
    /// QEMU, and where the taps write to.
    pub(crate) qemu: QemuSide,
    /// Volume, node, and the name for its export.
    pub(crate) exports: Vec<(VolumeId, String, String)>,
    /// The machine's short tag.
    pub(crate) tag: String,
    /// A directory for the socket that nobody else can enter.
    pub(crate) dir: PathBuf,
    /// True once the capture ends.
    pub(crate) ended: Arc<AtomicBool>,
}

/// What came of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compared {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Bytes that were compared.
    pub(crate) read: u64,
    /// Bytes that were kept otherwise than the disk has them.
    pub(crate) differing: u64,
    /// Bytes that were put back into layers.
    pub(crate) put_back: u64,
    /// Bytes that were journaled.
    pub(crate) journaled: u64,
}

/// Told of bytes that were compared; false ends it.
pub(crate) type GoOn<'a> = &'a (dyn Fn(u64) -> bool + Sync);

/// Compares all disks of a machine with what is kept last; those that are not captured are left out.
///
/// # Errors
/// It is not captured, or not any more; something is compared already.
pub(crate) fn compare_all(machine: &Machine, go_on: GoOn<'_>) -> ApiResult<Vec<Compared>> {
    let everything = 0..u64::MAX;
    let side = machine.ask(Command::Live)?;
    let all = side.exports.iter().map(|(id, _, _)| *id);
    let areas = all.map(|id| (id, vec![everything.clone()])).collect();
    compare(machine, side, areas, go_on)
}

/// Has what is damaged again from the live disks, as far as they may have it.
///
/// # Errors
/// As [`compare_all`].
pub(crate) fn heal(machine: &Machine, go_on: GoOn<'_>) -> ApiResult<Vec<Compared>> {
    let harbor = machine.harbor();
    let volumes = harbor.description().volumes;
    let areas = volumes.iter().map(|v| (v.id, harbor.curable(v.id)));
    let areas: Vec<_> = areas.filter(|(_, areas)| !areas.is_empty()).collect();
    if areas.is_empty() {
        return Ok(Vec::new());
    }
    let side = machine.ask(Command::Live)?;
    compare(machine, side, areas, go_on)
}

/// Compares areas of some volumes, in order.
fn compare(
    machine: &Machine,
    side: LiveSide,
    areas: Vec<(VolumeId, Vec<Range<u64>>)>,
    go_on: GoOn<'_>,
) -> ApiResult<Vec<Compared>> {
    let harbor = machine.harbor();
    let mut exports = ReadExports::start(&*side.qemu.monitor, &side.dir, &side.tag)
        .map_err(|e| cannot_read(&e))?;
    let mut compared = Vec::new();
    for (id, node, name) in &side.exports {
        let Some((_, areas)) = areas.iter().find(|(one, _)| one == id) else {
            continue;
        };
        let stream = exports
            .open(node, name, None)
            .map_err(|e| cannot_read(&e))?;
        let comparing = RefCell::new(Comparing::new(&side, &harbor, *id)?);
        let read = disk_read::read_areas(
            stream,
            name,
            areas,
            |bytes| side.goes_on(bytes, go_on),
            |window| comparing.borrow_mut().begin(window),
            |offset, piece| comparing.borrow_mut().piece(offset, piece),
        );
        let mut comparing = comparing.into_inner();
        let settled = read.map_err(from_read).and_then(|()| comparing.settle());
        comparing.recorder.end_resync();
        settled?;
        tracing::info!(machine = machine.name, found = ?comparing.found, "compared with the live disk");
        compared.push(comparing.found);
    }
    drop(exports);
    // From here on a capture may begin that reads through the same QEMU.
    drop(side);
    conclude(machine, &harbor, &compared, go_on)?;
    Ok(compared)
}

/// What was put back is verified, and what was journaled gets a point.
fn conclude(
    machine: &Machine,
    harbor: &Harbor,
    compared: &[Compared],
    go_on: GoOn<'_>,
) -> ApiResult<()> {
    if harbor.has_suspects() {
        let scope = Scope {
            suspects: true,
            ..Scope::default()
        };
        let mut control = |told: Verifying| match go_on(told.read) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        harbor.verify(scope, &mut control).map_err(from_harbor)?;
    }
    if compared.iter().any(|one| one.journaled > 0) {
        let wish = PointWish {
            label: None,
            still: None,
        };
        machine.point(wish)?;
    }
    Ok(())
}

impl LiveSide {
    /// Tells of bytes step by step, so that no wait for a rate is longer than that of a step once the capture has ended.
    fn goes_on(&self, bytes: u64, go_on: GoOn<'_>) -> bool {
        let mut left = bytes;
        loop {
            let step = left.min(STEP);
            if self.ended.load(Ordering::SeqCst) || !go_on(step) {
                return false;
            }
            left -= step;
            if left == 0 {
                return true;
            }
        }
    }

    /// Tells whether the disks may be another QEMU's by now.
    fn is_migrated(&self) -> bool {
        let status = self.qemu.monitor.execute("query-status", Value::Null);
        let status = status
            .ok()
            .and_then(|s| s["status"].as_str().map(str::to_owned));
        let of_migration = ["finish-migrate", "postmigrate", "inmigrate"];
        status.is_some_and(|status| of_migration.contains(&status.as_str()))
    }
}

fn cannot_read(error: &(dyn std::error::Error + 'static)) -> ApiError {
    let what = format!("cannot read the disk: {}", sentence(error));
    ApiError::new(ApiErrorKind::Unavailable, what)
}

fn from_read(error: disk_read::ReadError<ApiError>) -> ApiError {
    match error {
        disk_read::ReadError::Taker(error) => error,
        disk_read::ReadError::Nbd(error) => cannot_read(&error),
        disk_read::ReadError::Cancelled => stopped(),
    }
}

fn stopped() -> ApiError {
    let what = "the comparison with the live disk was ended";
    ApiError::new(ApiErrorKind::FailedPrecondition, what)
}

/// A cluster that is kept otherwise than the disk had it.
struct Unsettled {
    offset: u64,
    /// As the disk had it.
    live: Vec<u8>,
    /// As it is kept; none: it cannot be read.
    kept: Option<Vec<u8>>,
}

/// Compares one disk with what is kept of it.
struct Comparing<'a> {
    side: &'a LiveSide,
    harbor: &'a Harbor,
    recorder: VolumeRecorder,
    image: Option<LatestImage>,
    buffer: Vec<u8>,
    unsettled: Vec<Unsettled>,
    found: Compared,
}

impl<'a> Comparing<'a> {
    fn new(side: &'a LiveSide, harbor: &'a Harbor, volume: VolumeId) -> ApiResult<Self> {
        Ok(Self {
            side,
            harbor,
            recorder: side.qemu.recorder.volume(volume).map_err(from_harbor)?,
            image: None,
            buffer: vec![0; CLUSTER],
            unsettled: Vec::new(),
            found: Compared {
                volume,
                read: 0,
                differing: 0,
                put_back: 0,
                journaled: 0,
            },
        })
    }

    /// Begins a window: what is kept is taken after all that was written before the announcement.
    fn begin(&mut self, window: Range<u64>) -> ApiResult<()> {
        self.settle()?;
        self.recorder.announce(window);
        self.side.qemu.drain()?;
        let image = self.harbor.latest_image(self.found.volume);
        self.image = Some(image.map_err(from_harbor)?);
        Ok(())
    }

    fn piece(&mut self, offset: u64, piece: Piece<'_>) -> ApiResult<()> {
        match piece {
            Piece::Data(data) => {
                let (mut at, mut rest) = (offset, data);
                while !rest.is_empty() {
                    let to_next = CLUSTER - (at % CLUSTER as u64) as usize;
                    let (live, behind) = rest.split_at(to_next.min(rest.len()));
                    self.cluster(at, live)?;
                    at += live.len() as u64;
                    rest = behind;
                }
                Ok(())
            }
            Piece::Zero(len) => self.zeros(offset, len),
        }
    }

    /// Zeros on the disk: looked at where something else may be kept.
    fn zeros(&mut self, offset: u64, len: u64) -> ApiResult<()> {
        let Some(image) = &self.image else {
            return Err(stopped());
        };
        let extents = match image.extents(offset, len) {
            // Then each cluster is looked at by itself.
            Err(HarborError::Damaged { .. }) => vec![ViewExtent { len, zero: false }],
            known => known.map_err(from_harbor)?,
        };
        let zeros = [0; CLUSTER];
        let mut at = offset;
        for extent in extents {
            let end = at + extent.len;
            if extent.zero {
                self.found.read += extent.len;
            }
            while !extent.zero && at < end {
                let to_next = CLUSTER as u64 - at % CLUSTER as u64;
                let len = (end - at).min(to_next);
                self.cluster(at, zeros.get(..len as usize).unwrap_or_default())?;
                at += len;
            }
            at = end;
        }
        Ok(())
    }

    /// Compares at most a cluster.
    fn cluster(&mut self, offset: u64, live: &[u8]) -> ApiResult<()> {
        let (Some(image), Some(kept)) = (&self.image, self.buffer.get_mut(..live.len())) else {
            return Err(stopped());
        };
        self.found.read += live.len() as u64;
        let kept = match image.read_at(kept, offset) {
            Err(HarborError::Damaged { .. }) => None,
            Err(error) => return Err(from_harbor(error)),
            Ok(()) if *kept == *live => return Ok(()),
            Ok(()) => Some(kept.to_vec()),
        };
        self.unsettled.push(Unsettled {
            offset,
            live: live.to_vec(),
            kept,
        });
        // What comes in pieces is settled as a whole.
        let is_whole = (offset + live.len() as u64).is_multiple_of(CLUSTER as u64);
        match is_whole && self.unsettled.len() >= UNSETTLED_MAX {
            true => self.settle(),
            false => Ok(()),
        }
    }

    /// Looks at what differed once more, now that all that was under way has come through.
    fn settle(&mut self) -> ApiResult<()> {
        let unsettled = std::mem::take(&mut self.unsettled);
        if unsettled.is_empty() {
            return Ok(());
        }
        self.side.qemu.drain()?;
        let side = self.side;
        let is_over = side.ended.load(Ordering::SeqCst) || side.is_migrated();
        if is_over || !side.qemu.mirrors_stand()? {
            return Err(stopped());
        }
        let (differing, unread): (Vec<_>, Vec<_>) =
            unsettled.into_iter().partition(|one| one.kept.is_some());
        self.settle_differing(&differing)?;
        self.settle_unread(unread)
    }

    /// What was written since is left out; of the rest the points are marked before it is journaled.
    fn settle_differing(&mut self, differing: &[Unsettled]) -> ApiResult<()> {
        let refused = |e: cdp_core::Refused| from_harbor(e.into());
        let mut real: Vec<(Range<u64>, &[u8])> = Vec::new();
        for one in differing {
            let kept = one.kept.as_deref().unwrap_or_default();
            for run in differing_sectors(&one.live, kept) {
                let at = one.offset + run.start as u64..one.offset + run.end as u64;
                for part in self.recorder.untouched(at).map_err(refused)? {
                    let within = part.start - one.offset..part.end - one.offset;
                    let bytes = one.live.get(within.start as usize..within.end as usize);
                    real.push((part, bytes.unwrap_or_default()));
                }
            }
        }
        if real.is_empty() {
            return Ok(());
        }
        let ranges: Vec<Range<u64>> = real.iter().map(|(range, _)| range.clone()).collect();
        let Some(image) = &self.image else {
            return Err(stopped());
        };
        let (harbor, volume) = (self.harbor, self.found.volume);
        let note = || harbor.note_differences(volume, image, &ranges);
        let found = note().map_err(from_harbor)?;
        tracing::error!(volume = self.found.volume.0, places = ?ranges, ?found, "the live disk has something else");
        for (range, bytes) in real {
            self.found.differing += range.end - range.start;
            let taken = self.recorder.resync_data(range.start, bytes);
            self.found.journaled += taken.map_err(refused)?;
        }
        // Points made in between show what was kept, too.
        note().map_err(from_harbor)?;
        Ok(())
    }

    /// What cannot be read is put back where it was, or journaled.
    fn settle_unread(&mut self, unread: Vec<Unsettled>) -> ApiResult<()> {
        let clusters = whole_clusters(unread);
        if clusters.is_empty() {
            return Ok(());
        }
        let put = self.put_back(&clusters)?;
        for ((offset, live), put) in clusters.iter().zip(put) {
            let len = live.len() as u64;
            self.found.differing += len;
            if put {
                self.found.put_back += len;
                continue;
            }
            let taken = self.recorder.resync_data(*offset, live);
            self.found.journaled += taken.map_err(|e| from_harbor(e.into()))?;
        }
        Ok(())
    }

    /// Waits a while for layers that are being built.
    fn put_back(&self, clusters: &[(u64, Vec<u8>)]) -> ApiResult<Vec<bool>> {
        for _ in 0..PUT_BACK_TRIES {
            match self.harbor.put_back(self.found.volume, clusters) {
                Err(HarborError::Busy(_)) => thread::sleep(PUT_BACK_PAUSE),
                put => return put.map_err(from_harbor),
            }
        }
        let what = "a base point is being built or merged, so nothing can be put back now";
        Err(ApiError::new(ApiErrorKind::Unavailable, what).hint("try again in a few minutes"))
    }
}

/// Puts together what was read of a cluster in pieces.
fn whole_clusters(mut pieces: Vec<Unsettled>) -> Vec<(u64, Vec<u8>)> {
    pieces.sort_by_key(|piece| piece.offset);
    let cluster = |at: u64| at / CLUSTER as u64;
    let mut clusters: Vec<(u64, Vec<u8>)> = Vec::new();
    for piece in pieces {
        match clusters.last_mut() {
            Some((at, bytes))
                if *at + bytes.len() as u64 == piece.offset
                    && cluster(*at) == cluster(piece.offset) =>
            {
                bytes.extend(piece.live);
            }
            _ => clusters.push((piece.offset, piece.live)),
        }
    }
    clusters
}

/// Returns the runs of sectors in which two pieces of the same length differ.
fn differing_sectors(a: &[u8], b: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let sectors = a.chunks(SECTOR).zip(b.chunks(SECTOR));
    for (number, (a, b)) in sectors.enumerate() {
        if a == b {
            continue;
        }
        let (start, end) = (number * SECTOR, number * SECTOR + a.len());
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_apart_by_sectors() {
        let a = vec![7; 2000];
        assert!(differing_sectors(&a, &a).is_empty());
        let mut b = a.clone();
        b[600] = 8;
        assert_eq!(differing_sectors(&a, &b), vec![512..1024]);
        b[1024] = 8;
        b[1999] = 8;
        assert_eq!(differing_sectors(&a, &b), vec![512..2000]);
        b[0] = 8;
        b[1030] = 7;
        b[1024] = 7;
        assert_eq!(differing_sectors(&a, &b), vec![0..1024, 1536..2000]);
    }

    #[test]
    fn pieces_of_a_cluster_are_put_together() {
        let cluster = CLUSTER as u64;
        let piece = |offset, len: usize| Unsettled {
            offset,
            live: vec![7; len],
            kept: None,
        };
        let pieces = vec![
            piece(cluster + 4096, CLUSTER - 4096),
            piece(cluster, 4096),
            piece(2 * cluster, 512),
            piece(2 * cluster + 1024, 512),
        ];
        let lens: Vec<_> = whole_clusters(pieces)
            .iter()
            .map(|(at, bytes)| (*at, bytes.len()))
            .collect();
        let expected = [
            (cluster, CLUSTER),
            (2 * cluster, 512),
            (2 * cluster + 1024, 512),
        ];
        assert_eq!(lens, expected);
    }
}
