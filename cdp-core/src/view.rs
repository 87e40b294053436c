//! Views: a machine's volumes, read-only, at one recovery point.
//!
//! A [`View`] is a set of images: base point and journal, of which only what is looked at is merged. So it opens at
//! once and takes no more memory than a bound, however many records there are. It can be read from any number of threads,
//! and holds open whatever it needs. [`parts`] says how. Its point is not deleted meanwhile.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use crate::error::{HarborError, Result};
use crate::harbor::Pin;
use crate::harbor::suspects::Suspects;
use crate::machine::VolumeId;
use crate::point::{Point, Seq};
use crate::storage::Storage;
use crate::verify::Lost;

pub(crate) mod image;
pub(crate) mod parts;

pub(crate) mod cache;
mod gathering;
pub(crate) mod part;

mod export;

use parts::Parts;

/// A stretch of a volume that is all zeros, or may not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewExtent {
    /// Bytes.
    pub len: u64,
    /// Whether all of them are known to be zero without reading them.
    pub zero: bool,
}

/// A machine's volumes, read-only, at one recovery point.
#[derive(Debug)]
pub struct View {
    point: Point,
    _pin: Pin,
    images: BTreeMap<VolumeId, Parts>,
    storage: Arc<dyn Storage>,
    suspects: Arc<Suspects>,
}

impl View {
    pub(crate) fn new(
        (point, pin): (Point, Pin),
        images: BTreeMap<VolumeId, Parts>,
        (storage, suspects): (Arc<dyn Storage>, Arc<Suspects>),
    ) -> View {
        View {
            point,
            _pin: pin,
            images,
            storage,
            suspects,
        }
    }

    fn image(&self, volume: VolumeId) -> Result<&Parts> {
        self.images
            .get(&volume)
            .ok_or(HarborError::NoSuchVolume(volume))
    }

    /// Returns the point.
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// Returns the numbers of the volumes.
    pub fn volumes(&self) -> Vec<VolumeId> {
        self.images.keys().copied().collect()
    }

    /// Returns the bytes of a volume.
    ///
    /// # Errors
    /// No such volume.
    pub fn size(&self, volume: VolumeId) -> Result<u64> {
        Ok(self.image(volume)?.size())
    }

    /// Reads `buf.len()` bytes at byte `offset`.
    ///
    /// # Errors
    /// No such volume; not within it; the storage failed; what is kept is damaged.
    pub fn read_at(&self, volume: VolumeId, buf: &mut [u8], offset: u64) -> Result<()> {
        self.suspects.note(self.image(volume)?.read_at(buf, offset))
    }

    /// Returns what `len` bytes at byte `offset` consist of, in order, neighbours differing.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn extents(&self, volume: VolumeId, offset: u64, len: u64) -> Result<Vec<ViewExtent>> {
        self.first_extents(volume, offset, len, usize::MAX)
    }

    /// Returns the same, but no more than the first `most` extents: what follows on them is not told.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn first_extents(
        &self,
        volume: VolumeId,
        offset: u64,
        len: u64,
        most: usize,
    ) -> Result<Vec<ViewExtent>> {
        self.suspects
            .note(self.image(volume)?.extents(offset, len, most))
    }

    /// Writes a volume to a standalone qcow2 image at `path`, which must not exist; durable and
    /// complete when it appears there. `progress` gets the bytes of the volume done so far.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`Cancelled`](crate::HarborError::Cancelled) when
    /// `progress` breaks. Nothing is left at `path` then.
    pub fn export(
        &self,
        volume: VolumeId,
        path: &Path,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let image = self.image(volume)?;
        self.suspects
            .note(export::export(&*self.storage, image, path, progress))
    }
}

/// One volume as of the last record in the journal, point or not. To be read from front to back: it holds what it needs
/// for some part at a time, however many records there are.
#[derive(Debug)]
pub struct LatestImage {
    seq: Seq,
    parts: Parts,
    suspects: Arc<Suspects>,
}

impl LatestImage {
    pub(crate) fn new(seq: Seq, parts: Parts, suspects: Arc<Suspects>) -> LatestImage {
        LatestImage {
            seq,
            parts,
            suspects,
        }
    }

    /// Returns the last record it contains.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Returns the bytes of the volume.
    pub fn size(&self) -> u64 {
        self.parts.size()
    }

    /// Reads `buf.len()` bytes at byte `offset`.
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.suspects.note(self.parts.read_at(buf, offset))
    }

    /// Returns what a range consists of, like [`View::extents`].
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn extents(&self, offset: u64, len: u64) -> Result<Vec<ViewExtent>> {
        self.suspects
            .note(self.parts.extents(offset, len, usize::MAX))
    }

    /// Returns what a range is shown from, as what would be lost if that were damaged: records, and layers.
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub(crate) fn shown_from(&self, range: Range<u64>) -> Result<Vec<Lost>> {
        self.suspects.note(self.parts.shown_from(range))
    }

    /// Lets go of the memory that the last reads needed.
    pub fn let_go(&self) {
        self.parts.let_go();
    }
}
