//! The writes of one volume, and when each may be acknowledged.
//!
//! Invariant: what is refused was not taken.

use std::ops::Range;
use std::sync::Arc;

use super::Recording;
use crate::bounds::{RESYNC_PIECE, RESYNC_ZERO_PIECE, STAGED_BELOW};
use crate::buffer::{IoBuf, Room, cost};
use crate::error::Refused;
use crate::format::Kind;
use crate::harbor::AckRule;
use crate::journal::draft::{Payload, record_cost};
use crate::journal::touched::Window;
use crate::machine::VolumeId;
use crate::point::Seq;

/// Tells when a write that was taken may be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// At once.
    Now,
    /// When the record of that number is on stable storage.
    Durable(Seq),
}

/// Takes the writes of one volume; a handle that can be cloned.
#[derive(Debug, Clone)]
pub struct VolumeRecorder {
    pub(super) recording: Arc<Recording>,
    pub(super) volume: VolumeId,
    pub(super) size: u64,
}

impl VolumeRecorder {
    /// Returns memory for exactly `len` bytes, waiting until there is room (back-pressure).
    ///
    /// # Errors
    /// Larger than [`REQUEST_MAX`](crate::bounds::REQUEST_MAX); closed or failed, also while waiting.
    pub fn buffer(&self, len: usize) -> Result<IoBuf, Refused> {
        self.recording.budget.take(len)
    }

    /// Tells whether a write of `len` bytes would be taken without waiting for room, at this moment.
    pub fn has_room(&self, len: usize) -> bool {
        let cost = if len < STAGED_BELOW {
            record_cost(len)
        } else {
            cost(len)
        };
        self.recording.budget.has_room(cost)
    }

    /// Takes a write of all bytes of `data` at byte `offset`; the answer says when to acknowledge it.
    ///
    /// # Errors
    /// Not within the volume; the recording is closed or has failed. Nothing was taken then.
    pub fn write(&self, offset: u64, data: IoBuf) -> Result<Ack, Refused> {
        let len = data.len() as u64;
        self.check(offset, len)?;
        self.take(Kind::Write, offset, len, (Payload::Own(data), None))
    }

    /// As [`write`](Self::write), for a few bytes: they are copied, and wait for room like a buffer.
    ///
    /// # Errors
    /// As [`write`](Self::write) and [`buffer`](Self::buffer).
    pub fn write_copy(&self, offset: u64, data: &[u8]) -> Result<Ack, Refused> {
        self.check(offset, data.len() as u64)?;
        if data.len() >= STAGED_BELOW {
            let mut buf = self.buffer(data.len())?;
            buf.as_mut().copy_from_slice(data);
            return self.write(offset, buf);
        }
        let room = self.recording.budget.room(record_cost(data.len()))?;
        let carried = (Payload::Copied(data), Some(room));
        self.take(Kind::Write, offset, data.len() as u64, carried)
    }

    /// Takes a write of `len` zero bytes at byte `offset`, like [`write`](Self::write).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&self, offset: u64, len: u64) -> Result<Ack, Refused> {
        self.check(offset, len)?;
        // So zeros, too, wait while the IO buffer is full.
        let room = self.recording.budget.room(record_cost(0))?;
        self.take(Kind::Zero, offset, len, (Payload::None, Some(room)))
    }

    /// Waits until a write may be acknowledged.
    ///
    /// # Errors
    /// The recording has failed, or was closed before.
    pub fn wait(&self, ack: Ack) -> Result<(), Refused> {
        match ack {
            Ack::Now => Ok(()),
            Ack::Durable(seq) => self.recording.sequencer.wait_durable(seq),
        }
    }

    /// Has `call` called, from the writer thread, with the last record on stable storage after each sync; with none when
    /// no further one ever will be. It is not called again once it returns false.
    pub fn on_durable(&self, call: impl Fn(Option<Seq>) -> bool + Send + 'static) {
        self.recording.sequencer.on_durable(Box::new(call));
    }

    /// Announces that `range` is about to be read from the live disk; what was announced before is over.
    ///
    /// What the stream writes there from now on is remembered until the next part is announced, so the memory goes by
    /// the part's length. Whatever is asked or read of the disk for this part must be so after this call.
    pub fn announce(&self, range: Range<u64>) {
        self.recording
            .sequencer
            .remember(self.volume, Some(Window::new(range)));
    }

    /// Returns the parts of a range that the stream did not write since they were announced
    /// ([`announce`](Self::announce)), in order, neighbours apart.
    ///
    /// # Errors
    /// Not within what was announced.
    pub fn untouched(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, Refused> {
        self.recording.sequencer.untouched(self.volume, range)
    }

    /// Takes bytes read from the live disk, except where the stream wrote since they were announced
    /// ([`announce`](Self::announce)); returns how many bytes were taken.
    ///
    /// # Errors
    /// As [`write`](Self::write); not within what was announced.
    pub fn resync_data(&self, offset: u64, data: &[u8]) -> Result<u64, Refused> {
        self.check(offset, data.len() as u64)?;
        let mut taken = 0;
        let mut at = offset;
        for piece in data.chunks(RESYNC_PIECE) {
            let mut buf = self.recording.budget.take(piece.len())?;
            buf.as_mut().copy_from_slice(piece);
            let range = at..at + piece.len() as u64;
            at = range.end;
            let sequencer = &self.recording.sequencer;
            taken += sequencer.take_resync(self.volume, Kind::ResyncData, range, Some(buf))?;
        }
        Ok(taken)
    }

    /// Takes zeros read from the live disk, like [`resync_data`](Self::resync_data).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn resync_zero(&self, offset: u64, len: u64) -> Result<u64, Refused> {
        self.check(offset, len)?;
        let mut taken = 0;
        let mut at = offset;
        while at < offset + len {
            let range = at..(offset + len).min(at + RESYNC_ZERO_PIECE);
            at = range.end;
            // Waits for room; what the records take is counted with each of them.
            drop(self.recording.budget.room(record_cost(0))?);
            let sequencer = &self.recording.sequencer;
            taken += sequencer.take_resync(self.volume, Kind::ResyncZero, range, None)?;
        }
        Ok(taken)
    }

    /// Ends the reading: nothing is remembered, and nothing that was read is taken any more.
    pub fn end_resync(&self) {
        self.recording.sequencer.remember(self.volume, None);
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), Refused> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Refused::OutOfBounds {
                offset,
                len,
                size: self.size,
            }),
        }
    }

    /// Takes a guest write, and keeps the ack rule: the one place where it stands.
    fn take(
        &self,
        kind: Kind,
        offset: u64,
        len: u64,
        carried: (Payload<'_>, Option<Room>),
    ) -> Result<Ack, Refused> {
        if len == 0 {
            return Ok(Ack::Now);
        }
        let sequencer = &self.recording.sequencer;
        // It may change at any moment; one write keeps to one.
        let rule = self.recording.shared.pace.ack_rule();
        let durable = rule == AckRule::Durable;
        let range = offset..offset + len;
        let seq = sequencer.take_write(self.volume, kind, range, carried, durable)?;
        Ok(match rule {
            AckRule::Buffered => Ack::Now,
            AckRule::Durable => Ack::Durable(seq),
        })
    }
}
