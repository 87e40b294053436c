//! Verifies one cold segment: both ends, the table, the index, every block, every payload in them, and the hash of it all.

use std::io;
use std::path::Path;
use std::thread;

use super::stream::Stream;
use super::sums::Sums;
use super::{Found, Lost, Teller};
use crate::bounds::COLD_BLOCK;
use crate::error::{HarborError, Result};
use crate::format::{COLD_END_LEN, COLD_ENTRY_LEN, ColdFooter, HASH_LEN, RECORD_LEN, Record};
use crate::journal::cold::{Entry, read_ends};
use crate::storage::StorageFile;

/// Reads all of a cold segment; what is wrong goes into `found`. `known` is the footer as it was when the harbor was
/// opened, `previous` the hash it is to name, if that is known.
pub(super) fn check(
    path: &Path,
    file: &dyn StorageFile,
    known: &ColdFooter,
    (machine_id, previous): (&str, Option<[u8; 32]>),
    found: &mut Found,
    teller: &mut Teller<'_, '_>,
) -> Result<()> {
    let failed = |e: io::Error| HarborError::storage("read", path, e);
    let all = Lost::Records {
        first: known.first_seq,
        last: known.last_seq,
    };
    let len = file.length().map_err(failed)?;
    let end = COLD_END_LEN as u64;
    match read_ends(file).map_err(failed)? {
        Ok((header, footer)) => {
            let fits = [
                (footer == *known, "its footer is not what it was"),
                (
                    header.machine_id == machine_id,
                    "it belongs to another machine",
                ),
                (
                    previous.is_none_or(|hash| hash == footer.previous),
                    "it does not name the hash of the segment before it",
                ),
            ];
            for (_, what) in fits.into_iter().filter(|(fits, _)| !fits) {
                found.add(0..end, what, Lost::Nothing);
            }
        }
        // Without them it is not found when the harbor is opened again.
        Err(broken) => {
            let place = if len < 2 * end {
                0..len
            } else {
                ends_place(file, len)
            };
            found.add(place, &broken.to_string(), all.clone());
        }
    }
    if known.index.saturating_add(known.index_len()) + end != len {
        found.add(0..len, "its length is not that of its parts", all);
        return Ok(());
    }
    let Some(table) = read_part(file, known.table, known.table_len(), known.table_crc) else {
        let place = known.table..known.table + known.table_len();
        found.add(place, "its table of blocks is not what was written", all);
        return Ok(());
    };
    let index = read_part(file, known.index, known.index_len(), known.index_crc);
    let records = index.and_then(|index| sorted(&index, known));
    let Some(records) = records else {
        let place = known.index..known.index + known.index_len();
        found.add(place, "its index is not what was written", all);
        return Ok(());
    };
    let mut sums = Sums::new(0, &records);
    let (entries, _) = table.as_chunks::<COLD_ENTRY_LEN>();
    thread::scope(|scope| {
        let hashed = len - (HASH_LEN + 4) as u64;
        let mut stream = Stream::new(scope, file, 0..len, hashed);
        blocks(&mut stream, entries, &mut sums, found, teller)?;
        sums.finish();
        for record in &sums.lost {
            found.add_record(record);
        }
        if let Some(range) = sums.padding.take() {
            let what = format!("padding is not zeros at bytes {range:?} of its payloads");
            found.add(end..known.table, &what, Lost::Nothing);
        }
        let unreadable = std::mem::take(&mut stream.unreadable);
        let hash = stream.finish(teller)?;
        for (range, why) in unreadable {
            found.add(range, &format!("it cannot be read: {why}"), Lost::Nothing);
        }
        if hash != known.hash && found.is_empty() {
            found.add(0..len, "the hash of all its bytes is wrong", Lost::Nothing);
        }
        Ok(())
    })
}

/// Goes over all blocks, which lie one behind the other.
fn blocks(
    stream: &mut Stream<'_>,
    entries: &[[u8; COLD_ENTRY_LEN]],
    sums: &mut Sums,
    found: &mut Found,
    teller: &mut Teller<'_, '_>,
) -> Result<()> {
    stream.pass(COLD_END_LEN as u64, teller)?;
    for (number, entry) in entries.iter().enumerate() {
        let entry = Entry::decode(*entry);
        let (at, len) = (stream.at(), entry.len as usize);
        let stored = stream.look(len.min(COLD_BLOCK), teller)?;
        let is_whole =
            entry.position == at && stored.len() == len && crc32c::crc32c(stored) == entry.crc;
        let block = match is_whole {
            false => None,
            true if len == COLD_BLOCK => Some(stored.to_vec()),
            true => zstd::bulk::decompress(stored, COLD_BLOCK).ok(),
        };
        match block.filter(|block| block.len() == COLD_BLOCK) {
            Some(block) => sums.feed(&block),
            None => {
                let what = format!("block {number} is not what was written");
                found.add(at..at + len as u64, &what, Lost::Nothing);
                sums.skip(COLD_BLOCK as u64);
            }
        }
        stream.pass(len as u64, teller)?;
    }
    Ok(())
}

/// Reads a part of which the checksum is known; none if it is not what was written.
fn read_part(file: &dyn StorageFile, place: u64, len: u64, crc: u32) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    file.read_at(&mut bytes, place).ok()?;
    (crc32c::crc32c(&bytes) == crc).then_some(bytes)
}

/// Takes the records of an index; none if they are not sorted, or not those of this segment.
fn sorted(index: &[u8], footer: &ColdFooter) -> Option<Vec<Record>> {
    let records = index.chunks_exact(RECORD_LEN).map(Record::decode);
    let records: Vec<Record> = records.collect::<Result<_, _>>().ok()?;
    let key = |one: &Record| {
        let is_data = one.kind.is_data();
        let place = if is_data {
            (one.volume.0, one.offset)
        } else {
            (0, 0)
        };
        (!is_data, place, one.seq)
    };
    let fits = |one: &Record| {
        let end = one.payload_position + u64::from(one.payload_length);
        (footer.first_seq..=footer.last_seq).contains(&one.seq) && end <= footer.space
    };
    let data = records.iter().filter(|one| one.kind.is_data()).count() as u64;
    (records.is_sorted_by_key(key) && records.iter().all(fits) && data == footer.data_records)
        .then_some(records)
}

/// Tells which of the ends is broken: the header, if that cannot be read as one.
fn ends_place(file: &dyn StorageFile, len: u64) -> std::ops::Range<u64> {
    let mut bytes = vec![0; COLD_END_LEN];
    let read = file.read_at(&mut bytes, 0);
    match read.is_ok() && crate::format::ColdHeader::decode(&bytes).is_ok() {
        true => len - COLD_END_LEN as u64..len,
        false => 0..COLD_END_LEN as u64,
    }
}
