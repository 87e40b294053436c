//! The IO buffer: bounded memory between the tap and the journal.
//!
//! A payload is read from the socket into an [`IoBuf`], and written to the segment from there: no
//! copy between. Every buffer is aligned to a sector and padded with zeros to one. The bytes of
//! all buffers alive are counted in a [`Budget`]; who asks for more than is left waits, first come
//! first served, so that a large request is not starved by small ones.
//!
//! Invariant: bytes in use exceed the limit only by what `Budget::force` took, which its callers
//! bound.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::bounds::{REQUEST_MAX, SECTOR};
use crate::error::Refused;

/// Memory for one payload: exactly `len` bytes to be seen, aligned and zero-padded for the disk.
///
/// Gives its room back when dropped.
#[derive(Debug)]
pub struct IoBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    budget: Arc<Budget>,
}

impl IoBuf {
    fn new(len: usize, budget: Arc<Budget>) -> IoBuf {
        let padded = len.next_multiple_of(SECTOR);
        let memory = vec![0; padded + SECTOR];
        let start = memory.as_ptr().align_offset(SECTOR).min(SECTOR);
        IoBuf {
            memory,
            start,
            len,
            budget,
        }
    }

    /// Returns the number of bytes asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes with their zero padding, a multiple of a sector, aligned to one.
    pub(crate) fn padded(&self) -> &[u8] {
        let end = self.start + self.len.next_multiple_of(SECTOR);
        self.memory.get(self.start..end).unwrap_or_default()
    }
}

impl AsRef<[u8]> for IoBuf {
    fn as_ref(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl AsMut<[u8]> for IoBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        self.budget.give_back(cost(self.len));
    }
}

/// Bytes of the budget that a buffer for `len` bytes takes; an empty one is a token that counts too.
fn cost(len: usize) -> usize {
    len.next_multiple_of(SECTOR).max(SECTOR)
}

/// Counts the bytes of all buffers alive, and makes those wait who ask for too many.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct BudgetState {
    used: usize,
    tickets: u64,
    serving: u64,
    refusal: Option<Refused>,
}

impl Budget {
    /// Makes a budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit: limit.max(REQUEST_MAX),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Returns a buffer for exactly `len` bytes, waiting until there is room.
    ///
    /// # Errors
    /// [`Refused::TooLarge`] above [`REQUEST_MAX`]; what [`close`](Self::close) was given once it
    /// was called, also for those who wait.
    pub fn take(self: &Arc<Self>, len: usize) -> Result<IoBuf, Refused> {
        if len > REQUEST_MAX {
            return Err(Refused::TooLarge {
                len,
                max: REQUEST_MAX,
            });
        }
        let mut state = self.lock();
        let ticket = state.tickets;
        state.tickets += 1;
        loop {
            if let Some(refusal) = &state.refusal {
                return Err(refusal.clone());
            }
            if state.serving == ticket && state.used + cost(len) <= self.limit {
                break;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.serving += 1;
        state.used += cost(len);
        let others_wait = state.serving < state.tickets;
        drop(state);
        if others_wait {
            self.changed.notify_all();
        }
        Ok(IoBuf::new(len, Arc::clone(self)))
    }

    /// Returns a buffer at once, past the limit if need be; the caller bounds how much.
    pub(crate) fn force(self: &Arc<Self>, len: usize) -> IoBuf {
        self.lock().used += cost(len);
        IoBuf::new(len, Arc::clone(self))
    }

    /// Refuses every later request, and those that wait, with `refusal`; the first one counts.
    pub fn close(&self, refusal: Refused) {
        self.lock().refusal.get_or_insert(refusal);
        self.changed.notify_all();
    }

    /// Returns the bytes in use.
    pub fn used(&self) -> usize {
        self.lock().used
    }

    /// Returns the bytes that may be in use.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn give_back(&self, bytes: usize) {
        let mut state = self.lock();
        state.used = state.used.saturating_sub(bytes);
        let others_wait = state.serving < state.tickets;
        drop(state);
        if others_wait {
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn buffers_are_aligned_exact_and_padded() {
        let budget = Budget::new(REQUEST_MAX);
        for len in [0, 1, 511, 512, 513, 4096, 65_537] {
            let mut buf = budget.take(len).unwrap();
            assert_eq!(buf.as_mut().len(), len);
            buf.as_mut().fill(0xff);
            let padded = buf.padded();
            assert_eq!(padded.len(), len.next_multiple_of(SECTOR));
            assert_eq!(padded.as_ptr().align_offset(SECTOR), 0);
            assert!(padded[len..].iter().all(|byte| *byte == 0));
            assert_eq!(budget.used(), padded.len().max(SECTOR));
        }
        assert_eq!(budget.used(), 0);
        assert!(matches!(
            budget.take(REQUEST_MAX + 1),
            Err(Refused::TooLarge { .. })
        ));
    }

    #[test]
    fn a_large_request_waits_and_is_not_starved() {
        let budget = Budget::new(REQUEST_MAX);
        let first = budget.take(4096).unwrap();
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.take(REQUEST_MAX).map(|buf| buf.len()));
            while budget.lock().tickets < 2 {
                thread::yield_now();
            }
            let small = scope.spawn(|| budget.take(512).map(|buf| buf.len()));
            thread::sleep(Duration::from_millis(20));
            assert!(!large.is_finished() && !small.is_finished());
            drop(first);
            assert_eq!(large.join().unwrap().unwrap(), REQUEST_MAX);
            assert_eq!(small.join().unwrap().unwrap(), 512);
        });
    }

    #[test]
    fn closing_wakes_those_who_wait() {
        let budget = Budget::new(REQUEST_MAX);
        let _all = budget.take(REQUEST_MAX).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(1).map(|_| ()));
            thread::sleep(Duration::from_millis(10));
            budget.close(Refused::Closed);
            assert!(matches!(waiting.join().unwrap(), Err(Refused::Closed)));
        });
    }
}
