//! The oldest increment goes into the full, in place.
//!
//! A mark says so first: from then on the full is under cover of the increment, which holds all that is changed, and is
//! offered for no view itself. Then what the increment holds is written into the full's file; then the hashes of both are
//! put down beside the mark; then the full gets the increment's name, so that what stands on that is true still; then the
//! hashes get theirs; then the mark goes.
//!
//! A crash leaves the mark. While what has the increment's name stands on something, all of it is done again; once it does
//! not, it is the full, and only the names behind it are put right.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{hash_held, sync_dir_of};
use crate::base::hashes::{HashCursor, HashesWriter, hashes_path};
use crate::base::progress::{Control, Teller};
use crate::base::{BasePoint, layer_seq, marker_path};
use crate::bounds::{CLUSTER, COPY_PIECE};
use crate::error::{HarborError, Result};
use crate::harbor::shared::Shared;
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::qcow2::reader::{Held, Qcow2Reader};
use crate::qcow2::update::{Before, Qcow2Updater};
use crate::storage::replace::{remove_if_there, replace};

const CLUSTER_LEN: u64 = CLUSTER as u64;

/// Merges the oldest increment into the full; false, with nothing done, if the full is in use or cannot take it.
pub(super) fn merge(
    shared: &Shared,
    full: &BasePoint,
    increment: &BasePoint,
    control: &mut Control<'_>,
) -> Result<bool> {
    let storage = &*shared.options.storage;
    let updater = Qcow2Updater::open(storage, &full.path, Before::Whole)?;
    let bytes = Qcow2Reader::open(storage, &increment.path)?.file_len();
    if !updater.has_room_for(bytes / CLUSTER_LEN) || !shared.begin_merge(full, increment.seq) {
        return Ok(false);
    }
    let merge = Merge {
        shared,
        volume: full.volume,
        increment: increment.path.clone(),
        marker: marker_path(&shared.base_dir(), full.volume, increment.seq),
    };
    merge.mark()?;
    merge.write(&full.path, updater, control)?;
    merge.name(full)?;
    shared.end_merge(full.volume);
    Ok(true)
}

/// Finishes a merge that was begun; returns the record of the full that took the increment in, if that was to be done again.
pub(super) fn go_on(
    shared: &Shared,
    volume: VolumeId,
    seq: Seq,
    control: &mut Control<'_>,
) -> Result<Option<Seq>> {
    let storage = &*shared.options.storage;
    let layers = shared.layers_of(volume);
    let marker = marker_path(&shared.base_dir(), volume, seq);
    let missing = || HarborError::damaged(&marker, "there is no layer of its name");
    let increment = layers
        .iter()
        .find(|layer| layer.seq == seq)
        .ok_or_else(missing)?;
    let merge = Merge {
        shared,
        volume,
        increment: increment.path.clone(),
        marker: marker.clone(),
    };
    // Where it could not be put down, it may be known here only.
    merge.mark()?;
    let image = Qcow2Reader::open(storage, &increment.path)?;
    let full = image
        .backing()
        .map(|name| increment.path.with_file_name(name));
    let gone = match full {
        Some(path) => {
            let full = BasePoint {
                volume,
                seq: layer_seq(&name_of(&path)).ok_or_else(missing)?,
                path,
            };
            let updater = Qcow2Updater::open(storage, &full.path, Before::Unfinished)?;
            merge.write(&full.path, updater, control)?;
            merge.name(&full)?;
            Some(full.seq)
        }
        None => {
            let _names = shared.change_names();
            merge.name_hashes()?;
            None
        }
    };
    shared.end_merge(volume);
    Ok(gone)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// A merge for which there is a mark.
struct Merge<'a> {
    shared: &'a Shared,
    volume: VolumeId,
    increment: PathBuf,
    marker: PathBuf,
}

impl Merge<'_> {
    /// Puts the mark down, durable on return.
    fn mark(&self) -> Result<()> {
        let text = format!("# {} goes into the full.\n", name_of(&self.increment));
        replace(&*self.shared.options.storage, &self.marker, text.as_bytes())
            .map_err(|e| HarborError::storage("write", &self.marker, e))
    }

    /// Writes what the increment holds into the full, and the hashes of both beside the mark.
    fn write(
        &self,
        full: &Path,
        mut updater: Qcow2Updater,
        control: &mut Control<'_>,
    ) -> Result<()> {
        let increment = Qcow2Reader::open(&*self.shared.options.storage, &self.increment)?;
        updater.resize(increment.size())?;
        self.copy(&increment, &mut updater, control)?;
        updater.finish()?;
        self.merge_hashes(full, &increment)?;
        // Nobody opens the full meanwhile, who would have its tables' places from before.
        let _names = self.shared.change_names();
        updater.give_back()
    }

    fn copy(
        &self,
        increment: &Qcow2Reader,
        updater: &mut Qcow2Updater,
        control: &mut Control<'_>,
    ) -> Result<()> {
        let size = increment.size();
        let mut teller = Teller::new(control, self.volume, size);
        let mut piece = vec![0; COPY_PIECE];
        let mut at = 0;
        while at < size {
            let stretch = increment.stretch(at, size - at)?;
            let (mut first, end) = (at / CLUSTER_LEN, (at + stretch.len).div_ceil(CLUSTER_LEN));
            at += stretch.len;
            if stretch.held == Held::Nothing {
                continue;
            }
            let begin = first;
            while first < end {
                let clusters = (end - first).min((COPY_PIECE / CLUSTER) as u64);
                let bytes = piece.get_mut(..(clusters * CLUSTER_LEN) as usize);
                let bytes = bytes.unwrap_or_default();
                match stretch.held {
                    Held::Bytes(place) => {
                        increment.read_file(bytes, place + (first - begin) * CLUSTER_LEN)?;
                        updater.put(first, bytes)?;
                    }
                    Held::Packed(packed) => updater.put(first, &increment.unpack(packed)?)?,
                    _ => updater.zero(first, clusters)?,
                }
                first += clusters;
                let moved = match stretch.held {
                    Held::Zeros => 0,
                    _ => clusters * CLUSTER_LEN,
                };
                teller.tell(first * CLUSTER_LEN, moved, moved)?;
            }
        }
        teller.tell(size, 0, 0)
    }

    /// Writes the hashes that the full is to have: its own, but for what the increment holds, and that one's. A full that
    /// has none, being older than hashes, gets them now.
    fn merge_hashes(&self, full: &Path, increment: &Qcow2Reader) -> Result<()> {
        let storage = &self.shared.options.storage;
        let mut old = HashCursor::open(&**storage, full)?;
        let bare = match old.is_there() {
            true => None,
            false => Some(Qcow2Reader::open(&**storage, full)?),
        };
        let mut new = HashCursor::open(&**storage, &self.increment)?;
        let size = increment.size();
        let path = self.hashes();
        let failed = |e| HarborError::storage("write", &path, e);
        let seq = layer_seq(&name_of(&self.increment)).unwrap_or_default();
        let writer = HashesWriter::new(Arc::clone(storage), path.clone(), size, seq);
        let mut writer = writer.map_err(failed)?;
        let mut at = 0;
        while at < size {
            let stretch = increment.stretch(at, size - at)?;
            let (first, end) = (at / CLUSTER_LEN, (at + stretch.len).div_ceil(CLUSTER_LEN));
            at += stretch.len;
            while let Some(cluster) = old.next_cluster().filter(|cluster| *cluster < end) {
                let taken = old.take()?;
                if let (Held::Nothing, Some((_, hash))) = (stretch.held, taken) {
                    writer.push(cluster, hash).map_err(failed)?;
                }
            }
            if let (Held::Nothing, Some(full)) = (stretch.held, &bare) {
                write_held(full, first..end, &mut writer)?;
            }
            if !new.is_there() && stretch.held != Held::Nothing {
                write_held(increment, first..end, &mut writer)?;
            } else if matches!(stretch.held, Held::Bytes(_) | Held::Packed(_)) {
                for cluster in first..end {
                    if let Some(hash) = new.take_of(cluster)? {
                        writer.push(cluster, hash).map_err(failed)?;
                    }
                }
            }
        }
        writer.finish().map_err(failed)
    }

    /// Gives the full the name of the increment, and puts right all names behind that.
    fn name(&self, full: &BasePoint) -> Result<()> {
        // Nobody takes the hashes of the increment for those of the full.
        let _names = self.shared.change_names();
        let storage = &*self.shared.options.storage;
        let renamed = storage.rename(&full.path, &self.increment);
        renamed.map_err(|e| HarborError::storage("rename", &self.increment, e))?;
        sync_dir_of(self.shared, &self.increment)?;
        let needless = hashes_path(&full.path);
        remove_if_there(storage, &needless)
            .map_err(|e| HarborError::storage("remove", &needless, e))?;
        self.name_hashes()
    }

    /// Gives the hashes their name, and removes what is not needed any more, the mark last.
    fn name_hashes(&self) -> Result<()> {
        let storage = &*self.shared.options.storage;
        let (from, to) = (self.hashes(), hashes_path(&self.increment));
        match storage.rename(&from, &to) {
            // That was done already.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(|e| HarborError::storage("rename", &to, e))?,
        }
        sync_dir_of(self.shared, &to)?;
        remove_if_there(storage, &self.marker)
            .map_err(|e| HarborError::storage("remove", &self.marker, e))?;
        sync_dir_of(self.shared, &self.marker)
    }

    /// Returns the path of the hashes that wait for their name.
    fn hashes(&self) -> PathBuf {
        hashes_path(&self.marker)
    }
}

/// Writes hashes of what a layer that has none holds of some clusters, but for zeros, which a full need not hold.
fn write_held(layer: &Qcow2Reader, clusters: Range<u64>, writer: &mut HashesWriter) -> Result<()> {
    for cluster in clusters {
        if let (Held::Bytes(_) | Held::Packed(_), hash) = hash_held(layer, cluster)? {
            let pushed = writer.push(cluster, hash);
            pushed.map_err(|e| HarborError::storage("write", layer.path(), e))?;
        }
    }
    Ok(())
}
