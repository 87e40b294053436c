//! Seals a segment: index, footer, hash. From then on it never changes.
//!
//! Invariant: a footer that can be read has everything before it on stable storage.
//! A crash leaves the frames as they are, and an index or nothing behind them.

use std::io::{self, IoSlice};

use crate::bounds::{BLOCK, COPY_PIECE};
use crate::buffer::Memory;
use crate::clock::Timestamp;
use crate::format::{FOOTER_LEN, Footer, RECORD_LEN, Record, SEGMENT_VERSION, Salt};
use crate::point::{PointId, Seq};
use crate::storage::StorageFile;

/// What a footer tells besides the records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealing {
    pub(crate) number: u64,
    pub(crate) salt: Salt,
    pub(crate) first_seq: Seq,
    pub(crate) next_point: PointId,
    pub(crate) last_time: Timestamp,
    /// End of the last frame, in bytes.
    pub(crate) end: u64,
}

/// What a segment ends with, ready to be written.
#[derive(Debug)]
pub(crate) struct Seal {
    /// Its first byte in the segment.
    position: u64,
    /// Index with its padding, and footer.
    bytes: Memory,
    /// The footer.
    pub(crate) footer: Footer,
}

impl Sealing {
    /// Makes index and footer of all the segment's records; `header` is what it begins with.
    pub(crate) fn prepare(self, header: &[u8], mut records: Vec<Record>) -> Seal {
        let last_seq = records.last().map(|record| record.seq);
        let (index, data_records) = index(&mut records);
        let mut footer = Footer {
            version: SEGMENT_VERSION,
            salt: self.salt,
            segment: self.number,
            index_position: self.end,
            data_records,
            other_records: records.len() as u64 - data_records,
            first_seq: self.first_seq,
            last_seq: last_seq.unwrap_or(Seq(self.first_seq.0.saturating_sub(1))),
            next_point: self.next_point,
            last_time: self.last_time,
            index_crc: crc32c::crc32c(&index),
            hash: [0; 32],
        };
        let index_len = index.len().next_multiple_of(BLOCK);
        let mut bytes = Memory::zeroed(index_len + FOOTER_LEN);
        put(&mut bytes, 0, &index);
        footer.hash = footer.chain_hash(header, bytes.get().get(..index_len).unwrap_or_default());
        put(&mut bytes, index_len, &footer.encode());
        Seal {
            position: self.end,
            bytes,
            footer,
        }
    }
}

impl Seal {
    /// Writes index and footer and puts the segment on stable storage.
    pub(crate) fn write(&self, file: &dyn StorageFile) -> io::Result<()> {
        let index_len = self.bytes.get().len() - FOOTER_LEN;
        let (index, foot) = self.bytes.get().split_at(index_len);
        file.write_at(&[IoSlice::new(index)], self.position)?;
        // The footer is what a sealed segment ends with: room that was not needed goes.
        let place = self.position + index_len as u64;
        file.set_len(place + FOOTER_LEN as u64)?;
        // A footer says that all before it is whole: it must not get to the disk first.
        file.sync()?;
        file.write_at(&[IoSlice::new(foot)], place)?;
        file.sync()
    }
}

fn put(memory: &mut Memory, at: usize, bytes: &[u8]) {
    if let Some(place) = memory.get_mut().get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Returns the bytes of the index, and how many of its records change a volume.
fn index(records: &mut [Record]) -> (Vec<u8>, u64) {
    records.sort_unstable_by_key(|r| {
        let data = r.kind.is_data();
        let place = if data { (r.volume.0, r.offset) } else { (0, 0) };
        (!data, place, r.seq)
    });
    let mut bytes = Vec::with_capacity(records.len() * RECORD_LEN);
    for record in records.iter() {
        bytes.extend_from_slice(&record.encode());
    }
    (
        bytes,
        records
            .iter()
            .filter(|record| record.kind.is_data())
            .count() as u64,
    )
}

/// Writes a file's bytes up to `end` once more.
///
/// That they can be read does not mean that they are on the disk: a sync that failed leaves them in
/// memory, and a later one passes over them. Written again, they are part of the next sync.
pub(crate) fn rewrite_up_to(file: &dyn StorageFile, end: u64) -> io::Result<()> {
    let mut piece = vec![0; COPY_PIECE];
    let mut position = 0;
    while position < end {
        let len = (end - position).min(COPY_PIECE as u64);
        let bytes = piece.get_mut(..len as usize).unwrap_or_default();
        file.read_at(bytes, position)?;
        file.write_at(&[IoSlice::new(bytes)], position)?;
        position += len;
    }
    Ok(())
}
