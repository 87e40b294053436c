//! What was said of points after they were made: labels, locks, deletions. Kept as `points.toml`.
//!
//! The journal's records of points never change, so this stands beside them, replaced as a whole. Deletions are ranges
//! of numbers; two ranges between which there is no point are one. So there are at most as many as points are kept.
//!
//! Invariant: a file that is not as it was written (its checksum stands in its first line) is not taken in part.
//! Then nothing is known of labels and locks, and nothing may be deleted until the user has decided: see
//! [`Facts::writable`]. A crash leaves the file as it was before, or as it was to be.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checked;
use crate::bounds::POINTS_MAX;
use crate::error::{HarborError, Result};
use crate::point::{Point, PointId};
use crate::storage::Storage;
use crate::storage::replace::{read_all, replace};

/// What was said of points after they were made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// First and last of each range; in order, and apart from each other.
    deleted: Vec<(PointId, PointId)>,
    locked: BTreeSet<PointId>,
    /// An empty one takes the journal's away.
    labels: BTreeMap<PointId, String>,
    /// Why the file could not be taken.
    unreadable: Option<String>,
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    deleted: Vec<(PointId, PointId)>,
    #[serde(default)]
    locked: BTreeSet<PointId>,
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Label {
    point: PointId,
    label: String,
}

/// Returns the path of the file.
fn path_of(dir: &Path) -> PathBuf {
    dir.join("points.toml")
}

/// Reads what is known; what cannot be taken is told in the answer.
pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Result<Facts> {
    let path = path_of(dir);
    let bytes = match read_all(storage, &path, POINTS_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Facts::default()),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            return Ok(Facts::unreadable(format!("it is too long: {e}")));
        }
        Err(e) => return Err(HarborError::storage("read", &path, e)),
    };
    Ok(decode(&bytes).unwrap_or_else(Facts::unreadable))
}

/// Replaces what is known, durable on return.
pub(crate) fn write(storage: &dyn Storage, dir: &Path, facts: &Facts) -> Result<()> {
    let path = path_of(dir);
    let failed = |e| HarborError::storage("write", &path, e);
    let text = facts.encode().map_err(failed)?;
    if text.len() as u64 > POINTS_MAX {
        return Err(HarborError::TooLong {
            what: "the list of labels, locks and deletions",
            len: text.len() as u64,
            max: POINTS_MAX,
        });
    }
    replace(storage, &path, text.as_bytes()).map_err(failed)
}

fn decode(bytes: &[u8]) -> Result<Facts, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let rest = checked::of_checked_toml(text)?;
    let text: Text = toml::from_str(rest).map_err(|e| e.to_string())?;
    let in_order = |pair: &[(PointId, PointId)]| match pair {
        [before, after] => before.1 < after.0,
        _ => true,
    };
    let sound = text.deleted.iter().all(|(first, last)| first <= last)
        && text.deleted.windows(2).all(in_order);
    if !sound {
        return Err("its ranges are not in order".into());
    }
    let labels = text.labels.into_iter().map(|l| (l.point, l.label));
    Ok(Facts {
        deleted: text.deleted,
        locked: text.locked,
        labels: labels.collect(),
        unreadable: None,
    })
}

impl Facts {
    fn unreadable(why: String) -> Facts {
        Facts {
            unreadable: Some(why),
            ..Facts::default()
        }
    }

    fn encode(&self) -> io::Result<String> {
        let label = |(point, label): (&PointId, &String)| Label {
            point: *point,
            label: label.clone(),
        };
        let text = Text {
            deleted: self.deleted.clone(),
            locked: self.locked.clone(),
            labels: self.labels.iter().map(label).collect(),
        };
        let rest = toml::to_string(&text).map_err(io::Error::other)?;
        Ok(checked::toml(&rest))
    }

    /// Says what is wrong with the file, for the report of a recovery.
    pub(crate) fn damage(&self) -> Option<String> {
        let why = self.unreadable.as_ref()?;
        Some(format!(
            "points.toml: {why}; no label or lock given later is known, points that were deleted may be listed, and \
             none can be deleted: put the file back from a copy, or remove it to give up what it said"
        ))
    }

    /// Refuses to change what cannot be read.
    pub(crate) fn writable(&self, dir: &Path) -> Result<()> {
        match &self.unreadable {
            None => Ok(()),
            Some(why) => Err(HarborError::damaged(
                &path_of(dir),
                format!(
                    "{why}; put it back from a copy, or remove it to give up the labels, locks and deletions in it, \
                     and start the program again"
                ),
            )),
        }
    }

    /// Tells whether a point was deleted.
    pub(crate) fn is_deleted(&self, point: PointId) -> bool {
        let behind = self.deleted.partition_point(|(_, last)| *last < point);
        self.deleted
            .get(behind)
            .is_some_and(|(first, _)| *first <= point)
    }

    /// Brings the journal's points to what was said of them since: those deleted are left out.
    pub(crate) fn apply(&self, points: &mut Vec<Point>) {
        points.retain(|point| !self.is_deleted(point.id));
        for point in points {
            self.tell(point);
        }
    }

    /// Brings one point to what was said of it.
    pub(crate) fn tell(&self, point: &mut Point) {
        point.locked = self.locked.contains(&point.id);
        if let Some(label) = self.labels.get(&point.id) {
            point.label = Some(label.clone()).filter(|label| !label.is_empty());
        }
    }

    /// Takes a label; an empty one takes away what the point has.
    pub(crate) fn label(&mut self, point: PointId, label: &str) {
        self.labels.insert(point, label.to_owned());
    }

    /// Locks a point.
    pub(crate) fn lock(&mut self, point: PointId) {
        self.locked.insert(point);
    }

    /// Unlocks a point.
    pub(crate) fn unlock(&mut self, point: PointId) {
        self.locked.remove(&point);
    }

    /// Deletes points; `kept` are the numbers of all others, in order.
    pub(crate) fn delete(&mut self, points: &[PointId], kept: &[PointId]) {
        for point in points {
            self.locked.remove(point);
            self.labels.remove(point);
        }
        self.deleted
            .extend(points.iter().map(|point| (*point, *point)));
        self.deleted.sort_unstable();
        let mut joined: Vec<(PointId, PointId)> = Vec::new();
        for (first, last) in self.deleted.drain(..) {
            match joined.last_mut() {
                Some(before) if !any_between(kept, before.1, first) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        self.deleted = joined;
    }

    /// Forgets what is of no use: points before `first`, which the journal does not have any more.
    pub(crate) fn forget_before(&mut self, first: PointId) {
        self.deleted.retain(|(_, last)| *last >= first);
        self.locked.retain(|point| *point >= first);
        self.labels.retain(|point, _| *point >= first);
    }

    /// Forgets points from `next` on, whose numbers will be given to others: the journal has lost them. True if there
    /// was something to forget.
    pub(crate) fn forget_from(&mut self, next: PointId) -> bool {
        let before = self.clone();
        self.deleted.retain(|(first, _)| *first < next);
        if let Some((_, last)) = self.deleted.last_mut() {
            *last = (*last).min(PointId(next.0.saturating_sub(1)));
        }
        self.locked.retain(|point| *point < next);
        self.labels.retain(|point, _| *point < next);
        *self != before
    }
}

/// Tells whether one of `kept` lies between two points.
fn any_between(kept: &[PointId], after: PointId, before: PointId) -> bool {
    let next = kept.partition_point(|point| *point <= after);
    kept.get(next).is_some_and(|point| *point < before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> Vec<PointId> {
        numbers.iter().map(|number| PointId(*number)).collect()
    }

    fn ranges(facts: &Facts) -> Vec<(u64, u64)> {
        facts.deleted.iter().map(|(a, b)| (a.0, b.0)).collect()
    }

    #[test]
    fn deletions_are_joined_where_no_point_is_between() {
        let mut facts = Facts::default();
        // deleted, kept, ranges
        type Row<'a> = (&'a [u64], &'a [u64], &'a [(u64, u64)]);
        let table: [Row<'_>; 5] = [
            (&[5], &[1, 9], &[(5, 5)]),
            (&[2, 3], &[1, 4, 9], &[(2, 3), (5, 5)]),
            // 6 and 7 are no points: a gap has taken them back.
            (&[8], &[1, 4, 9], &[(2, 3), (5, 8)]),
            (&[4], &[1, 9], &[(2, 8)]),
            (&[1], &[9], &[(1, 8)]),
        ];
        for (deleted, kept, expected) in table {
            facts.delete(&ids(deleted), &ids(kept));
            assert_eq!(ranges(&facts), expected, "{deleted:?}");
            for id in deleted {
                assert!(facts.is_deleted(PointId(*id)));
            }
            for id in kept {
                assert!(!facts.is_deleted(PointId(*id)), "{id}");
            }
        }
    }

    #[test]
    fn what_is_of_no_use_is_forgotten_on_both_sides() {
        let mut facts = Facts::default();
        facts.delete(&ids(&[1, 2, 5, 6, 20]), &ids(&[3, 4, 7, 10]));
        for point in ids(&[3, 7, 21]) {
            facts.lock(point);
            facts.label(point, "kept");
        }
        facts.forget_before(PointId(5));
        assert_eq!(ranges(&facts), [(5, 6), (20, 20)]);
        assert!(facts.forget_from(PointId(6)));
        assert_eq!(ranges(&facts), [(5, 5)]);
        assert!(!facts.forget_from(PointId(6)), "once");
        assert!(facts.locked.is_empty() && facts.labels.is_empty());
    }

    #[test]
    fn the_text_is_read_back_and_any_changed_byte_is_found() {
        let mut facts = Facts::default();
        facts.delete(&ids(&[1, 2, 5]), &ids(&[3]));
        facts.lock(PointId(3));
        facts.label(PointId(3), "be\"fore\nnoon");
        facts.label(PointId(9), "");
        let text = facts.encode().unwrap();
        assert_eq!(decode(text.as_bytes()), Ok(facts));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_err(), "byte {at} of {text}");
        }
        for cut in [0, 5, text.len() / 2, text.len() - 1] {
            assert!(decode(&text.as_bytes()[..cut]).is_err(), "cut to {cut}");
        }
        for rest in [
            "deleted = [[2, 1]]\n",
            "deleted = [[1, 5], [5, 6]]\n",
            "gone = 1\n",
        ] {
            let text = checked::toml(rest);
            assert!(decode(text.as_bytes()).is_err(), "{rest}");
        }
    }

    #[test]
    fn points_are_brought_to_what_was_said_of_them() {
        let point = |id, label: Option<&str>| Point {
            id: PointId(id),
            time: crate::clock::Timestamp(id),
            seq: crate::point::Seq(id),
            grade: crate::point::Grade::Crash,
            label: label.map(str::to_owned),
            xml: None,
            locked: false,
            damaged: false,
        };
        let mut facts = Facts::default();
        facts.delete(&ids(&[1, 3]), &ids(&[2, 4, 5]));
        facts.lock(PointId(4));
        facts.label(PointId(2), "new");
        facts.label(PointId(5), "");
        let mut points = vec![
            point(1, None),
            point(2, Some("old")),
            point(3, None),
            point(4, Some("mine")),
            point(5, Some("gone")),
        ];
        facts.apply(&mut points);
        let found: Vec<(u64, Option<&str>, bool)> = points
            .iter()
            .map(|point| (point.id.0, point.label.as_deref(), point.locked))
            .collect();
        let expected = [
            (2, Some("new"), false),
            (4, Some("mine"), true),
            (5, None, false),
        ];
        assert_eq!(found, expected);
        facts.unlock(PointId(4));
        facts.tell(&mut points[1]);
        assert!(!points[1].locked);
    }
}
