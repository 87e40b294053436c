//! The operating system's files.

use std::any::Any;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::{OpenMode, Space, Storage, StorageFile};
use crate::bounds::LOCK_PATIENCE;

/// Most parts the kernel takes in one call.
const PARTS_MAX: usize = 1024;

/// Bytes of the unit in which the operating system counts what it has given a file.
const STAT_BLOCK: u64 = 512;

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealStorage;

impl Storage for RealStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::New | OpenMode::NewDirect => {
                options.write(true).create_new(true);
            }
        }
        let file = options.open(path)?;
        let direct = mode == OpenMode::NewDirect && make_direct(&file);
        Ok(Arc::new(RealFile {
            file,
            direct: AtomicBool::new(direct),
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(path)?;
        Ok(Space {
            free: found.f_bavail.saturating_mul(found.f_frsize),
            total: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        // A child that this process is just starting holds the lock too, until it has become
        // another program: so a lock that was let go may look taken for a moment.
        let patience = Instant::now() + LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Box::new(file))),
                Err(Errno::WOULDBLOCK) if Instant::now() < patience => {
                    thread::sleep(LOCK_PATIENCE / 50);
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Has a file's writes go past the page cache; false where the file system has no such thing.
fn make_direct(file: &File) -> bool {
    let flags = OFlags::DIRECT | OFlags::RDWR;
    rustix::fs::fcntl_setfl(file, flags).is_ok()
}

#[derive(Debug)]
struct RealFile {
    file: File,
    /// Past the page cache: for writes in whole blocks only.
    direct: AtomicBool,
}

impl RealFile {
    /// Goes on through the page cache; false if that is how it went.
    fn end_direct(&self) -> io::Result<bool> {
        if !self.direct.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        tracing::debug!("direct writes are refused: the page cache is used");
        rustix::fs::fcntl_setfl(&self.file, OFlags::RDWR)?;
        Ok(true)
    }
}

impl StorageFile for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * STAT_BLOCK)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut list = parts.to_vec();
        let mut rest = list.as_mut_slice();
        let mut position = offset;
        // Empty parts in front would make a write of nothing look like a full disk.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let some = rest.get(..PARTS_MAX).unwrap_or(rest);
            match rustix::io::pwritev(&self.file, some, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    position += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                // The file system or its disk wants it otherwise aligned, or not at all.
                Err(Errno::INVAL) if self.end_direct()? => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let direct = self.direct.load(Ordering::Acquire);
        direct.then(|| self.file.as_fd())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
