//! The answer to one request of a reader, put behind the answers that are to be sent with it.
//!
//! A read is answered in structured chunks where the client agreed to them: zero extents of
//! [`bounds::HOLE_MIN`] and more as holes, the rest in pieces of [`bounds::READ_PIECE`]. Simple replies,
//! and reads with DF, carry no error after their head and so are read whole first.
//!
//! Invariant: every request gets its one reply, whatever the device says.

use std::io;

use super::bounds;
use super::error::NbdError;
use super::export::{Export, ExtentKind};
use super::pieces::{Part, clip, plan_pieces, to_sectors};
use super::proto::{ChunkHead, Request, SimpleReply, allocation, chunk, cmd, errno};

/// What is asked of, and how answers are to look.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) device: &'a dyn Export,
    pub(super) size: u64,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

/// Where answers are put before they are sent.
pub(super) trait Outbox {
    /// Returns room for `len` bytes behind what is there already; what is in it is not sent before [`keep`](Self::keep).
    ///
    /// # Errors
    /// What is there had to be sent, and could not be.
    fn room(&mut self, len: usize) -> Result<&mut [u8], NbdError>;

    /// Keeps the first `len` bytes of the room that was given last.
    fn keep(&mut self, len: usize);
}

/// Answers a request; a write's payload has been taken.
pub(super) fn answer(
    asked: Asked<'_>,
    request: &Request,
    out: &mut impl Outbox,
) -> Result<(), NbdError> {
    Answer {
        asked,
        request,
        out,
    }
    .give()
}

struct Answer<'a, O> {
    asked: Asked<'a>,
    request: &'a Request,
    out: &'a mut O,
}

impl<O: Outbox> Answer<'_, O> {
    fn give(&mut self) -> Result<(), NbdError> {
        match self.request.command {
            cmd::READ => self.read(),
            cmd::BLOCK_STATUS => self.block_status(),
            cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES => self.finish(errno::EPERM),
            cmd::FLUSH => self.finish(0),
            cmd::CACHE if self.request.is_within(self.asked.size) => self.finish(0),
            _ => self.finish(errno::EINVAL),
        }
    }

    /// Checks the range and flags of a request that is answered with data.
    fn fault(&self, flags: u16) -> Option<u32> {
        let request = self.request;
        let is_good = request.len > 0
            && request.is_within(self.asked.size)
            && request.flags & !(flags | cmd::FLAG_FUA) == 0;
        if is_good { None } else { Some(errno::EINVAL) }
    }

    fn read(&mut self) -> Result<(), NbdError> {
        let df = if self.asked.structured {
            cmd::FLAG_DF
        } else {
            0
        };
        if let Some(fault) = self.fault(df) {
            return self.fail(fault);
        }
        if self.request.len > bounds::REQUEST_MAX {
            return self.fail(errno::EOVERFLOW);
        }
        match (self.asked.structured, self.request.flags & df != 0) {
            (false, _) => {
                let head = SimpleReply {
                    error: 0,
                    cookie: self.request.cookie,
                };
                self.data(&head.encode(), self.request.offset, self.request.len)
                    .map(|_| ())
            }
            (true, true) => self
                .chunk_of_data(self.request.offset, self.request.len, true)
                .map(|_| ()),
            (true, false) => self.read_in_chunks(),
        }
    }

    fn read_in_chunks(&mut self) -> Result<(), NbdError> {
        let (offset, len) = (self.request.offset, u64::from(self.request.len));
        let extents = if len < bounds::EXTENTS_FROM {
            Vec::new()
        } else {
            // Without extents everything is data: a device that is broken says so when it is read.
            let told = self.asked.device.extents(offset, len, usize::MAX);
            told.unwrap_or_default()
        };
        for piece in plan_pieces(&extents, offset, len) {
            let is_last = piece.offset + piece.len == offset + len;
            if piece.kind == ExtentKind::Zero {
                self.hole(&piece, is_last)?;
            } else if !self.chunk_of_data(piece.offset, piece.len as u32, is_last)? {
                break;
            }
        }
        Ok(())
    }

    fn chunk_of_data(&mut self, offset: u64, len: u32, done: bool) -> Result<bool, NbdError> {
        let mut head = self.chunk_head(chunk::OFFSET_DATA, done, len + 8);
        head.extend_from_slice(&offset.to_be_bytes());
        self.data(&head, offset, len)
    }

    /// Answers with a head and bytes of the device behind it; where they cannot be read, with that instead, and false.
    fn data(&mut self, head: &[u8], offset: u64, len: u32) -> Result<bool, NbdError> {
        let whole = head.len() + len as usize;
        let room = self.out.room(whole)?;
        let (front, bytes) = room.split_at_mut(head.len().min(room.len()));
        front.copy_from_slice(head);
        match self.asked.device.read_at(bytes, offset) {
            Ok(()) => {
                self.out.keep(whole);
                Ok(true)
            }
            Err(error) => {
                self.fail_read(&error)?;
                Ok(false)
            }
        }
    }

    fn hole(&mut self, hole: &Part, done: bool) -> Result<(), NbdError> {
        let mut head = self.chunk_head(chunk::OFFSET_HOLE, done, 12);
        head.extend_from_slice(&hole.offset.to_be_bytes());
        head.extend_from_slice(&(hole.len as u32).to_be_bytes());
        self.put(&head)
    }

    fn block_status(&mut self) -> Result<(), NbdError> {
        if let Some(fault) = self.fault(cmd::FLAG_REQ_ONE) {
            return self.fail(fault);
        }
        if !self.asked.allocation {
            return self.fail(errno::EINVAL);
        }
        let (offset, len) = (self.request.offset, u64::from(self.request.len));
        let most = if self.request.flags & cmd::FLAG_REQ_ONE != 0 {
            1
        } else {
            bounds::STATUS_EXTENTS
        };
        let extents = match self.asked.device.extents(offset, len, most) {
            Ok(extents) => extents,
            Err(error) => return self.fail_read(&error),
        };
        let mut told = to_sectors(&clip(&extents, len), offset, len);
        told.truncate(most);
        if told.is_empty() {
            return self.fail_read(&io::Error::other("the device told of no extent"));
        }
        let len = told.len() as u32 * 8 + 4;
        let mut out = self.chunk_head(chunk::BLOCK_STATUS, true, len);
        out.extend_from_slice(&allocation::ID.to_be_bytes());
        for extent in told {
            let flags = match extent.kind {
                ExtentKind::Data => 0,
                ExtentKind::Zero => allocation::HOLE | allocation::ZERO,
            };
            out.extend_from_slice(&(extent.len as u32).to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
        }
        self.put(&out)
    }

    fn fail_read(&mut self, error: &io::Error) -> Result<(), NbdError> {
        let (offset, len) = (self.request.offset, self.request.len);
        tracing::warn!(offset, len, %error, "a view could not be read");
        self.fail(errno::EIO)
    }

    /// Answers a read or block status with an error, in the shape that was agreed on.
    fn fail(&mut self, error: u32) -> Result<(), NbdError> {
        if !self.asked.structured {
            return self.finish(error);
        }
        let mut out = self.chunk_head(chunk::ERROR, true, 6);
        out.extend_from_slice(&error.to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
        self.put(&out)
    }

    /// Answers with a simple reply that has no data.
    fn finish(&mut self, error: u32) -> Result<(), NbdError> {
        let cookie = self.request.cookie;
        self.put(&SimpleReply { error, cookie }.encode())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        let room = self.out.room(bytes.len())?;
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.out.keep(bytes.len());
        Ok(())
    }

    fn chunk_head(&self, kind: u16, done: bool, len: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        let head = ChunkHead {
            flags: if done { chunk::FLAG_DONE } else { 0 },
            kind,
            cookie: self.request.cookie,
            len,
        };
        head.encode_to(&mut out);
        out
    }
}
