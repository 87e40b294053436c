//! What a tap counts, and for how long it owes QEMU a reply.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counters of one tap; may be read from any thread while it runs.
///
/// A request is counted when the sink has taken it, which is just before it is answered.
#[derive(Debug)]
pub struct TapStats {
    start: Instant,
    connected: AtomicBool,
    writes: AtomicU64,
    bytes: AtomicU64,
    zeroes: AtomicU64,
    zero_bytes: AtomicU64,
    flushes: AtomicU64,
    /// Nanoseconds from the start to the request that is not answered yet, plus one; 0 for none.
    owed_since_ns: AtomicU64,
}

impl Default for TapStats {
    fn default() -> Self {
        Self::new()
    }
}

impl TapStats {
    /// Makes counters that are all zero.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            connected: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            zeroes: AtomicU64::new(0),
            zero_bytes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            owed_since_ns: AtomicU64::new(0),
        }
    }

    /// Tells whether QEMU's handshake is over (it stays true when QEMU leaves).
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
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

    /// How long the request under way has been waiting for its reply; `None` when none is owed.
    ///
    /// The guest waits at least this long. Requests queued behind it in the socket are not seen.
    pub fn owed_for(&self) -> Option<Duration> {
        let since = self.owed_since_ns.load(Ordering::Acquire).checked_sub(1)?;
        Some(
            self.start
                .elapsed()
                .saturating_sub(Duration::from_nanos(since)),
        )
    }

    pub(super) fn set_connected(&self) {
        self.connected.store(true, Ordering::Release);
    }

    pub(super) fn owe(&self) {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        self.owed_since_ns.store(now + 1, Ordering::Release);
    }

    pub(super) fn settle(&self) {
        self.owed_since_ns.store(0, Ordering::Release);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owed_reply_grows_older_until_it_is_settled() {
        let stats = TapStats::new();
        assert_eq!(stats.owed_for(), None);
        stats.owe();
        std::thread::sleep(Duration::from_millis(5));
        assert!(stats.owed_for().unwrap() >= Duration::from_millis(5));
        stats.settle();
        assert_eq!(stats.owed_for(), None);
    }
}
