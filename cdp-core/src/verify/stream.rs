//! A file read from front to back, a piece ahead of whoever looks at it.
//!
//! A thread reads pieces of [`COPY_PIECE`] and hands them over, at most [`PIECES_AHEAD`] of them; what is to be hashed as a
//! whole, it hashes. So the disk, the hash and the looking go on at once, each byte is read once, and memory is bounded.
//! A piece that cannot be read is told of, and is zeros to whoever looks at it.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use super::Teller;
use crate::bounds::{COPY_PIECE, PIECES_AHEAD};
use crate::error::{HarborError, Result};
use crate::storage::StorageFile;

/// A piece as it was read, or why it was not.
type Piece = Result<Vec<u8>, String>;

/// A file that is read from front to back.
pub(super) struct Stream<'scope> {
    pieces: Receiver<Piece>,
    reader: Option<ScopedJoinHandle<'scope, [u8; 32]>>,
    window: Vec<u8>,
    /// Place of the first byte in the window that was not taken.
    taken: usize,
    /// Place in the file of the window's first byte.
    base: u64,
    end: u64,
    pub(super) unreadable: Vec<(Range<u64>, String)>,
}

impl<'scope> Stream<'scope> {
    /// Begins to read the bytes of a range; those before `hashed` are hashed.
    pub(super) fn new<'env>(
        scope: &'scope Scope<'scope, 'env>,
        file: &'env dyn StorageFile,
        range: Range<u64>,
        hashed: u64,
    ) -> Stream<'scope> {
        let (sender, pieces) = sync_channel(PIECES_AHEAD);
        let (base, end) = (range.start, range.end);
        Stream {
            pieces,
            reader: Some(scope.spawn(move || read(file, range, hashed, &sender))),
            window: Vec::new(),
            taken: 0,
            base,
            end,
            unreadable: Vec::new(),
        }
    }

    /// Place of the next byte in the file.
    pub(super) fn at(&self) -> u64 {
        self.base + self.taken as u64
    }

    /// Returns the next bytes without taking them: so many, or all that are left.
    pub(super) fn look(&mut self, len: usize, teller: &mut Teller<'_, '_>) -> Result<&[u8]> {
        while self.window.len() - self.taken < len && self.read_to() < self.end {
            self.more(teller)?;
        }
        let ahead = self.window.get(self.taken..).unwrap_or_default();
        Ok(ahead.get(..len).unwrap_or(ahead))
    }

    /// Takes at most `most` bytes that were read already, at least one if there is one left.
    pub(super) fn take(&mut self, most: u64, teller: &mut Teller<'_, '_>) -> Result<&[u8]> {
        if self.taken == self.window.len() && self.read_to() < self.end && most > 0 {
            self.more(teller)?;
        }
        let from = self.taken;
        let len = (self.window.len() - from).min(usize::try_from(most).unwrap_or(usize::MAX));
        self.taken += len;
        Ok(self.window.get(from..from + len).unwrap_or_default())
    }

    /// Takes `len` bytes, or what is left, that nobody looks at here.
    pub(super) fn pass(&mut self, len: u64, teller: &mut Teller<'_, '_>) -> Result<()> {
        let mut left = len;
        while left > 0 {
            match self.take(left, teller)?.len() as u64 {
                0 => break,
                taken => left -= taken,
            }
        }
        Ok(())
    }

    /// Takes what is left, and returns the hash.
    pub(super) fn finish(mut self, teller: &mut Teller<'_, '_>) -> Result<[u8; 32]> {
        while self.read_to() < self.end {
            self.taken = self.window.len();
            self.more(teller)?;
        }
        let joined = self.reader.take().map(ScopedJoinHandle::join);
        // It does not panic.
        Ok(joined.and_then(Result::ok).unwrap_or_default())
    }

    fn read_to(&self) -> u64 {
        self.base + self.window.len() as u64
    }

    fn more(&mut self, teller: &mut Teller<'_, '_>) -> Result<()> {
        self.window.drain(..self.taken);
        self.base += self.taken as u64;
        self.taken = 0;
        let from = self.read_to();
        let len = (self.end - from).min(COPY_PIECE as u64);
        let piece = self.pieces.recv().map_err(|_| HarborError::Cancelled)?;
        match piece {
            Ok(bytes) => self.window.extend_from_slice(&bytes),
            Err(why) => {
                self.unreadable.push((from..from + len, why));
                self.window.resize(self.window.len() + len as usize, 0);
            }
        }
        teller.read(len)
    }
}

/// Reads piece after piece, until nobody wants the next one; returns the hash of the bytes before `hashed`.
fn read(
    file: &dyn StorageFile,
    range: Range<u64>,
    hashed: u64,
    sender: &SyncSender<Piece>,
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut at = range.start;
    while at < range.end {
        let mut bytes = vec![0; (range.end - at).min(COPY_PIECE as u64) as usize];
        let read = file.read_at(&mut bytes, at);
        let covered = hashed.saturating_sub(at).min(bytes.len() as u64) as usize;
        hasher.update(bytes.get(..covered).unwrap_or_default());
        at += bytes.len() as u64;
        if sender
            .send(read.map(|()| bytes).map_err(|e| e.to_string()))
            .is_err()
        {
            break;
        }
    }
    *hasher.finalize().as_bytes()
}
