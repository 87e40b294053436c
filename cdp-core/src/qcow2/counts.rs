//! The refcounts of an image that is written from front to back, in memory for as short as can be.
//!
//! Clusters are taken in order, so a block of refcounts that lies behind is complete: it gets a cluster itself, and is
//! written. What is left at the end gets clusters, too, and these are counted in turn.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};

use super::{CLUSTER_LEN, REFCOUNTS};
use crate::bounds::CLUSTER;
use crate::storage::StorageFile;

/// The clusters of an image in the making that are taken, and how often each is used.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Clusters of the file that are taken.
    next: u64,
    blocks: BTreeMap<u64, Vec<u16>>,
    /// Places of the blocks that are written; 0 for those that are not.
    written: Vec<u64>,
}

impl Counts {
    /// Returns the clusters of the file that are taken.
    pub(super) fn taken(&self) -> u64 {
        self.next
    }

    /// Takes the next clusters, unused for now; returns the first.
    pub(super) fn reserve(&mut self, clusters: u64) -> u64 {
        let first = self.next;
        self.next += clusters;
        first
    }

    /// Takes the next cluster, used once.
    pub(super) fn take(&mut self) -> u64 {
        let cluster = self.reserve(1);
        self.add(cluster);
        cluster
    }

    /// Counts one more use of a cluster.
    pub(super) fn add(&mut self, cluster: u64) {
        let block = self.blocks.entry(cluster / REFCOUNTS);
        let counts = block.or_insert_with(|| vec![0; REFCOUNTS as usize]);
        if let Some(count) = counts.get_mut((cluster % REFCOUNTS) as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Writes the blocks of which no cluster from `from` on is part.
    pub(super) fn write_before(&mut self, file: &dyn StorageFile, from: u64) -> io::Result<()> {
        while let Some(entry) = self.blocks.first_entry()
            && (*entry.key() + 1) * REFCOUNTS <= from
        {
            let (block, counts) = entry.remove_entry();
            let place = self.take() * CLUSTER_LEN;
            self.write(file, block, &counts, place)?;
        }
        Ok(())
    }

    /// Writes all blocks, and the table of them; returns its place, and its clusters.
    pub(super) fn finish(mut self, file: &dyn StorageFile) -> io::Result<Finished> {
        // Room for the blocks there are, and for those that the last clusters begin.
        let clusters = ((self.next / REFCOUNTS + 3) * 8).div_ceil(CLUSTER_LEN);
        let table = self.next;
        (0..clusters).for_each(|_| {
            self.take();
        });
        let mut places: BTreeMap<u64, u64> = BTreeMap::new();
        while let Some(block) = self.blocks.keys().find(|block| !places.contains_key(block)) {
            let block = *block;
            places.insert(block, self.take() * CLUSTER_LEN);
        }
        for (block, counts) in std::mem::take(&mut self.blocks) {
            let place = places.get(&block).copied().unwrap_or_default();
            self.write(file, block, &counts, place)?;
        }
        let mut bytes = super::table_bytes(&self.written);
        bytes.resize((clusters * CLUSTER_LEN) as usize, 0);
        file.write_at(&[IoSlice::new(&bytes)], table * CLUSTER_LEN)?;
        Ok(Finished {
            table_place: table * CLUSTER_LEN,
            table_clusters: clusters as u32,
            clusters: self.next,
        })
    }

    fn write(
        &mut self,
        file: &dyn StorageFile,
        block: u64,
        counts: &[u16],
        place: u64,
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(CLUSTER);
        counts
            .iter()
            .for_each(|count| bytes.extend_from_slice(&count.to_be_bytes()));
        file.write_at(&[IoSlice::new(&bytes)], place)?;
        let block = block as usize;
        if self.written.len() <= block {
            self.written.resize(block + 1, 0);
        }
        if let Some(entry) = self.written.get_mut(block) {
            *entry = place;
        }
        Ok(())
    }
}

/// Where the refcounts are, and how many clusters the file has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    pub(super) table_place: u64,
    pub(super) table_clusters: u32,
    pub(super) clusters: u64,
}
