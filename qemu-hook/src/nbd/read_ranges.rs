//! Reading ranges with several requests in flight.
//!
//! Requests are sent until `depth` of them are unanswered; then one reply, or one chunk of a reply, is
//! received and handed over, and the next request sent. Replies come in any order and their
//! chunks may be mixed; a cookie tells to which request each belongs.
//!
//! Invariant: a request counts as answered only when its chunks covered its range exactly once.

use std::collections::BTreeMap;
use std::ops::Range;

use thiserror::Error;

use super::bounds;
use super::client::NbdClient;
use super::error::NbdError;
use super::proto::{ChunkHead, ReplyHead, SimpleReply, chunk, cmd};
use super::wire::Cursor;

const DOING: &str = "reading data";

/// What a range turned out to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// That many bytes, all zero, which the server did not send.
    Zero(u64),
}

/// Why ranges were not read to their end.
#[derive(Debug, Error)]
pub enum ReadError<E> {
    /// The server or the connection failed.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// Whoever takes the data failed.
    #[error("what was read could not be taken")]
    Taker(#[source] E),
}

/// One run over a list of ranges.
pub(crate) struct Reading<'a, E> {
    client: &'a mut NbdClient,
    take: &'a mut dyn FnMut(u64, Piece<'_>) -> Result<(), E>,
    to_ask: Pieces<'a>,
    depth: usize,
    in_flight: BTreeMap<u64, Asked>,
    /// The first failure that leaves the connection in step; nothing is handed over after it.
    failure: Option<ReadError<E>>,
    buffer: Vec<u8>,
}

impl<'a, E> Reading<'a, E> {
    pub(crate) fn new(
        client: &'a mut NbdClient,
        ranges: &'a [Range<u64>],
        chunk: usize,
        depth: usize,
        take: &'a mut dyn FnMut(u64, Piece<'_>) -> Result<(), E>,
    ) -> Self {
        let most = client.request_max as usize;
        let to_ask = Pieces {
            ranges,
            done: 0,
            most: chunk.clamp(1, most) as u64,
        };
        Self {
            client,
            take,
            to_ask,
            depth: depth.clamp(1, bounds::DEPTH_MAX),
            in_flight: BTreeMap::new(),
            failure: None,
            buffer: Vec::new(),
        }
    }

    /// Reads everything. The outer error ends the connection, the inner one does not.
    pub(crate) fn run(&mut self) -> Result<Result<(), ReadError<E>>, NbdError> {
        loop {
            self.ask()?;
            if self.in_flight.is_empty() {
                return Ok(self.failure.take().map_or(Ok(()), Err));
            }
            match self.client.receive()? {
                ReplyHead::Simple(reply) => self.take_simple(&reply)?,
                ReplyHead::Chunk(head) => self.take_chunk(&head)?,
            }
        }
    }

    /// Fills the line with requests, unless something failed.
    fn ask(&mut self) -> Result<(), NbdError> {
        let mut requests = Vec::new();
        while self.failure.is_none() && self.in_flight.len() < self.depth {
            let Some(range) = self.to_ask.next() else {
                break;
            };
            let len = (range.end - range.start) as u32;
            let request = self.client.request(cmd::READ, 0, range.start, len);
            self.in_flight.insert(request.cookie, Asked::new(range));
            requests.push(request);
        }
        if requests.is_empty() {
            return Ok(());
        }
        self.client.send(&requests)
    }

    /// Takes a reply without structure: an error, or the whole range's data.
    fn take_simple(&mut self, reply: &SimpleReply) -> Result<(), NbdError> {
        let Some(asked) = self.in_flight.remove(&reply.cookie) else {
            return Err(NbdError::protocol(DOING, "an answer to no request"));
        };
        if reply.error != 0 {
            self.fail(asked.error(reply.error));
            return Ok(());
        }
        if self.client.structured {
            let found = "data without the structure agreed on";
            return Err(NbdError::protocol(DOING, found));
        }
        let len = asked.range.end - asked.range.start;
        self.fill(len as usize)?;
        self.hand_over(asked.range.start, None);
        Ok(())
    }

    fn take_chunk(&mut self, head: &ChunkHead) -> Result<(), NbdError> {
        // Taken out, and put back unless this was its last chunk.
        let Some(mut asked) = self.in_flight.remove(&head.cookie) else {
            return Err(NbdError::protocol(DOING, "an answer to no request"));
        };
        match head.kind {
            chunk::OFFSET_DATA if head.len > 8 => {
                let len = head.len - 8;
                let offset = self.offset_of(len, &mut asked)?;
                self.fill(len as usize)?;
                self.hand_over(offset, None);
            }
            chunk::OFFSET_HOLE if head.len == 12 => {
                let mut payload = [0; 12];
                self.client.fill(&mut payload)?;
                let mut at = Cursor::new(&payload, DOING);
                let (offset, len) = (at.u64()?, at.u32()?);
                asked.cover(offset, u64::from(len))?;
                self.hand_over(offset, Some(u64::from(len)));
            }
            chunk::NONE if head.len == 0 => {}
            _ if head.is_error() => {
                let error = self.client.receive_error(head)?;
                asked.failed = true;
                self.fail(asked.error(error));
            }
            kind => {
                let found = format!("a chunk of kind {kind} and {} bytes", head.len);
                return Err(NbdError::protocol(DOING, found));
            }
        }
        if !head.is_done() {
            self.in_flight.insert(head.cookie, asked);
        } else if !asked.failed && !asked.is_covered() {
            return Err(NbdError::protocol(DOING, "an answer with bytes missing"));
        }
        Ok(())
    }

    /// Receives a data chunk's offset and checks that its `len` bytes were asked for.
    fn offset_of(&mut self, len: u32, asked: &mut Asked) -> Result<u64, NbdError> {
        let mut offset = [0; 8];
        self.client.fill(&mut offset)?;
        let offset = u64::from_be_bytes(offset);
        asked.cover(offset, u64::from(len))?;
        Ok(offset)
    }

    /// Receives `len` bytes, which are no more than were asked for, into the buffer.
    fn fill(&mut self, len: usize) -> Result<(), NbdError> {
        self.buffer.resize(len, 0);
        self.client.fill(&mut self.buffer)
    }

    /// Hands over the buffer, or that many zeroes, unless something failed before.
    fn hand_over(&mut self, offset: u64, zeroes: Option<u64>) {
        if self.failure.is_some() {
            return;
        }
        let piece = zeroes.map_or(Piece::Data(&self.buffer), Piece::Zero);
        if let Err(error) = (self.take)(offset, piece) {
            self.failure = Some(ReadError::Taker(error));
        }
    }

    fn fail(&mut self, error: NbdError) {
        self.failure.get_or_insert(ReadError::Nbd(error));
    }
}

/// Cuts ranges into requests.
struct Pieces<'a> {
    ranges: &'a [Range<u64>],
    /// Bytes of the first range that have been asked for.
    done: u64,
    most: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        loop {
            let (first, rest) = self.ranges.split_first()?;
            let start = first.start + self.done;
            if start >= first.end {
                self.ranges = rest;
                self.done = 0;
                continue;
            }
            let len = self.most.min(first.end - start);
            self.done += len;
            return Some(start..start + len);
        }
    }
}

/// A request in flight, and what of it has been answered.
struct Asked {
    range: Range<u64>,
    /// Apart, in order, not empty.
    covered: Vec<Range<u64>>,
    failed: bool,
}

impl Asked {
    fn new(range: Range<u64>) -> Self {
        Self {
            range,
            covered: Vec::new(),
            failed: false,
        }
    }

    /// Marks bytes as answered; they must have been asked for, and not answered before.
    fn cover(&mut self, offset: u64, len: u64) -> Result<(), NbdError> {
        let wrong = |what: &str| {
            let found = format!("{what}: {len} bytes at byte {offset}");
            Err(NbdError::protocol(DOING, found))
        };
        let end = match offset.checked_add(len) {
            Some(end) if len > 0 && offset >= self.range.start && end <= self.range.end => end,
            _ => return wrong("bytes that were not asked for"),
        };
        let at = self.covered.partition_point(|known| known.end <= offset);
        if self.covered.get(at).is_some_and(|next| next.start < end) {
            return wrong("bytes that were answered before");
        }
        let is_full = self.covered.len() >= bounds::FRAGMENTS_MAX;
        let before = match at.checked_sub(1) {
            Some(before) => self.covered.get_mut(before),
            None => None,
        };
        match before {
            Some(before) if before.end == offset => before.end = end,
            _ if is_full => return wrong("too many pieces"),
            _ => self.covered.insert(at, offset..end),
        }
        Ok(())
    }

    fn is_covered(&self) -> bool {
        let answered: u64 = self.covered.iter().map(|part| part.end - part.start).sum();
        answered == self.range.end - self.range.start
    }

    fn error(&self, number: u32) -> NbdError {
        NbdError::Failed {
            command: "read",
            offset: self.range.start,
            len: self.range.end - self.range.start,
            source: std::io::Error::from_raw_os_error(number as i32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_into_requests_that_cover_them() {
        let backwards = Range { start: 5, end: 4 };
        let ranges = [0..10, 20..20, 30..37, backwards];
        let pieces = Pieces {
            ranges: &ranges,
            done: 0,
            most: 4,
        };
        let found: Vec<_> = pieces.collect();
        assert_eq!(found, [0..4, 4..8, 8..10, 30..34, 34..37]);
    }

    #[test]
    fn an_answer_covers_its_request_exactly_once() {
        let mut asked = Asked::new(100..200);
        assert!(asked.cover(99, 2).is_err());
        assert!(asked.cover(150, 51).is_err());
        assert!(asked.cover(u64::MAX, 2).is_err());
        assert!(asked.cover(150, 0).is_err());
        asked.cover(150, 50).unwrap();
        asked.cover(100, 10).unwrap();
        assert!(asked.cover(105, 10).is_err());
        assert!(asked.cover(140, 11).is_err());
        assert!(!asked.is_covered());
        asked.cover(110, 40).unwrap();
        assert!(asked.is_covered());
        assert!(asked.cover(100, 1).is_err());
    }
}
