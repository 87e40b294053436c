//! The sink behind the tests' taps: it keeps every write in order, and can close or hold still.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use qemu_hook::sink::{Ack, SinkClosed, WriteSink};

/// One write as the sink took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    Data(u64, Vec<u8>),
    Zero(u64, u64),
}

#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Inner>);

#[derive(Default)]
struct Inner {
    taken: Mutex<Vec<Taken>>,
    /// Writes left until the sink closes; 0 for no end.
    left: AtomicU64,
    held: Mutex<bool>,
    released: Condvar,
}

impl Kept {
    /// Closes after this many writes.
    pub(crate) fn closing_after(writes: u64) -> Self {
        let kept = Self::default();
        kept.0.left.store(writes + 1, Ordering::SeqCst);
        kept
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.0.taken.lock().unwrap().clone()
    }

    /// Makes the sink wait, as one that is full, or lets it go on.
    pub(crate) fn hold(&self, held: bool) {
        *self.0.held.lock().unwrap() = held;
        self.0.released.notify_all();
    }

    /// Applies all writes, in their order, to an image.
    pub(crate) fn replay(&self, image: &mut [u8]) {
        for taken in self.0.taken.lock().unwrap().iter() {
            match taken {
                Taken::Data(offset, data) => {
                    let at = *offset as usize;
                    image[at..at + data.len()].copy_from_slice(data);
                }
                Taken::Zero(offset, len) => {
                    let at = *offset as usize;
                    image[at..at + *len as usize].fill(0);
                }
            }
        }
    }

    fn take(&self, taken: Taken) -> Result<(), SinkClosed> {
        let left = self.0.left.load(Ordering::SeqCst);
        if left == 1 {
            return Err(SinkClosed("the test wants it so".into()));
        }
        self.0.left.store(left.saturating_sub(1), Ordering::SeqCst);
        self.0.taken.lock().unwrap().push(taken);
        Ok(())
    }
}

impl WriteSink for Kept {
    type Buffer = Vec<u8>;

    fn buffer(&self, len: usize) -> Result<Vec<u8>, SinkClosed> {
        let mut held = self.0.held.lock().unwrap();
        while *held {
            let wait = self.0.released.wait_timeout(held, Duration::from_secs(20));
            held = wait.unwrap().0;
        }
        Ok(vec![0xee; len])
    }

    fn write(&self, offset: u64, data: Vec<u8>) -> Result<Ack, SinkClosed> {
        self.take(Taken::Data(offset, data)).map(|()| Ack::Now)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<Ack, SinkClosed> {
        self.take(Taken::Zero(offset, len)).map(|()| Ack::Now)
    }
}
