//! The hashes of a seed's clusters, gathered while they are written in any order.
//!
//! A file that is removed again has a slot for the hash of each cluster. A cluster that is written whole has its hash put
//! there; one that is written in part, or not by a single call, is read and hashed at the end. A bit for each cluster
//! tells whether its slot counts: 2 MiB for each TiB.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use bitvec::vec::BitVec;

use super::hashes::{ClusterHash, hash_cluster};
use crate::bounds::CLUSTER;
use crate::format::HASH_LEN;
use crate::qcow2::is_zero;
use crate::storage::replace::remove_if_there;
use crate::storage::{OpenMode, Storage, StorageFile};

const CLUSTER_LEN: u64 = CLUSTER as u64;

/// Hashes of the clusters of a volume; the file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Slots {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    size: u64,
    known: BitVec<u64>,
    zeros: ClusterHash,
    /// Slots that were read ahead, and the first cluster of them.
    ahead: (u64, Vec<u8>),
}

impl Slots {
    /// Makes the file at `path`.
    pub(super) fn new(storage: Arc<dyn Storage>, path: PathBuf, size: u64) -> io::Result<Slots> {
        remove_if_there(&*storage, &path)?;
        let file = storage.open(&path, OpenMode::New)?;
        Ok(Slots {
            storage,
            path,
            file,
            size,
            known: BitVec::repeat(false, size.div_ceil(CLUSTER_LEN) as usize),
            zeros: hash_cluster(&[]),
            ahead: (0, Vec::new()),
        })
    }

    /// Takes note of bytes that were written.
    pub(super) fn note(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ahead.1.clear();
        let mut hashes: Vec<u8> = Vec::new();
        let mut first = 0;
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let cluster = at / CLUSTER_LEN;
            let end = (cluster + 1).saturating_mul(CLUSTER_LEN).min(self.size);
            let len = (end.saturating_sub(at) as usize).clamp(1, rest.len());
            let (bytes, behind) = rest.split_at(len);
            let is_whole = at % CLUSTER_LEN == 0 && at + len as u64 == end;
            self.set_known(cluster, is_whole);
            if is_whole {
                let hash = if is_zero(bytes) {
                    self.zeros
                } else {
                    hash_cluster(bytes)
                };
                if hashes.is_empty() {
                    first = cluster;
                }
                hashes.extend_from_slice(&hash);
            }
            at += len as u64;
            rest = behind;
        }
        if !hashes.is_empty() {
            self.file
                .write_at(&[IoSlice::new(&hashes)], first * HASH_LEN as u64)?;
        }
        Ok(())
    }

    /// Takes note of zeros that were written over what may have been written before.
    pub(super) fn forget(&mut self, offset: u64, len: u64) {
        let first = (offset / CLUSTER_LEN) as usize;
        let end = offset.saturating_add(len).div_ceil(CLUSTER_LEN) as usize;
        let end = end.min(self.known.len());
        if let Some(bits) = self.known.get_mut(first..end) {
            bits.fill(false);
        }
    }

    /// Returns the hash of a cluster, if it is known; best asked for in order.
    pub(super) fn get(&mut self, cluster: u64) -> io::Result<Option<ClusterHash>> {
        if !self.known.get(cluster as usize).is_some_and(|bit| *bit) {
            return Ok(None);
        }
        let (first, bytes) = &self.ahead;
        let is_ahead = (*first..first + (bytes.len() / HASH_LEN) as u64).contains(&cluster);
        if !is_ahead {
            let place = cluster * HASH_LEN as u64;
            let left = self.file.length()?.saturating_sub(place) as usize;
            let mut bytes = vec![0; left.min(CLUSTER) / HASH_LEN * HASH_LEN];
            self.file.read_at(&mut bytes, place)?;
            self.ahead = (cluster, bytes);
        }
        let (first, bytes) = &self.ahead;
        let at = (cluster - first) as usize * HASH_LEN;
        Ok(bytes
            .get(at..)
            .and_then(|bytes| bytes.first_chunk())
            .copied())
    }

    fn set_known(&mut self, cluster: u64, is_known: bool) {
        if let Some(mut bit) = self.known.get_mut(cluster as usize) {
            *bit = is_known;
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&*self.storage, &self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the hashes of a seed stay behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::SimulatedStorage;

    #[test]
    fn only_what_was_written_whole_and_last_counts() {
        let storage = SimulatedStorage::new(1);
        let size = 5 * CLUSTER_LEN + 512;
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let mut slots = Slots::new(shared, PathBuf::from("/slots"), size).unwrap();
        let bytes = |byte: u8, len: usize| vec![byte; len];
        slots
            .note(3 * CLUSTER_LEN, &bytes(1, 2 * CLUSTER + 512))
            .unwrap();
        slots.note(512, &bytes(2, 2 * CLUSTER)).unwrap();
        slots.note(3 * CLUSTER_LEN + 512, &bytes(3, 512)).unwrap();
        let found: Vec<_> = (0..6).map(|cluster| slots.get(cluster).unwrap()).collect();
        let ones = Some(hash_cluster(&bytes(1, CLUSTER)));
        let twos = Some(hash_cluster(&bytes(2, CLUSTER)));
        let end = Some(hash_cluster(&bytes(1, 512)));
        assert_eq!(found, [None, twos, None, None, ones, end]);
        slots.note(3 * CLUSTER_LEN, &bytes(1, CLUSTER)).unwrap();
        slots.forget(CLUSTER_LEN, 1);
        assert_eq!(slots.get(1).unwrap(), None);
        assert_eq!(slots.get(3).unwrap(), ones);
        drop(slots);
        assert!(storage.content(Path::new("/slots")).is_none());
    }
}
