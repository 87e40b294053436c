//! The requests of one reader as they come, several in one read of the socket.
//!
//! Invariant: nothing is waited for while requests that were taken have not been answered. Once the client has left,
//! or has sent what is no request, nobody reads from it again.

use std::io::{self, Read};

use super::bounds;
use super::error::NbdError;
use super::proto::{Request, cmd};
use super::stream::drain;

/// Requests as they come.
pub(super) struct Incoming<R> {
    stream: R,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The client has left, or has sent what is no request.
    ended: bool,
}

impl<R: Read> Incoming<R> {
    pub(super) fn new(stream: R) -> Self {
        Incoming {
            stream,
            bytes: vec![0; bounds::BATCH_MAX * Request::SIZE],
            start: 0,
            end: 0,
            ended: false,
        }
    }

    /// Waits for a request, and takes it and those that have come with it, `most` at most; none when the client has left.
    pub(super) fn take(&mut self, batch: &mut Vec<Request>, most: usize) -> Result<(), NbdError> {
        batch.clear();
        while !self.ended && batch.len() < most {
            let taken = self.next(batch.is_empty());
            let Some(request) = taken.inspect_err(|_| self.ended = true)? else {
                break;
            };
            if request.command == cmd::DISC {
                self.ended = true;
                break;
            }
            batch.push(request);
        }
        Ok(())
    }

    /// Takes the next request; where none may be waited for, only one that has come as a whole.
    fn next(&mut self, wait: bool) -> Result<Option<Request>, NbdError> {
        loop {
            let there = self.bytes.get(self.start..self.end).unwrap_or_default();
            if let Some(head) = there.first_chunk::<{ Request::SIZE }>() {
                let request = Request::decode(head)?;
                if request.command == cmd::WRITE && !wait {
                    // What is behind it may have to be waited for.
                    return Ok(None);
                }
                self.start += Request::SIZE;
                self.drop_payload(&request)?;
                return Ok(Some(request));
            }
            if !wait {
                return Ok(None);
            }
            if !self.fill().map_err(NbdError::io("waiting for a request"))? {
                self.ended = true;
                return Ok(None);
            }
        }
    }

    /// Reads more; false when the client has left between two requests.
    fn fill(&mut self) -> io::Result<bool> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        loop {
            match self.stream.read(room) {
                Ok(0) if self.end == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => {
                    self.end += more;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Drops what a write wanted to write.
    fn drop_payload(&mut self, request: &Request) -> Result<(), NbdError> {
        if request.command != cmd::WRITE {
            return Ok(());
        }
        if request.len > bounds::REQUEST_MAX {
            let found = format!("a write of {} bytes", request.len);
            return Err(NbdError::protocol("reading a request", found));
        }
        let here = (self.end - self.start).min(request.len as usize);
        self.start += here;
        let rest = u64::from(request.len) - here as u64;
        drain(&mut self.stream, rest).map_err(NbdError::io("dropping a write's payload"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: u16, cookie: u64, len: u32) -> Vec<u8> {
        let mut out = Vec::new();
        Request {
            flags: 0,
            command,
            cookie,
            offset: 0,
            len,
        }
        .encode_to(&mut out);
        out
    }

    /// Gives what it has in pieces of these lengths.
    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let Some(piece) = self.0.first_mut() else {
                return Ok(0);
            };
            let len = piece.len().min(buf.len());
            buf[..len].copy_from_slice(&piece[..len]);
            piece.drain(..len);
            self.0.retain(|piece| !piece.is_empty());
            Ok(len)
        }
    }

    fn cookies(incoming: &mut Incoming<Pieces>, most: usize) -> Vec<u64> {
        let mut batch = Vec::new();
        incoming.take(&mut batch, most).unwrap();
        batch.iter().map(|request| request.cookie).collect()
    }

    #[test]
    fn what_has_come_is_taken_together_and_nothing_is_waited_for_behind_it() {
        let three: Vec<u8> = (1..4).flat_map(|n| request(cmd::READ, n, 1)).collect();
        let (front, back) = three.split_at(70);
        let write = [request(cmd::WRITE, 5, 100), vec![7; 40]].concat();
        let rest = [
            vec![7; 60],
            request(cmd::FLUSH, 6, 0),
            request(cmd::DISC, 0, 0),
        ]
        .concat();
        let pieces = [
            front.to_vec(),
            back.to_vec(),
            [request(cmd::READ, 4, 1), write].concat(),
            rest,
            request(cmd::READ, 7, 1),
        ];
        let mut incoming = Incoming::new(Pieces(pieces.to_vec()));
        assert_eq!(cookies(&mut incoming, 9), [1, 2]);
        assert_eq!(cookies(&mut incoming, 9), [3]);
        assert_eq!(cookies(&mut incoming, 9), [4], "not the write's payload");
        assert_eq!(cookies(&mut incoming, 9), [5]);
        assert_eq!(cookies(&mut incoming, 9), [6]);
        assert!(cookies(&mut incoming, 9).is_empty(), "it has left");
        assert!(incoming.ended);
    }

    #[test]
    fn no_more_are_taken_than_are_wanted_and_half_a_request_is_no_end() {
        let five: Vec<u8> = (1..6).flat_map(|n| request(cmd::READ, n, 1)).collect();
        let mut incoming = Incoming::new(Pieces(vec![five[..130].to_vec()]));
        assert_eq!(cookies(&mut incoming, 1), [1]);
        assert_eq!(cookies(&mut incoming, 2), [2, 3]);
        assert_eq!(cookies(&mut incoming, 9), [4]);
        let mut batch = Vec::new();
        assert!(incoming.take(&mut batch, 9).is_err());
        assert!(incoming.ended, "nobody else is to go on with it");
    }
}
