//! One file's bytes: what is durable, what can be read, and what lies between the two.
//!
//! `durable` is what a power cut leaves for certain, `current` is what is read. `dirty` has the versions of
//! each sector since the last sync, the last of them being the current one. A sector whose sync was
//! lost differs between the two without being dirty: it can be read until the power is cut.

use std::collections::BTreeMap;
use std::io;

use crate::bounds::{BLOCK, SECTOR};
use crate::chance::Chance;

/// Versions of a sector that are remembered.
const VERSIONS_MAX: usize = 4;

type Sector = [u8; SECTOR];

/// One file's bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    dirty: BTreeMap<usize, Vec<Sector>>,
}

fn sector_of(bytes: &[u8], number: usize) -> Sector {
    let mut sector = [0; SECTOR];
    let from = bytes.get(number * SECTOR..).unwrap_or_default();
    for (to, from) in sector.iter_mut().zip(from) {
        *to = *from;
    }
    sector
}

fn put_sector(bytes: &mut [u8], number: usize, sector: &Sector) {
    let to = bytes.get_mut(number * SECTOR..).unwrap_or_default();
    for (to, from) in to.iter_mut().zip(sector) {
        *to = *from;
    }
}

impl Content {
    /// Makes a file with durable bytes.
    pub(super) fn synced(bytes: &[u8]) -> Content {
        Content {
            durable: bytes.to_vec(),
            current: bytes.to_vec(),
            dirty: BTreeMap::new(),
        }
    }

    pub(super) fn current(&self) -> &[u8] {
        &self.current
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(buf.len());
        let bytes = self.current.get(start..end);
        let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        if let Some(to) = self.current.get_mut(offset..end) {
            to.copy_from_slice(bytes);
        }
        self.remember(offset / SECTOR, end.div_ceil(SECTOR));
    }

    pub(super) fn set_len(&mut self, len: usize) {
        let before = self.current.len();
        self.current.resize(len, 0);
        if len < before {
            // What is cut off may stay, and come back when the file grows again.
            self.remember(len / SECTOR, before.div_ceil(SECTOR));
        }
    }

    fn remember(&mut self, from: usize, to: usize) {
        for number in from..to {
            let versions = self.dirty.entry(number).or_default();
            if versions.len() == VERSIONS_MAX {
                versions.remove(0);
            }
            versions.push(sector_of(&self.current, number));
        }
    }

    /// Puts everything that is dirty on stable storage.
    pub(super) fn sync(&mut self) {
        self.durable.resize(self.current.len(), 0);
        for (number, _) in std::mem::take(&mut self.dirty) {
            let sector = sector_of(&self.current, number);
            put_sector(&mut self.durable, number, &sector);
        }
    }

    /// Puts a part of what is dirty on stable storage, and takes the rest for clean all the same.
    pub(super) fn lose_sync(&mut self, chance: &mut Chance) {
        self.durable.resize(self.current.len(), 0);
        for (number, _) in std::mem::take(&mut self.dirty) {
            if chance.once_in(2) {
                let sector = sector_of(&self.current, number);
                put_sector(&mut self.durable, number, &sector);
            } else if chance.once_in(4) {
                // It was dropped from memory, too.
                let sector = sector_of(&self.durable, number);
                put_sector(&mut self.current, number, &sector);
            }
        }
    }

    /// Drops everything that is not durable.
    pub(super) fn keep_nothing(&mut self) {
        self.dirty.clear();
        self.current.clone_from(&self.durable);
    }

    /// Keeps of what is dirty what a power cut has left: blocks of one grain, each in any of its versions
    /// or not at all. Where the file has grown over nothing, there are zeros, or what `stale` had there.
    pub(super) fn keep_by_chance(&mut self, chance: &mut Chance, stale: Option<&[u8]>) {
        let old_len = self.durable.len();
        let len = match chance.below(3) {
            0 => old_len,
            1 => self.current.len(),
            _ => {
                let (low, high) = (old_len.min(self.current.len()), self.current.len());
                let cut = low + chance.below((high - low) as u64 + 1) as usize;
                cut.next_multiple_of(SECTOR).min(high)
            }
        };
        let mut left = self.durable.clone();
        left.resize(len, 0);
        if let Some(stale) = stale {
            for (to, from) in left.iter_mut().zip(stale).skip(old_len) {
                *to = *from;
            }
        }
        let grain = if chance.once_in(2) { SECTOR } else { BLOCK } / SECTOR;
        let loss = [0, 1, 4, 7, 8].get(chance.below(5) as usize).copied();
        let mut block = None;
        for (number, versions) in std::mem::take(&mut self.dirty) {
            let of = number / grain;
            if block.is_none_or(|(last, _)| last != of) {
                block = Some((of, chance.below(8) >= loss.unwrap_or(4)));
            }
            if block.is_some_and(|(_, is_kept)| is_kept) {
                let newest = versions.last();
                let version = if grain == 1 {
                    chance.pick(&versions)
                } else {
                    newest
                };
                if let Some(sector) = version {
                    put_sector(&mut left, number, sector);
                }
            }
        }
        self.durable = left;
        self.current.clone_from(&self.durable);
    }

    pub(super) fn rot(&mut self, bit: u64) {
        let byte = (bit / 8) as usize;
        for bytes in [&mut self.durable, &mut self.current] {
            if let Some(byte) = bytes.get_mut(byte) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_stays_and_what_was_not_may_not() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut file = Content::default();
            file.write(&[1; 3 * BLOCK], 0);
            file.sync();
            file.write(&[2; 2 * BLOCK], 2 * BLOCK);
            file.keep_by_chance(&mut Chance::new(seed), None);
            assert!(file.current[..2 * BLOCK].iter().all(|byte| *byte == 1));
            let twos = file.current.iter().filter(|byte| **byte == 2).count();
            assert!(twos.is_multiple_of(SECTOR));
            match twos {
                0 => lost += 1,
                len if len == 2 * BLOCK => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 10 && kept > 10 && torn > 10, "{lost} {kept} {torn}");
    }

    #[test]
    fn a_lost_sync_is_not_made_up_for_by_the_next() {
        let mut file = Content::default();
        file.write(&[1; 64 * SECTOR], 0);
        file.lose_sync(&mut Chance::new(3));
        file.sync();
        file.keep_nothing();
        let missing = file.current.iter().filter(|byte| **byte == 0).count();
        assert!(missing > 0 && missing < 64 * SECTOR, "{missing}");
    }
}
