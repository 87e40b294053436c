//! What an image of a volume is made of: base point, and segments that are held open.
//!
//! Invariant: whoever reads an image holds all its files open, so that nothing that is deleted later can hurt it.
//! That no record is missing in between is known when they are opened.

use std::sync::Arc;

use crate::error::{HarborError, Result};
use crate::harbor::shared::Shared;
use crate::journal::segment::Segment;
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::qcow2::Chain;
use crate::storage::StorageFile;

/// What an image is to be made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) volume: VolumeId,
    pub(crate) size: u64,
    /// What lies underneath; zeros if none.
    pub(crate) base: Option<Arc<Chain>>,
    /// The last record that is underneath already.
    pub(crate) after: Seq,
}

/// A segment that is held open.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn StorageFile>,
}

/// Opens the segments with records behind `lowest` up to `up_to`, and checks that none is missing.
pub(crate) fn segments_between(
    shared: &Shared,
    plans: &[Plan],
    lowest: Seq,
    up_to: Seq,
) -> Result<Vec<OpenSegment>> {
    let catalog = shared.catalog();
    for plan in plans {
        if let Some((first, last)) = catalog.first_hole(plan.after, up_to) {
            return Err(HarborError::MissingRecords {
                volume: plan.volume,
                first,
                last,
            });
        }
    }
    let needed =
        |segment: &&Arc<Segment>| segment.first_seq <= up_to && segment.last_seq() > lowest;
    let needed: Vec<Arc<Segment>> = catalog.segments.iter().filter(needed).cloned().collect();
    drop(catalog);
    let open = needed.into_iter().map(|segment| {
        let file = segment.open(&*shared.options.storage)?;
        Ok(OpenSegment { segment, file })
    });
    open.collect()
}

impl Plan {
    /// Checks that a range lies within the volume.
    pub(crate) fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(HarborError::OutOfBounds {
                volume: self.volume,
                offset,
                len,
                size: self.size,
            }),
        }
    }
}
