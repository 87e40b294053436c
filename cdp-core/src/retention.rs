//! Retention: which recovery points a policy wants kept, and which may go. Pure: no IO, no clock.
//!
//! A [`Policy`] has a span for each [`Class`], counted back from now. A point is wanted by a class if it is younger than
//! the class's span, and the *last* one of its bucket: of its hour, day, ISO week or month, all by UTC. The last, so that
//! the classes agree (the last point of a day is the last of its last hour, too) and so that a bucket that is over has
//! one and the same point in every run. A longer class reaches over the shorter ones: its span is counted from now,
//! too. A class whose span is zero wants nothing.
//!
//! Wanted besides: the newest point, whatever the policy says, and every point that is younger than
//! [`POINT_SETTLE`]. Such a point may still be taken back, because a gap begins before it is noticed. So it does not
//! count as the last of its bucket before it has settled, and the one before it stays as long.
//!
//! Invariant: what is locked or pinned never goes. What a class wants once its bucket is over, it wants until its span
//! has passed, however often it is asked in between.

use std::time::Duration;

use crate::bounds::POINT_SETTLE;
use crate::clock::Timestamp;
use crate::point::PointId;

mod bucket;

pub use bucket::Class;

/// How long points are kept: for each class how far it reaches back from now; zero where the class is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Every point.
    pub all: Duration,
    /// The last point of each hour.
    pub hourly: Duration,
    /// The last point of each day.
    pub daily: Duration,
    /// The last point of each ISO week, which ends with Sunday.
    pub weekly: Duration,
    /// The last point of each month.
    pub monthly: Duration,
}

/// A point, as far as retention looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub id: PointId,
    /// Its time.
    pub time: Timestamp,
    /// The user wants it kept.
    pub locked: bool,
    /// Somebody has it open.
    pub pinned: bool,
}

impl Policy {
    /// Returns how far a class reaches back from now.
    pub fn span(&self, class: Class) -> Duration {
        match class {
            Class::All => self.all,
            Class::Hourly => self.hourly,
            Class::Daily => self.daily,
            Class::Weekly => self.weekly,
            Class::Monthly => self.monthly,
        }
    }

    /// Tells whether no class is used: only the newest point would stay.
    pub fn is_empty(&self) -> bool {
        Class::ALL
            .iter()
            .all(|class| self.span(*class) == Duration::ZERO)
    }

    /// Returns the points that may go, oldest first.
    pub fn needless(&self, points: &[Candidate], now: Timestamp) -> Vec<PointId> {
        let wanted = self.wanted(points, now);
        let mut going: Vec<&Candidate> = points
            .iter()
            .zip(&wanted)
            .filter(|(point, wanted)| !**wanted && !point.locked && !point.pinned)
            .map(|(point, _)| point)
            .collect();
        going.sort_unstable_by_key(|point| (point.time, point.id));
        going.into_iter().map(|point| point.id).collect()
    }

    /// Tells of each point whether the policy itself wants it, locked and pinned or not.
    pub fn wanted(&self, points: &[Candidate], now: Timestamp) -> Vec<bool> {
        let mut newest_first: Vec<(usize, &Candidate)> = points.iter().enumerate().collect();
        newest_first.sort_unstable_by_key(|(_, point)| (point.time, point.id));
        newest_first.reverse();
        let mut wanted = vec![false; points.len()];
        // The bucket of the point before, which is later, for each class.
        let mut seen: [Option<i64>; Class::ALL.len()] = [None; Class::ALL.len()];
        for (rank, (at, point)) in newest_first.into_iter().enumerate() {
            let age = now.since(point.time);
            let mut wants = rank == 0 || age < POINT_SETTLE;
            if age >= POINT_SETTLE {
                for (class, seen) in Class::ALL.iter().zip(&mut seen) {
                    let bucket = class.bucket(point);
                    let is_last = seen.replace(bucket) != Some(bucket);
                    wants |= is_last && age < self.span(*class);
                }
            }
            if let Some(wanted) = wanted.get_mut(at) {
                *wanted = wants;
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests;
