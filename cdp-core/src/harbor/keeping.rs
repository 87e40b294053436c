//! Which points are kept: labels, locks and deletions by hand, and the run of a policy.
//!
//! A change is written to `points.toml` first, durable, and seen then: in the catalog, which holds no deleted points.
//! Changes come one after the other, so that none undoes another. What is deleted is announced to the
//! [`Pins`](super::pins::Pins) before: nobody opens it meanwhile.
//!
//! Invariant: no point goes that is locked, pinned, or the newest. A change that fails is not seen by this process; the
//! next one may find it, as the storage may have taken it nevertheless.

use std::collections::{BTreeSet, HashSet};

use super::facts::Facts;
use super::pins::Pin;
use super::shared::Shared;
use super::{Harbor, facts};
use crate::bounds::LABEL_MAX;
use crate::clock::Timestamp;
use crate::error::{HarborError, Held, Result};
use crate::point::{Point, PointId, Seq};
use crate::retention::{Candidate, Policy};

impl Harbor {
    /// Gives a point another label, or takes it away; durable on return.
    ///
    /// # Errors
    /// [`HarborError::NoSuchPoint`]; [`HarborError::TooLong`]; the storage failed.
    pub fn label_point(&self, point: PointId, label: Option<&str>) -> Result<()> {
        let label = label.unwrap_or_default();
        if label.len() > LABEL_MAX {
            return Err(HarborError::TooLong {
                what: "a label",
                len: label.len() as u64,
                max: LABEL_MAX as u64,
            });
        }
        self.change_point(point, |facts| facts.label(point, label))
    }

    /// Locks a point: it stays until it is unlocked, whatever a policy says. Durable on return.
    ///
    /// # Errors
    /// [`HarborError::NoSuchPoint`]; the storage failed.
    pub fn lock_point(&self, point: PointId) -> Result<()> {
        self.change_point(point, |facts| facts.lock(point))
    }

    /// Unlocks a point; durable on return.
    ///
    /// # Errors
    /// As [`lock_point`](Self::lock_point).
    pub fn unlock_point(&self, point: PointId) -> Result<()> {
        self.change_point(point, |facts| facts.unlock(point))
    }

    /// Deletes points, all of them or none: they are not offered any more, also after the harbor was opened again.
    ///
    /// # Errors
    /// [`HarborError::NoSuchPoint`]; [`HarborError::PointHeld`] names the first one that is locked, in use, or the
    /// newest; the storage failed.
    pub fn delete_points(&self, points: &[PointId]) -> Result<()> {
        let asked: BTreeSet<PointId> = points.iter().copied().collect();
        self.shared.remove_points(|offered| {
            for id in &asked {
                let at = offered
                    .binary_search_by_key(id, |point| point.id)
                    .map_err(|_| HarborError::NoSuchPoint(*id))?;
                let held = match offered.get(at) {
                    Some(point) if point.pinned => Some(Held::InUse),
                    Some(point) if point.locked => Some(Held::Locked),
                    Some(_) if at + 1 == offered.len() => Some(Held::Newest),
                    _ => None,
                };
                if let Some(why) = held {
                    return Err(HarborError::PointHeld { point: *id, why });
                }
            }
            Ok((asked.into_iter().collect(), Pinned::Refuse))
        })?;
        Ok(())
    }

    /// Runs a policy: deletes what may go by [`Policy::needless`]; returns what went, oldest first.
    ///
    /// # Errors
    /// The storage failed.
    pub fn apply_policy(&self, policy: &Policy, now: Timestamp) -> Result<Vec<Point>> {
        self.shared
            .remove_points(|offered| Ok((policy.needless(offered, now), Pinned::LeaveOut)))
    }

    /// Returns what [`apply_policy`](Self::apply_policy) would delete, oldest first.
    pub fn preview_policy(&self, policy: &Policy, now: Timestamp) -> Vec<Point> {
        let going = policy.needless(&self.shared.candidates(), now);
        let going: HashSet<PointId> = going.into_iter().collect();
        let mut points = self.points();
        points.retain(|point| going.contains(&point.id));
        points
    }

    /// Keeps a point from being deleted as long as the answer is held. A [`View`](crate::View) does that for its own.
    ///
    /// # Errors
    /// [`HarborError::NoSuchPoint`].
    pub fn pin(&self, point: PointId) -> Result<Pin> {
        let pin = self.shared.pins.pin(point);
        let pin = pin.ok_or(HarborError::NoSuchPoint(point))?;
        match self.point(point) {
            Some(_) => Ok(pin),
            None => Err(HarborError::NoSuchPoint(point)),
        }
    }

    /// Returns the points that are kept, viewable or not, and their records; oldest first.
    pub fn kept_points(&self) -> Vec<(PointId, Seq)> {
        self.shared.kept_points()
    }

    /// Returns the record of the oldest point that can be viewed.
    pub fn first_kept(&self) -> Option<Seq> {
        self.select(|points| points.first().map(|point| point.seq))?
    }

    /// Changes what is said of a point that is offered.
    fn change_point(&self, point: PointId, change: impl FnOnce(&mut Facts)) -> Result<()> {
        self.shared.change_facts(|facts| {
            self.point(point).ok_or(HarborError::NoSuchPoint(point))?;
            change(facts);
            Ok(())
        })?;
        let facts = self.shared.facts().clone();
        let mut catalog = self.shared.catalog();
        if let Ok(at) = catalog.points.binary_search_by_key(&point, |kept| kept.id)
            && let Some(kept) = catalog.points.get_mut(at)
        {
            facts.tell(kept);
        }
        Ok(())
    }
}

/// What becomes of points that are pinned just when they are to go.
enum Pinned {
    /// None of the others goes either.
    Refuse,
    /// They stay, the others go.
    LeaveOut,
}

impl Shared {
    /// Returns all points in the catalog, which holds no deleted ones; oldest first.
    pub(crate) fn kept_points(&self) -> Vec<(PointId, Seq)> {
        let catalog = self.catalog();
        catalog.points.iter().map(|p| (p.id, p.seq)).collect()
    }

    /// Returns the points that are offered, oldest first, as retention looks at them.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let pinned = self.pins.pinned();
        let Some(first) = self.first_valid() else {
            return Vec::new();
        };
        let catalog = self.catalog();
        let offered = catalog.points.iter().filter(|point| point.seq >= first);
        let candidate = |point: &Point| Candidate {
            id: point.id,
            time: point.time,
            locked: point.locked,
            pinned: pinned.contains(&point.id),
        };
        offered.map(candidate).collect()
    }

    /// Removes the points that `choose` picks of those offered; returns what went.
    fn remove_points(
        &self,
        choose: impl FnOnce(&[Candidate]) -> Result<(Vec<PointId>, Pinned)>,
    ) -> Result<Vec<Point>> {
        let _turn = self.turn_to_write();
        let (chosen, rule) = choose(&self.candidates())?;
        let (going, pinned) = self.pins.announce(chosen);
        if let (Pinned::Refuse, Some(point)) = (rule, pinned.first()) {
            let (point, why) = (*point, Held::InUse);
            return Err(HarborError::PointHeld { point, why });
        }
        if going.points().is_empty() {
            return Ok(Vec::new());
        }
        let gone: HashSet<PointId> = going.points().iter().copied().collect();
        let kept: Vec<PointId> = self.kept_points().into_iter().map(|(id, _)| id).collect();
        let kept: Vec<PointId> = kept.into_iter().filter(|id| !gone.contains(id)).collect();
        self.write_facts(|facts| {
            facts.delete(going.points(), &kept);
            Ok(())
        })?;
        let mut catalog = self.catalog();
        let all = std::mem::take(&mut catalog.points);
        let (went, kept) = all.into_iter().partition(|point| gone.contains(&point.id));
        catalog.points = kept;
        Ok(went)
    }

    /// Changes what is said of points, durable on return.
    fn change_facts(&self, change: impl FnOnce(&mut Facts) -> Result<()>) -> Result<()> {
        let _turn = self.turn_to_write();
        self.write_facts(change)
    }

    /// As [`change_facts`](Self::change_facts), for who has the turn to write.
    fn write_facts(&self, change: impl FnOnce(&mut Facts) -> Result<()>) -> Result<()> {
        let mut changed = self.facts().clone();
        changed.writable(&self.dir)?;
        change(&mut changed)?;
        if changed == *self.facts() {
            return Ok(());
        }
        facts::write(&*self.options.storage, &self.dir, &changed)?;
        *self.facts() = changed;
        Ok(())
    }
}
