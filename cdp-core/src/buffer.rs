//! The IO buffer: bounded memory between the tap and the journal.
//!
//! A large payload is read from the socket into an [`IoBuf`], and written to the segment from there: no copy
//! between. A small one is copied into the frame in the making, and takes only [`Room`]. Memory is aligned to a
//! sector, padded with zeros to a block, and used again, so that it is not faulted in for each write. What all
//! payloads alive take is counted in a [`Budget`]; who asks for more than is left waits, first come first served, so
//! that a large request is not starved by small ones.
//!
//! Invariant: bytes in use exceed the limit only by what was taken by force, which its callers bound.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::bounds::{BLOCK, MEMORY_GRAIN, MEMORY_SPARE_MAX, REQUEST_MAX, SECTOR};
use crate::error::Refused;

/// Bytes that begin at a multiple of a sector.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    /// Makes `len` bytes, all zero.
    pub(crate) fn zeroed(len: usize) -> Memory {
        let bytes = vec![0; len + SECTOR];
        let start = bytes.as_ptr().align_offset(SECTOR).min(SECTOR);
        Memory { bytes, start, len }
    }

    pub(crate) fn get(&self) -> &[u8] {
        let all = self.bytes.get(self.start..self.start + self.len);
        all.unwrap_or_default()
    }

    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        let all = self.bytes.get_mut(self.start..self.start + self.len);
        all.unwrap_or_default()
    }
}

/// Memory for one payload: exactly `len` bytes to be seen, aligned and zero-padded for the disk.
///
/// Gives its room back when dropped.
#[derive(Debug)]
pub struct IoBuf {
    memory: Memory,
    len: usize,
    room: Room,
}

impl IoBuf {
    fn new(len: usize, room: Room) -> IoBuf {
        let mut memory = room.budget.memory(memory_len(len));
        if let Some(padding) = memory.get_mut().get_mut(len..) {
            padding.fill(0);
        }
        IoBuf { memory, len, room }
    }

    /// Returns the number of bytes asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes with their zero padding, a multiple of a block, aligned to a sector.
    pub(crate) fn padded(&self) -> &[u8] {
        let end = self.len.next_multiple_of(BLOCK);
        self.memory.get().get(..end).unwrap_or_default()
    }
}

impl AsRef<[u8]> for IoBuf {
    fn as_ref(&self) -> &[u8] {
        self.memory.get().get(..self.len).unwrap_or_default()
    }
}

impl AsMut<[u8]> for IoBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self.memory
            .get_mut()
            .get_mut(..self.len)
            .unwrap_or_default()
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        self.room.budget.keep(std::mem::take(&mut self.memory));
    }
}

/// Bytes of memory that a buffer of its own for `len` bytes takes.
const fn memory_len(len: usize) -> usize {
    len.next_multiple_of(if len < MEMORY_GRAIN {
        BLOCK
    } else {
        MEMORY_GRAIN
    })
}

/// Bytes of the budget that a buffer for `len` bytes takes; an empty one is a token that counts too.
pub(crate) const fn cost(len: usize) -> usize {
    memory_len(len) + BLOCK
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Room {
    /// Takes the room of another over.
    pub(crate) fn absorb(&mut self, mut other: Room) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.bytes);
        }
    }
}

/// Counts the bytes of all payloads alive, and makes those wait who ask for too many.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<BudgetState>,
    changed: Condvar,
    spare: Mutex<Spare>,
}

#[derive(Debug, Default)]
struct BudgetState {
    used: usize,
    tickets: u64,
    serving: u64,
    refusal: Option<Refused>,
}

/// Memory that waits to be used again, by its length.
#[derive(Debug, Default)]
struct Spare {
    by_len: BTreeMap<usize, Vec<Memory>>,
    bytes: usize,
}

impl Budget {
    /// Makes a budget of `limit` bytes, or what the largest request takes if that is more.
    pub fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit: limit.max(cost(REQUEST_MAX)),
            state: Mutex::default(),
            changed: Condvar::new(),
            spare: Mutex::default(),
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
        Ok(IoBuf::new(len, self.room(cost(len))?))
    }

    /// Returns a buffer at once, past the limit if need be; the caller bounds how much.
    pub(crate) fn force(self: &Arc<Self>, len: usize) -> IoBuf {
        IoBuf::new(len, self.force_room(cost(len)))
    }

    /// Returns room without memory, waiting until there is some.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn room(self: &Arc<Self>, bytes: usize) -> Result<Room, Refused> {
        let mut state = self.lock();
        let ticket = state.tickets;
        state.tickets += 1;
        loop {
            if let Some(refusal) = &state.refusal {
                return Err(refusal.clone());
            }
            if state.serving == ticket && state.used + bytes <= self.limit {
                break;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.serving += 1;
        state.used += bytes;
        let others_wait = state.serving < state.tickets;
        drop(state);
        if others_wait {
            self.changed.notify_all();
        }
        let budget = Arc::clone(self);
        Ok(Room { bytes, budget })
    }

    /// Returns room at once, past the limit if need be; the caller bounds how much.
    pub(crate) fn force_room(self: &Arc<Self>, bytes: usize) -> Room {
        self.lock().used += bytes;
        let budget = Arc::clone(self);
        Room { bytes, budget }
    }

    /// Tells whether so much room would be had without waiting.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let state = self.lock();
        state.serving == state.tickets && state.used + bytes <= self.limit
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

    /// Returns memory of exactly `len` bytes, with whatever is in it.
    pub(crate) fn memory(&self, len: usize) -> Memory {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        match spare.by_len.get_mut(&len).and_then(Vec::pop) {
            Some(memory) => {
                spare.bytes -= len;
                memory
            }
            None => {
                drop(spare);
                Memory::zeroed(len)
            }
        }
    }

    /// Keeps memory to be used again, or lets it go when enough is kept.
    pub(crate) fn keep(&self, memory: Memory) {
        let len = memory.len;
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if len >= MEMORY_GRAIN && spare.bytes + len > MEMORY_SPARE_MAX {
            // Lengths that are not asked for any more make way.
            spare.by_len.retain(|kept, _| *kept == len);
            spare.bytes = spare.by_len.values().flatten().map(|kept| kept.len).sum();
        }
        if len >= MEMORY_GRAIN && spare.bytes + len <= MEMORY_SPARE_MAX {
            spare.bytes += len;
            spare.by_len.entry(len).or_default().push(memory);
        }
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
            assert_eq!(padded.len(), len.next_multiple_of(BLOCK));
            assert_eq!(padded.as_ptr().align_offset(SECTOR), 0);
            assert!(padded[len..].iter().all(|byte| *byte == 0));
            assert!(budget.used() >= padded.len() + BLOCK);
        }
        assert_eq!(budget.used(), 0);
        assert!(matches!(
            budget.take(REQUEST_MAX + 1),
            Err(Refused::TooLarge { .. })
        ));
    }

    #[test]
    fn memory_is_used_again_and_bounded() {
        let budget = Budget::new(REQUEST_MAX);
        let mut first = budget.take(MEMORY_GRAIN).unwrap();
        first.as_mut().fill(0xff);
        let place = first.as_ref().as_ptr();
        drop(first);
        let again = budget.take(MEMORY_GRAIN - BLOCK).unwrap();
        assert!(again.as_ref().as_ptr() != place);
        drop(again);
        let again = budget.take(MEMORY_GRAIN).unwrap();
        assert_eq!(again.as_ref().as_ptr(), place);
        drop(again);
        drop(budget.take(REQUEST_MAX).unwrap());
        for count in 1..200 {
            drop(budget.take(count * MEMORY_GRAIN).unwrap());
            assert!(budget.spare.lock().unwrap().bytes <= MEMORY_SPARE_MAX);
        }
        let mut padded = budget.take(MEMORY_GRAIN + 1).unwrap();
        padded.as_mut().fill(0xff);
        assert!(padded.padded()[MEMORY_GRAIN + 1..].iter().all(|b| *b == 0));
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
