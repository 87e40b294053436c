//! Reading a live disk over NBD: all of it, some areas, or what a bitmap marks; of that only what may hold data.
//!
//! In windows of [`WINDOW`]: the window is announced, what the bitmap marks is asked for (or all is taken), then the
//! block status of that; zeros are handed over as lengths, the rest is read with several requests in flight. Every byte
//! of the disk, or every marked byte, is handed over exactly once.
//!
//! Invariant: what is handed over was asked for, and read, after its window was announced.

use std::{ops::Range, os::unix::net::UnixStream};

use thiserror::Error;

use crate::nbd::{ConnectOptions, ExtentKind, NbdClient, NbdError, ReadError as RangeError};

pub use crate::nbd::Piece;

/// Bytes whose allocation is asked for at a time.
const WINDOW: u64 = 256 << 20;
/// Bytes of one read; a multiple of the harbor's cluster, and aligned to it.
const CHUNK: usize = 1 << 20;
/// Flag of `qemu:dirty-bitmap:*`: the bitmap marks the extent.
const MARKED: u32 = 1;
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
/// As [`read_areas`] of all there is.
///
/// # Errors
/// [`ReadError`].
pub fn read_disk<E>(
    stream: UnixStream,
    name: &str,
    progress: impl Fn(u64) -> bool,
    announce: impl Fn(Range<u64>) -> Result<(), E>,
    take: impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let everything = 0..u64::MAX;
    read_areas(stream, name, &[everything], progress, announce, take)
}

/// Reads `areas` of the export `name` behind `stream`, which are in order, as far as they lie within it.
///
/// `progress` gets the bytes newly done, about every window of allocation and every read, and ends the
/// reading by answering false. `announce` gets each window before anything of it is read; `take` gets an offset and a
/// [`Piece`], in any order within a window.
///
/// # Errors
/// [`ReadError`].
pub fn read_areas<E>(
    stream: UnixStream,
    name: &str,
    areas: &[Range<u64>],
    progress: impl Fn(u64) -> bool,
    announce: impl Fn(Range<u64>) -> Result<(), E>,
    mut take: impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let mut client = NbdClient::connect(stream, name)?;
    let size = client.size();
    let mut start = 0;
    while start < size {
        let end = (start + WINDOW).min(size);
        let common = |area: &Range<u64>| area.start.max(start)..area.end.min(end);
        let parts: Vec<_> = areas.iter().map(common).filter(|p| !p.is_empty()).collect();
        if !parts.is_empty() {
            announce(start..end).map_err(ReadError::Taker)?;
            read_parts(&mut client, &parts, &progress, &mut take)?;
        }
        start = end;
    }
    client.disconnect();
    Ok(())
}

/// Reads what `bitmap` marks of the export `name` behind `stream`, otherwise as [`read_disk`].
///
/// `progress` gets the marked bytes newly done.
///
/// # Errors
/// [`ReadError`]; [`NbdError::NoContext`] in it when the export does not tell of the bitmap.
pub fn read_marked<E>(
    stream: UnixStream,
    name: &str,
    bitmap: &str,
    progress: impl Fn(u64) -> bool,
    announce: impl Fn(Range<u64>) -> Result<(), E>,
    mut take: impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let context = format!("qemu:dirty-bitmap:{bitmap}");
    let mut options = ConnectOptions::default();
    options.contexts.push(context.clone());
    let mut client = NbdClient::connect_with(stream, name, &options)?;
    let size = client.size();
    let mut start = 0;
    while start < size {
        let end = (start + WINDOW).min(size);
        announce(start..end).map_err(ReadError::Taker)?;
        let mut at = start;
        let mut marked = Vec::new();
        for extent in client.context_extents(&context, start, end - start)? {
            if extent.flags & MARKED != 0 {
                marked.push(at..at + extent.len);
            }
            at += extent.len;
        }
        // A window without marks: nothing is done, but it may be time to end.
        step(&progress, 0)?;
        read_parts(&mut client, &marked, &progress, &mut take)?;
        start = end;
    }
    client.disconnect();
    Ok(())
}

/// Reads `parts`, which are in order and lie within one window.
fn read_parts<E>(
    client: &mut NbdClient,
    parts: &[Range<u64>],
    progress: &impl Fn(u64) -> bool,
    take: &mut impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Ok(());
    };
    let (mut at, end) = (first.start, last.end);
    let mut to_read: Vec<Range<u64>> = Vec::new();
    let mut parts = parts.iter().peekable();
    for extent in client.block_status(at, end - at)? {
        let stop = (at + extent.len).min(end);
        while let Some(part) = parts.peek().filter(|part| part.start < stop) {
            let common = part.start.max(at)..part.end.min(stop);
            match extent.kind {
                _ if common.is_empty() => {}
                ExtentKind::Data => to_read.push(common),
                ExtentKind::Zero => {
                    let len = common.end - common.start;
                    take(common.start, Piece::Zero(len)).map_err(ReadError::Taker)?;
                    step(progress, len)?;
                }
            }
            if part.end > stop {
                break;
            }
            parts.next();
        }
        at = stop;
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
    if at < end {
        let doing = "asking for the allocation";
        let source = std::io::Error::other("QEMU described only a part of it");
        return Err(ReadError::Nbd(NbdError::Io { doing, source }));
    }
    Ok(())
}

fn step<E>(progress: &impl Fn(u64) -> bool, bytes: u64) -> Result<(), ReadError<E>> {
    if progress(bytes) {
        Ok(())
    } else {
        Err(ReadError::Cancelled)
    }
}
