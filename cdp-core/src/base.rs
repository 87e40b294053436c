//! Base points: the layer of a volume underneath the journal.
//!
//! One full image per volume for now; looked up as a list, newest not above the point first.

use std::path::{Path, PathBuf};

use crate::error::{HarborError, Result};
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::storage::Storage;
use crate::storage::replace::remove_if_there;

mod seed;

pub use seed::SeedWriter;

/// A complete image of a volume as of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePoint {
    /// The volume.
    pub volume: VolumeId,
    /// The last record it contains.
    pub seq: Seq,
    /// The file.
    pub path: PathBuf,
}

/// Returns the directory of a volume's base points.
pub(crate) fn volume_dir(base_dir: &Path, volume: VolumeId) -> PathBuf {
    base_dir.join(format!("vol-{:05}", volume.0))
}

/// Returns the path of a full base point.
pub(crate) fn full_path(base_dir: &Path, volume: VolumeId, seq: Seq) -> PathBuf {
    volume_dir(base_dir, volume).join(format!("full-{:020}.qcow2", seq.0))
}

/// Finds all base points, sorted by volume and record; removes unfinished ones, and names them in
/// `removed`.
pub(crate) fn find(
    storage: &dyn Storage,
    base_dir: &Path,
    removed: &mut Vec<String>,
) -> Result<Vec<BasePoint>> {
    let list = |dir: &Path| {
        storage
            .list(dir)
            .map_err(|e| HarborError::storage("list", dir, e))
    };
    let sync = |dir: &Path| {
        storage
            .sync_dir(dir)
            .map_err(|e| HarborError::storage("sync", dir, e))
    };
    let mut found = Vec::new();
    // What has its name may have it in memory only: what is found is to stay.
    sync(base_dir)?;
    for dir_name in list(base_dir)? {
        let Some(volume) = dir_name
            .strip_prefix("vol-")
            .and_then(|digits| digits.parse().ok())
        else {
            continue;
        };
        let volume = VolumeId(volume);
        let dir = base_dir.join(&dir_name);
        sync(&dir)?;
        for name in list(&dir)? {
            let path = dir.join(&name);
            if name.ends_with(".part") {
                remove_if_there(storage, &path)
                    .map_err(|e| HarborError::storage("remove", &path, e))?;
                removed.push(format!("base/{dir_name}/{name}"));
            } else if let Some(seq) = full_seq(&name) {
                found.push(BasePoint { volume, seq, path });
            }
        }
    }
    found.sort_unstable_by_key(|base| (base.volume, base.seq));
    Ok(found)
}

/// Returns the record of the base point with that file name.
fn full_seq(name: &str) -> Option<Seq> {
    let digits = name.strip_prefix("full-")?.strip_suffix(".qcow2")?;
    let seq = digits.parse().ok()?;
    (format!("{seq:020}") == digits).then_some(Seq(seq))
}
