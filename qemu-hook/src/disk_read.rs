//! Reading a live disk over NBD: all of it, some areas, or what a bitmap marks; of that only what may hold data.
//!
//! In windows of [`WINDOW`]: the window is announced, what the bitmap marks is asked for (or all is taken), then the
//! block status of that; zeros are handed over as lengths, the rest is read with several requests in flight. Every byte
//! of the disk, or every marked byte, is handed over exactly once.
//!
//! Invariant: what is handed over was asked for, and read, after its window was announced. While whoever takes it is at work,
//! no reply of QEMU's waits to be read for longer than the reading takes.

use std::{
    convert::Infallible, ops::Range, os::unix::net::UnixStream, sync::mpsc::sync_channel, thread,
};

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
/// Bytes that are in memory before any of them is taken; twice as many are, at most.
const BATCH: u64 = DEPTH as u64 * CHUNK as u64;

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
    read_batches(client, &to_read, progress, take)?;
    if at < end {
        let doing = "asking for the allocation";
        let source = std::io::Error::other("QEMU described only a part of it");
        return Err(ReadError::Nbd(NbdError::Io { doing, source }));
    }
    Ok(())
}

/// Reads ranges, batch by batch, each of which is taken when all of it is in memory.
///
/// A thread reads the next one meanwhile, and leaves no reply of QEMU's unread for as long as the taker may need: a drain of
/// QEMU waits for them, and the guest with it.
fn read_batches<E>(
    client: &mut NbdClient,
    ranges: &[Range<u64>],
    progress: &impl Fn(u64) -> bool,
    take: &mut impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let batches = batches(ranges);
    thread::scope(|scope| {
        let (sender, received) = sync_channel(0);
        scope.spawn(move || {
            for batch in &batches {
                let read = read_batch(client, batch);
                let is_over = read.is_err();
                if sender.send(read).is_err() || is_over {
                    return;
                }
            }
        });
        while let Ok(batch) = received.recv() {
            for (offset, read) in batch? {
                let (piece, len) = match &read {
                    Read::Data(data) => (Piece::Data(data), data.len() as u64),
                    Read::Zero(len) => (Piece::Zero(*len), *len),
                };
                take(offset, piece).map_err(ReadError::Taker)?;
                step(progress, len)?;
            }
        }
        Ok(())
    })
}

/// What was read from a place on.
enum Read {
    Data(Vec<u8>),
    Zero(u64),
}

fn read_batch(client: &mut NbdClient, ranges: &[Range<u64>]) -> Result<Vec<(u64, Read)>, NbdError> {
    let mut pieces = Vec::new();
    let mut keep = |offset: u64, piece: Piece<'_>| -> Result<(), Infallible> {
        pieces.push((
            offset,
            match piece {
                Piece::Data(data) => Read::Data(data.to_vec()),
                Piece::Zero(len) => Read::Zero(len),
            },
        ));
        Ok(())
    };
    match client.read_ranges(ranges, CHUNK, DEPTH, &mut keep) {
        Ok(()) => Ok(pieces),
        Err(RangeError::Nbd(error)) => Err(error),
        Err(RangeError::Taker(never)) => match never {},
    }
}

/// Divides ranges into lots of at most [`BATCH`] bytes, where that can be at a multiple of [`CHUNK`].
fn batches(ranges: &[Range<u64>]) -> Vec<Vec<Range<u64>>> {
    let mut batches = Vec::new();
    let (mut batch, mut room) = (Vec::new(), BATCH);
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let mut end = range.end.min(at + room);
            let is_cut = end < range.end;
            let even = end / CHUNK as u64 * CHUNK as u64;
            if is_cut && even > at {
                end = even;
            }
            room -= end - at;
            batch.push(at..end);
            at = end;
            if is_cut || room == 0 {
                batches.push(std::mem::take(&mut batch));
                room = BATCH;
            }
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn step<E>(progress: &impl Fn(u64) -> bool, bytes: u64) -> Result<(), ReadError<E>> {
    if progress(bytes) {
        Ok(())
    } else {
        Err(ReadError::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lots_have_their_size_and_all_there_is() {
        let whole = 3 * BATCH / 2;
        let ranges = [0..10, 100..100 + whole, whole + 200..whole + 201];
        let lots = batches(&ranges);
        let size = |lot: &Vec<Range<u64>>| lot.iter().map(|r| r.end - r.start).sum::<u64>();
        assert_eq!(lots.iter().map(size).sum::<u64>(), whole + 11);
        assert!(lots.iter().all(|lot| size(lot) <= BATCH && size(lot) > 0));
        assert_eq!(lots[0], [0..10, 100..BATCH]);
        assert_eq!(lots[1][0].start, BATCH);
        assert!(batches(&[]).is_empty());
    }
}
