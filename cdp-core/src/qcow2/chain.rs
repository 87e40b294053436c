//! An image and all it stands on, read as one.
//!
//! Each layer names the one below it, a file in the same directory. What a layer does not hold is looked for below;
//! what is behind the end of a layer is zeros, whatever lies below: so QEMU reads them, too.
//!
//! Invariant: a chain holds all its files open, so that no later change of names can hurt it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CLUSTER_LEN;
use super::cache::SliceCache;
use super::pack::Unpacked;
use super::reader::{Held, Qcow2Reader, Stretch};
use crate::base::proof::Proof;
use crate::bounds::CHAIN_MAX;
use crate::error::{HarborError, Result};
use crate::storage::Storage;

/// An image and all it stands on, open for reading.
#[derive(Debug)]
pub struct Chain {
    /// The uppermost first.
    layers: Vec<Qcow2Reader>,
    unpacked: Unpacked,
    /// What must not be read of a layer, by its number.
    refused: BTreeMap<u32, Vec<Range<u64>>>,
    /// What each layer is checked with, if it is to be.
    proofs: Vec<Option<Proof>>,
}

/// A stretch of the volume that is in one file in one piece, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Where it is in its layer's file; none if it reads as zeros.
    pub place: Option<u64>,
}

impl Chain {
    /// Opens an image and what it stands on.
    ///
    /// # Errors
    /// The storage failed; one of them is missing, damaged, or of another kind than is known here; they are too many.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Chain> {
        let cache = Arc::new(SliceCache::new());
        let mut layers: Vec<Qcow2Reader> = Vec::new();
        let mut next: Option<PathBuf> = Some(path.to_path_buf());
        while let Some(path) = next {
            if layers.len() == CHAIN_MAX {
                let what = format!("it stands on more than {CHAIN_MAX} layers, or on itself");
                return Err(HarborError::damaged(&path, what));
            }
            let number = layers.len() as u32;
            let layer = Qcow2Reader::open_in(storage, &path, number, Arc::clone(&cache))?;
            next = layer.backing().map(|name| path.with_file_name(name));
            layers.push(layer);
        }
        Ok(Chain {
            layers,
            unpacked: Unpacked::default(),
            refused: BTreeMap::new(),
            proofs: Vec::new(),
        })
    }

    /// Has what layers hold checked, when it is first read, with what `prove` says.
    ///
    /// # Errors
    /// Its.
    pub(crate) fn prove(
        &mut self,
        prove: impl Fn(&Qcow2Reader) -> Result<Option<Proof>>,
    ) -> Result<()> {
        self.proofs = self.layers.iter().map(prove).collect::<Result<_>>()?;
        Ok(())
    }

    fn proof(&self, number: u32) -> Option<&Proof> {
        self.proofs.get(number as usize)?.as_ref()
    }

    /// Has what layers hold of some ranges refused, by the names of their files: it is known to be damaged.
    pub(crate) fn refuse(&mut self, areas: &BTreeMap<String, Vec<Range<u64>>>) {
        for (number, layer) in (0..).zip(&self.layers) {
            if let Some(ranges) = areas.get(&layer.name()) {
                self.refused.insert(number, ranges.clone());
            }
        }
    }

    /// Cuts a stretch before what is refused of a layer.
    fn allowed(&self, number: u32, offset: u64, mut stretch: Stretch) -> Result<Stretch> {
        let Some(ranges) = self.refused.get(&number) else {
            return Ok(stretch);
        };
        for range in ranges {
            if range.contains(&offset) {
                let layer = self.layers.get(number as usize);
                let what = "what it holds there is not what was written";
                let path = layer.map_or(Path::new(""), Qcow2Reader::path);
                return Err(HarborError::damaged(path, what));
            }
            if range.start > offset && !range.is_empty() {
                stretch.len = stretch.len.min(range.start - offset);
            }
        }
        Ok(stretch)
    }

    /// Returns the bytes of the volume.
    pub fn size(&self) -> u64 {
        self.layers.first().map_or(0, Qcow2Reader::size)
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Returns the stretch at byte `offset`, of at most `max` bytes. Behind the end are zeros.
    ///
    /// # Errors
    /// The storage failed; a table is damaged.
    pub fn run(&self, offset: u64, max: u64) -> Result<Run> {
        let (stretch, _) = self.find(0, offset, max)?;
        let place = match stretch.held {
            Held::Bytes(place) => Some(place),
            Held::Packed(packed) => Some(packed.place),
            Held::Zeros | Held::Nothing => None,
        };
        Ok(Run {
            len: stretch.len,
            place,
        })
    }

    /// Returns the name of the layer that shows at byte `offset`, for at most `max` bytes, and for how many it does.
    /// Where none holds anything, it is the lowest, of which that is known.
    pub(crate) fn holder(&self, offset: u64, max: u64) -> Result<(u64, String)> {
        let (stretch, layer) = self.find(0, offset, max)?;
        let layer = layer.map(|(_, layer)| layer).or(self.layers.last());
        Ok((
            stretch.len,
            layer.map(Qcow2Reader::name).unwrap_or_default(),
        ))
    }

    /// Fills `buf` from byte `offset`. Behind the end are zeros.
    ///
    /// # Errors
    /// As [`run`](Self::run); a compressed cluster is damaged.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_below(0, buf, offset)
    }

    /// Does the same, without the first `above` layers.
    fn read_below(&self, above: u32, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut rest = buf;
        let mut position = offset;
        while !rest.is_empty() {
            let (stretch, layer) = self.find(above, position, rest.len() as u64)?;
            let (bytes, behind) = rest.split_at_mut(stretch.len as usize);
            match (stretch.held, layer) {
                (Held::Bytes(place), Some((number, layer))) => {
                    layer.read_file(bytes, place)?;
                    if let Some(proof) = self.proof(number) {
                        proof.check_bytes(layer, (position, place), bytes)?;
                    }
                }
                (Held::Packed(packed), Some((number, layer))) => {
                    let cluster = self
                        .unpacked
                        .get((number, packed), || layer.unpack(packed).map(Arc::from))?;
                    if let Some(proof) = self.proof(number) {
                        proof.check_cluster(position / CLUSTER_LEN, &cluster)?;
                    }
                    let from = (position % CLUSTER_LEN) as usize;
                    let part = cluster.get(from..from + bytes.len());
                    bytes.copy_from_slice(part.unwrap_or_default());
                }
                _ => bytes.fill(0),
            }
            position += stretch.len;
            rest = behind;
        }
        Ok(())
    }

    /// Returns what shows at byte `offset` without the first `above` layers, and the layer that holds it.
    fn find(
        &self,
        above: u32,
        offset: u64,
        max: u64,
    ) -> Result<(Stretch, Option<(u32, &Qcow2Reader)>)> {
        let mut len = max;
        for (number, layer) in (0..).zip(&self.layers).skip(above as usize) {
            let mut stretch = layer.stretch(offset, len)?;
            if let (Held::Nothing | Held::Zeros, Some(proof)) = (stretch.held, self.proof(number)) {
                stretch = proof.check_hole(offset, stretch, |cluster| {
                    let mut below = vec![0; CLUSTER_LEN as usize];
                    self.read_below(number + 1, &mut below, cluster * CLUSTER_LEN)?;
                    Ok(below)
                })?;
            }
            if stretch.held != Held::Nothing {
                let stretch = self.allowed(number, offset, stretch)?;
                return Ok((stretch, Some((number, layer))));
            }
            len = stretch.len;
        }
        let held = Held::Zeros;
        Ok((Stretch { len, held }, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::CLUSTER;
    use crate::qcow2::layer::{Clusters, LayerWriter};
    use crate::storage::{OpenMode, SimulatedStorage};

    fn layer(
        storage: &SimulatedStorage,
        name: &str,
        size: u64,
        below: Option<&str>,
        clusters: &[(u64, u8)],
    ) {
        let file = storage
            .open(&Path::new("/").join(name), OpenMode::New)
            .unwrap();
        let below = below.map(String::from);
        let mut writer = LayerWriter::new(file, size, below, Clusters::Plain).unwrap();
        for (cluster, byte) in clusters {
            match byte {
                0 => writer.zero(*cluster, 1).unwrap(),
                _ => writer.put(*cluster, &vec![*byte; CLUSTER]).unwrap(),
            }
        }
        writer.finish().unwrap();
    }

    /// The first byte of each cluster.
    fn look(storage: &SimulatedStorage, name: &str) -> Vec<u8> {
        let chain = Chain::open(storage, &Path::new("/").join(name)).unwrap();
        let mut all = vec![0xee; chain.size() as usize];
        chain.read_at(&mut all, 0).unwrap();
        let mut at = 0;
        while at < chain.size() {
            let run = chain.run(at, chain.size() - at).unwrap();
            let bytes = &all[at as usize..(at + run.len) as usize];
            assert!(run.len > 0 && (run.place.is_some() || bytes.iter().all(|b| *b == 0)));
            at += run.len;
        }
        all.chunks(CLUSTER).map(|cluster| cluster[0]).collect()
    }

    #[test]
    fn the_uppermost_that_holds_something_shows_and_sizes_may_differ() {
        let storage = SimulatedStorage::new(1);
        let size = |clusters: u64| clusters * CLUSTER_LEN;
        layer(
            &storage,
            "full",
            size(6),
            None,
            &[(0, 1), (1, 1), (3, 1), (5, 1)],
        );
        layer(&storage, "a", size(6), Some("full"), &[(1, 2), (3, 0)]);
        assert_eq!(look(&storage, "a"), [1, 2, 0, 0, 0, 1]);
        layer(&storage, "cut", size(4) - 512, Some("a"), &[(2, 3)]);
        assert_eq!(look(&storage, "cut"), [1, 2, 3, 0]);
        layer(&storage, "grown", size(7), Some("cut"), &[(6, 4)]);
        assert_eq!(look(&storage, "grown"), [1, 2, 3, 0, 0, 0, 4]);
        let grown = Chain::open(&storage, Path::new("/grown")).unwrap();
        assert_eq!((grown.layers(), grown.size()), (4, size(7)));
        assert_eq!(
            grown.run(size(9), 77).unwrap(),
            Run {
                len: 77,
                place: None
            }
        );
    }

    #[test]
    fn a_chain_that_stands_on_itself_or_on_nothing_is_refused() {
        let storage = SimulatedStorage::new(1);
        layer(&storage, "self", CLUSTER_LEN, Some("self"), &[]);
        let error = Chain::open(&storage, Path::new("/self")).unwrap_err();
        assert!(error.to_string().contains("on itself"), "{error}");
        layer(&storage, "lost", CLUSTER_LEN, Some("gone"), &[]);
        let error = Chain::open(&storage, Path::new("/lost")).unwrap_err();
        assert!(error.to_string().contains("/gone"), "{error}");
    }
}
