//! The layers of volumes, as views and merging share them.
//!
//! A view opens the files of a chain one after the other by their names, so no name changes meanwhile
//! ([`Shared::change_names`]). Chains that are open are known, so that nothing is merged in place that a view reads
//! without cover.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, TryLockError, Weak,
};

use super::shared::Shared;
use crate::base::hashes::hashes_path;
use crate::base::proof::Proof;
use crate::base::{BasePoint, layer_seq, marker_path};
use crate::error::{HarborError, Result};
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::qcow2::Chain;
use crate::qcow2::reader::Qcow2Reader;
use crate::view::image::Plan;

/// What is known of the layers beside their list.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// Held while layers are built or merged.
    turn: Mutex<()>,
    /// Held for reading while a chain is opened, for writing while names change.
    names: RwLock<()>,
    /// Merges in place that are not finished, by the layer that covers what is changed.
    merging: Mutex<BTreeMap<VolumeId, Seq>>,
    /// Chains that may still be open, by their uppermost layer.
    open: Mutex<Vec<(VolumeId, Seq, Weak<Chain>)>>,
}

impl Layers {
    pub(super) fn new(merging: BTreeMap<VolumeId, Seq>) -> Layers {
        Layers {
            merging: Mutex::new(merging),
            ..Layers::default()
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Works out what an image of a volume at record `up_to` is made of; it has `size` bytes there.
    pub(crate) fn plan(&self, volume: VolumeId, size: u64, up_to: Seq) -> Result<Plan> {
        let description = self.description();
        let described = description.volume(volume);
        let suffices =
            |layer: &BasePoint| described.is_none_or(|d| d.layer_suffices(layer.seq, up_to));
        let names = self.layers.names.read();
        let _names = names.unwrap_or_else(PoisonError::into_inner);
        let mut layers = self.layers_of(volume);
        layers.retain(|layer| layer.seq <= up_to);
        let newest = layers.iter().rev().find(|layer| suffices(layer));
        let base = newest
            .or(layers.first())
            .ok_or(HarborError::NotSeeded(volume))?;
        let mut chain = Chain::open(&*self.options.storage, &base.path)?;
        let unfinished = lock(&self.layers.merging).get(&volume).copied();
        chain.prove(|layer| self.prove(volume, layer, unfinished))?;
        chain.refuse(&self.damaged_areas(volume));
        let chain = Arc::new(chain);
        let mut open = lock(&self.layers.open);
        open.retain(|(_, _, chain)| chain.strong_count() > 0);
        open.push((volume, base.seq, Arc::downgrade(&chain)));
        Ok(Plan {
            volume,
            size,
            base: Some(chain),
            after: base.seq,
        })
    }

    /// Opens what a layer is checked with; `unfinished` is the record of the layer that goes into the full.
    fn prove(
        &self,
        volume: VolumeId,
        layer: &Qcow2Reader,
        unfinished: Option<Seq>,
    ) -> Result<Option<Proof>> {
        let storage = &*self.options.storage;
        let is_full = layer.backing().is_none();
        // A full that has its new name, and its hashes perhaps not yet.
        if let Some(seq) =
            unfinished.filter(|seq| is_full && layer_seq(&layer.name()) == Some(*seq))
        {
            let waiting = hashes_path(&marker_path(&self.base_dir(), volume, seq));
            let proof = Proof::open(storage, &waiting, layer, false)?;
            if proof.is_some() {
                return Ok(proof);
            }
        }
        let changing = is_full && unfinished.is_some();
        Proof::open(storage, &hashes_path(layer.path()), layer, changing)
    }

    /// Returns the layers of a volume that can be used, oldest first.
    pub(crate) fn layers_of(&self, volume: VolumeId) -> Vec<BasePoint> {
        let bases = self.bases();
        bases
            .iter()
            .filter(|base| base.volume == volume)
            .cloned()
            .collect()
    }

    /// Takes the turn to build or merge layers: one at a time.
    pub(crate) fn claim_layers(&self) -> Result<MutexGuard<'_, ()>> {
        match self.layers.turn.try_lock() {
            Ok(turn) => Ok(turn),
            Err(TryLockError::Poisoned(turn)) => Ok(turn.into_inner()),
            Err(TryLockError::WouldBlock) => Err(HarborError::Busy("a base point or a merge")),
        }
    }

    /// Keeps chains from being opened while the answer lives.
    pub(crate) fn change_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.layers
            .names
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the record of the oldest layer of a volume from which something that is open reads without cover.
    pub(crate) fn first_used(&self, volume: VolumeId) -> Option<Seq> {
        let open = lock(&self.layers.open);
        let ours = open
            .iter()
            .filter(|(of, _, chain)| *of == volume && chain.strong_count() > 0);
        ours.map(|(_, seq, _)| *seq).min()
    }

    /// Takes the full of a volume out of use, under cover of the layer of record `increment`; false if something reads it
    /// without that.
    pub(crate) fn begin_merge(&self, full: &BasePoint, increment: Seq) -> bool {
        let _names = self.change_names();
        if self
            .first_used(full.volume)
            .is_some_and(|used| used < increment)
        {
            return false;
        }
        self.bases().retain(|kept| kept != full);
        lock(&self.layers.merging).insert(full.volume, increment);
        true
    }

    /// Takes note of the end of a merge in place.
    pub(crate) fn end_merge(&self, volume: VolumeId) {
        lock(&self.layers.merging).remove(&volume);
    }

    /// Returns the merges in place that are not finished.
    pub(crate) fn unfinished_merges(&self) -> Vec<(VolumeId, Seq)> {
        let merging = lock(&self.layers.merging);
        merging
            .iter()
            .map(|(volume, seq)| (*volume, *seq))
            .collect()
    }

    /// Returns the files of all layers: images, hashes, and fulls that are being merged.
    pub(super) fn layer_files(&self) -> Result<Vec<PathBuf>> {
        let storage = &*self.options.storage;
        let names = self.layers.names.read();
        let _names = names.unwrap_or_else(PoisonError::into_inner);
        let mut volumes: Vec<VolumeId> = self.bases().iter().map(|base| base.volume).collect();
        volumes.dedup();
        let mut files = Vec::new();
        for volume in volumes {
            let dir = crate::base::volume_dir(&self.base_dir(), volume);
            let names = storage
                .list(&dir)
                .map_err(|e| HarborError::storage("list", &dir, e))?;
            let images = names
                .iter()
                .filter(|name| crate::base::layer_seq(name).is_some());
            for image in images.map(|name| dir.join(name)) {
                let hashes = hashes_path(&image);
                let has_hashes = hashes.file_name().and_then(|name| name.to_str());
                if has_hashes.is_some_and(|name| names.iter().any(|known| known == name)) {
                    files.push(hashes);
                }
                files.push(image);
            }
        }
        Ok(files)
    }
}
