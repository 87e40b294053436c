//! The oracle of what was said of points since they were made: deletions, locks, labels.
//!
//! A change that fails is not in force, but a later process may find it: the storage may have taken it nevertheless. So
//! beside what is in force there are others that may be found after a crash, until one is.

use std::collections::{BTreeMap, BTreeSet};

/// What was said of points, by their number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Said {
    pub(crate) deleted: BTreeSet<u64>,
    pub(crate) locked: BTreeSet<u64>,
    /// None: taken away.
    pub(crate) labels: BTreeMap<u64, Option<String>>,
}

impl Said {
    /// Deletes points, and forgets what else was said of them.
    pub(crate) fn delete(&mut self, points: &[u64]) {
        for id in points {
            self.deleted.insert(*id);
            self.locked.remove(id);
            self.labels.remove(id);
        }
    }

    fn forget_from(&mut self, next: u64) {
        self.deleted.retain(|id| *id < next);
        self.locked.retain(|id| *id < next);
        self.labels.retain(|id, _| *id < next);
    }
}

/// What is in force, and what may be found instead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sayings {
    now: Said,
    others: Vec<Said>,
}

impl Sayings {
    pub(crate) fn now(&self) -> &Said {
        &self.now
    }

    /// A change that was done is all there is; one that was not may be found nevertheless.
    pub(crate) fn change(&mut self, is_done: bool, change: impl FnOnce(&mut Said)) {
        let mut changed = self.now.clone();
        change(&mut changed);
        if changed == self.now {
            return;
        }
        match is_done {
            true => {
                self.now = changed;
                self.others.clear();
            }
            false => self.others.push(changed),
        }
    }

    /// Returns all that may be found after a crash.
    pub(crate) fn possible(&self) -> Vec<Said> {
        let now = std::iter::once(&self.now);
        now.chain(&self.others).cloned().collect()
    }

    /// From now on this is in force, and nothing else may be found.
    pub(crate) fn settle(&mut self, found: Said) {
        self.now = found;
        self.others.clear();
    }

    /// Forgets points from `next` on, which did not survive.
    pub(crate) fn forget_from(&mut self, next: u64) {
        self.now.forget_from(next);
        self.others
            .iter_mut()
            .for_each(|said| said.forget_from(next));
    }
}
