//! The transmission phase of one reader's connection: requests in, replies out, one at a time.
//!
//! A read is answered in structured chunks where the client agreed to them: zero extents of
//! [`bounds::HOLE_MIN`] and more as holes, the rest in pieces of [`bounds::READ_PIECE`]. Simple replies,
//! and reads with DF, carry no error after their head and so are read whole first.
//!
//! Invariant: whatever the client sends, the connection either stays in step (every request got
//! its one reply) or ends.

use std::io;

use super::bounds;
use super::error::NbdError;
use super::export::{Export, Extent, ExtentKind};
use super::handshake::Agreed;
use super::proto::{ChunkHead, Request, SimpleReply, allocation, chunk, cmd, errno};
use super::stream::{Stream, drain, read_full_or_end, write_both};

const REPLYING: &str = "replying to a client";

/// Serves one client until it leaves (`Ok`) or the connection ends otherwise.
pub(crate) fn serve_requests<S: Stream>(
    stream: &mut S,
    device: &dyn Export,
    agreed: &Agreed,
) -> Result<(), NbdError> {
    let mut session = Session {
        stream,
        device,
        size: device.size(),
        structured: agreed.structured,
        allocation: agreed.allocation,
        buffer: Vec::new(),
    };
    while let Some(request) = session.receive()? {
        if request.command == cmd::DISC {
            break;
        }
        session.answer(&request)?;
        session.shrink();
    }
    Ok(())
}

struct Session<'a, S> {
    stream: &'a mut S,
    device: &'a dyn Export,
    size: u64,
    structured: bool,
    allocation: bool,
    /// What is read from the device; kept between requests.
    buffer: Vec<u8>,
}

impl<S: Stream> Session<'_, S> {
    fn receive(&mut self) -> Result<Option<Request>, NbdError> {
        let mut head = [0; Request::SIZE];
        let more = read_full_or_end(self.stream, &mut head);
        if !more.map_err(NbdError::io("waiting for a request"))? {
            return Ok(None);
        }
        Request::decode(&head).map(Some)
    }

    fn answer(&mut self, request: &Request) -> Result<(), NbdError> {
        match request.command {
            cmd::READ => self.read(request),
            cmd::BLOCK_STATUS => self.block_status(request),
            cmd::WRITE => {
                if request.len > bounds::REQUEST_MAX {
                    let found = format!("a write of {} bytes", request.len);
                    return Err(NbdError::protocol("reading a request", found));
                }
                let payload = u64::from(request.len);
                drain(self.stream, payload).map_err(NbdError::io("dropping a write's payload"))?;
                self.finish(request, errno::EPERM)
            }
            cmd::TRIM | cmd::WRITE_ZEROES => self.finish(request, errno::EPERM),
            cmd::FLUSH => self.finish(request, 0),
            cmd::CACHE if request.is_within(self.size) => self.finish(request, 0),
            _ => self.finish(request, errno::EINVAL),
        }
    }

    /// Checks the range and flags of a request that is answered with data.
    fn fault(&self, request: &Request, flags: u16) -> Option<u32> {
        let is_good = request.len > 0
            && request.is_within(self.size)
            && request.flags & !(flags | cmd::FLAG_FUA) == 0;
        if is_good { None } else { Some(errno::EINVAL) }
    }

    fn read(&mut self, request: &Request) -> Result<(), NbdError> {
        let df = if self.structured { cmd::FLAG_DF } else { 0 };
        if let Some(fault) = self.fault(request, df) {
            return self.fail(request, fault);
        }
        if request.len > bounds::REQUEST_MAX {
            return self.fail(request, errno::EOVERFLOW);
        }
        match (self.structured, request.flags & df != 0) {
            (false, _) => self.read_simple(request),
            (true, true) => self.read_unfragmented(request),
            (true, false) => self.read_in_chunks(request),
        }
    }

    fn read_simple(&mut self, request: &Request) -> Result<(), NbdError> {
        if let Err(error) = self.load(request.offset, request.len as usize) {
            return self.fail_read(request, &error);
        }
        let head = SimpleReply {
            error: 0,
            cookie: request.cookie,
        };
        write_both(self.stream, &head.encode(), &self.buffer).map_err(NbdError::io(REPLYING))
    }

    fn read_unfragmented(&mut self, request: &Request) -> Result<(), NbdError> {
        if let Err(error) = self.load(request.offset, request.len as usize) {
            return self.fail_read(request, &error);
        }
        self.send_data(request, request.offset, true)
    }

    fn read_in_chunks(&mut self, request: &Request) -> Result<(), NbdError> {
        let len = u64::from(request.len);
        let extents = if len < bounds::HOLE_MIN {
            Vec::new()
        } else {
            // Without extents everything is data: a device that is broken says so when it is read.
            self.device.extents(request.offset, len).unwrap_or_default()
        };
        let plan = plan_pieces(&extents, request.offset, len);
        let end = request.offset + len;
        for piece in plan {
            let is_last = piece.offset + piece.len == end;
            if piece.kind == ExtentKind::Zero {
                self.send_hole(request, &piece, is_last)?;
                continue;
            }
            if let Err(error) = self.load(piece.offset, piece.len as usize) {
                return self.fail_read(request, &error);
            }
            self.send_data(request, piece.offset, is_last)?;
        }
        Ok(())
    }

    /// Reads `len` bytes of the device into the buffer, which is then as long as that.
    fn load(&mut self, offset: u64, len: usize) -> io::Result<()> {
        self.buffer.resize(len, 0);
        self.device.read_at(&mut self.buffer, offset)
    }

    fn send_data(&mut self, request: &Request, offset: u64, done: bool) -> Result<(), NbdError> {
        let len = self.buffer.len() as u32 + 8;
        let mut head = chunk_head(request, chunk::OFFSET_DATA, done, len);
        head.extend_from_slice(&offset.to_be_bytes());
        write_both(self.stream, &head, &self.buffer).map_err(NbdError::io(REPLYING))
    }

    fn send_hole(&mut self, request: &Request, hole: &Part, done: bool) -> Result<(), NbdError> {
        let mut head = chunk_head(request, chunk::OFFSET_HOLE, done, 12);
        head.extend_from_slice(&hole.offset.to_be_bytes());
        head.extend_from_slice(&(hole.len as u32).to_be_bytes());
        self.send(&head)
    }

    fn block_status(&mut self, request: &Request) -> Result<(), NbdError> {
        if let Some(fault) = self.fault(request, cmd::FLAG_REQ_ONE) {
            return self.fail(request, fault);
        }
        if !self.allocation {
            return self.fail(request, errno::EINVAL);
        }
        let len = u64::from(request.len);
        let extents = match self.device.extents(request.offset, len) {
            Ok(extents) => extents,
            Err(error) => return self.fail_read(request, &error),
        };
        let most = if request.flags & cmd::FLAG_REQ_ONE != 0 {
            1
        } else {
            bounds::STATUS_EXTENTS
        };
        let mut told = to_sectors(&clip(&extents, len), request.offset);
        told.truncate(most);
        if told.is_empty() {
            let error = io::Error::other("the device told of no extent");
            return self.fail_read(request, &error);
        }
        let len = told.len() as u32 * 8 + 4;
        let mut out = chunk_head(request, chunk::BLOCK_STATUS, true, len);
        out.extend_from_slice(&allocation::ID.to_be_bytes());
        for extent in told {
            let flags = match extent.kind {
                ExtentKind::Data => 0,
                ExtentKind::Zero => allocation::HOLE | allocation::ZERO,
            };
            out.extend_from_slice(&(extent.len as u32).to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
        }
        self.send(&out)
    }

    fn fail_read(&mut self, request: &Request, error: &io::Error) -> Result<(), NbdError> {
        let (offset, len) = (request.offset, request.len);
        tracing::warn!(offset, len, %error, "a view could not be read");
        self.fail(request, errno::EIO)
    }

    /// Answers a read or block status with an error, in the shape that was agreed on.
    fn fail(&mut self, request: &Request, error: u32) -> Result<(), NbdError> {
        if !self.structured {
            return self.finish(request, error);
        }
        let mut out = chunk_head(request, chunk::ERROR, true, 6);
        out.extend_from_slice(&error.to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
        self.send(&out)
    }

    /// Answers with a simple reply that has no data.
    fn finish(&mut self, request: &Request, error: u32) -> Result<(), NbdError> {
        let cookie = request.cookie;
        self.send(&SimpleReply { error, cookie }.encode())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        self.stream.write_all(bytes).map_err(NbdError::io(REPLYING))
    }

    /// Gives back what an exceptionally large read needed.
    fn shrink(&mut self) {
        if self.buffer.capacity() > bounds::READ_PIECE {
            self.buffer.truncate(bounds::READ_PIECE);
            self.buffer.shrink_to(bounds::READ_PIECE);
        }
    }
}

fn chunk_head(request: &Request, kind: u16, done: bool, len: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    let head = ChunkHead {
        flags: if done { chunk::FLAG_DONE } else { 0 },
        kind,
        cookie: request.cookie,
        len,
    };
    head.encode_to(&mut out);
    out
}

/// One chunk of a read's reply, by device offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    offset: u64,
    len: u64,
    kind: ExtentKind,
}

/// Plans the chunks that answer a read: they cover exactly `[offset, offset + len)`, in order.
fn plan_pieces(extents: &[Extent], offset: u64, len: u64) -> Vec<Part> {
    let mut merged = Vec::new();
    let mut covered = 0;
    for extent in clip(extents, len) {
        let kind = if extent.len < bounds::HOLE_MIN {
            ExtentKind::Data
        } else {
            extent.kind
        };
        Extent::push_merged(&mut merged, extent.len, kind);
        covered += extent.len;
    }
    Extent::push_merged(&mut merged, len - covered, ExtentKind::Data);

    let mut plan = Vec::new();
    let mut at = offset;
    for Extent {
        len: mut left,
        kind,
    } in merged
    {
        while left > 0 {
            let len = match kind {
                ExtentKind::Data => left.min(bounds::READ_PIECE as u64),
                ExtentKind::Zero => left,
            };
            plan.push(Part {
                offset: at,
                len,
                kind,
            });
            at += len;
            left -= len;
        }
    }
    plan
}

/// Cuts extents to `len` bytes, merged, without the empty ones.
fn clip(extents: &[Extent], len: u64) -> Vec<Extent> {
    let mut clipped = Vec::new();
    let mut left = len;
    for extent in extents {
        let part = extent.len.min(left);
        Extent::push_merged(&mut clipped, part, extent.kind);
        left -= part;
    }
    clipped
}

/// Moves boundaries inside the extents, which begin at byte `offset`, to sectors: zeroes shrink.
///
/// qemu-img counts block status in sectors and rounds up: data in a sector that begins as zeroes
/// would be lost in its copy.
fn to_sectors(extents: &[Extent], offset: u64) -> Vec<Extent> {
    let end = extents.iter().fold(offset, |at, extent| at + extent.len);
    let mut moved = Vec::new();
    let (mut start, mut told) = (offset, offset);
    for extent in extents {
        let stop = start + extent.len;
        if extent.kind == ExtentKind::Zero {
            let from = if start == offset {
                start
            } else {
                start.next_multiple_of(bounds::SECTOR)
            };
            let to = if stop == end {
                stop
            } else {
                stop - stop % bounds::SECTOR
            };
            if from < to {
                Extent::push_merged(&mut moved, from - told, ExtentKind::Data);
                Extent::push_merged(&mut moved, to - from, ExtentKind::Zero);
                told = to;
            }
        }
        start = stop;
    }
    Extent::push_merged(&mut moved, end - told, ExtentKind::Data);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use ExtentKind::{Data, Zero};

    fn extents(list: &[(u64, ExtentKind)]) -> Vec<Extent> {
        let make = |&(len, kind)| Extent { len, kind };
        list.iter().map(make).collect()
    }

    #[test]
    fn a_plan_covers_the_read_whatever_the_extents_say() {
        let piece = bounds::READ_PIECE as u64;
        type Row<'a> = (&'a [(u64, ExtentKind)], u64, usize);
        let tables: &[Row<'_>] = &[
            (&[], 100, 1),
            (&[(100, Zero)], 100, 1),
            (&[(4096, Zero), (4096, Data), (u64::MAX, Zero)], 16384, 3),
            (&[(4096, Data), (512, Zero), (3584, Data)], 8192, 1),
            (&[(10, Data), (0, Zero)], 8192, 1),
            (&[(3 * piece, Data)], 2 * piece + 1, 3),
            (&[(8 * piece, Zero)], 8 * piece, 1),
        ];
        for (list, len, count) in tables {
            let plan = plan_pieces(&extents(list), 1000, *len);
            assert_eq!(plan.len(), *count, "{list:?}");
            let mut at = 1000;
            for part in plan {
                assert_eq!(part.offset, at);
                assert!(part.len > 0 && (part.kind == Zero || part.len <= piece));
                at += part.len;
            }
            assert_eq!(at, 1000 + len, "{list:?}");
        }
    }

    #[test]
    fn extents_are_cut_to_the_request() {
        let all = extents(&[(10, Data), (10, Data), (0, Zero), (10, Zero), (99, Data)]);
        let cut = extents(&[(20, Data), (10, Zero), (5, Data)]);
        assert_eq!(clip(&all, 35), cut);
        assert_eq!(clip(&all, 12), extents(&[(12, Data)]));
        assert!(clip(&[], 12).is_empty());
    }

    #[test]
    fn zeroes_shrink_to_whole_sectors() {
        type Row<'a> = (u64, &'a [(u64, ExtentKind)], &'a [(u64, ExtentKind)]);
        let tables: &[Row<'_>] = &[
            (0, &[(100, Zero), (412, Data)], &[(512, Data)]),
            (
                0,
                &[(600, Data), (1000, Zero), (400, Data)],
                &[(1024, Data), (512, Zero), (464, Data)],
            ),
            (0, &[(600, Data), (300, Zero)], &[(900, Data)]),
            (
                0,
                &[(1024, Data), (300, Zero)],
                &[(1024, Data), (300, Zero)],
            ),
            (700, &[(10, Zero)], &[(10, Zero)]),
            (
                700,
                &[(400, Zero), (100, Data)],
                &[(324, Zero), (176, Data)],
            ),
            (
                0,
                &[(513, Zero), (1, Data), (510, Zero)],
                &[(512, Zero), (512, Data)],
            ),
        ];
        for (offset, given, wanted) in tables {
            assert_eq!(to_sectors(&extents(given), *offset), extents(wanted));
        }
    }
}
