//! Keeps work to a rate, and ends it when its machine is put down.

use std::{
    ops::ControlFlow,
    thread,
    time::{Duration, Instant},
};

use super::Round;

/// Longest sleep until it is looked again whether the work is to end.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Keeps one piece of work to the configured rate.
pub(super) struct Pacer<'a> {
    round: &'a Round,
    began: Instant,
    bytes: u64,
    /// Bytes and calls since it was looked whether the work is to end.
    unseen: (u64, u32),
}

/// So much may be done between two such looks.
const UNSEEN_MAX: (u64, u32) = (1 << 20, 256);

impl<'a> Pacer<'a> {
    pub(super) fn new(round: &'a Round) -> Self {
        Self {
            round,
            began: Instant::now(),
            bytes: 0,
            unseen: UNSEEN_MAX,
        }
    }

    /// Counts bytes that were read or written, and waits until so many may have been.
    pub(super) fn take(&mut self, bytes: u64) -> ControlFlow<()> {
        self.bytes += bytes;
        self.unseen = (self.unseen.0 + bytes, self.unseen.1 + 1);
        if self.unseen.0 < UNSEEN_MAX.0 && self.unseen.1 < UNSEEN_MAX.1 {
            return ControlFlow::Continue(());
        }
        self.unseen = (0, 0);
        let due = due(self.bytes, self.round.tidy.rate);
        loop {
            if self.round.is_over() {
                return ControlFlow::Break(());
            }
            match due.checked_sub(self.began.elapsed()) {
                None | Some(Duration::ZERO) => return ControlFlow::Continue(()),
                Some(rest) => thread::sleep(rest.min(SLEEP_MAX)),
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn took(&self) -> Duration {
        self.began.elapsed()
    }
}

/// Returns the time that so many bytes take at a rate in bytes per second.
fn due(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time() {
        assert_eq!(due(0, 100), Duration::ZERO);
        assert_eq!(due(50, 100), Duration::from_millis(500));
        assert_eq!(due(1 << 40, 1 << 30), Duration::from_secs(1024));
    }
}
