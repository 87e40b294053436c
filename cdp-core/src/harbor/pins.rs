//! Pins: points that somebody has open, and points that are about to go.
//!
//! Whoever opens a point pins it first and looks then whether it is offered. Whoever removes points announces
//! that first, and is refused those that are pinned. So no point is opened and removed at the same time, although
//! neither waits for the other. A pin is in memory only: it goes with its holder, or with the process.
//!
//! Invariant: a point is never pinned and announced at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::point::PointId;

/// The pins of a harbor.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// How often each point is pinned.
    pinned: BTreeMap<PointId, u64>,
    /// What is about to go.
    going: BTreeSet<PointId>,
}

/// Keeps a point from being deleted as long as it is held.
#[derive(Debug)]
pub struct Pin {
    point: PointId,
    pins: Arc<Pins>,
}

/// Points that are about to go, as long as this is held: none of them can be pinned.
#[derive(Debug)]
pub(crate) struct Going {
    points: Vec<PointId>,
    pins: Arc<Pins>,
}

impl Pins {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins a point, offered or not; none if it is about to go.
    pub(crate) fn pin(self: &Arc<Pins>, point: PointId) -> Option<Pin> {
        let mut held = self.held();
        if held.going.contains(&point) {
            return None;
        }
        *held.pinned.entry(point).or_default() += 1;
        Some(Pin {
            point,
            pins: Arc::clone(self),
        })
    }

    /// Returns the points that are pinned now.
    pub(crate) fn pinned(&self) -> BTreeSet<PointId> {
        self.held().pinned.keys().copied().collect()
    }

    /// Announces that points are about to go, all but those that are pinned; these are the second answer.
    pub(crate) fn announce(self: &Arc<Pins>, points: Vec<PointId>) -> (Going, Vec<PointId>) {
        let mut held = self.held();
        let (pinned, points): (Vec<PointId>, Vec<PointId>) = points
            .into_iter()
            .partition(|point| held.pinned.contains_key(point));
        held.going.extend(&points);
        drop(held);
        let going = Going {
            points,
            pins: Arc::clone(self),
        };
        (going, pinned)
    }
}

impl Pin {
    /// Returns the point that is pinned.
    pub fn point(&self) -> PointId {
        self.point
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.held();
        if let Some(times) = held.pinned.get_mut(&self.point) {
            *times -= 1;
            if *times == 0 {
                held.pinned.remove(&self.point);
            }
        }
    }
}

impl Going {
    /// Returns what is about to go.
    pub(crate) fn points(&self) -> &[PointId] {
        &self.points
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let mut held = self.pins.held();
        self.points.iter().for_each(|point| {
            held.going.remove(point);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_pinned_or_about_to_go_and_never_both() {
        let pins = Arc::new(Pins::default());
        let ids = [1, 2, 3].map(PointId);
        let (first, second) = (pins.pin(ids[1]).unwrap(), pins.pin(ids[1]).unwrap());
        assert_eq!(first.point(), ids[1]);
        let (going, pinned) = pins.announce(ids.to_vec());
        assert_eq!(
            (going.points(), &pinned[..]),
            (&[ids[0], ids[2]][..], &[ids[1]][..])
        );
        assert!(pins.pin(ids[0]).is_none());
        assert!(pins.pin(ids[1]).is_some(), "what does not go can be opened");
        drop(going);
        assert!(pins.pin(ids[0]).is_some(), "what did not go after all, too");
        drop(first);
        assert_eq!(pins.pinned(), [ids[1]].into(), "pinned twice");
        drop(second);
        assert_eq!(pins.pinned(), [].into());
        assert_eq!(pins.announce(ids.to_vec()).0.points(), ids);
    }
}
