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
use crate::bounds::CLUSTER;
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
    /// newest point is, in whole clusters. In order, neighbours apart; the last may reach behind the volume's end.
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
        let whole = |area: Range<u64>| {
            let end = area.end.checked_next_multiple_of(CLUSTER_LEN);
            area.start / CLUSTER_LEN * CLUSTER_LEN..end.unwrap_or(area.end)
        };
        joined(areas.into_iter().map(whole).collect())
    }

    /// Puts clusters back into the layers in which they are damaged, where the layers' hashes say that they are what was
    /// there; tells of each whether it was. The layers are to be verified then ([`Scope`](crate::Scope)).
    ///
    /// # Errors
    /// [`HarborError::Busy`] while layers are built or merged, and before a merge that was begun is finished; the storage
    /// failed.
    pub fn put_back(&self, volume: VolumeId, clusters: &[LiveCluster]) -> Result<Vec<bool>> {
        let shared = &*self.shared;
        let _turn = shared.claim_layers()?;
        let mut merges = shared.unfinished_merges().into_iter();
        if merges.any(|(of, _)| of == volume) {
            return Err(HarborError::Busy("a merge that is not finished"));
        }
        let mut put = vec![false; clusters.len()];
        for layer in shared.layers_of(volume) {
            put_into(shared, &layer, clusters, &mut put)?;
        }
        Ok(put)
    }

    /// Takes down that the live disk of a volume has something else in some ranges than an image that is kept. Since when that
    /// is so is not known: marked is every point that shows what the image does, back to where something else was shown.
    /// Asked once more, it looks at the points that were made since, too.
    ///
    /// # Errors
    /// The storage failed; what is kept there is damaged.
    pub fn note_differences(
        &self,
        volume: VolumeId,
        image: &LatestImage,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Finding>> {
        let shown = joined_losses(self.shown_since(volume, image, ranges)?);
        let found = shown.into_iter().map(|lost| finding(volume, lost));
        self.shared.take_differences(volume, found.collect())
    }

    /// Returns from what ranges of a volume are shown, now and at older points, as long as it is the same.
    fn shown_since(
        &self,
        volume: VolumeId,
        latest: &LatestImage,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Lost>> {
        let mut shown = Vec::new();
        let mut same: Vec<(&Range<u64>, Vec<u8>)> = Vec::new();
        for range in ranges {
            shown.extend(latest.shown_from(range.clone())?);
            same.push((range, content(latest, range)?));
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

/// Puts clusters back into one layer, as far as it holds something else than its hashes say.
fn put_into(
    shared: &Shared,
    layer: &BasePoint,
    clusters: &[LiveCluster],
    put: &mut [bool],
) -> Result<()> {
    let storage = &*shared.options.storage;
    let Some(image) = known(Qcow2Reader::open(storage, &layer.path))? else {
        return Ok(());
    };
    let hashes = hashes_path(&layer.path);
    let Some(proof) = known(Proof::open(storage, &hashes, &image, false))?.flatten() else {
        return Ok(());
    };
    let mut places = Vec::new();
    for (number, (at, content)) in clusters.iter().enumerate() {
        if at.is_multiple_of(CLUSTER_LEN)
            && proof.vouches(at / CLUSTER_LEN, content)?
            && let Some(place) = damaged_place(&image, *at, content)?
        {
            places.push((number, place));
        }
    }
    // Looked at only where it matters: a table that is broken may lead to another cluster's place.
    if places.is_empty() || !is_sound(shared, layer)? {
        return Ok(());
    }
    let failed = |e| HarborError::storage("write", &layer.path, e);
    let file = storage.open(&layer.path, OpenMode::Write).map_err(failed)?;
    for (number, place) in places {
        if let (Some((_, content)), Some(put)) = (clusters.get(number), put.get_mut(number)) {
            file.write_at(&[IoSlice::new(content)], place)
                .map_err(failed)?;
            *put = true;
        }
    }
    file.sync().map_err(failed)?;
    shared.suspects.add(&layer.path);
    Ok(())
}

/// Returns the place in a layer's file where a cluster lies that is not what it should be; none if it is, or has no place.
fn damaged_place(image: &Qcow2Reader, at: u64, content: &[u8]) -> Result<Option<u64>> {
    let len = content.len() as u64;
    let Some(stretch) = known(image.stretch(at, len))? else {
        return Ok(None);
    };
    let Held::Bytes(place) = stretch.held else {
        return Ok(None);
    };
    let mut held = vec![0; content.len()];
    // What cannot be read may be written all the same.
    let is_right = image.read_file(&mut held, place).is_ok() && held == content;
    Ok((stretch.len == len && !is_right).then_some(place))
}

fn is_sound(shared: &Shared, layer: &BasePoint) -> Result<bool> {
    let storage = &*shared.options.storage;
    let structure = crate::qcow2::check::check(storage, &layer.path, &mut |_| Ok(()));
    Ok(known(structure)?.is_some_and(|structure| structure.faults.is_empty()))
}

/// Puts losses together that follow on each other in one record or layer, and leaves out what is there twice.
fn joined_losses(mut losses: Vec<Lost>) -> Vec<Lost> {
    let key = |lost: &Lost| match lost {
        Lost::Record { seq, offset, .. } => (0, *seq, *offset),
        Lost::Area { layer, offset, .. } => (1, *layer, *offset),
        _ => (2, Seq(0), 0),
    };
    losses.sort_by_key(key);
    let mut joined: Vec<Lost> = Vec::new();
    for lost in losses {
        let goes_on = match (joined.last_mut(), &lost) {
            (
                Some(Lost::Record {
                    seq,
                    offset,
                    length,
                    ..
                }),
                Lost::Record {
                    seq: other,
                    offset: next,
                    length: more,
                    ..
                },
            ) if seq == other => extend((*offset, length), *next, *more),
            (
                Some(Lost::Area {
                    layer,
                    offset,
                    length,
                    ..
                }),
                Lost::Area {
                    layer: other,
                    offset: next,
                    length: more,
                    ..
                },
            ) if layer == other => extend((*offset, length), *next, *more),
            _ => false,
        };
        if !goes_on {
            joined.push(lost);
        }
    }
    joined
}

/// Lets a range go on with one that begins within it or at its end; false if that begins behind it.
fn extend((offset, length): (u64, &mut u64), next: u64, more: u64) -> bool {
    let touches = next <= offset + *length;
    if touches {
        *length = (*length).max(next + more - offset);
    }
    touches
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
    fn losses_that_touch_in_one_record_or_layer_are_one() {
        let volume = VolumeId(0);
        let record = |seq, offset, length| Lost::Record {
            volume,
            seq: Seq(seq),
            offset,
            length,
        };
        let area = |layer, offset, length| Lost::Area {
            volume,
            layer: Seq(layer),
            offset,
            length,
        };
        let losses = vec![
            area(9, 100, 50),
            record(5, 10, 10),
            record(7, 20, 10),
            record(5, 20, 10),
            area(9, 150, 10),
            area(9, 100, 50),
            area(8, 160, 10),
            area(9, 161, 1),
        ];
        let expected = [
            record(5, 10, 20),
            record(7, 20, 10),
            area(8, 160, 10),
            area(9, 100, 60),
            area(9, 161, 1),
        ];
        assert_eq!(joined_losses(losses), expected);
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let ranges = vec![8..9, 0..2, 2..3, 5..5, 8..12, 10..11];
        assert_eq!(joined(ranges), [0..3, 8..12]);
    }
}
