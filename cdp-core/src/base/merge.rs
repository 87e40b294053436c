//! Makes few layers of many: the chain of a volume is merged until it has at most
//! [`LAYERS_MAX`](crate::bounds::LAYERS_MAX).
//!
//! [`step`] says what is merged next. Where no point from before the oldest increment is kept, that goes into the full, in place
//! ([`into_full`]); otherwise two neighbouring increments become one, in a new file ([`join`]). Layers on which
//! nothing stands, and whole ones that are not needed any more, are removed.
//!
//! Invariant: each layer shows what it showed, at every moment, and so does every view that is open. Points at and behind
//! the oldest layer can be viewed at every moment. A crash leaves a chain that can be used, and perhaps a mark of a merge
//! in place that is to be finished ([`Harbor::unfinished_merges`](crate::Harbor::unfinished_merges)): the next merging
//! does that first.

use std::path::Path;

use super::BasePoint;
use super::hashes::{ClusterHash, hash_cluster, hashes_path};
use super::progress::Control;
use crate::bounds::CLUSTER;
use crate::error::{HarborError, Result};
use crate::harbor::shared::Shared;
use crate::machine::{VolumeDescription, VolumeId};
use crate::point::Seq;
use crate::qcow2::layer::Clusters;
use crate::qcow2::reader::{Held, Qcow2Reader};
use crate::storage::replace::remove_if_there;

mod into_full;
mod join;
mod step;

use step::{Facts, Step, next_step};

/// What a merging has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The volume.
    pub volume: VolumeId,
    /// The layer that is no more.
    pub gone: Seq,
    /// The layer that has its content; none if it was not needed.
    pub into: Option<Seq>,
}

/// Merges the chains of all volumes; the oldest point that is kept, pinned or locked is at record `first_kept`.
pub(crate) fn merge(
    shared: &Shared,
    first_kept: Seq,
    clusters: Clusters,
    mut control: Control<'_>,
) -> Result<Vec<Merged>> {
    let _turn = shared.claim_layers()?;
    let mut merged = Vec::new();
    for (volume, seq) in shared.unfinished_merges() {
        let gone = into_full::go_on(shared, volume, seq, &mut control)?;
        merged.push(Merged {
            volume,
            gone: gone.unwrap_or(seq),
            into: Some(seq),
        });
    }
    for volume in shared.description().volumes {
        while let Some(done) = merge_once(shared, &volume, first_kept, clusters, &mut control)? {
            merged.push(done);
        }
    }
    Ok(merged)
}

/// Does the next step of a volume; none if there is none.
fn merge_once(
    shared: &Shared,
    volume: &VolumeDescription,
    first_kept: Seq,
    clusters: Clusters,
    control: &mut Control<'_>,
) -> Result<Option<Merged>> {
    let layers = shared.layers_of(volume.id);
    let facts = facts(shared, volume, &layers)?;
    let first_used = shared
        .first_used(volume.id)
        .map_or(first_kept, |used| used.min(first_kept));
    let Some(step) = next_step(&facts, first_used) else {
        return Ok(None);
    };
    shared.check_undamaged(volume.id)?;
    let (at, outcome) = match step {
        Step::Drop(at) => (at, None),
        Step::IntoFull => (0, Some(1)),
        Step::Join(at) => (at, Some(at + 1)),
    };
    let (Some(lower), upper) = (layers.get(at), outcome.and_then(|at| layers.get(at))) else {
        return Ok(None);
    };
    match (step, upper) {
        (Step::IntoFull, Some(upper)) => {
            // Where the full has no room to count more, or is in use after all.
            if !into_full::merge(shared, lower, upper, control)? {
                return join_instead(shared, &layers, clusters, control);
            }
        }
        (Step::Join(_), Some(upper)) => join::join(shared, lower, upper, clusters, control)?,
        _ => remove(shared, lower)?,
    }
    Ok(Some(Merged {
        volume: volume.id,
        gone: lower.seq,
        into: upper.map(|upper| upper.seq),
    }))
}

/// Joins the two oldest increments, where the oldest cannot go into the full.
fn join_instead(
    shared: &Shared,
    layers: &[BasePoint],
    clusters: Clusters,
    control: &mut Control<'_>,
) -> Result<Option<Merged>> {
    let (Some(lower), Some(upper)) = (layers.get(1), layers.get(2)) else {
        return Ok(None);
    };
    join::join(shared, lower, upper, clusters, control)?;
    Ok(Some(Merged {
        volume: lower.volume,
        gone: lower.seq,
        into: Some(upper.seq),
    }))
}

/// Looks at the layers of a volume.
fn facts(shared: &Shared, volume: &VolumeDescription, layers: &[BasePoint]) -> Result<Vec<Facts>> {
    let storage = &*shared.options.storage;
    let mut facts: Vec<Facts> = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let image = Qcow2Reader::open(storage, &layer.path)?;
        let is_below = |other: &BasePoint| file_name(&other.path) == image.backing();
        facts.push(Facts {
            seq: layer.seq,
            below: layers
                .get(..at)
                .unwrap_or_default()
                .iter()
                .position(is_below),
            is_full: image.backing().is_none(),
            bytes: image.file_len(),
            hides_more: volume.hides_more_after(layer.seq),
        });
    }
    Ok(facts)
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

/// Removes a layer on which nothing stands.
fn remove(shared: &Shared, layer: &BasePoint) -> Result<()> {
    let _names = shared.change_names();
    shared.bases().retain(|kept| kept != layer);
    remove_files(shared, layer)
}

/// Removes the files of a layer that is offered no more; durable on return.
fn remove_files(shared: &Shared, layer: &BasePoint) -> Result<()> {
    let storage = &*shared.options.storage;
    // The hashes last: without their layer they are taken for left over.
    for path in [layer.path.clone(), hashes_path(&layer.path)] {
        remove_if_there(storage, &path).map_err(|e| HarborError::storage("remove", &path, e))?;
        sync_dir_of(shared, &path)?;
    }
    Ok(())
}

/// Tells what a layer holds of a cluster, and its hash.
fn hash_held(layer: &Qcow2Reader, cluster: u64) -> Result<(Held, ClusterHash)> {
    let start = cluster * CLUSTER as u64;
    let len = layer.size().saturating_sub(start).min(CLUSTER as u64);
    let held = layer.stretch(start, len)?.held;
    let bytes = match held {
        Held::Bytes(place) => {
            let mut bytes = vec![0; len as usize];
            layer.read_file(&mut bytes, place)?;
            bytes
        }
        Held::Packed(packed) => layer.unpack(packed)?,
        Held::Nothing | Held::Zeros => Vec::new(),
    };
    Ok((held, hash_cluster(&bytes)))
}

fn sync_dir_of(shared: &Shared, path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    let synced = shared.options.storage.sync_dir(dir);
    synced.map_err(|e| HarborError::storage("sync", dir, e))
}
