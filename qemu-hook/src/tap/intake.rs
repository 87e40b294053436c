//! What is read from QEMU's socket ahead of the request that is looked at.
//!
//! One read brings whatever waits, several small requests among it. Behind a large payload only a head is read
//! ahead, so that the next large payload goes straight to where it belongs.
//!
//! Invariant: bytes are given out once, in order; what is read is counted in the tap's `consumed` at once.

use std::io::{self, IoSliceMut, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::stats::TapStats;
use crate::nbd::{Request, bounds};

/// Bytes that were read ahead.
pub(super) struct Intake<'a> {
    stream: &'a UnixStream,
    stats: &'a TapStats,
    memory: Vec<u8>,
    start: usize,
    end: usize,
    /// When the last of it came.
    received: Instant,
    /// The last payload was read past the read-ahead.
    after_large: bool,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Got {
    /// Some bytes.
    Some,
    /// Nothing for a while.
    Nothing,
    /// QEMU has hung up.
    End,
}

impl<'a> Intake<'a> {
    pub(super) fn new(stream: &'a UnixStream, stats: &'a TapStats) -> Intake<'a> {
        Intake {
            stream,
            stats,
            memory: vec![0; bounds::READ_AHEAD],
            start: 0,
            end: 0,
            received: Instant::now(),
            after_large: false,
        }
    }

    /// Returns the first `len` bytes, if they are there.
    pub(super) fn peek(&self, len: usize) -> Option<&[u8]> {
        let all = self.memory.get(self.start..self.end)?;
        all.get(..len)
    }

    /// Returns the number of bytes read ahead.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Returns when the last read brought something. That is when the next request came: there was no whole head before.
    pub(super) fn received(&self) -> Instant {
        self.received
    }

    /// Lets go of the first `len` bytes.
    pub(super) fn advance(&mut self, len: usize) {
        self.start += len;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads more, so that `wanted` bytes will be there in the end; no byte beyond them if `exactly`.
    pub(super) fn read(&mut self, wanted: usize, exactly: bool) -> io::Result<Got> {
        if self.start > 0 && self.start + wanted > self.memory.len() {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let to = if exactly || (self.after_large && wanted == Request::SIZE) {
            self.start + wanted
        } else {
            self.memory.len()
        };
        let place = self.memory.get_mut(self.end..to).unwrap_or_default();
        let got = match (&mut &*self.stream).read(place) {
            Ok(got) => got,
            Err(error) => return nothing(error),
        };
        self.received = Instant::now();
        self.stats.consume(got as u64);
        self.end += got;
        Ok(if got == 0 { Got::End } else { Got::Some })
    }

    /// Notes that the next payload is small.
    pub(super) fn expect_small(&mut self) {
        self.after_large = false;
    }

    /// Fills `payload` with the next bytes, however long QEMU takes for it, and reads the next head if it is there,
    /// unless `exactly`.
    ///
    /// # Errors
    /// The socket failed; `UnexpectedEof` if QEMU has hung up.
    pub(super) fn fill(&mut self, payload: &mut [u8], exactly: bool) -> io::Result<()> {
        let ahead = self.len().min(payload.len());
        let (mut have, _) = payload.split_at_mut(ahead);
        have.copy_from_slice(self.peek(ahead).unwrap_or_default());
        self.advance(ahead);
        have = payload.get_mut(ahead..).unwrap_or_default();
        self.after_large = true;
        while !have.is_empty() {
            // There is something to fill, so nothing is read ahead: the head goes to the front.
            let next = if exactly { 0 } else { Request::SIZE };
            let head = self.memory.get_mut(..next).unwrap_or_default();
            let left = have.len();
            let mut parts = [IoSliceMut::new(have), IoSliceMut::new(head)];
            let got = match (&mut &*self.stream).read_vectored(&mut parts) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => got,
                Err(error) => match nothing(error)? {
                    Got::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => continue,
                },
            };
            self.stats.consume(got as u64);
            self.end = got.saturating_sub(left);
            if self.end > 0 {
                self.received = Instant::now();
            }
            have = have.get_mut(got.min(left)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Tells errors that only mean that nothing came from those that end the tap.
fn nothing(error: io::Error) -> io::Result<Got> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(Got::Nothing),
        _ => Err(error),
    }
}
