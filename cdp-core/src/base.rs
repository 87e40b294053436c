//! Base points: the layer of a volume underneath the journal.

use std::path::PathBuf;

use crate::error::Result;
use crate::machine::VolumeId;
use crate::point::Seq;

/// A complete image of a volume as of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePoint {
    /// The volume.
    pub volume: VolumeId,
    /// The last record it contains.
    pub seq: Seq,
    /// The file.
    pub path: PathBuf,
}

/// Writes a new full base point; dropped without [`finish`](Self::finish) it leaves nothing.
#[derive(Debug)]
pub struct SeedWriter {}

impl SeedWriter {
    /// Takes bytes read from the live disk after [`Harbor::seed`](crate::Harbor::seed) was called,
    /// in any order. What is never given reads as zeros.
    ///
    /// # Errors
    /// Not within the volume; the storage failed.
    pub fn data(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let _ = (offset, data);
        unimplemented!()
    }

    /// Lays every record of the volume from the call of [`Harbor::seed`](crate::Harbor::seed) up
    /// to `up_to` over the data (the stream wins) and puts the base point in place, durable.
    ///
    /// # Errors
    /// A record is damaged; the storage failed; the recording failed before `up_to` was written.
    pub fn finish(self, up_to: Seq) -> Result<BasePoint> {
        let _ = up_to;
        unimplemented!()
    }
}
