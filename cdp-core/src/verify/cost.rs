//! What damage costs: the points whose views read what is lost, and where it shows there.
//!
//! [`walk`] is a pure function: what is lost is on top from some record on, later records cover it bit by bit, and
//! each point between them shows what is left. [`Costing`] finds those records and points in a harbor, segment by segment.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Lost;
use crate::base::{BasePoint, layer_seq};
use crate::bounds::{CHAIN_MAX, CLUSTER};
use crate::error::{HarborError, Result};
use crate::harbor::shared::Shared;
use crate::machine::{VolumeDescription, VolumeId};
use crate::point::{PointId, Seq};
use crate::qcow2::reader::{Held, Qcow2Reader};

/// Points in a row at which the same is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// The first of them.
    pub first: PointId,
    /// The last of them: points between the two are among them, or are not kept.
    pub last: PointId,
    /// The volume.
    pub volume: VolumeId,
    /// The bytes of it that cannot be had, in order.
    pub areas: Vec<Area>,
}

impl Cost {
    /// Takes another one of the volume into it, and all points in between.
    pub(crate) fn widen(&mut self, other: Cost) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.areas.extend(other.areas);
    }

    /// Makes one area of all, with what lies in between.
    pub(crate) fn join_areas(&mut self) {
        let start = self.areas.iter().map(|area| area.offset).min();
        let end = self
            .areas
            .iter()
            .map(|area| area.offset.saturating_add(area.length));
        if let (Some(offset), Some(end)) = (start, end.max()) {
            let length = end - offset;
            self.areas = vec![Area { offset, length }];
        }
    }
}

/// A range of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A point that may show what is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) id: PointId,
    pub(crate) seq: Seq,
    /// Bytes of the volume there.
    pub(crate) size: u64,
}

/// A record that covers a range.
pub(crate) type Cover = (Seq, Range<u64>);

/// Returns what shows of `lost` at each of `points`, which are in order. `next` gives the records that cover it later, some
/// at a time, each batch behind the one before; it is not asked for more than is needed.
pub(crate) fn walk(
    lost: &[Range<u64>],
    points: &[Looked],
    next: &mut dyn FnMut() -> Result<Option<Vec<Cover>>>,
) -> Result<Vec<(PointId, Vec<Area>)>> {
    let mut left = lost.to_vec();
    let mut points = points.iter().peekable();
    let mut shown = Vec::new();
    let mut show = |left: &[Range<u64>], point: &Looked| {
        let areas: Vec<Area> = left
            .iter()
            .filter_map(|range| {
                let end = range.end.min(point.size);
                let length = end.checked_sub(range.start).filter(|len| *len > 0)?;
                let offset = range.start;
                Some(Area { offset, length })
            })
            .collect();
        if !areas.is_empty() {
            shown.push((point.id, areas));
        }
    };
    while !left.is_empty() && points.peek().is_some() {
        let Some(mut batch) = next()? else {
            break;
        };
        batch.sort_unstable_by_key(|(seq, _)| *seq);
        for (seq, range) in batch {
            while let Some(point) = points.next_if(|point| point.seq < seq) {
                show(&left, point);
            }
            left = without(left, &range);
        }
    }
    points.for_each(|point| show(&left, point));
    Ok(shown)
}

/// Returns ranges without what another one covers.
pub(crate) fn without(ranges: Vec<Range<u64>>, cover: &Range<u64>) -> Vec<Range<u64>> {
    let cut = |range: Range<u64>| {
        let before = range.start..range.end.min(cover.start);
        let behind = range.start.max(cover.end)..range.end;
        [before, behind]
    };
    let cut = ranges.into_iter().flat_map(cut);
    cut.filter(|range| range.start < range.end).collect()
}

/// Puts points in a row at which the same is lost together; `all` are those that there are.
fn in_rows(volume: VolumeId, shown: Vec<(PointId, Vec<Area>)>, all: &[PointId]) -> Vec<Cost> {
    let mut rows: Vec<Cost> = Vec::new();
    let place = |id: PointId| all.partition_point(|known| *known < id);
    for (id, areas) in shown {
        match rows.last_mut() {
            Some(row) if row.areas == areas && place(row.last) + 1 == place(id) => row.last = id,
            _ => rows.push(Cost {
                first: id,
                last: id,
                volume,
                areas,
            }),
        }
    }
    rows
}

/// The points of a harbor, and what they are shown from.
pub(crate) struct Costing<'a> {
    shared: &'a Shared,
    /// In order; all that are asked about.
    points: Vec<(PointId, Seq)>,
    ids: Vec<PointId>,
    volumes: Vec<VolumeDescription>,
    bases: Vec<BasePoint>,
}

/// The layer that points are shown from, and those points.
type Group<'a> = (&'a BasePoint, Vec<Looked>);

impl<'a> Costing<'a> {
    /// Begins, for points in order.
    pub(crate) fn new(shared: &'a Shared, points: Vec<(PointId, Seq)>) -> Costing<'a> {
        Costing {
            shared,
            ids: points.iter().map(|(id, _)| *id).collect(),
            points,
            volumes: shared.description().volumes,
            bases: shared.bases().clone(),
        }
    }

    /// Returns what a loss costs.
    ///
    /// # Errors
    /// The storage failed.
    pub(crate) fn of(&self, lost: &Lost) -> Result<Vec<Cost>> {
        match lost {
            Lost::Nothing => Ok(Vec::new()),
            Lost::Record {
                volume,
                seq,
                offset,
                length,
            } => {
                let range = *offset..offset.saturating_add(*length);
                self.each_group(*volume, |base, points| {
                    if base.seq >= *seq {
                        return Ok(Vec::new());
                    }
                    let from = points.partition_point(|point| point.seq < *seq);
                    let points = points.get(from..).unwrap_or_default();
                    self.walk(*volume, std::slice::from_ref(&range), *seq, points)
                })
            }
            Lost::Records { first, last } => {
                let mut costs = Vec::new();
                for volume in &self.volumes {
                    costs.extend(self.each_group(volume.id, |base, points| {
                        let needs = |point: &&Looked| base.seq < *last && point.seq >= *first;
                        Ok(whole(points.iter().filter(needs)))
                    })?);
                }
                Ok(costs)
            }
            Lost::Area {
                volume,
                layer,
                offset,
                length,
            } => {
                let range = *offset..offset.saturating_add(*length);
                self.each_group(*volume, |base, points| {
                    let Some(left) = self.shown_of(base, *layer, &range)? else {
                        return Ok(Vec::new());
                    };
                    self.walk(*volume, &left, base.seq, points)
                })
            }
            Lost::Layer { volume, layer } => self.each_group(*volume, |base, points| {
                let is_in = self.chain(base)?.iter().any(|(seq, _)| seq == layer);
                let none = points.get(..0).unwrap_or_default();
                Ok(whole(if is_in { points.iter() } else { none.iter() }))
            }),
        }
    }

    /// Asks about the points of a volume, layer by layer.
    fn each_group(
        &self,
        volume: VolumeId,
        mut ask: impl FnMut(&BasePoint, &[Looked]) -> Result<Vec<(PointId, Vec<Area>)>>,
    ) -> Result<Vec<Cost>> {
        let mut shown = Vec::new();
        for (base, points) in self.groups(volume) {
            shown.extend(ask(base, &points)?);
        }
        shown.sort_unstable_by_key(|(id, _)| *id);
        Ok(in_rows(volume, shown, &self.ids))
    }

    /// Returns the layers that points of a volume are shown from, as views choose them.
    fn groups(&self, volume: VolumeId) -> Vec<Group<'_>> {
        let Some(described) = self.volumes.iter().find(|one| one.id == volume) else {
            return Vec::new();
        };
        let layers: Vec<&BasePoint> = self.bases.iter().filter(|b| b.volume == volume).collect();
        let mut groups: BTreeMap<usize, Vec<Looked>> = BTreeMap::new();
        for (id, seq) in &self.points {
            let Some(size) = described.size_at(*seq) else {
                continue;
            };
            let below = layers.partition_point(|layer| layer.seq <= *seq);
            let below = layers.get(..below).unwrap_or_default();
            let fits = |layer: &&BasePoint| described.layer_suffices(layer.seq, *seq);
            let chosen = below.iter().rposition(fits).or(below.first().map(|_| 0));
            if let Some(chosen) = chosen {
                let (id, seq) = (*id, *seq);
                groups
                    .entry(chosen)
                    .or_default()
                    .push(Looked { id, seq, size });
            }
        }
        let with_base = |(at, points)| Some((*layers.get(at)?, points));
        groups.into_iter().filter_map(with_base).collect()
    }

    /// Returns the layers of a chain, the uppermost first, as far as they can be opened.
    fn chain(&self, base: &BasePoint) -> Result<Vec<(Seq, Option<Qcow2Reader>)>> {
        let mut chain = Vec::new();
        let mut next = Some(base.path.clone());
        while let Some(path) = next.take().filter(|_| chain.len() < CHAIN_MAX) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(seq) = layer_seq(&name) else {
                break;
            };
            let image = match Qcow2Reader::open(&*self.shared.options.storage, &path) {
                Ok(image) => Some(image),
                Err(HarborError::Damaged { .. } | HarborError::Storage { .. }) => None,
                Err(other) => return Err(other),
            };
            let backing = image.as_ref().and_then(Qcow2Reader::backing);
            next = backing.map(|name| path.with_file_name(name));
            chain.push((seq, image));
        }
        Ok(chain)
    }

    /// Returns what shows of a range of `layer` at the layer `base` above it; none if it does not stand on it.
    fn shown_of(
        &self,
        base: &BasePoint,
        layer: Seq,
        range: &Range<u64>,
    ) -> Result<Option<Vec<Range<u64>>>> {
        let mut left = vec![range.clone()];
        for (seq, image) in self.chain(base)? {
            if seq == layer {
                return Ok(Some(left));
            }
            if let Some(image) = image {
                left = not_held(&image, left)?;
            }
        }
        Ok(None)
    }

    /// Walks from a loss that shows from record `after` on over the points.
    fn walk(
        &self,
        volume: VolumeId,
        lost: &[Range<u64>],
        after: Seq,
        points: &[Looked],
    ) -> Result<Vec<(PointId, Vec<Area>)>> {
        let Some(up_to) = points.last().map(|point| point.seq) else {
            return Ok(Vec::new());
        };
        let hull = match (lost.first(), lost.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => return Ok(Vec::new()),
        };
        let _kept = self.shared.keep_segments();
        let segments = self.shared.catalog().segments.clone();
        let mut segments = segments.into_iter();
        walk(lost, points, &mut || {
            let next = segments.find(|one| one.last_seq() > after && one.first_seq <= up_to);
            let Some(segment) = next else {
                return Ok(None);
            };
            let mut covers = Vec::new();
            let read = segment
                .open(&*self.shared.options.storage)
                .and_then(|file| {
                    segment.for_each_reaching(
                        &*file,
                        &self.shared.lookups,
                        volume,
                        &hull,
                        |record| {
                            if record.seq > after && record.seq <= up_to {
                                let end = record.offset.saturating_add(record.length);
                                covers.push((record.seq, record.offset..end));
                            }
                        },
                    )
                });
            match read {
                // Its own damage costs every point that needs it.
                Ok(()) | Err(HarborError::Damaged { .. }) => Ok(Some(covers)),
                Err(other) => Err(other),
            }
        })
    }
}

/// All of the volume, at each of some points.
fn whole<'a>(points: impl Iterator<Item = &'a Looked>) -> Vec<(PointId, Vec<Area>)> {
    let all = |point: &Looked| {
        let (offset, length) = (0, point.size);
        (point.id, vec![Area { offset, length }])
    };
    points.map(all).collect()
}

/// Returns what an image does not hold of some ranges: there, what lies below shows.
fn not_held(image: &Qcow2Reader, ranges: Vec<Range<u64>>) -> Result<Vec<Range<u64>>> {
    let cluster_len = CLUSTER as u64;
    let mut left: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let (len, shows) = match image.stretch(at, range.end - at) {
                Ok(stretch) => (stretch.len, stretch.held == Held::Nothing),
                // What cannot be read is told of by itself; it is the same for all of a cluster.
                Err(HarborError::Damaged { .. }) => (cluster_len - at % cluster_len, false),
                Err(other) => return Err(other),
            };
            let end = at.saturating_add(len.max(1)).min(range.end);
            match left.last_mut() {
                Some(last) if shows && last.end == at => last.end = end,
                _ if shows => left.push(at..end),
                _ => {}
            }
            at = end;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spans = &'static [(u64, u64)];

    fn points(list: &[(u64, u64)]) -> Vec<Looked> {
        let point = |(at, (seq, size)): (usize, &(u64, u64))| Looked {
            id: PointId(at as u64 + 1),
            seq: Seq(*seq),
            size: *size,
        };
        list.iter().enumerate().map(point).collect()
    }

    #[test]
    fn a_loss_costs_the_points_at_which_it_is_on_top() {
        // lost; points (seq, size); covers (seq, start, end); what shows, point by point
        type Case = (
            Spans,
            Spans,
            &'static [(u64, u64, u64)],
            &'static [(u64, Spans)],
        );
        let cases: [Case; 9] = [
            (&[(0, 8)], &[], &[], &[]),
            (
                &[(0, 8)],
                &[(5, 100), (9, 100)],
                &[],
                &[(1, &[(0, 8)]), (2, &[(0, 8)])],
            ),
            // Covered wholly between the two.
            (
                &[(0, 8)],
                &[(5, 100), (9, 100)],
                &[(6, 0, 20)],
                &[(1, &[(0, 8)])],
            ),
            // The record of a point's own number counts.
            (&[(0, 8)], &[(5, 100)], &[(5, 0, 8)], &[]),
            (&[(0, 8)], &[(4, 100)], &[(5, 0, 8)], &[(1, &[(0, 8)])]),
            // In part, and from two sides.
            (
                &[(0, 8)],
                &[(5, 100), (7, 100), (9, 100)],
                &[(6, 0, 3), (8, 5, 9)],
                &[(1, &[(0, 8)]), (2, &[(3, 5)]), (3, &[(3, 2)])],
            ),
            // In the middle.
            (
                &[(0, 8)],
                &[(9, 100)],
                &[(6, 3, 5)],
                &[(1, &[(0, 3), (5, 3)])],
            ),
            // The volume was smaller there.
            (&[(0, 8)], &[(5, 6), (9, 0)], &[], &[(1, &[(0, 6)])]),
            // Several pieces.
            (
                &[(0, 2), (6, 8)],
                &[(5, 7), (9, 9)],
                &[(6, 1, 7)],
                &[(1, &[(0, 2), (6, 1)]), (2, &[(0, 1), (7, 1)])],
            ),
        ];
        for (number, (lost, at, covers, expected)) in cases.into_iter().enumerate() {
            for batch in [1, 100] {
                let lost: Vec<Range<u64>> = lost.iter().map(|(a, b)| *a..*b).collect();
                let mut batches = covers.chunks(batch);
                let shown = walk(&lost, &points(at), &mut || {
                    let next = batches.next();
                    Ok(next
                        .map(|some| some.iter().map(|(seq, a, b)| (Seq(*seq), *a..*b)).collect()))
                });
                let shown: Vec<(u64, Vec<(u64, u64)>)> = shown
                    .unwrap()
                    .into_iter()
                    .map(|(id, areas)| (id.0, areas.iter().map(|a| (a.offset, a.length)).collect()))
                    .collect();
                let expected: Vec<(u64, Vec<(u64, u64)>)> = expected
                    .iter()
                    .map(|(id, areas)| (*id, areas.to_vec()))
                    .collect();
                // Of the expected the second number is the length.
                assert_eq!(shown, expected, "case {number}");
            }
        }
    }

    #[test]
    fn no_more_is_asked_for_than_is_needed() {
        let mut asked = 0;
        let mut next = || {
            asked += 1;
            Ok(Some(vec![(Seq(asked + 5), 0..8)]))
        };
        let shown = walk(
            std::slice::from_ref(&(0..8)),
            &points(&[(5, 9), (99, 9)]),
            &mut next,
        )
        .unwrap();
        assert_eq!((shown.len(), asked), (1, 1));
    }

    #[test]
    fn points_in_a_row_with_the_same_loss_are_one() {
        let area = |offset| vec![Area { offset, length: 1 }];
        let all: Vec<PointId> = [1, 2, 5, 6, 9].map(PointId).into();
        let shown = [(1, 0), (2, 0), (5, 7), (9, 7)].map(|(id, at)| (PointId(id), area(at)));
        let rows = in_rows(VolumeId(0), shown.into(), &all);
        let rows: Vec<(u64, u64)> = rows.iter().map(|row| (row.first.0, row.last.0)).collect();
        assert_eq!(rows, [(1, 2), (5, 5), (9, 9)]);
    }
}
