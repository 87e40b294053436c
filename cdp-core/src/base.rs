//! Base points: the layers of a volume underneath the journal.
//!
//! Of each volume there is a chain of layers, each over the one before it: the oldest is full, the others have what
//! changed since. A seed writes a full one ([`seed`]), [`build`] the next increment, [`merge`] makes few of many. Beside
//! each lie its [`hashes`]. What shows at a point is found from the newest layer that is not above it, and the
//! journal's records since; whatever can be had so can be had from an older layer, too.
//!
//! Invariant: a layer shows what the journal says of its record, whatever is merged below it. A name says of a layer
//! which record it is of, and nothing else: whether it is full, and what it stands on, is said by its header.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::{HarborError, Result};
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::storage::Storage;
use crate::storage::replace::remove_if_there;

pub(crate) mod build;
pub mod hashes;
pub(crate) mod merge;
mod progress;
pub(crate) mod proof;
mod seed;
mod slots;

pub use merge::Merged;
pub use progress::Progress;
pub use seed::SeedWriter;

/// A layer of a volume as of one record: an image that shows all of the volume, on its own or with what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePoint {
    /// The volume.
    pub volume: VolumeId,
    /// The last record it contains.
    pub seq: Seq,
    /// The file.
    pub path: PathBuf,
}

/// What is found in the directories of base points.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The layers that can be used, sorted by volume and record.
    pub(crate) bases: Vec<BasePoint>,
    /// Merges that were begun and are to be finished, by the layer whose name the outcome gets.
    pub(crate) merging: BTreeMap<VolumeId, Seq>,
}

/// Returns the directory of a volume's base points.
pub(crate) fn volume_dir(base_dir: &Path, volume: VolumeId) -> PathBuf {
    base_dir.join(format!("vol-{:05}", volume.0))
}

/// Returns the path of a layer that a seed writes.
pub(crate) fn full_path(base_dir: &Path, volume: VolumeId, seq: Seq) -> PathBuf {
    volume_dir(base_dir, volume).join(format!("full-{:020}.qcow2", seq.0))
}

/// Returns the path of a layer over another.
pub(crate) fn increment_path(base_dir: &Path, volume: VolumeId, seq: Seq) -> PathBuf {
    volume_dir(base_dir, volume).join(format!("inc-{:020}.qcow2", seq.0))
}

/// Returns the path of the mark of a merge in place that was begun.
pub(crate) fn marker_path(base_dir: &Path, volume: VolumeId, seq: Seq) -> PathBuf {
    volume_dir(base_dir, volume).join(format!("merge-{:020}.toml", seq.0))
}

/// Finds all base points and unfinished merges; removes what unfinished work left, and names it in `removed`.
pub(crate) fn find(
    storage: &dyn Storage,
    base_dir: &Path,
    removed: &mut Vec<String>,
) -> Result<Found> {
    let sync = |dir: &Path| {
        storage
            .sync_dir(dir)
            .map_err(|e| HarborError::storage("sync", dir, e))
    };
    let mut found = Found::default();
    // What has its name may have it in memory only: what is found is to stay.
    sync(base_dir)?;
    for dir_name in list(storage, base_dir)? {
        let Some(volume) = dir_name
            .strip_prefix("vol-")
            .and_then(|digits| digits.parse().ok())
        else {
            continue;
        };
        let volume = VolumeId(volume);
        let dir = base_dir.join(&dir_name);
        sync(&dir)?;
        let names: BTreeSet<String> = list(storage, &dir)?.into_iter().collect();
        for name in names.iter().filter(|name| is_left_over(name, &names)) {
            let path = dir.join(name);
            remove_if_there(storage, &path)
                .map_err(|e| HarborError::storage("remove", &path, e))?;
            removed.push(format!("base/{dir_name}/{name}"));
        }
        let merging = names.iter().filter_map(|name| merge_seq(name)).max();
        let layers = names.iter().filter_map(|name| {
            let seq = layer_seq(name)?;
            // What lies below an unfinished merge is not what it was.
            (Some(seq) >= merging).then(|| BasePoint {
                volume,
                seq,
                path: dir.join(name),
            })
        });
        found.bases.extend(layers);
        found.merging.extend(merging.map(|seq| (volume, seq)));
    }
    found
        .bases
        .sort_unstable_by(|a, b| (a.volume, a.seq, &a.path).cmp(&(b.volume, b.seq, &b.path)));
    Ok(found)
}

fn list(storage: &dyn Storage, dir: &Path) -> Result<Vec<String>> {
    storage
        .list(dir)
        .map_err(|e| HarborError::storage("list", dir, e))
}

/// Tells whether a file is part of unfinished work: incomplete, or hashes of a layer that did not come to its name.
fn is_left_over(name: &str, names: &BTreeSet<String>) -> bool {
    match name.rsplit_once('.') {
        Some((_, "part")) => true,
        Some((stem, "hashes")) => {
            let owner = match stem.strip_prefix("merge-") {
                Some(_) => format!("{stem}.toml"),
                None => format!("{stem}.qcow2"),
            };
            !names.contains(&owner)
        }
        _ => false,
    }
}

/// Returns the record of the layer with that file name.
pub(crate) fn layer_seq(name: &str) -> Option<Seq> {
    let stem = name.strip_suffix(".qcow2")?;
    let digits = stem
        .strip_prefix("full-")
        .or_else(|| stem.strip_prefix("inc-"))?;
    seq_of(digits)
}

/// Returns the record of the layer whose name the outcome of a merge is to get.
fn merge_seq(name: &str) -> Option<Seq> {
    seq_of(name.strip_prefix("merge-")?.strip_suffix(".toml")?)
}

fn seq_of(digits: &str) -> Option<Seq> {
    let seq = digits.parse().ok()?;
    (format!("{seq:020}") == digits).then_some(Seq(seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_only_as_they_are_written() {
        let table = [
            ("full-00000000000000000003.qcow2", Some(3)),
            ("inc-00000000000000000012.qcow2", Some(12)),
            ("inc-12.qcow2", None),
            ("inc-00000000000000000012.hashes", None),
            ("inc-00000000000000000012.qcow2.part", None),
            ("merge-00000000000000000012.toml", None),
        ];
        for (name, seq) in table {
            assert_eq!(layer_seq(name), seq.map(Seq), "{name}");
        }
        assert_eq!(merge_seq("merge-00000000000000000012.toml"), Some(Seq(12)));
        assert_eq!(merge_seq("merge-12.toml"), None);
    }

    #[test]
    fn hashes_without_their_layer_are_left_over() {
        let names = [
            "a.qcow2",
            "a.hashes",
            "b.hashes",
            "merge-1.hashes",
            "merge-2.hashes",
        ];
        let mut names: BTreeSet<String> = names.map(String::from).into();
        names.insert("merge-2.toml".into());
        let left: Vec<&String> = names
            .iter()
            .filter(|name| is_left_over(name, &names))
            .collect();
        assert_eq!(left, ["b.hashes", "merge-1.hashes"]);
    }
}
