//! What a tap counts, and how much of it is not answered yet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters of one tap; may be read from any thread while it runs.
///
/// A request is counted when the sink has taken it, which is just before it is answered.
#[derive(Debug, Default)]
pub struct TapStats {
    connected: AtomicBool,
    goodbye: AtomicBool,
    writes: AtomicU64,
    bytes: AtomicU64,
    zeroes: AtomicU64,
    zero_bytes: AtomicU64,
    flushes: AtomicU64,
    /// Bytes of requests, payloads included, that were read from the socket.
    consumed: AtomicU64,
    /// The part of them that belongs to requests read as a whole.
    received: AtomicU64,
    /// The part of them that belongs to requests that were answered.
    answered: AtomicU64,
}

impl TapStats {
    /// Makes counters that are all zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells whether QEMU's handshake is over (it stays true when QEMU leaves).
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Tells whether QEMU has said goodbye: it let go of the tap in good order, after its last write.
    pub fn said_goodbye(&self) -> bool {
        self.goodbye.load(Ordering::Acquire)
    }

    pub(super) fn say_goodbye(&self) {
        self.goodbye.store(true, Ordering::Release);
    }

    /// Number of writes with data.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Bytes of data written.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of writes of zeroes without data.
    pub fn zeroes(&self) -> u64 {
        self.zeroes.load(Ordering::Relaxed)
    }

    /// Bytes zeroed without data.
    pub fn zero_bytes(&self) -> u64 {
        self.zero_bytes.load(Ordering::Relaxed)
    }

    /// Number of flushes.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Tells whether a request was read, in part at least, that is not answered yet. Requests that wait in the
    /// socket are not seen.
    pub fn owes(&self) -> bool {
        let Progress {
            consumed, answered, ..
        } = self.progress();
        consumed > answered
    }

    /// How far the tap has come with the bytes of requests.
    pub(super) fn progress(&self) -> Progress {
        // What comes last is read first, so that no part is larger than the whole.
        let answered = self.answered.load(Ordering::Acquire);
        let received = self.received.load(Ordering::Acquire);
        let consumed = self.consumed.load(Ordering::Acquire);
        Progress {
            consumed,
            received,
            answered,
        }
    }

    pub(super) fn set_connected(&self) {
        self.connected.store(true, Ordering::Release);
    }

    /// Counts bytes read from the socket; only the tap's own thread may.
    pub(super) fn consume(&self, bytes: u64) {
        let consumed = self.consumed.load(Ordering::Relaxed) + bytes;
        self.consumed.store(consumed, Ordering::Release);
    }

    /// Notes that the requests up to byte `through` of all that came were read as a whole.
    pub(super) fn receive(&self, through: u64) {
        self.received.store(through, Ordering::Release);
    }

    /// Notes that the requests up to byte `through` of all that came are answered.
    pub(super) fn answer(&self, through: u64) {
        self.answered.fetch_max(through, Ordering::AcqRel);
    }

    /// Notes that everything read is answered, or never will be.
    pub(super) fn settle(&self) {
        let consumed = self.consumed.load(Ordering::Relaxed);
        self.received.store(consumed, Ordering::Release);
        self.answered.store(consumed, Ordering::Release);
    }

    pub(super) fn count_write(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_zero(&self, bytes: u64) {
        self.zeroes.fetch_add(1, Ordering::Relaxed);
        self.zero_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Bytes of requests, payloads included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Read from the socket.
    pub(super) consumed: u64,
    /// Of those, the bytes of requests that were read as a whole.
    pub(super) received: u64,
    /// Of those, the bytes of requests that were answered.
    pub(super) answered: u64,
}
