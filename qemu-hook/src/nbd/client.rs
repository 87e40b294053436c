//! Reads an export of another NBD server: QEMU's, for the seed and the resync.
//!
//! One connection, one thread; several requests are in flight while ranges are read. Every wait for
//! the server is bounded, so a QEMU that hangs does not hang us for ever.
//!
//! Invariant: bytes are handed out only where the server said that they are the answer, inside the range
//! that was asked for, and each byte once. After an error that leaves the connection out
//! of step every further call fails.

use std::convert::Infallible;
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::bounds;
use super::client_handshake::open;
use super::error::NbdError;
use super::export::{Extent, ExtentKind};
use super::proto::{ChunkHead, ReplyHead, Request, allocation, cmd};
use super::read_ranges::{Piece, ReadError, Reading};
use super::status::{ContextExtent, read_status};
use super::stream::{Deadline, Stream};
use super::wire::Cursor;

/// How to connect, where the usual is not wanted.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Meta contexts to ask for, such as `base:allocation` or `qemu:dirty-bitmap:NAME`.
    pub contexts: Vec<String>,
    /// The longest wait for the next bytes of an answer, and for a request to be taken.
    pub timeout: Duration,
    /// The longest time of the whole handshake.
    pub handshake_deadline: Duration,
}

impl Default for ConnectOptions {
    /// `base:allocation`, 30 s for an answer, 10 s for the handshake.
    fn default() -> Self {
        Self {
            contexts: vec![allocation::NAME.to_owned()],
            timeout: bounds::CLIENT_READ_TIMEOUT,
            handshake_deadline: bounds::HANDSHAKE_DEADLINE,
        }
    }
}

/// A connection to one export, for reading.
pub struct NbdClient {
    pub(super) stream: BufReader<UnixStream>,
    size: u64,
    pub(super) request_max: u32,
    pub(super) structured: bool,
    contexts: Vec<(u32, String)>,
    last_cookie: u64,
    /// A request is under way, or one has left the connection out of step.
    out_of_step: bool,
}

impl NbdClient {
    /// Connects to `export` with the default [`ConnectOptions`].
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn connect(stream: UnixStream, export: &str) -> Result<Self, NbdError> {
        Self::connect_with(stream, export, &ConnectOptions::default())
    }

    /// Connects to `export`: newstyle, with structured replies where the server has them.
    ///
    /// A meta context that the server does not have is not an error here: see
    /// [`has_context`](Self::has_context).
    ///
    /// # Errors
    /// [`NbdError::Refused`], for one because there is no such export; [`NbdError::TimedOut`],
    /// [`NbdError::Io`], [`NbdError::Protocol`]; [`NbdError::BadExport`] for a name over 4096 bytes.
    pub fn connect_with(
        mut stream: UnixStream,
        export: &str,
        options: &ConnectOptions,
    ) -> Result<Self, NbdError> {
        let names = options.contexts.iter().map(String::as_str).chain([export]);
        for name in names {
            if name.len() > bounds::NAME_MAX {
                return Err(NbdError::BadExport {
                    name: name.to_owned(),
                    reason: "the name is longer than 4096 bytes",
                });
            }
        }
        let deadline = Instant::now() + options.handshake_deadline;
        let opened = open(
            Deadline::new(&mut stream, deadline),
            export,
            &options.contexts,
        )?;
        stream
            .set_timeouts(Some(options.timeout))
            .map_err(NbdError::io("setting the time-out of a connection"))?;
        Ok(Self {
            stream: BufReader::new(stream),
            size: opened.size,
            request_max: opened.request_max,
            structured: opened.structured,
            contexts: opened.contexts,
            last_cookie: 0,
            out_of_step: false,
        })
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Tells whether the server agreed to a meta context.
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts.iter().any(|(_, known)| known == name)
    }

    /// Asks what in `[offset, offset + len)` must be read: exactly that range, merged, in order.
    ///
    /// [`ExtentKind::Zero`] where the server promises zeroes; all else is data, a hole that may hold
    /// anything too, and everything where the server does not know.
    ///
    /// # Errors
    /// [`NbdError::Failed`], [`NbdError::OutOfRange`]; any other ends the connection.
    pub fn block_status(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, NbdError> {
        if !self.has_context(allocation::NAME) {
            self.check_range(offset, len)?;
            let mut all = Vec::new();
            Extent::push_merged(&mut all, len, ExtentKind::Data);
            return Ok(all);
        }
        let told = self.context_extents(allocation::NAME, offset, len)?;
        let mut merged = Vec::new();
        for ContextExtent { len, flags } in told {
            let kind = if flags & allocation::ZERO != 0 {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            };
            Extent::push_merged(&mut merged, len, kind);
        }
        Ok(merged)
    }

    /// Asks one meta context about `[offset, offset + len)`: exactly that range, in order, merged.
    ///
    /// What the flags mean is the context's affair; in `qemu:dirty-bitmap:*` bit 0 is "dirty".
    ///
    /// # Errors
    /// [`NbdError::NoContext`], [`NbdError::Failed`], [`NbdError::OutOfRange`]; any other ends
    /// the connection.
    pub fn context_extents(
        &mut self,
        context: &str,
        offset: u64,
        len: u64,
    ) -> Result<Vec<ContextExtent>, NbdError> {
        let known = self.contexts.iter().find(|(_, name)| name == context);
        let Some(&(id, _)) = known else {
            return Err(NbdError::NoContext {
                context: context.to_owned(),
            });
        };
        self.check_range(offset, len)?;
        self.in_step(|client| read_status(client, id, offset, len))
    }

    /// Reads `ranges` in requests of at most `chunk` bytes, `depth` of them in flight.
    ///
    /// Hands over every byte exactly once, with the offset at which it lies on the device; in
    /// any order, in pieces of any size. `chunk` is cut to what the server takes (32 MiB at
    /// most), `depth` to 64. When `take` fails, or the server fails a request, what is in
    /// flight is waited for and dropped, and the connection can be used further.
    ///
    /// # Errors
    /// [`ReadError::Nbd`] with [`NbdError::Failed`] or [`NbdError::OutOfRange`], or with one that
    /// ends the connection; [`ReadError::Taker`] when `take` failed.
    pub fn read_ranges<E>(
        &mut self,
        ranges: &[Range<u64>],
        chunk: usize,
        depth: usize,
        take: &mut dyn FnMut(u64, Piece<'_>) -> Result<(), E>,
    ) -> Result<(), ReadError<E>> {
        for range in ranges {
            let len = range.end.saturating_sub(range.start);
            self.check_range(range.start, len)?;
        }
        self.in_step(|client| Reading::new(client, ranges, chunk, depth, take).run())?
    }

    /// Fills `buf` with the device's bytes from byte `offset` on.
    ///
    /// # Errors
    /// [`NbdError::Failed`], [`NbdError::OutOfRange`]; any other ends the connection.
    pub fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<(), NbdError> {
        let len = buf.len() as u64;
        self.check_range(offset, len)?;
        let mut take = |at: u64, piece: Piece<'_>| -> Result<(), Infallible> {
            let start = (at - offset) as usize;
            let len = match piece {
                Piece::Data(data) => data.len(),
                Piece::Zero(len) => len as usize,
            };
            // The piece lies in what was asked for, so there is always such a part.
            match (buf.get_mut(start..start + len), piece) {
                (Some(part), Piece::Data(data)) => part.copy_from_slice(data),
                (Some(part), Piece::Zero(_)) => part.fill(0),
                (None, _) => {}
            }
            Ok(())
        };
        let whole = offset..offset + len;
        let whole = std::slice::from_ref(&whole);
        match self.read_ranges(whole, READ_AT_CHUNK, 4, &mut take) {
            Ok(()) => Ok(()),
            Err(ReadError::Nbd(error)) => Err(error),
            Err(ReadError::Taker(never)) => match never {},
        }
    }

    /// Says goodbye and closes the connection.
    pub fn disconnect(mut self) {
        if !self.out_of_step {
            let goodbye = self.request(cmd::DISC, 0, 0, 0);
            // The server may be gone already; there is nothing more to say to it then.
            let _ = self.send(&[goodbye]);
        }
    }

    /// Makes a request with a cookie of its own.
    pub(super) fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Request {
        self.last_cookie = self.last_cookie.wrapping_add(1);
        Request {
            flags,
            command,
            cookie: self.last_cookie,
            offset,
            len,
        }
    }

    pub(super) fn send(&mut self, requests: &[Request]) -> Result<(), NbdError> {
        let mut out = Vec::with_capacity(requests.len() * Request::SIZE);
        for request in requests {
            request.encode_to(&mut out);
        }
        let sent = self.stream.get_mut().write_all(&out);
        sent.map_err(NbdError::io("sending a request"))
    }

    pub(super) fn receive(&mut self) -> Result<ReplyHead, NbdError> {
        let mut common = [0; ReplyHead::COMMON];
        self.fill(&mut common)?;
        ReplyHead::decode(&common, || {
            let mut more = [0; 4];
            self.fill(&mut more)?;
            Ok(more)
        })
    }

    pub(super) fn fill(&mut self, buf: &mut [u8]) -> Result<(), NbdError> {
        let filled = self.stream.read_exact(buf);
        filled.map_err(NbdError::io("waiting for a reply"))
    }

    /// Receives the payload of an error chunk: the error's number.
    pub(super) fn receive_error(&mut self, head: &ChunkHead) -> Result<u32, NbdError> {
        if head.len > bounds::OPTION_MAX {
            let found = format!("an error message of {} bytes", head.len);
            return Err(NbdError::protocol("reading a reply", found));
        }
        let mut payload = vec![0; head.len as usize];
        self.fill(&mut payload)?;
        Cursor::new(&payload, "reading an error").u32()
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), NbdError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(NbdError::OutOfRange {
                offset,
                len,
                size: self.size,
            }),
        }
    }

    /// Runs `work`; the connection counts as out of step until it has ended well.
    fn in_step<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, NbdError>,
    ) -> Result<T, NbdError> {
        if self.out_of_step {
            let found = "an earlier failure, after which nothing can be read";
            return Err(NbdError::protocol("using a connection", found));
        }
        self.out_of_step = true;
        let done = work(self);
        self.out_of_step = match &done {
            Ok(_) => false,
            Err(error) => !error.is_connection_usable(),
        };
        done
    }
}

/// The request size of [`NbdClient::read_at`], in bytes.
const READ_AT_CHUNK: usize = 2 << 20;
