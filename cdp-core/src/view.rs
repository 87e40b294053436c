//! Views: a machine's volumes, read-only, at one recovery point.

use std::ops::ControlFlow;
use std::path::Path;

use crate::error::Result;
use crate::machine::VolumeId;
use crate::point::{Point, Seq};

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
pub struct View {}

impl View {
    /// Returns the point.
    pub fn point(&self) -> &Point {
        unimplemented!()
    }

    /// Returns the numbers of the volumes.
    pub fn volumes(&self) -> Vec<VolumeId> {
        unimplemented!()
    }

    /// Returns the bytes of a volume.
    ///
    /// # Errors
    /// No such volume.
    pub fn size(&self, volume: VolumeId) -> Result<u64> {
        let _ = volume;
        unimplemented!()
    }

    /// Reads `buf.len()` bytes at byte `offset`.
    ///
    /// # Errors
    /// No such volume; not within it; the storage failed; what is kept is damaged.
    pub fn read_at(&self, volume: VolumeId, buf: &mut [u8], offset: u64) -> Result<()> {
        let _ = (volume, buf, offset);
        unimplemented!()
    }

    /// Returns what `len` bytes at byte `offset` consist of, in order, neighbours differing.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn extents(&self, volume: VolumeId, offset: u64, len: u64) -> Result<Vec<ViewExtent>> {
        let _ = (volume, offset, len);
        unimplemented!()
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
        let _ = (volume, path, progress);
        unimplemented!()
    }
}

/// One volume as of the last record in the journal, point or not.
#[derive(Debug)]
pub struct LatestImage {}

impl LatestImage {
    /// Returns the last record it contains.
    pub fn seq(&self) -> Seq {
        unimplemented!()
    }

    /// Returns the bytes of the volume.
    pub fn size(&self) -> u64 {
        unimplemented!()
    }

    /// Reads `buf.len()` bytes at byte `offset`.
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _ = (buf, offset);
        unimplemented!()
    }

    /// Returns what a range consists of, like [`View::extents`].
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn extents(&self, offset: u64, len: u64) -> Result<Vec<ViewExtent>> {
        let _ = (offset, len);
        unimplemented!()
    }
}
