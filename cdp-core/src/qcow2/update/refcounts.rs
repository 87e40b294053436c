//! Which clusters of a file are in use, and the refcounts that say so.
//!
//! What is used is a bit for each cluster of the file: 2 MiB for each TiB. A cluster that is taken away stays used until
//! the end of the update, so that nothing else gets its place before its last entry is gone for certain.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;

use bitvec::vec::BitVec;

use super::Before;
use crate::bounds::{CLUSTER, VOLUME_SIZE_MAX};
use crate::error::{HarborError, Result};
use crate::qcow2::header::Header;
use crate::qcow2::{CLUSTER_LEN, PLACE, REFCOUNTS, entries, table_bytes};
use crate::storage::StorageFile;

/// Most clusters that the table of refcounts has: enough for the largest volume, four times over.
const TABLE_CLUSTERS_MAX: u64 = VOLUME_SIZE_MAX / CLUSTER_LEN / REFCOUNTS * 8 / CLUSTER_LEN * 4;

/// The clusters of a file, and their refcounts.
#[derive(Debug)]
pub(super) struct Refcounts {
    table_place: u64,
    table_clusters: u64,
    /// Places of the blocks; 0 where there is none.
    blocks: Vec<u64>,
    used: BitVec<u64>,
    /// Used until the end of the update.
    freed: BitVec<u64>,
    /// No cluster before it is free.
    from: usize,
    /// Blocks that were changed.
    changed: BTreeMap<usize, Vec<u8>>,
    /// Those of them that are new, and not in the table yet.
    new: Vec<usize>,
}

impl Refcounts {
    /// Reads the table, and marks what header and refcounts use.
    pub(super) fn open(
        path: &Path,
        file: &dyn StorageFile,
        file_len: u64,
        header: &Header,
    ) -> Result<Refcounts> {
        let damaged = |what| HarborError::damaged(path, what);
        let table_clusters = u64::from(header.refcount_clusters);
        let len = table_clusters * CLUSTER_LEN;
        let end = header.refcount_place.checked_add(len);
        if !(1..=TABLE_CLUSTERS_MAX).contains(&table_clusters)
            || end.is_none_or(|end| end > file_len)
        {
            return Err(damaged("its table of refcounts lies outside"));
        }
        let mut bytes = vec![0; len as usize];
        file.read_at(&mut bytes, header.refcount_place)
            .map_err(|e| HarborError::storage("read", path, e))?;
        let mut blocks = entries(&bytes);
        while blocks.last() == Some(&0) {
            blocks.pop();
        }
        let clusters = file_len.div_ceil(CLUSTER_LEN) as usize;
        let mut refcounts = Refcounts {
            table_place: header.refcount_place,
            table_clusters,
            used: BitVec::repeat(false, clusters),
            freed: BitVec::repeat(false, clusters),
            blocks,
            from: 0,
            changed: BTreeMap::new(),
            new: Vec::new(),
        };
        let l1_clusters = (header.l1_len as u64 * 8).div_ceil(CLUSTER_LEN);
        let rows = [
            (0, 1),
            (header.l1_place, l1_clusters),
            (header.refcount_place, table_clusters),
        ];
        let in_rows = rows
            .into_iter()
            .flat_map(|(place, count)| (0..count).map(move |n| place + n * CLUSTER_LEN));
        let blocks: Vec<u64> = refcounts.blocks.iter().map(|entry| entry & PLACE).collect();
        let all: Vec<u64> = in_rows
            .chain(blocks.into_iter().filter(|place| *place != 0))
            .collect();
        for place in all {
            if !refcounts.mark(place) {
                return Err(damaged("its tables lie over each other, or outside"));
            }
        }
        Ok(refcounts)
    }

    /// Marks a cluster as used; false if it cannot be, or is already.
    pub(super) fn mark(&mut self, place: u64) -> bool {
        let bit = usize::try_from(place / CLUSTER_LEN)
            .ok()
            .and_then(|at| self.used.get_mut(at));
        match bit {
            Some(mut bit) if place.is_multiple_of(CLUSTER_LEN) && !*bit => {
                *bit = true;
                true
            }
            _ => false,
        }
    }

    /// Tells whether the table has room for so many clusters more at the end of the file.
    pub(super) fn has_room_for(&self, clusters: u64) -> bool {
        let most = self.table_clusters * (CLUSTER_LEN / 8) * REFCOUNTS;
        // Blocks and tables take clusters, too.
        let with_tables = clusters + clusters / 1024 + 64;
        self.used.len() as u64 + with_tables <= most
    }

    /// Takes a free cluster; returns its place.
    pub(super) fn take(&mut self, file: &dyn StorageFile) -> io::Result<u64> {
        loop {
            let free = self
                .used
                .get(self.from..)
                .and_then(|rest| rest.first_zero());
            let at = self.from + free.unwrap_or(self.used.len().saturating_sub(self.from));
            self.from = at + 1;
            self.use_cluster(at);
            if self.has_block(at) {
                self.count(file, at)?;
                return Ok(at as u64 * CLUSTER_LEN);
            }
            self.make_block(at)?;
        }
    }

    /// Takes clusters in a row at the end of the file; returns the place of the first.
    pub(super) fn take_row(&mut self, file: &dyn StorageFile, clusters: u64) -> io::Result<u64> {
        let clusters = clusters as usize;
        let mut first = self.used.len();
        while let Some(at) = (first..first + clusters).find(|at| !self.has_block(*at)) {
            // The cluster in front becomes the block of those that have none.
            self.use_cluster(first);
            self.add_block(at / REFCOUNTS as usize, first)?;
            if self.has_block(first) {
                self.count(file, first)?;
            }
            first += 1;
        }
        for at in first..first + clusters {
            self.use_cluster(at);
            self.count(file, at)?;
        }
        Ok(first as u64 * CLUSTER_LEN)
    }

    /// Takes a cluster away, at the end of the update; 0 is none.
    pub(super) fn free(&mut self, place: u64) {
        let bit = usize::try_from(place / CLUSTER_LEN)
            .ok()
            .and_then(|at| self.freed.get_mut(at));
        if let Some(mut bit) = bit.filter(|_| place != 0) {
            *bit = true;
        }
    }

    /// Writes the refcounts that were changed; new blocks are in the table afterwards, behind a sync.
    pub(super) fn write(&mut self, file: &dyn StorageFile) -> io::Result<()> {
        for (block, bytes) in std::mem::take(&mut self.changed) {
            file.write_at(&[IoSlice::new(&bytes)], self.block_place(block))?;
        }
        if self.new.is_empty() {
            return Ok(());
        }
        file.sync()?;
        for block in std::mem::take(&mut self.new) {
            let place = self.block_place(block);
            let entry = self.table_place + block as u64 * 8;
            file.write_at(&[IoSlice::new(&place.to_be_bytes())], entry)?;
        }
        file.sync()
    }

    /// Puts all refcounts right: 1 for what is used, 0 for all else.
    pub(super) fn settle(&mut self, file: &dyn StorageFile, before: Before) -> io::Result<()> {
        self.write(file)?;
        for at in self.freed.iter_ones() {
            if let Some(mut bit) = self.used.get_mut(at) {
                *bit = false;
            }
        }
        if before == Before::Unfinished {
            let table = table_bytes(&self.blocks);
            file.write_at(&[IoSlice::new(&table)], self.table_place)?;
        }
        let mut kept = vec![0; CLUSTER];
        for block in 0..self.blocks.len() {
            let place = self.block_place(block);
            if place == 0 {
                continue;
            }
            let mut right = vec![0; CLUSTER];
            let first = block * REFCOUNTS as usize;
            let end = (first + REFCOUNTS as usize).min(self.used.len());
            let used = self.used.get(first..end).unwrap_or_default();
            for at in used.iter_ones() {
                if let Some(low) = right.get_mut(at * 2 + 1) {
                    *low = 1;
                }
            }
            file.read_at(&mut kept, place)?;
            if kept != right || before == Before::Unfinished {
                file.write_at(&[IoSlice::new(&right)], place)?;
            }
        }
        Ok(())
    }

    /// Gives back what is free: what became so, or all of it if an update before this one may not have come to that.
    pub(super) fn give_back(&mut self, file: &dyn StorageFile, before: Before) -> io::Result<()> {
        let end = self.used.last_one().map_or(0, |last| last + 1);
        let mut free = match before {
            Before::Whole => std::mem::take(&mut self.freed),
            Before::Unfinished => !self.used.clone(),
        };
        free.truncate(end);
        let mut at = 0;
        while let Some(skip) = free.get(at..).and_then(|rest| rest.first_one()) {
            let first = at + skip;
            let run = free.get(first..).and_then(|rest| rest.first_zero());
            at = run.map_or(end, |run| first + run);
            let len = (at - first) as u64 * CLUSTER_LEN;
            file.punch_hole(first as u64 * CLUSTER_LEN, len)?;
        }
        file.set_len(end as u64 * CLUSTER_LEN)
    }

    fn use_cluster(&mut self, at: usize) {
        if at >= self.used.len() {
            self.used.resize(at + 1, false);
            self.freed.resize(at + 1, false);
        }
        if let Some(mut bit) = self.used.get_mut(at) {
            *bit = true;
        }
    }

    fn block_place(&self, block: usize) -> u64 {
        self.blocks.get(block).copied().unwrap_or_default() & PLACE
    }

    fn has_block(&self, at: usize) -> bool {
        self.block_place(at / REFCOUNTS as usize) != 0
    }

    /// Makes a cluster the block that counts it.
    fn make_block(&mut self, at: usize) -> io::Result<()> {
        let block = at / REFCOUNTS as usize;
        self.add_block(block, at)?;
        if let Some(bytes) = self.changed.get_mut(&block) {
            set_count(bytes, at);
        }
        Ok(())
    }

    fn add_block(&mut self, block: usize, at: usize) -> io::Result<()> {
        if block as u64 >= self.table_clusters * (CLUSTER_LEN / 8) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, 0);
        }
        if let Some(entry) = self.blocks.get_mut(block) {
            *entry = at as u64 * CLUSTER_LEN;
        }
        self.changed.insert(block, vec![0; CLUSTER]);
        self.new.push(block);
        Ok(())
    }

    /// Counts a cluster whose block is there.
    fn count(&mut self, file: &dyn StorageFile, at: usize) -> io::Result<()> {
        let block = at / REFCOUNTS as usize;
        if !self.changed.contains_key(&block) {
            let mut bytes = vec![0; CLUSTER];
            file.read_at(&mut bytes, self.block_place(block))?;
            self.changed.insert(block, bytes);
        }
        if let Some(bytes) = self.changed.get_mut(&block) {
            set_count(bytes, at);
        }
        Ok(())
    }
}

fn set_count(bytes: &mut [u8], at: usize) {
    let at = at % REFCOUNTS as usize * 2;
    if let Some(count) = bytes.get_mut(at..at + 2) {
        count.copy_from_slice(&[0, 1]);
    }
}
