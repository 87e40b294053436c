//! Storage that fails on purpose: the n-th write or sync from now, with the error one asks for.
//!
//! Operations are counted over all files. A failed write leaves the first bytes it was told to
//! leave, as a torn write does. After a fault everything works again, so that a test sees whether
//! the program writes on after a failure.

use std::any::Any;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{OpenMode, RealStorage, Space, Storage, StorageFile};

/// A failure that is to happen once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The write after `after` more ones fails with `errno`, leaving its first `torn` bytes.
    Write {
        /// Writes that still succeed.
        after: u64,
        /// Bytes of the failing write that reach the file.
        torn: usize,
        /// Error of the operating system.
        errno: i32,
    },
    /// The sync of a file after `after` more ones fails with `errno`.
    Sync {
        /// Syncs that still succeed.
        after: u64,
        /// Error of the operating system.
        errno: i32,
    },
}

/// The operating system's files, with a fault when one is asked for.
#[derive(Debug, Clone, Default)]
pub struct FaultyStorage {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    fault: Mutex<Option<Fault>>,
    writes: AtomicU64,
    syncs: AtomicU64,
}

impl FaultyStorage {
    /// Makes a storage that works until told otherwise.
    pub fn new() -> FaultyStorage {
        FaultyStorage::default()
    }

    /// Asks for a fault; an earlier one that has not happened is forgotten.
    pub fn inject(&self, fault: Fault) {
        *self
            .shared
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// Tells whether the fault asked for is still to happen.
    pub fn is_armed(&self) -> bool {
        self.shared
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Returns the number of writes so far.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::SeqCst)
    }

    /// Returns the number of syncs so far.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// Counts a write; returns the torn bytes and the error if it is the one to fail.
    fn write_fault(&self) -> Option<(usize, io::Error)> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *fault {
            Some(Fault::Write {
                after: 0,
                torn,
                errno,
            }) => {
                let happens = (*torn, io::Error::from_raw_os_error(*errno));
                *fault = None;
                Some(happens)
            }
            Some(Fault::Write { after, .. }) => {
                *after -= 1;
                None
            }
            _ => None,
        }
    }

    fn sync_fault(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *fault {
            Some(Fault::Sync { after: 0, errno }) => {
                let error = io::Error::from_raw_os_error(*errno);
                *fault = None;
                Err(error)
            }
            Some(Fault::Sync { after, .. }) => {
                *after -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Storage for FaultyStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let file = RealStorage.open(path, mode)?;
        Ok(Arc::new(FaultyFile {
            file,
            shared: Arc::clone(&self.shared),
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealStorage.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealStorage.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealStorage.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealStorage.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.sync_dir(dir)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        RealStorage.space(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        RealStorage.lock(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn StorageFile>,
    shared: Arc<Shared>,
}

impl StorageFile for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let Some((torn, error)) = self.shared.write_fault() else {
            return self.file.write_at(parts, offset);
        };
        let bytes = parts
            .iter()
            .flat_map(|part| part.iter().copied())
            .take(torn);
        let left: Vec<u8> = bytes.collect();
        self.file.write_at(&[IoSlice::new(&left)], offset)?;
        Err(error)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.file.preallocate(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch_hole(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.sync_fault()?;
        self.file.sync()
    }
}
