//! What a harbor takes on its file system, part by part, and what there is to gain by deleting points.
//!
//! Files are told by their names, so each file there is counts once, also what is being written or is about to go. A file
//! that goes while this looks takes nothing. What is counted is what the file system has given: room that was reserved,
//! and no holes, which is what `du` adds up.
//!
//! Invariant: the parts add up to what all files and folders of the harbor take.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::path::Path;

use super::Harbor;
use super::shared::Shared;
use crate::base::layer_seq;
use crate::bounds::BLOCK;
use crate::error::{HarborError, Result};
use crate::journal::cold::cold_range;
use crate::journal::cold::estimate;
use crate::machine::VolumeId;
use crate::point::{Point, PointId, Seq};
use crate::storage::OpenMode;

/// What a harbor takes on its file system, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpaceTaken {
    /// The layers of base points, by volume, oldest first.
    pub layers: Vec<LayerSpace>,
    /// The journal.
    pub journal: JournalSpace,
    /// Files of work that is under way: layers and cold segments that are being written.
    pub unfinished: u64,
    /// The description, the XMLs, what is said of points and damage, bitmap marks, the lock, and the folders.
    pub other: u64,
}

/// What a layer takes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpace {
    /// The volume.
    pub volume: VolumeId,
    /// The last record it contains.
    pub seq: Seq,
    /// The first point that is shown with it, and not with a newer layer; none if there is no such point: then it is what
    /// newer ones stand on, or waits for points.
    pub first_point: Option<Point>,
    /// The image.
    pub image: u64,
    /// The hashes beside it.
    pub hashes: u64,
}

/// What the journal takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JournalSpace {
    /// How many sealed segments there are.
    pub sealed_count: u64,
    /// Sealed segments, as they were recorded.
    pub sealed: u64,
    /// How many cold segments there are.
    pub cold_count: u64,
    /// Cold segments, which stand for sealed ones.
    pub cold: u64,
    /// What was recorded since the last seal.
    pub recorded: u64,
    /// Room for what will be recorded next.
    pub reserved: u64,
}

/// What there is to gain by deleting points, in bytes: see [`Harbor::gain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freed {
    /// By the next compaction.
    pub soon: u64,
    /// Of segments that are not made anew as yet: more points of theirs must go first, or a base point be built behind
    /// them.
    pub later: u64,
}

impl SpaceTaken {
    /// Returns all of it: what `du` says of the harbor's directory.
    pub fn total(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.image + layer.hashes);
        let journal = self.journal;
        layers.sum::<u64>()
            + journal.sealed
            + journal.cold
            + journal.recorded
            + journal.reserved
            + self.unfinished
            + self.other
    }
}

impl Harbor {
    /// Returns what each part of the harbor takes on its file system.
    ///
    /// # Errors
    /// The storage failed.
    pub fn space(&self) -> Result<SpaceTaken> {
        let mut taken = measure(&self.shared)?;
        self.name_points(&mut taken.layers);
        Ok(taken)
    }

    /// Returns those of `points` that could be deleted: they are offered, and not locked, in use, or the newest.
    pub fn deletable(&self, points: &[Point]) -> Vec<PointId> {
        let asked: HashSet<PointId> = points.iter().map(|point| point.id).collect();
        let mut offered = self.shared.candidates();
        offered.pop();
        let may_go = offered.iter().filter(|one| !one.locked && !one.pinned);
        may_go
            .map(|one| one.id)
            .filter(|id| asked.contains(id))
            .collect()
    }

    /// Estimates how much room would be had if these points were deleted: what the records take that no other point
    /// shows. It is gone through what compaction would do with the points and without them; how well a record is
    /// compressed is known of its segment as a whole only. Neither the segment that is recorded to is counted, nor the
    /// layers: how many there are does not depend on the points.
    ///
    /// Reads the index of each segment with points that go, and of those that become one with it; the memory is that of
    /// one compaction.
    ///
    /// # Errors
    /// The index of a segment is damaged; the storage failed.
    pub fn gain(&self, points: &[PointId]) -> Result<Freed> {
        let gone: HashSet<PointId> = points.iter().copied().collect();
        let estimate = || estimate::gain(&self.shared, &self.shared.kept_points(), &gone);
        match estimate() {
            // Compaction has put another in a segment's place meanwhile: what there is now is looked at.
            Err(HarborError::Storage { source, .. }) if source.kind() == ErrorKind::NotFound => {
                estimate()
            }
            outcome => outcome,
        }
    }

    /// Finds the first point of each layer.
    fn name_points(&self, layers: &mut [LayerSpace]) {
        self.select(|points| {
            let mut next: Option<(VolumeId, Seq)> = None;
            for layer in layers.iter_mut().rev() {
                let above = next.filter(|(volume, _)| *volume == layer.volume);
                let at = points.partition_point(|point| point.seq < layer.seq);
                let first = points.get(at);
                let is_its = |point: &&Point| above.is_none_or(|(_, seq)| point.seq < seq);
                layer.first_point = first.filter(is_its).cloned();
                next = Some((layer.volume, layer.seq));
            }
        });
    }
}

/// The files of a harbor, as they are gone through.
struct Files<'a> {
    shared: &'a Shared,
    layers: BTreeMap<(VolumeId, Seq), LayerSpace>,
    taken: SpaceTaken,
}

fn measure(shared: &Shared) -> Result<SpaceTaken> {
    let mut files = Files {
        shared,
        layers: BTreeMap::new(),
        taken: SpaceTaken::default(),
    };
    files.of_harbor()?;
    Ok(SpaceTaken {
        layers: files.layers.into_values().collect(),
        ..files.taken
    })
}

impl Files<'_> {
    fn of_harbor(&mut self) -> Result<()> {
        for (name, bytes) in self.list(&self.shared.dir)? {
            match name.as_str() {
                "journal" => self.of_journal()?,
                "base" => self.of_bases()?,
                "xml" => {
                    let files = self.list(&self.shared.xml_dir())?;
                    self.taken.other += files.iter().map(|(_, bytes)| bytes).sum::<u64>();
                }
                _ => self.taken.other += bytes,
            }
        }
        Ok(())
    }

    fn of_journal(&mut self) -> Result<()> {
        // Asked first: what is sealed meanwhile counts as recorded to, and nothing twice.
        let last = self.shared.catalog().segments.last().cloned();
        let open = last.filter(|segment| !segment.is_sealed());
        let end = open.as_ref().map_or(0, |segment| segment.payloads_end());
        let open = open.as_ref().and_then(|one| one.path.file_name()?.to_str());
        for (name, bytes) in self.list(&self.shared.journal_dir())? {
            let journal = &mut self.taken.journal;
            if Some(name.as_str()) == open {
                let recorded = end.next_multiple_of(BLOCK as u64).min(bytes);
                journal.recorded += recorded;
                journal.reserved += bytes - recorded;
            } else if cold_range(&name).is_some() {
                journal.cold_count += 1;
                journal.cold += bytes;
            } else if name.ends_with(".seg") {
                journal.sealed_count += 1;
                journal.sealed += bytes;
            } else if name.ends_with(".seg.part") {
                // The next one, in which nothing counts before it has its name.
                journal.reserved += bytes;
            } else {
                self.unnamed(&name, bytes);
            }
        }
        Ok(())
    }

    fn of_bases(&mut self) -> Result<()> {
        let dir = self.shared.base_dir();
        for (name, bytes) in self.list(&dir)? {
            let digits = name.strip_prefix("vol-");
            match digits.and_then(|digits| digits.parse().ok()) {
                Some(number) => self.of_volume(VolumeId(number), &dir.join(&name))?,
                None => self.unnamed(&name, bytes),
            }
        }
        Ok(())
    }

    fn of_volume(&mut self, volume: VolumeId, dir: &Path) -> Result<()> {
        for (name, bytes) in self.list(dir)? {
            let of_hashes = name.strip_suffix(".hashes");
            let image = of_hashes.map_or(name.clone(), |stem| format!("{stem}.qcow2"));
            let Some(seq) = layer_seq(&image) else {
                self.unnamed(&name, bytes);
                continue;
            };
            let layer = self.layers.entry((volume, seq));
            let layer = layer.or_insert_with(|| LayerSpace {
                volume,
                seq,
                first_point: None,
                image: 0,
                hashes: 0,
            });
            match of_hashes {
                Some(_) => layer.hashes += bytes,
                None => layer.image += bytes,
            }
        }
        Ok(())
    }

    /// Counts a file that is neither of a layer nor of a segment.
    fn unnamed(&mut self, name: &str, bytes: u64) {
        match name.ends_with(".part") {
            true => self.taken.unfinished += bytes,
            false => self.taken.other += bytes,
        }
    }

    /// Returns what is in a folder and what each takes; the folder itself is counted.
    fn list(&mut self, dir: &Path) -> Result<Vec<(String, u64)>> {
        self.taken.other += self.allocated(dir)?;
        let names = self.shared.options.storage.list(dir);
        let names = names.map_err(|e| HarborError::storage("list", dir, e))?;
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let bytes = self.allocated(&dir.join(&name))?;
            files.push((name, bytes));
        }
        Ok(files)
    }

    fn allocated(&self, path: &Path) -> Result<u64> {
        let file = self.shared.options.storage.open(path, OpenMode::Read);
        match file.and_then(|file| file.allocated()) {
            // It went meanwhile, or is a folder where folders take nothing.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => Ok(0),
            other => other.map_err(|e| HarborError::storage("read", path, e)),
        }
    }
}
