//! What is damaged, and can be had again from the live disk.
//!
//! A cluster of a layer is put back where it was if what the disk has now is what its hash says: then every point that
//! shows it is whole again. What the disk has that is not what was kept is noted, with the points that show what was kept;
//! whoever finds it journals it, so that later points have it.
//!
//! Invariant: nothing is written into a layer but what its hashes vouch for, and only where its tables are sound. A crash
//! in between leaves the cluster as damaged as it was.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use super::Harbor;
use super::damage::live_name;
use super::shared::Shared;
use crate::base::BasePoint;
use crate::base::hashes::hashes_path;
use crate::base::proof::Proof;
use crate::bounds::{CLUSTER, FINDINGS_MAX};
use crate::error::{HarborError, Result};
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::qcow2::reader::{Held, Qcow2Reader};
use crate::storage::OpenMode;
use crate::verify::{Cost, Finding, Lost};
use crate::view::LatestImage;
use crate::view::parts::Parts;

const CLUSTER_LEN: u64 = CLUSTER as u64;

/// A cluster of a volume as the live disk has it: its first byte, and its content, which is shorter at the volume's end.
pub type LiveCluster = (u64, Vec<u8>);

impl Harbor {
    /// Returns what the live disk of a volume may have again: the areas of its layers that are damaged, and what of the
    /// newest point is. In order, neighbours apart.
    pub fn curable(&self, volume: VolumeId) -> Vec<Range<u64>> {
        let damage = self.damage();
        let newest = self.newest_point().map(|point| point.id);
        let mut areas: Vec<Range<u64>> = Vec::new();
        for finding in &damage {
            if let Lost::Area {
                volume: of,
                offset,
                length,
                ..
            } = finding.lost
                && of == volume
            {
                areas.push(offset..offset.saturating_add(length));
            }
            let shows = |cost: &&Cost| {
                let points = cost.first..=cost.last;
                cost.volume == volume && newest.is_some_and(|newest| points.contains(&newest))
            };
            let shown = finding.costs.iter().filter(shows);
            let shown = shown.flat_map(|cost| &cost.areas);
            areas.extend(shown.map(|area| area.offset..area.offset.saturating_add(area.length)));
        }
        joined(areas)
    }

    /// Puts clusters back into the layers in which they are damaged, where the layers' hashes say that they are what was
    /// there; tells of each whether it was. The layers are to be verified then ([`Scope`](crate::Scope)).
    ///
    /// # Errors
    /// [`HarborError::Busy`] while layers are built or merged; the storage failed.
    pub fn put_back(&self, volume: VolumeId, clusters: &[LiveCluster]) -> Result<Vec<bool>> {
        let shared = &*self.shared;
        let _turn = shared.claim_layers()?;
        let mut put = vec![false; clusters.len()];
        if shared
            .unfinished_merges()
            .iter()
            .any(|(of, _)| *of == volume)
        {
            return Ok(put);
        }
        let areas = shared.damaged_areas(volume);
        for layer in shared.layers_of(volume) {
            let name = layer.path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(ranges) = areas.get(&*name) {
                put_into(shared, &layer, ranges, clusters, &mut put)?;
            }
        }
        Ok(put)
    }

    /// Takes down that the live disk of a volume has something else in some ranges than what is kept last. Since when that
    /// is so is not known: marked is every point that shows what is kept last, back to where it showed something else.
    ///
    /// # Errors
    /// The storage failed; what is kept there is damaged.
    pub fn note_differences(
        &self,
        volume: VolumeId,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Finding>> {
        let mut shown: Vec<Lost> = Vec::new();
        for lost in self.shown_since(volume, ranges)? {
            if !shown.contains(&lost) {
                shown.push(lost);
            }
        }
        self.shared.note_differences(volume, shown)
    }

    /// Returns from what ranges of a volume are shown, now and at older points, as long as it is the same.
    fn shown_since(&self, volume: VolumeId, ranges: &[Range<u64>]) -> Result<Vec<Lost>> {
        let latest = self.latest_image(volume)?;
        let mut shown = Vec::new();
        let mut same: Vec<(&Range<u64>, Vec<u8>)> = Vec::new();
        for range in ranges {
            shown.extend(latest.shown_from(range.clone())?);
            same.push((range, content(&latest, range)?));
        }
        for layer in self.shared.layers_of(volume).iter().rev() {
            let Some(before) = self.shared.image_before(volume, layer.seq)? else {
                break;
            };
            // What was not there yet, or cannot be read, is known to be another.
            same.retain(|(range, last)| {
                range.end <= before.size() && content(&before, range).is_ok_and(|old| old == *last)
            });
            for (range, _) in &same {
                shown.extend(before.shown_from((*range).clone())?);
            }
        }
        Ok(shown)
    }
}

fn content(image: &LatestImage, range: &Range<u64>) -> Result<Vec<u8>> {
    let mut content = vec![0; (range.end - range.start) as usize];
    image.read_at(&mut content, range.start)?;
    Ok(content)
}

/// Puts clusters back into one layer; its damaged ranges are given.
fn put_into(
    shared: &Shared,
    layer: &BasePoint,
    ranges: &[Range<u64>],
    clusters: &[LiveCluster],
    put: &mut [bool],
) -> Result<()> {
    let is_in = |at: u64| ranges.iter().any(|range| range.contains(&at));
    if !clusters.iter().any(|(at, _)| is_in(*at)) {
        return Ok(());
    }
    let storage = &*shared.options.storage;
    let sound = crate::qcow2::check::check(storage, &layer.path, &mut |_| Ok(()));
    let is_sound = known(sound)?.is_some_and(|structure| structure.faults.is_empty());
    let image = match is_sound {
        true => known(Qcow2Reader::open(storage, &layer.path))?,
        false => None,
    };
    let Some(image) = image else {
        return Ok(());
    };
    let hashes = hashes_path(&layer.path);
    let Some(proof) = known(Proof::open(storage, &hashes, &image, false))?.flatten() else {
        return Ok(());
    };
    let failed = |e| HarborError::storage("write", &layer.path, e);
    let file = storage.open(&layer.path, OpenMode::Write).map_err(failed)?;
    let mut wrote = false;
    for ((at, content), put) in clusters.iter().zip(put) {
        if !is_in(*at) || !proof.vouches(at / CLUSTER_LEN, content)? {
            continue;
        }
        let stretch = image.stretch(*at, content.len() as u64)?;
        if let Held::Bytes(place) = stretch.held
            && stretch.len == content.len() as u64
        {
            file.write_at(&[IoSlice::new(content)], place)
                .map_err(failed)?;
            (wrote, *put) = (true, true);
        }
    }
    if wrote {
        file.sync().map_err(failed)?;
        shared.suspects.add(&layer.path);
    }
    Ok(())
}

/// What is damaged cannot be mended here.
fn known<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(HarborError::Damaged { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Puts ranges in order, and those together that touch.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

impl Shared {
    /// Opens a volume as of the newest point before a record; none if there is none, or the volume was not there.
    fn image_before(&self, volume: VolumeId, record: Seq) -> Result<Option<LatestImage>> {
        let points = self.kept_points();
        let before = points.iter().rev().find(|(_, seq)| *seq < record);
        let description = self.description();
        let size = |seq| description.volume(volume)?.size_at(seq);
        let Some((seq, size)) = before.and_then(|(_, seq)| Some((*seq, size(*seq)?))) else {
            return Ok(None);
        };
        let image = match self.plan(volume, size, seq) {
            Err(HarborError::NotSeeded(_)) => return Ok(None),
            plan => Parts::open(self, plan?, seq)?,
        };
        let suspects = Arc::clone(&self.suspects);
        Ok(Some(LatestImage::new(seq, image, suspects)))
    }

    fn note_differences(&self, volume: VolumeId, shown: Vec<Lost>) -> Result<Vec<Finding>> {
        let found: Vec<Finding> = match shown.len() {
            0..=FINDINGS_MAX => shown
                .into_iter()
                .map(|lost| finding(volume, lost))
                .collect(),
            // Rather too much is said to be lost than too little.
            count => {
                let oldest = self.layers_of(volume).first().map(|layer| layer.seq);
                let layer = oldest.unwrap_or(Seq(0));
                let mut all = finding(volume, Lost::Layer { volume, layer });
                all.what = format!("{}, in {count} places", all.what);
                vec![all]
            }
        };
        self.take_differences(found)
    }
}

fn finding(volume: VolumeId, lost: Lost) -> Finding {
    let (from, bytes) = match &lost {
        Lost::Record { offset, length, .. } | Lost::Area { offset, length, .. } => {
            (*offset, *length)
        }
        _ => (0, 0),
    };
    Finding {
        file: live_name(volume),
        what: "what is kept is not what the disk has".to_string(),
        from,
        bytes,
        lost,
        costs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let ranges = vec![8..9, 0..2, 2..3, 5..5, 8..12, 10..11];
        assert_eq!(joined(ranges), [0..3, 8..12]);
    }
}
