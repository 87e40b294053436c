//! Reading a whole live disk over NBD: allocation first, then only what may hold data.
//!
//! In windows of [`WINDOW`]: the window's block status is asked for, zeros are handed over as lengths, the
//! rest is read with several requests in flight. Every byte of the disk is handed over exactly once.

use std::{ops::Range, os::unix::net::UnixStream};

use thiserror::Error;

use crate::nbd::{ExtentKind, NbdClient, NbdError, ReadError as RangeError};

pub use crate::nbd::Piece;

/// Bytes whose allocation is asked for at a time.
const WINDOW: u64 = 256 << 20;
/// Bytes of one read; a multiple of the harbor's cluster, and aligned to it.
const CHUNK: usize = 1 << 20;
/// Reads in flight.
const DEPTH: usize = 8;

/// Why a disk was not read to its end.
#[derive(Debug, Error)]
pub enum ReadError<E> {
    /// QEMU's NBD server, or the connection to it.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// Whoever takes the data does not want more; their error.
    #[error("what was read was not taken")]
    Taker(E),
    /// `progress` said so.
    #[error("cancelled")]
    Cancelled,
}

/// Reads the export `name` behind `stream` from its first byte to its last.
///
/// `progress` gets the bytes newly done, about every window of allocation and every read, and ends the
/// reading by answering false. `take` gets an offset and a [`Piece`], in any order within a window.
///
/// # Errors
/// [`ReadError`].
pub fn read_disk<E>(
    stream: UnixStream,
    name: &str,
    progress: impl Fn(u64) -> bool,
    mut take: impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let mut client = NbdClient::connect(stream, name)?;
    let size = client.size();
    let mut at = 0;
    while at < size {
        let end = (at + WINDOW).min(size);
        at = read_window(&mut client, at..end, &progress, &mut take)?;
    }
    client.disconnect();
    Ok(())
}

/// Reads one window, or its beginning; returns up to where.
fn read_window<E>(
    client: &mut NbdClient,
    window: Range<u64>,
    progress: &impl Fn(u64) -> bool,
    take: &mut impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<u64, ReadError<E>> {
    let extents = client.block_status(window.start, window.end - window.start)?;
    let mut at = window.start;
    let mut to_read: Vec<Range<u64>> = Vec::new();
    for extent in extents {
        let end = (at + extent.len).min(window.end);
        match extent.kind {
            _ if at >= end => {}
            ExtentKind::Data => to_read.push(at..end),
            ExtentKind::Zero => {
                take(at, Piece::Zero(end - at)).map_err(ReadError::Taker)?;
                step(progress, end - at)?;
            }
        }
        at = end;
    }
    let mut take_read = |offset: u64, piece: Piece<'_>| {
        let len = match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Zero(len) => len,
        };
        take(offset, piece).map_err(ReadError::Taker)?;
        step(progress, len)
    };
    client
        .read_ranges(&to_read, CHUNK, DEPTH, &mut take_read)
        .map_err(|e| match e {
            RangeError::Nbd(e) => ReadError::Nbd(e),
            RangeError::Taker(e) => e,
        })?;
    if at == window.start {
        let doing = "asking for the allocation";
        return Err(ReadError::Nbd(NbdError::Io {
            doing,
            source: std::io::Error::other("QEMU described no bytes at all"),
        }));
    }
    Ok(at)
}

fn step<E>(progress: &impl Fn(u64) -> bool, bytes: u64) -> Result<(), ReadError<E>> {
    if progress(bytes) {
        Ok(())
    } else {
        Err(ReadError::Cancelled)
    }
}
