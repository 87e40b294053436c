//! What a tap counts, and how much of it is not answered yet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::latency::{Latency, LatencyCounts};

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
    /// The bypass has closed the tap.
    overdue: AtomicBool,
    latency: Latency,
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

    /// Returns what was taken so far, in one go.
    pub fn counts(&self) -> TapCounts {
        TapCounts {
            writes: self.writes(),
            bytes: self.bytes(),
            zeroes: self.zeroes(),
            zero_bytes: self.zero_bytes(),
            overdue: self.overdue.load(Ordering::Relaxed).into(),
            latency: self.latency.counts(),
        }
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

    /// Counts writes whose replies were sent after `wait`.
    pub(super) fn count_wait(&self, wait: Duration, writes: u64) {
        self.latency.add(wait, writes);
    }

    pub(super) fn note_overdue(&self) {
        self.overdue.store(true, Ordering::Relaxed);
    }

    pub(super) fn count_flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a tap took, or several did, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapCounts {
    /// Writes with data.
    pub writes: u64,
    /// Bytes of data written.
    pub bytes: u64,
    /// Writes of zeroes without data.
    pub zeroes: u64,
    /// Bytes zeroed without data.
    pub zero_bytes: u64,
    /// Taps that were closed because a reply was overdue.
    pub overdue: u64,
    /// How long writes of both kinds waited for their replies.
    pub latency: LatencyCounts,
}

impl TapCounts {
    /// Adds what another tap took.
    pub fn add(&mut self, other: &TapCounts) {
        self.writes += other.writes;
        self.bytes += other.bytes;
        self.zeroes += other.zeroes;
        self.zero_bytes += other.zero_bytes;
        self.overdue += other.overdue;
        self.latency.add(&other.latency);
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
