//! Writes handed to the kernel through io_uring; the only unsafe code of this crate.
//!
//! A write takes a slot, which owns everything the kernel reads: the file, the bytes, the list of parts. The slot is
//! free again when the kernel has told how the write went. What was written in part only, or refused in this way,
//! is written to its end with [`StorageFile::write_at`].
//!
//! Invariant: a slot is emptied only after its completion was seen, and never moved before; dropping the ring waits
//! for all of them.
#![expect(
    unsafe_code,
    reason = "the kernel reads memory that the compiler cannot see it read"
)]

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::StorageFile;
use super::append::Parts;

/// A write under way.
struct Slot<T> {
    /// Its place among the writes begun.
    number: u64,
    what: T,
    file: Arc<dyn StorageFile>,
    offset: u64,
    /// Points into `what`.
    list: Vec<libc::iovec>,
    len: usize,
}

/// Up to so many writes under way.
pub(crate) struct Ring<T: Parts> {
    ring: IoUring,
    slots: Vec<Option<Slot<T>>>,
    busy: usize,
    begun: u64,
    failed: Option<io::Error>,
}

// SAFETY: the raw pointers of a slot point into memory that the same slot owns, and that only the kernel reads
// meanwhile; nothing of it belongs to the thread that began the write.
unsafe impl<T: Parts> Send for Ring<T> {}

impl<T: Parts> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("busy", &self.busy).finish()
    }
}

impl<T: Parts> Ring<T> {
    /// Makes a ring for `depth` writes at a time.
    ///
    /// # Errors
    /// As the operating system says: it has no io_uring, or not for us.
    pub(crate) fn new(depth: usize) -> io::Result<Ring<T>> {
        Ok(Ring {
            ring: IoUring::new(depth as u32)?,
            slots: (0..depth).map(|_| None).collect(),
            busy: 0,
            begun: 0,
            failed: None,
        })
    }

    /// Returns how many writes were begun.
    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }

    /// Returns how many of the first writes are all known to be done, well or not.
    pub(crate) fn done(&self) -> u64 {
        let under_way = self.slots.iter().flatten().map(|slot| slot.number);
        under_way.min().unwrap_or(self.begun)
    }

    /// Begins to write `what`, waiting while all slots are taken.
    ///
    /// # Errors
    /// As the operating system says, of this write or of one before.
    pub(crate) fn write(
        &mut self,
        file: &Arc<dyn StorageFile>,
        what: T,
        offset: u64,
    ) -> io::Result<()> {
        self.reap();
        while self.busy == self.slots.len() {
            self.wait()?;
        }
        self.told()?;
        self.begun += 1;
        let free = self.slots.iter().position(Option::is_none).unwrap_or(0);
        let (Some(place), Some(descriptor)) = (self.slots.get_mut(free), file.descriptor()) else {
            return file.write_at(&what.parts(), offset);
        };
        let slot = place.insert(Slot {
            number: self.begun - 1,
            what,
            file: Arc::clone(file),
            offset,
            list: Vec::new(),
            len: 0,
        });
        for part in slot.what.parts() {
            slot.len += part.len();
            slot.list.push(libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
        }
        let fd = types::Fd(descriptor.as_raw_fd());
        let entry = opcode::Writev::new(fd, slot.list.as_ptr(), slot.list.len() as u32)
            .offset(offset)
            .build()
            .user_data(free as u64);
        self.busy += 1;
        // SAFETY: descriptor, list and bytes belong to the slot, which stays as it is until the completion of this
        // entry was seen (`reap`), also when the ring is dropped (`drop`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // Nothing was handed over: there are as many entries as slots, so this is a defect.
            self.busy -= 1;
            self.slots.get_mut(free).and_then(Option::take);
            return Err(io::Error::other("the ring is full"));
        }
        self.submit(0)
    }

    /// Sees which are done, without waiting.
    ///
    /// # Errors
    /// As the operating system says, of any write that is.
    pub(crate) fn poll(&mut self) -> io::Result<()> {
        self.reap();
        self.told()
    }

    /// Waits until all are done.
    ///
    /// # Errors
    /// As the operating system says, of any write.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.reap();
        while self.busy > 0 {
            self.wait()?;
        }
        self.told()
    }

    fn wait(&mut self) -> io::Result<()> {
        self.submit(1)?;
        self.reap();
        Ok(())
    }

    fn submit(&self, wanted: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wanted) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|_| ()),
            }
        }
    }

    fn told(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Empties the slots of writes that are done.
    fn reap(&mut self) {
        while let Some(entry) = self.ring.completion().next() {
            let number = entry.user_data() as usize;
            let Some(slot) = self.slots.get_mut(number).and_then(Option::take) else {
                continue;
            };
            self.busy -= 1;
            if let Err(error) = slot.settle(entry.result()) {
                self.failed.get_or_insert(error);
            }
        }
    }
}

impl<T: Parts> Slot<T> {
    /// Judges what the kernel said, and writes what is left.
    fn settle(&self, result: i32) -> io::Result<()> {
        let done = match usize::try_from(result) {
            Ok(done) if done == self.len => return Ok(()),
            Ok(done) => done,
            Err(_) => match Errno::from_raw_os_error(result.saturating_neg()) {
                Errno::INTR | Errno::AGAIN | Errno::INVAL | Errno::OPNOTSUPP => 0,
                other => return Err(other.into()),
            },
        };
        let mut list = self.what.parts();
        let mut rest = list.as_mut_slice();
        IoSlice::advance_slices(&mut rest, done);
        self.file.write_at(rest, self.offset + done as u64)
    }
}

impl<T: Parts> Drop for Ring<T> {
    fn drop(&mut self) {
        if self.finish().is_err() && self.busy > 0 {
            // The kernel may read still, and does not say: what it reads from must stay.
            std::mem::take(&mut self.slots)
                .into_iter()
                .for_each(std::mem::forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Instant;

    use super::*;
    use crate::storage::{OpenMode, RealStorage, Storage};

    #[derive(Debug)]
    struct Filled(crate::buffer::Memory);

    impl Parts for Filled {
        fn parts(&self) -> Vec<IoSlice<'_>> {
            self.0.get().chunks(8192).map(IoSlice::new).collect()
        }
    }

    #[test]
    fn writes_under_way_end_where_they_belong() {
        let home = tempfile::TempDir::new_in("/var/tmp").unwrap();
        let path = home.path().join("f");
        let file = RealStorage.open(&path, OpenMode::NewDirect).unwrap();
        file.preallocate(64 * 16384).unwrap();
        let mut ring = match Ring::new(4) {
            Ok(ring) => ring,
            Err(error) => {
                return drop(writeln!(std::io::stderr(), "SKIPPED: no io_uring: {error}"));
            }
        };
        for number in (0..64_u8).rev() {
            let mut memory = crate::buffer::Memory::zeroed(16384);
            memory.get_mut().fill(number);
            ring.write(&file, Filled(memory), u64::from(number) * 16384)
                .unwrap();
            assert!(ring.busy <= 4);
            assert!(ring.done() + ring.busy as u64 <= ring.begun());
        }
        ring.finish().unwrap();
        assert!(ring.busy == 0 && ring.done() == 64 && ring.begun() == 64);
        let read = std::fs::read(&path).unwrap();
        for (number, piece) in read.chunks(16384).enumerate() {
            assert!(piece.iter().all(|byte| usize::from(*byte) == number));
        }
    }

    #[test]
    fn a_write_that_fails_is_told_and_nothing_is_left_waiting() {
        let full = RealStorage
            .open(std::path::Path::new("/dev/full"), OpenMode::Write)
            .unwrap();
        let file: Arc<dyn StorageFile> = Arc::new(AsIfDirect(full));
        let Ok(mut ring) = Ring::new(2) else {
            return drop(writeln!(std::io::stderr(), "SKIPPED: no io_uring"));
        };
        let begin = Instant::now();
        let mut told = false;
        for _ in 0..4 {
            let memory = crate::buffer::Memory::zeroed(4096);
            told |= ring.write(&file, Filled(memory), 0).is_err();
        }
        told |= ring.finish().is_err();
        assert!(told && ring.busy == 0 && begin.elapsed().as_secs() < 5);
    }

    /// A file whose descriptor may be used.
    #[derive(Debug)]
    struct AsIfDirect(Arc<dyn StorageFile>);

    impl StorageFile for AsIfDirect {
        fn length(&self) -> io::Result<u64> {
            self.0.length()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
            self.0.write_at(parts, offset)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn preallocate(&self, len: u64) -> io::Result<()> {
            self.0.preallocate(len)
        }
        fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            static FULL: std::sync::OnceLock<std::fs::File> = std::sync::OnceLock::new();
            let full = FULL.get_or_init(|| {
                let mut options = std::fs::OpenOptions::new();
                options.write(true).open("/dev/full").unwrap()
            });
            Some(std::os::fd::AsFd::as_fd(full))
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
    }
}
