//! What a layer holds, checked against its hashes when it is first looked at.
//!
//! A hash is found by a search in the file of hashes, of which a few blocks are kept; that a cluster was found right is
//! remembered for as long as the layer is open. Where a layer holds nothing and there is a hash, what lies below has to be
//! what it says: else a table that lost an entry would go unnoticed.
//!
//! The hashes are not checked as a whole at the start, which would take too long. That is done when the first cluster is
//! found wrong: if it is the hashes that are damaged, they are left out from then on.
//!
//! Invariant: no byte of a layer that has hashes, and no hole, is shown that they do not vouch for.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::hashes::{ClusterHash, HashesFile, hash_cluster};
use crate::bounds::{CLUSTER, HASH_BLOCKS_KEPT_MAX};
use crate::error::{HarborError, Result};
use crate::format::{HASHES_ENTRY_LEN, HashesEntry};
use crate::qcow2::reader::{Held, Qcow2Reader, Stretch};
use crate::storage::Storage;

const CLUSTER_LEN: u64 = CLUSTER as u64;
/// Entries of the file of hashes that are read at a time.
const BLOCK_ENTRIES: u64 = 100;
/// Words of bits that are made at a time: those of 256 MiB of the volume.
const WORDS: usize = 64;
const CLUSTERS_PER_GROUP: u64 = WORDS as u64 * 64;

type Block = Arc<[HashesEntry]>;

/// The hashes of a layer, and what of the layer was found right.
#[derive(Debug)]
pub(crate) struct Proof {
    hashes: HashesFile,
    layer: PathBuf,
    /// Bytes of the volume that the layer has.
    size: u64,
    /// Whether nothing lies below: then zeros are as good as nothing.
    is_full: bool,
    /// A bit for each cluster that is right.
    right: Box<[OnceLock<Box<[AtomicU64; WORDS]>>]>,
    blocks: Mutex<VecDeque<(u64, Block)>>,
    /// Whether the hashes themselves are as they were written; known once it had to be.
    is_sound: OnceLock<bool>,
    zeros: ClusterHash,
}

impl Proof {
    /// Opens the hashes at `path` of a layer; none if there are none, or none that are of use. They say how large the
    /// layer is, unless it is `changing`.
    pub(crate) fn open(
        storage: &dyn Storage,
        path: &Path,
        layer: &Qcow2Reader,
        changing: bool,
    ) -> Result<Option<Proof>> {
        let hashes = match HashesFile::open(storage, path) {
            Err(error @ HarborError::Damaged { .. }) => {
                tracing::warn!(%error, "the hashes of a layer are left out");
                return Ok(None);
            }
            other => other?,
        };
        let size = layer.size();
        if let Some(hashes) = &hashes
            && hashes.size() != size
            && !changing
        {
            let what = "it is not as large as its hashes say";
            return Err(HarborError::damaged(layer.path(), what));
        }
        let groups = size.div_ceil(CLUSTER_LEN).div_ceil(CLUSTERS_PER_GROUP);
        Ok(hashes.map(|hashes| Proof {
            hashes,
            layer: layer.path().to_path_buf(),
            size,
            is_full: layer.backing().is_none(),
            right: (0..groups).map(|_| OnceLock::new()).collect(),
            blocks: Mutex::default(),
            is_sound: OnceLock::new(),
            zeros: hash_cluster(&[]),
        }))
    }

    /// Checks a stretch from byte `offset` on that has no bytes; it is cut before what is not right. `below` is the
    /// content of a cluster as the layers below show it.
    pub(crate) fn check_hole(
        &self,
        offset: u64,
        stretch: Stretch,
        below: impl Fn(u64) -> Result<Vec<u8>>,
    ) -> Result<Stretch> {
        let end = offset.saturating_add(stretch.len).min(self.size);
        let mut at = offset / CLUSTER_LEN;
        let behind = end.div_ceil(CLUSTER_LEN);
        let must_have = stretch.held == Held::Zeros && !self.is_full;
        while at < behind {
            if self.is_right(at) {
                at += 1;
                continue;
            }
            let next = self.next(at)?.filter(|(cluster, _)| *cluster < behind);
            let (upto, vouched) = match next {
                Some((cluster, hash)) if cluster == at => {
                    let shown = match stretch.held {
                        Held::Nothing if !self.is_full => {
                            let content = below(at)?;
                            hash_cluster(self.within(at, &content))
                        }
                        _ => self.zeros,
                    };
                    (at + 1, hash == shown)
                }
                Some((cluster, _)) => (cluster, !must_have),
                None => (behind, !must_have),
            };
            if !vouched && let Some(error) = self.wrong(at)? {
                let sound = (at * CLUSTER_LEN).saturating_sub(offset);
                return match sound {
                    0 => Err(error),
                    len => Ok(Stretch { len, ..stretch }),
                };
            }
            (at..upto).for_each(|cluster| self.remember(cluster));
            at = upto;
        }
        Ok(stretch)
    }

    /// Checks what was read at byte `offset` of the volume, which is at `place` of the layer's file.
    pub(crate) fn check_bytes(
        &self,
        layer: &Qcow2Reader,
        (offset, place): (u64, u64),
        bytes: &[u8],
    ) -> Result<()> {
        let end = offset + bytes.len() as u64;
        for cluster in offset / CLUSTER_LEN..end.div_ceil(CLUSTER_LEN) {
            if self.is_right(cluster) {
                continue;
            }
            let start = cluster * CLUSTER_LEN;
            let len = CLUSTER_LEN.min(self.size.saturating_sub(start));
            if start >= offset && start + len <= end {
                let from = (start - offset) as usize;
                let whole = bytes.get(from..from + len as usize);
                self.check_cluster(cluster, whole.unwrap_or_default())?;
            } else {
                let mut whole = vec![0; len as usize];
                layer.read_file(&mut whole, (place + start).wrapping_sub(offset))?;
                self.check_cluster(cluster, &whole)?;
            }
        }
        Ok(())
    }

    /// Checks the content of a cluster.
    pub(crate) fn check_cluster(&self, cluster: u64, content: &[u8]) -> Result<()> {
        if self.is_right(cluster) {
            return Ok(());
        }
        let hash = hash_cluster(self.within(cluster, content));
        let is_right = self.next(cluster)? == Some((cluster, hash));
        if !is_right && let Some(error) = self.wrong(cluster)? {
            return Err(error);
        }
        self.remember(cluster);
        Ok(())
    }

    /// Tells whether there is a hash of a cluster, and it is that of a content. That the hashes are sound need not be
    /// known: damage makes no content right.
    pub(crate) fn vouches(&self, cluster: u64, content: &[u8]) -> Result<bool> {
        let hash = hash_cluster(self.within(cluster, content));
        Ok(self.next(cluster)? == Some((cluster, hash)))
    }

    /// Returns what of a cluster's content is within the volume.
    fn within<'a>(&self, cluster: u64, content: &'a [u8]) -> &'a [u8] {
        let left = self.size.saturating_sub(cluster * CLUSTER_LEN);
        content.get(..left as usize).unwrap_or(content)
    }

    /// Says that a cluster is not right; nothing if it is the hashes that are not.
    fn wrong(&self, cluster: u64) -> Result<Option<HarborError>> {
        let is_sound = match self.is_sound.get() {
            Some(known) => *known,
            None => {
                let is_sound = match self.hashes.check() {
                    Err(error @ HarborError::Damaged { .. }) => {
                        tracing::warn!(%error, "the hashes of a layer are left out");
                        false
                    }
                    other => other.map(|()| true)?,
                };
                *self.is_sound.get_or_init(|| is_sound)
            }
        };
        let what = format!("what it holds at cluster {cluster} is not what was written");
        Ok(is_sound.then(|| HarborError::damaged(&self.layer, what)))
    }

    /// Returns the first hash at or behind a cluster.
    fn next(&self, cluster: u64) -> Result<Option<(u64, ClusterHash)>> {
        let count = self.hashes.count();
        let blocks = count.div_ceil(BLOCK_ENTRIES);
        let clusters = u128::from(self.size.div_ceil(CLUSTER_LEN).max(1));
        let (mut low, mut high) = (0, blocks);
        // Where it is if they are spread evenly.
        let guess = u128::from(cluster) * u128::from(count) / clusters;
        let mut middle = (guess as u64 / BLOCK_ENTRIES).min(blocks.saturating_sub(1));
        while low < high {
            let block = self.block(middle)?;
            let (first, last) = (block.first(), block.last());
            if last.is_none_or(|entry| entry.cluster < cluster) {
                low = middle + 1;
            } else if first.is_some_and(|entry| entry.cluster > cluster) && middle > low {
                high = middle;
                // The one before it may end before the cluster.
                if self
                    .block(middle - 1)?
                    .last()
                    .is_some_and(|entry| entry.cluster < cluster)
                {
                    return Ok(first.map(|entry| (entry.cluster, entry.hash)));
                }
            } else {
                let at = block.partition_point(|entry| entry.cluster < cluster);
                return Ok(block.get(at).map(|entry| (entry.cluster, entry.hash)));
            }
            middle = low + (high - low) / 2;
        }
        Ok(None)
    }

    fn block(&self, number: u64) -> Result<Block> {
        let kept = || self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, block)) = kept().iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(block));
        }
        let entries = BLOCK_ENTRIES.min(self.hashes.count() - number * BLOCK_ENTRIES);
        let bytes = self.hashes.read(number * BLOCK_ENTRIES, entries)?;
        let entries = bytes
            .chunks_exact(HASHES_ENTRY_LEN)
            .map(HashesEntry::decode);
        let block: Block = entries.collect();
        let mut kept = kept();
        if kept.len() >= HASH_BLOCKS_KEPT_MAX {
            kept.pop_back();
        }
        kept.push_front((number, Arc::clone(&block)));
        Ok(block)
    }

    fn is_right(&self, cluster: u64) -> bool {
        let group = self.right.get((cluster / CLUSTERS_PER_GROUP) as usize);
        let (word, bit) = word_of(cluster);
        let word = group
            .and_then(OnceLock::get)
            .and_then(|group| group.get(word));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn remember(&self, cluster: u64) {
        if let Some(group) = self.right.get((cluster / CLUSTERS_PER_GROUP) as usize) {
            let group = group.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
            let (word, bit) = word_of(cluster);
            if let Some(word) = group.get(word) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
}

/// Returns the word of a cluster in its group, and its bit there.
fn word_of(cluster: u64) -> (usize, u64) {
    let within = cluster % CLUSTERS_PER_GROUP;
    ((within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hashes::{HashesWriter, hashes_path};
    use crate::format::HASH_LEN;
    use crate::point::Seq;
    use crate::qcow2::layer::{Clusters, LayerWriter};
    use crate::storage::{OpenMode, SimulatedStorage};

    /// A layer of `clusters` clusters that holds none, with hashes of some.
    fn proof(clusters: u64, hashed: &[u64]) -> Proof {
        let storage = SimulatedStorage::new(1);
        let path = Path::new("/layer.qcow2");
        let file = storage.open(path, OpenMode::New).unwrap();
        let size = clusters * CLUSTER_LEN;
        let layer = LayerWriter::new(file, size, None, Clusters::Plain).unwrap();
        layer.finish().unwrap();
        let hashes = hashes_path(path);
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let mut writer = HashesWriter::new(shared, hashes.clone(), size, Seq(1)).unwrap();
        for cluster in hashed {
            writer.push(*cluster, [*cluster as u8; HASH_LEN]).unwrap();
        }
        writer.finish().unwrap();
        let layer = Qcow2Reader::open(&storage, path).unwrap();
        Proof::open(&storage, &hashes, &layer, false)
            .unwrap()
            .unwrap()
    }

    #[test]
    fn the_next_hash_is_found_wherever_it_is() {
        let all: Vec<u64> = (0..3000).collect();
        let late: Vec<u64> = (2500..3000).collect();
        let early: Vec<u64> = (0..301).collect();
        let ends = [0, 2999];
        let heap: Vec<u64> = (0..3000).filter(|n| n / 7 % 3 == 0 || *n > 2890).collect();
        for hashed in [&all[..], &late, &early, &ends, &heap, &[]] {
            let proof = proof(3000, hashed);
            for cluster in 0..3001 {
                let right = hashed.iter().find(|known| **known >= cluster);
                let right = right.map(|known| (*known, [*known as u8; HASH_LEN]));
                assert_eq!(
                    proof.next(cluster).unwrap(),
                    right,
                    "{cluster} of {hashed:?}"
                );
            }
        }
    }
}
