//! Compressed clusters: what their table entries say, how they are made, and how they are read.
//!
//! A compressed cluster is one zstd frame of all its 64 KiB, anywhere in the file. Its entry has the place in bytes, and
//! its length in sectors of the file, so that something else may follow on it within the last one.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use zstd::bulk::Compressor;
use zstd::zstd_safe;

use super::{CLUSTER_LEN, COMPRESSED};
use crate::bounds::{CLUSTER, PACK_LEVEL, SECTOR, UNPACKED_KEPT_MAX};

/// Bits of an entry that hold the place; those above, up to the flag, hold the sectors after the first.
const PLACE_BITS: u32 = 62 - (CLUSTER.trailing_zeros() - 8);
const SECTOR_LEN: u64 = SECTOR as u64;

/// Where a compressed cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packed {
    /// In the file, in bytes.
    pub(super) place: u64,
    /// Bytes up to the end of its last sector.
    pub(super) len: usize,
}

impl Packed {
    /// Takes it from an entry.
    pub(super) fn of_entry(entry: u64) -> Packed {
        let place = entry & ((1 << PLACE_BITS) - 1);
        let sectors = ((entry & !COMPRESSED) >> PLACE_BITS & 0xff) + 1;
        Packed {
            place,
            len: (sectors * SECTOR_LEN - place % SECTOR_LEN) as usize,
        }
    }

    /// Returns the entry of `len` bytes at a place.
    pub(super) fn entry(place: u64, len: usize) -> u64 {
        let sectors = (place % SECTOR_LEN + len as u64).div_ceil(SECTOR_LEN);
        COMPRESSED | sectors.saturating_sub(1) << PLACE_BITS | place
    }
}

/// Compresses clusters.
pub(super) struct Packer(Compressor<'static>);

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    pub(super) fn new() -> io::Result<Packer> {
        Compressor::new(PACK_LEVEL).map(Packer)
    }

    /// Returns a cluster compressed; none if that does not make it smaller by a sector at least.
    pub(super) fn pack(&mut self, cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let packed = self.0.compress(cluster)?;
        Ok((packed.len() + SECTOR <= CLUSTER).then_some(packed))
    }
}

/// Returns the length of the frame at the beginning of some bytes.
pub(super) fn frame_len(bytes: &[u8]) -> Option<usize> {
    zstd_safe::find_frame_compressed_size(bytes).ok()
}

/// Uncompresses a whole cluster; what follows behind the frame does not matter.
pub(super) fn unpack(bytes: &[u8], cluster: &mut [u8]) -> Result<(), &'static str> {
    const BROKEN: &str = "a compressed cluster cannot be uncompressed";
    let len = frame_len(bytes).ok_or(BROKEN)?;
    let frame = bytes.get(..len).ok_or(BROKEN)?;
    match zstd::bulk::decompress_to_buffer(frame, cluster) {
        Ok(len) if len as u64 == CLUSTER_LEN => Ok(()),
        _ => Err(BROKEN),
    }
}

type Key = (u32, Packed);

/// The compressed clusters that were read last.
#[derive(Debug, Default)]
pub(super) struct Unpacked(Mutex<VecDeque<(Key, Arc<[u8]>)>>);

impl Unpacked {
    /// Returns a cluster of a layer, uncompressed by `read` if it is not kept.
    pub(super) fn get<E>(
        &self,
        key: Key,
        read: impl FnOnce() -> Result<Arc<[u8]>, E>,
    ) -> Result<Arc<[u8]>, E> {
        {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, cluster)) = kept.iter().find(|(known, _)| *known == key) {
                return Ok(Arc::clone(cluster));
            }
        }
        let cluster = read()?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= UNPACKED_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((key, Arc::clone(&cluster)));
        Ok(cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    #[test]
    fn an_entry_says_where_it_is_to_the_end_of_its_last_sector() {
        let table = [
            (0x12_0000, 100, 512),
            (0x12_0000, 512, 512),
            (0x12_0001, 512, 1023),
            (0x12_01ff, 2, 513),
            (0x12_01ff, 1, 1),
            (0x12_0010, 65_000, 65_008),
        ];
        for (place, len, read) in table {
            let entry = Packed::entry(place, len);
            assert!(entry & COMPRESSED != 0 && entry >> 63 == 0);
            assert_eq!(Packed::of_entry(entry), Packed { place, len: read });
        }
    }

    #[test]
    fn a_cluster_comes_back_whatever_lies_behind_it_and_chance_is_not_compressed() {
        let mut packer = Packer::new().unwrap();
        let cluster: Vec<u8> = (0..CLUSTER).map(|at| (at / 100) as u8).collect();
        let mut packed = packer.pack(&cluster).unwrap().unwrap();
        let len = packed.len();
        packed.extend_from_slice(&[0xee; 300]);
        assert_eq!(frame_len(&packed), Some(len));
        let mut found = vec![0; CLUSTER];
        unpack(&packed, &mut found).unwrap();
        assert_eq!(found, cluster);
        assert!(unpack(&packed[..len - 1], &mut found).is_err());
        let mut by_chance = vec![0; CLUSTER];
        Chance::new(1).fill(&mut by_chance);
        assert_eq!(packer.pack(&by_chance).unwrap(), None);
    }
}
