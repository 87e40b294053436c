//! Storage in memory that behaves as badly as storage may, from a seed.
//!
//! What was written and not synced is uncertain: when the power is cut, each of its sectors is there
//! or not, independently, in any version it had since the last sync. The same goes for directory
//! entries until their directory is synced. A sync that fails may have lost what it was to put
//! there, and a later one that succeeds does not bring it back. Beyond that a
//! [`Trouble`] can be asked for: an error at the n-th operation, a full disk, a write that goes to the
//! wrong place, a slow operation, a power cut; and [`rot`](SimulatedStorage::rot) flips a bit.
//!
//! How it is used: let the program work, [`cut_power`](SimulatedStorage::cut_power) (from then on every
//! operation fails), drop the program, [`power_up`](SimulatedStorage::power_up), start it again.
//!
//! Invariant: a sector is 512 bytes and never torn itself. What was synced, and whose sync said so, is
//! there for good, unless a trouble says otherwise.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{OpenMode, Space, Storage, StorageFile};

mod content;
mod disk;
mod trouble;

use disk::Disk;
pub use trouble::{Operation, Trouble};

/// What is left of the unsynced when the power comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// By chance, as after a power cut.
    ByChance,
    /// Everything, as after the end of the process alone; what is unsynced stays so.
    Everything,
    /// Nothing.
    Nothing,
}

/// Storage in memory, as bad as it may be; a handle that can be cloned.
#[derive(Clone)]
pub struct SimulatedStorage {
    disk: Arc<Mutex<Disk>>,
}

impl fmt::Debug for SimulatedStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedStorage").finish_non_exhaustive()
    }
}

impl SimulatedStorage {
    /// Makes an empty storage, with nothing but the directory `/`, whose chance comes from `seed`.
    pub fn new(seed: u64) -> SimulatedStorage {
        SimulatedStorage {
            disk: Arc::new(Mutex::new(Disk::new(seed))),
        }
    }

    /// Asks for a trouble, in addition to those asked for before.
    pub fn ask_for(&self, trouble: Trouble) {
        self.lock().ask_for(trouble);
    }

    /// Forgets all troubles that have not happened, a full disk among them.
    pub fn forget_troubles(&self) {
        self.lock().forget_troubles();
    }

    /// Tells whether a trouble that was asked for is still to happen.
    pub fn is_trouble_ahead(&self) -> bool {
        self.lock().is_trouble_ahead()
    }

    /// From now on, or no longer, syncs say that they did what they did not do: a broken storage, with
    /// which nothing can be kept safe, for a test of the tests.
    pub fn lie_about_syncs(&self, lie: bool) {
        self.lock().lies = lie;
    }

    /// Returns the number of operations that change something so far.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Cuts the power: every operation fails until [`power_up`](Self::power_up).
    pub fn cut_power(&self) {
        self.lock().is_cut = true;
    }

    /// Tells whether the power is cut.
    pub fn is_cut(&self) -> bool {
        self.lock().is_cut
    }

    /// Begins anew with what the power cut has left; troubles are forgotten. Files and locks from
    /// before are of no use any more.
    pub fn power_up(&self, left: Left) {
        self.lock().power_up(left);
    }

    /// Returns a storage of its own with the same content, synced and unsynced, without troubles and locks,
    /// whose chance comes from `seed`.
    pub fn fork(&self, seed: u64) -> SimulatedStorage {
        SimulatedStorage {
            disk: Arc::new(Mutex::new(self.lock().fork(seed))),
        }
    }

    /// Returns the paths of all files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().paths()
    }

    /// Returns the content of a file; none if there is no such file.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        self.lock().file(path).map(|file| file.current().to_vec())
    }

    /// Puts a whole file in place, durable, with the directories above it.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        self.lock().put(path, bytes);
    }

    /// Flips bit `bit` of a file that is there, also of what is durable.
    pub fn rot(&self, path: &Path, bit: u64) {
        if let Some(file) = self.lock().file_mut(path) {
            file.rot(bit);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Meets what is to happen with an operation, before it is done.
    fn meet(&self, operation: Operation) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.lock();
        if let Some(pause) = disk.slowness(operation) {
            drop(disk);
            thread::sleep(pause);
            disk = self.lock();
        }
        disk.meet(operation)?;
        Ok(disk)
    }
}

impl Storage for SimulatedStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let operation = match mode {
            OpenMode::New | OpenMode::NewDirect => Operation::Name,
            OpenMode::Read | OpenMode::Write => Operation::Read,
        };
        let mut disk = self.meet(operation)?;
        let number = disk.open(path, mode)?;
        Ok(Arc::new(SimulatedFile {
            storage: self.clone(),
            number,
            epoch: disk.epoch,
            is_writable: mode != OpenMode::Read,
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.meet(Operation::Name)?.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.meet(Operation::Read)?.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.meet(Operation::Name)?.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.meet(Operation::Name)?.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.meet(Operation::Sync)?.sync_dir(dir)
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        Ok(self.meet(Operation::Read)?.space())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let mut disk = self.meet(Operation::Read)?;
        if !disk.lock(path)? {
            return Ok(None);
        }
        Ok(Some(Box::new(HeldLock {
            storage: self.clone(),
            path: path.to_path_buf(),
            epoch: disk.epoch,
        })))
    }
}

/// A lock that is let go when it is dropped.
struct HeldLock {
    storage: SimulatedStorage,
    path: PathBuf,
    epoch: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.storage.lock().unlock(&self.path, self.epoch);
    }
}

#[derive(Debug)]
struct SimulatedFile {
    storage: SimulatedStorage,
    number: u64,
    /// Of the power cycle in which it was opened.
    epoch: u64,
    is_writable: bool,
}

impl SimulatedFile {
    fn meet(&self, operation: Operation) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.storage.meet(operation)?;
        if disk.epoch != self.epoch {
            return Err(io::Error::other("a file from before the power cut"));
        }
        if operation != Operation::Read && !self.is_writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(disk)
    }
}

impl StorageFile for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        let mut disk = self.meet(Operation::Read)?;
        Ok(disk.numbered(self.number)?.current().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut disk = self.meet(Operation::Read)?;
        disk.numbered(self.number)?.read(buf, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = Vec::new();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.meet(Operation::Write)?
            .write(self.number, &bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.meet(Operation::Write)?.set_len(self.number, len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.meet(Operation::Write)?.preallocate(self.number, len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut disk = self.meet(Operation::Write)?;
        let end = disk.numbered(self.number)?.current().len() as u64;
        let len = len.min(end.saturating_sub(offset));
        disk.write(self.number, &vec![0; len as usize], offset)
    }

    fn sync(&self) -> io::Result<()> {
        // Not writable is no reason not to be synced.
        let mut disk = self.storage.meet(Operation::Sync)?;
        if disk.epoch != self.epoch {
            return Err(io::Error::other("a file from before the power cut"));
        }
        disk.sync(self.number)
    }
}
