//! What a base point that is built, or a merge, tells of itself while it goes on.

use std::ops::ControlFlow;

use crate::error::{HarborError, Result};
use crate::machine::VolumeId;

/// How far the work is, told after each piece of at most 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The volume that is worked on.
    pub volume: VolumeId,
    /// Bytes of it that are done.
    pub done: u64,
    /// Bytes of it in all.
    pub total: u64,
    /// Bytes that were read since it was told last.
    pub read: u64,
    /// Bytes that were written since it was told last.
    pub written: u64,
}

/// Whoever is told of the progress, and may slow the work down or call it off.
pub(crate) type Control<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// Tells of the work on one volume.
pub(crate) struct Teller<'a, 'b> {
    control: &'a mut Control<'b>,
    volume: VolumeId,
    total: u64,
}

impl<'a, 'b> Teller<'a, 'b> {
    pub(crate) fn new(control: &'a mut Control<'b>, volume: VolumeId, total: u64) -> Self {
        Teller {
            control,
            volume,
            total,
        }
    }

    /// Tells that all up to byte `done` is done.
    ///
    /// # Errors
    /// [`HarborError::Cancelled`] if it is called off.
    pub(crate) fn tell(&mut self, done: u64, read: u64, written: u64) -> Result<()> {
        let progress = Progress {
            volume: self.volume,
            done: done.min(self.total),
            total: self.total,
            read,
            written,
        };
        match (self.control)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(HarborError::Cancelled),
        }
    }
}
