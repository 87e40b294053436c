//! Writes frames behind one another, several at a time where the kernel takes them so.
//!
//! With io_uring a write is handed over and goes on by itself; without, or for a file that has no
//! [`descriptor`](super::StorageFile::descriptor), it is done at once. Whoever needs all of them done asks for that
//! ([`Appender::finish`]) before the sync.
//!
//! Invariant: what a write reads from is kept until that write is done. The first failure is told by the next call.
//! A crash may leave a later write done and an earlier one not.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::StorageFile;
use super::ring::Ring;

/// Bytes that lie in several places, to be written one after the other.
pub(crate) trait Parts: fmt::Debug + Send {
    /// Returns the bytes; they stay where they are as long as the owner lives.
    fn parts(&self) -> Vec<IoSlice<'_>>;
}

/// Writes to files, up to so many writes at a time.
#[derive(Debug)]
pub(crate) struct Appender<T: Parts> {
    ring: Option<Ring<T>>,
}

/// A moment in a row of writes: those begun before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark(u64);

impl<T: Parts> Appender<T> {
    /// Makes an appender for at most `depth` writes at a time; one by one where the kernel refuses.
    pub(crate) fn new(depth: usize) -> Appender<T> {
        let ring = match Ring::new(depth) {
            Ok(ring) => Some(ring),
            Err(error) => {
                tracing::info!(%error, "the kernel has no io_uring for us: frames are written one by one");
                None
            }
        };
        Appender { ring }
    }

    /// Begins to write `what` at byte `offset`, and keeps it until that is done.
    ///
    /// # Errors
    /// As the operating system says, of this write or of one before.
    pub(crate) fn write(
        &mut self,
        file: &Arc<dyn StorageFile>,
        what: T,
        offset: u64,
    ) -> io::Result<()> {
        match &mut self.ring {
            Some(ring) if file.descriptor().is_some() => ring.write(file, what, offset),
            Some(ring) => {
                // Those that were begun while the file had a descriptor.
                ring.poll()?;
                file.write_at(&what.parts(), offset)
            }
            None => file.write_at(&what.parts(), offset),
        }
    }

    /// Returns the mark behind all writes begun so far.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.ring.as_ref().map_or(0, Ring::begun))
    }

    /// Returns the last mark before which all writes are known to be done. None of them failed, if no call said so.
    pub(crate) fn done(&self) -> Mark {
        Mark(self.ring.as_ref().map_or(0, Ring::done))
    }

    /// Waits until all writes are done.
    ///
    /// # Errors
    /// As the operating system says, of any of them.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match &mut self.ring {
            Some(ring) => ring.finish(),
            None => Ok(()),
        }
    }
}
