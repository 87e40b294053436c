//! The guest: what it writes to its disks, and a hash of every block as it is.

use std::ops::Range;

use cdp_core::chance::Chance;
use cdp_core::{Recorder, VolumeId};

/// What is hashed together.
pub(crate) const BLOCK: usize = 16 * 1024;
const PAGE: usize = 8 * 1024;
const MIB: usize = 1 << 20;

/// A disk as it was at some moment: its bytes, and the hash of each block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) size: usize,
    pub(crate) hashes: Vec<[u8; 32]>,
}

/// A disk of the guest.
struct Disk {
    bytes: Vec<u8>,
    hashes: Vec<[u8; 32]>,
    stale: Vec<bool>,
}

pub(crate) struct Guest {
    chance: Chance,
    disks: Vec<Disk>,
    /// Where the database's log goes on.
    log: usize,
    /// Files that are there, on the second disk.
    files: Vec<Range<usize>>,
    pub(crate) written: u64,
}

impl Disk {
    fn new(size: usize) -> Disk {
        let blocks = size.div_ceil(BLOCK);
        Disk {
            bytes: vec![0; size],
            hashes: vec![[0; 32]; blocks],
            stale: vec![true; blocks],
        }
    }

    fn shown(&mut self) -> Shown {
        let blocks = self.bytes.chunks(BLOCK).enumerate();
        for (number, block) in blocks.filter(|(number, _)| self.stale[*number]) {
            self.hashes[number] = hash(block);
        }
        self.stale.fill(false);
        Shown {
            size: self.bytes.len(),
            hashes: self.hashes.clone(),
        }
    }

    fn resize(&mut self, size: usize) {
        self.bytes.resize(size, 0);
        let blocks = size.div_ceil(BLOCK);
        self.hashes.resize(blocks, [0; 32]);
        self.stale = vec![true; blocks];
    }
}

pub(crate) fn hash(block: &[u8]) -> [u8; 32] {
    *blake3::hash(block).as_bytes()
}

impl Guest {
    pub(crate) fn new(seed: u64) -> Guest {
        let mut chance = Chance::new(seed);
        let mut disks = vec![Disk::new(8 * MIB), Disk::new(4 * MIB)];
        // What is there before protection begins.
        chance.fill(&mut disks[0].bytes[..3 * MIB]);
        chance.fill(&mut disks[1].bytes[..MIB]);
        Guest {
            chance,
            disks,
            log: 6 * MIB,
            files: Vec::new(),
            written: 0,
        }
    }

    pub(crate) fn sizes(&self) -> Vec<u64> {
        self.disks
            .iter()
            .map(|disk| disk.bytes.len() as u64)
            .collect()
    }

    pub(crate) fn bytes(&self, disk: usize) -> &[u8] {
        &self.disks[disk].bytes
    }

    pub(crate) fn shown(&mut self) -> Vec<Shown> {
        self.disks.iter_mut().map(Disk::shown).collect()
    }

    pub(crate) fn resize(&mut self, disk: usize, size: usize) {
        self.disks[disk].resize(size);
        self.files.retain(|file| file.end <= size);
    }

    /// Works for some minutes.
    pub(crate) fn work(&mut self, recorder: &Recorder, hour: u64) {
        // The database rests at night, but for a job at three.
        let pages = match hour {
            3 => 40,
            0..=6 => self.chance.below(2),
            _ => 1 + self.chance.below(6),
        };
        for _ in 0..pages {
            // Half of the writes go to an eighth of the pages.
            let all = (6 * MIB / PAGE) as u64;
            let most = if self.chance.once_in(2) { all / 8 } else { all };
            let page = self.chance.below(most) as usize;
            self.write(recorder, 0, page * PAGE, PAGE);
            self.write(recorder, 0, self.log, 4096);
            self.log += 4096;
            if self.log == 8 * MIB {
                self.log = 6 * MIB;
            }
        }
        if self.chance.once_in(4) {
            self.churn(recorder);
        }
    }

    /// Makes a file, or deletes one.
    fn churn(&mut self, recorder: &Recorder) {
        let size = self.disks[1].bytes.len();
        if self.files.len() > 20 || (self.chance.once_in(3) && !self.files.is_empty()) {
            let at = self.chance.below(self.files.len() as u64) as usize;
            let file = self.files.swap_remove(at);
            if self.chance.once_in(2) {
                self.zero(recorder, 1, file);
            }
            return;
        }
        let len = (1 + self.chance.below(48) as usize) * 4096;
        let offset = self.chance.below((size - len) as u64) as usize / 4096 * 4096;
        self.write(recorder, 1, offset, len);
        self.files.push(offset..offset + len);
    }

    fn write(&mut self, recorder: &Recorder, disk: usize, offset: usize, len: usize) {
        let bytes = &mut self.disks[disk].bytes[offset..offset + len];
        match self.chance.below(3) {
            // Half of it compresses well.
            0 => bytes.fill(self.chance.below(256) as u8),
            1 => {
                self.chance.fill(&mut bytes[..len / 2]);
                bytes[len / 2..].fill(b'x');
            }
            _ => self.chance.fill(bytes),
        }
        let volume = recorder.volume(VolumeId(disk as u16)).unwrap();
        volume.write_copy(offset as u64, bytes).unwrap();
        self.written += len as u64;
        self.touch(disk, offset..offset + len);
    }

    fn zero(&mut self, recorder: &Recorder, disk: usize, range: Range<usize>) {
        self.disks[disk].bytes[range.clone()].fill(0);
        let volume = recorder.volume(VolumeId(disk as u16)).unwrap();
        volume.zero(range.start as u64, range.len() as u64).unwrap();
        self.touch(disk, range);
    }

    fn touch(&mut self, disk: usize, range: Range<usize>) {
        self.disks[disk].stale[range.start / BLOCK..range.end.div_ceil(BLOCK)].fill(true);
    }
}
