//! Finds the records of a sealed segment that reach into a range, without all of its index in memory.
//!
//! The index is sorted by volume, offset and number. A [`Fence`] stands for each block of [`FENCE_RECORDS`] records of
//! a volume: where the first one begins, how far they reach, and how far all blocks of the volume up to this one do.
//! The last rises from block to block, so the first block that can reach into a range is found by binary search, also
//! where a long record begins far before it; behind the last one, blocks begin behind the range. What lies between
//! and does not reach that far is left out.
//!
//! Invariant: fences are made of an index whose checksum is right, and have the checksum of each block: what is read
//! later is what they were made of, or is refused. They are nothing but memory: a crash leaves nothing of them.

use std::ops::Range;
use std::path::Path;

use crate::bounds::{FENCE_RECORDS, INDEX_PIECE};
use crate::error::{HarborError, Result};
use crate::format::{Broken, Footer, RECORD_LEN, Record};
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::storage::StorageFile;

/// The fences of a segment.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    fences: Vec<Fence>,
    /// The fences of each volume, in order.
    volumes: Vec<(VolumeId, Range<usize>)>,
    /// Records behind all fences.
    records: usize,
}

/// A block of records of one volume.
#[derive(Debug, Clone, Copy)]
struct Fence {
    /// First byte of its first record.
    from: u64,
    /// Byte behind the last that one of its records covers.
    reach: u64,
    /// The greatest `reach` of the volume's blocks up to this one.
    furthest: u64,
    /// Place of its first record in the index.
    first: u32,
    /// Checksum of its records.
    crc: u32,
}

/// A block of records in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// Place of its first record.
    first: usize,
    /// Place behind its last record.
    end: usize,
    crc: u32,
}

/// Makes fences of records in the order of the index.
#[derive(Debug, Default)]
struct Builder {
    made: Fences,
    last: Option<(VolumeId, u64, Seq)>,
    /// Records in the block in the making.
    in_block: usize,
}

impl Fences {
    /// Makes the fences of a segment, from its index, of which only a piece is in memory at a time; tells what is
    /// broken about an index that is not as it was written.
    ///
    /// # Errors
    /// The storage failed.
    pub(crate) fn read(
        path: &Path,
        file: &dyn StorageFile,
        footer: &Footer,
    ) -> Result<Result<Fences, Broken>> {
        let mut builder = Builder::default();
        let (mut crc, mut at, mut left) = (0, footer.index_position, footer.index_len());
        let mut data_left = footer.data_records.saturating_mul(RECORD_LEN as u64);
        let mut piece = vec![0; left.min(INDEX_PIECE as u64) as usize];
        let mut sorted = Ok(());
        while left > 0 {
            let len = left.min(INDEX_PIECE as u64);
            let bytes = piece.get_mut(..len as usize).unwrap_or_default();
            file.read_at(bytes, at)
                .map_err(|e| HarborError::storage("read", path, e))?;
            crc = crc32c::crc32c_append(crc, bytes);
            let data = bytes.get(..data_left.min(len) as usize).unwrap_or_default();
            for record in data.chunks_exact(RECORD_LEN) {
                sorted = sorted.and_then(|()| builder.add(record));
            }
            (at, left) = (at + len, left - len);
            data_left = data_left.saturating_sub(len);
        }
        if crc != footer.index_crc {
            return Ok(Err(Broken::Checksum("index")));
        }
        Ok(sorted.map(|()| builder.made))
    }

    /// Returns the bytes of memory they take.
    pub(crate) fn cost(&self) -> usize {
        self.fences.capacity() * size_of::<Fence>()
            + self.volumes.capacity() * size_of::<(VolumeId, Range<usize>)>()
    }

    /// Returns the blocks that may have records of a volume that reach into a range, in order: all that do.
    pub(crate) fn reaching(
        &self,
        volume: VolumeId,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Block> {
        let (place, fences) = self.of(volume);
        let first = fences.partition_point(|fence| fence.furthest <= range.start);
        let end = fences.partition_point(|fence| fence.from < range.end);
        let start = range.start;
        let near = fences.get(first..end).unwrap_or_default().iter();
        let numbered = near.enumerate().filter(move |(_, f)| f.reach > start);
        numbered.map(move |(n, fence)| Block {
            first: fence.first as usize,
            end: self.end(place + first + n),
            crc: fence.crc,
        })
    }

    /// Returns where the blocks of a volume begin within a range, and how many records each has.
    pub(crate) fn beginning(
        &self,
        volume: VolumeId,
        range: &Range<u64>,
    ) -> impl Iterator<Item = (u64, usize)> {
        let (place, fences) = self.of(volume);
        let first = fences.partition_point(|fence| fence.from < range.start);
        let end = fences.partition_point(|fence| fence.from < range.end);
        let there = fences.get(first..end).unwrap_or_default().iter();
        let numbered = there.enumerate();
        numbered.map(move |(n, fence)| {
            let records = self.end(place + first + n) - fence.first as usize;
            (fence.from, records)
        })
    }

    /// Returns the fences of a volume, and the place of the first one.
    fn of(&self, volume: VolumeId) -> (usize, &[Fence]) {
        let found = self.volumes.binary_search_by_key(&volume, |(one, _)| *one);
        let place = found.ok().and_then(|number| self.volumes.get(number));
        place.map_or((0, &[]), |(_, place)| {
            (
                place.start,
                self.fences.get(place.clone()).unwrap_or_default(),
            )
        })
    }

    /// Returns the place behind the last record of the block of that number.
    fn end(&self, number: usize) -> usize {
        let next = self.fences.get(number + 1);
        next.map_or(self.records, |next| next.first as usize)
    }
}

impl Block {
    /// Tells whether another one follows on it in the index.
    pub(crate) fn is_followed_by(&self, next: &Block) -> bool {
        self.end == next.first
    }

    /// Returns the block's place in the index, in bytes.
    pub(crate) fn bytes(&self) -> Range<usize> {
        self.first * RECORD_LEN..self.end * RECORD_LEN
    }

    /// Tells whether these are the bytes of which the fence was made.
    pub(crate) fn is_of(&self, bytes: &[u8]) -> bool {
        crc32c::crc32c(bytes) == self.crc
    }
}

impl Builder {
    /// Takes the next record, whose own checksum is not looked at: the index has one.
    fn add(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let (volume, seq, offset, length) = Record::place(bytes);
        let place = (volume, offset, seq);
        if self.last.is_some_and(|last| last >= place) {
            return Err(Broken::Field("the order of the index"));
        }
        let is_new = self.last.is_none_or(|(last, ..)| last != volume);
        self.last = Some(place);
        let Fences {
            fences,
            volumes,
            records,
        } = &mut self.made;
        if is_new {
            volumes.push((volume, fences.len()..fences.len()));
        }
        if is_new || self.in_block == FENCE_RECORDS {
            let before = fences.last().filter(|_| !is_new);
            let furthest = before.map_or(0, |fence| fence.furthest);
            let first = u32::try_from(*records)
                .map_err(|_| Broken::Field("the number of records of a segment"))?;
            fences.push(Fence {
                from: offset,
                reach: 0,
                furthest,
                first,
                crc: 0,
            });
            self.in_block = 0;
        }
        if let Some(fence) = fences.last_mut() {
            fence.reach = fence.reach.max(offset.saturating_add(length));
            fence.furthest = fence.furthest.max(fence.reach);
            fence.crc = crc32c::crc32c_append(fence.crc, bytes);
        }
        if let Some((_, place)) = volumes.last_mut() {
            place.end = fences.len();
        }
        self.in_block += 1;
        *records += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use crate::format::Kind;

    fn zero(volume: u16, seq: u64, range: Range<u64>) -> Record {
        Record {
            seq: Seq(seq),
            time: crate::Timestamp(0),
            offset: range.start,
            length: range.end - range.start,
            payload_position: 0,
            payload_length: 0,
            payload_crc: 0,
            volume: VolumeId(volume),
            kind: Kind::Zero,
            detail: 0,
            xml: 0,
        }
    }

    /// Records of up to three volumes, sorted: most are short, some are long, some reach over everything.
    fn index(chance: &mut Chance, size: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for seq in 1..1 + chance.below(700) {
            let start = chance.below(size);
            let most = match chance.below(40) {
                0 => size,
                1..4 => size / 8,
                _ => 12,
            };
            let end = (start + 1 + chance.below(most)).min(size);
            records.push(zero(chance.below(3) as u16, seq, start..end));
        }
        records.sort_by_key(|record| (record.volume, record.offset, record.seq));
        records
    }

    fn fences(records: &[Record]) -> Fences {
        let mut builder = Builder::default();
        for record in records {
            builder.add(&record.encode()).unwrap();
        }
        builder.made
    }

    #[test]
    fn the_search_finds_what_the_naive_scan_finds() {
        const SIZE: u64 = 3000;
        for seed in 0..300 {
            let mut chance = Chance::new(seed);
            let records = index(&mut chance, SIZE);
            let fences = fences(&records);
            let blocks = records.len().div_ceil(FENCE_RECORDS) + 3;
            assert!(fences.fences.len() <= blocks, "seed {seed}");
            for _ in 0..40 {
                let start = chance.below(SIZE);
                let range = start..start + 1 + chance.below(SIZE / 10);
                // One volume is in no record.
                let volume = VolumeId(chance.below(4) as u16);
                let ours = |r: &&Record| {
                    let end = r.offset + r.length;
                    r.volume == volume && r.offset < range.end && end > range.start
                };
                let naive: Vec<_> = records.iter().filter(ours).collect();
                let mut found: Vec<&Record> = Vec::new();
                for block in fences.reaching(volume, &range) {
                    let block = &records[block.first..block.end];
                    // Blocks that do not reach that far are left out.
                    assert!(block.iter().any(|r| r.offset + r.length > range.start));
                    found.extend(block.iter().filter(ours));
                }
                assert_eq!(found, naive, "seed {seed}: volume {volume}, {range:?}");
                let mut begin = fences.beginning(volume, &range);
                assert!(begin.all(|(from, _)| range.contains(&from)));
                let whole: usize = fences.beginning(volume, &(0..SIZE)).map(|(_, n)| n).sum();
                assert_eq!(whole, records.iter().filter(|r| r.volume == volume).count());
            }
        }
    }

    #[test]
    fn a_block_is_known_by_its_bytes() {
        let records: Vec<Record> = (0..200)
            .map(|n| zero(0, n + 1, n * 10..n * 10 + 5))
            .collect();
        let bytes: Vec<u8> = records.iter().flat_map(|record| record.encode()).collect();
        let fences = fences(&records);
        let blocks: Vec<Block> = fences.reaching(VolumeId(0), &(0..2000)).collect();
        let places: Vec<_> = blocks.iter().map(Block::bytes).collect();
        assert_eq!(
            places,
            [0..4096, 4096..8192, 8192..12288, 12288..12800],
            "all of them, to the last record"
        );
        assert!(blocks.windows(2).all(|w| w[0].is_followed_by(&w[1])));
        for block in &blocks {
            let mut bytes = bytes[block.bytes()].to_vec();
            assert!(block.is_of(&bytes));
            bytes[100] ^= 4;
            assert!(!block.is_of(&bytes));
        }
    }

    #[test]
    fn an_index_out_of_order_is_refused() {
        let good = [zero(0, 2, 0..5), zero(0, 1, 5..9), zero(1, 3, 0..2)];
        let bad: [&[Record]; 3] = [
            &[zero(1, 1, 0..5), zero(0, 2, 0..5)],
            &[zero(0, 1, 5..9), zero(0, 2, 0..5)],
            &[zero(0, 1, 0..5), zero(0, 1, 0..5)],
        ];
        assert_eq!(fences(&good).records, 3);
        for records in bad {
            let mut builder = Builder::default();
            let all = records.iter().try_for_each(|r| builder.add(&r.encode()));
            assert!(all.is_err(), "{records:?}");
        }
    }
}
