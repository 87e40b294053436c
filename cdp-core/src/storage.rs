//! The door to the storage: every file operation of the crate goes through it.
//!
//! [`RealStorage`] is the operating system's. For tests, [`FaultyStorage`] fails on purpose, and
//! [`SimulatedStorage`] is in memory and forgets what a power cut may make a disk forget. A file
//! is written at given positions only, never through a moving one, so that handles can be shared.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use crate::bounds::KEPT_FREE_SHARE;

pub(crate) mod append;
mod faulty;
mod real;
pub(crate) mod replace;
mod ring;
mod simulated;

pub use faulty::{Fault, FaultyStorage};
pub use real::RealStorage;
pub use simulated::{Left, Operation, SimulatedStorage, Trouble};

/// Tells how a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; it must not exist, and gets mode 0600.
    New,
    /// As [`New`](Self::New), past the page cache where the file system has that: whoever writes then gives
    /// whole blocks of [`BLOCK`](crate::bounds::BLOCK) bytes, in parts whose lengths are blocks too, from memory
    /// aligned to [`SECTOR`](crate::bounds::SECTOR).
    NewDirect,
}

/// Room in a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this process may still use.
    pub free: u64,
    /// All there is, used or not.
    pub total: u64,
}

impl Space {
    /// Returns how many of `wanted` bytes are to be kept free: at most a tenth of all there is, so that a small file
    /// system can be used.
    pub fn kept_free(&self, wanted: u64) -> u64 {
        wanted.min(self.total / KEPT_FREE_SHARE)
    }

    /// Returns what is free beyond what is to be kept free.
    pub fn spare(&self, wanted: u64) -> u64 {
        self.free.saturating_sub(self.kept_free(wanted))
    }
}

/// The operations on directories and whole files.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Opens a file.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>>;

    /// Makes a directory of mode 0700.
    ///
    /// # Errors
    /// As the operating system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Returns the names in a directory, sorted.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Renames a file, replacing what has the new name.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Puts the entries of a directory on stable storage.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Returns the room in the file system in which `path` lies.
    ///
    /// # Errors
    /// As the operating system says.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Locks a file for this holder alone, making it if need be, until the answer is dropped; none
    /// if it is locked.
    ///
    /// # Errors
    /// As the operating system says.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;
}

/// The operations on an open file.
pub trait StorageFile: Send + Sync + fmt::Debug {
    /// Returns the file's length in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn length(&self) -> io::Result<u64>;

    /// Returns the bytes that the file system has given the file, which may be fewer than its length, or more. A storage
    /// that does not tell says its length.
    ///
    /// # Errors
    /// As the operating system says.
    fn allocated(&self) -> io::Result<u64> {
        self.length()
    }

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// As the operating system says; `UnexpectedEof` if the file is shorter.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `parts`, one after the other, from byte `offset`.
    ///
    /// # Errors
    /// As the operating system says; a part may have been written.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Cuts the file, or extends it with zeros.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the file `len` bytes long with room for all of them; what was not written reads as zeros. A
    /// file system that cannot reserve leaves the file as it is.
    ///
    /// # Errors
    /// As the operating system says; there may not be enough room.
    fn preallocate(&self, len: u64) -> io::Result<()>;

    /// Lets the storage have the room of `len` bytes at `offset` back, which read as zeros then. The file stays as long
    /// as it is. A storage that cannot do that leaves it all as it is.
    ///
    /// # Errors
    /// As the operating system says.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Returns the descriptor for writes that are handed to the kernel while others are under way; none if every
    /// write must go through [`write_at`](Self::write_at).
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Puts the file's content on stable storage, and its length.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync(&self) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::Space;

    #[test]
    fn a_tenth_at_most_is_kept_free() {
        const MIB: u64 = 1 << 20;
        // free, total, wanted -> kept free, spare
        let table = [
            (900, 1000, 50, 50, 850),
            (900, 1000, 100, 100, 800),
            (900, 1000, 101, 100, 800),
            (99, 1000, 1024, 100, 0),
            (40, 40, 1024, 4, 36),
            (7, 40, 0, 0, 7),
            (0, 0, 1024, 0, 0),
        ];
        for (free, total, wanted, kept, spare) in table {
            let space = Space {
                free: free * MIB,
                total: total * MIB,
            };
            let found = (
                space.kept_free(wanted * MIB) / MIB,
                space.spare(wanted * MIB) / MIB,
            );
            assert_eq!(found, (kept, spare), "{free} {total} {wanted}");
        }
    }
}
