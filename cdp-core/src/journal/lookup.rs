//! What is kept in memory to find the records of sealed segments: bounded over all segments of a harbor.
//!
//! A segment's [`Lookup`] is made when its records are first asked for. Where there are more than memory is given,
//! some other one goes, whichever it is: they are asked for one after the other, so the one that was
//! used least lately would be the very next one to be needed.
//!
//! Invariant: what is kept takes no more than [`FENCES_MAX`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fences::Fences;
use crate::bounds::FENCES_MAX;
use crate::chance::Chance;
use crate::format::Record;

/// How the records of a sealed segment are found.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// In its index.
    Fences(Fences),
    /// In memory, as its frames have them: the index is damaged.
    Records(Vec<Record>),
}

impl Lookup {
    fn cost(&self) -> usize {
        size_of::<Lookup>()
            + match self {
                Lookup::Fences(fences) => fences.cost(),
                Lookup::Records(records) => records.capacity() * size_of::<Record>(),
            }
    }
}

/// The lookups of a harbor's segments, by the identity of the segment.
#[derive(Debug)]
pub(crate) struct Lookups {
    kept: Mutex<Kept>,
    most: usize,
}

#[derive(Debug)]
struct Kept {
    by_segment: BTreeMap<u64, Arc<Lookup>>,
    bytes: usize,
    chance: Chance,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups::within(FENCES_MAX)
    }
}

impl Lookups {
    fn within(most: usize) -> Lookups {
        let kept = Kept {
            by_segment: BTreeMap::new(),
            bytes: 0,
            chance: Chance::new(0),
        };
        Lookups {
            kept: Mutex::new(kept),
            most,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the lookup of a segment, if it is kept.
    pub(crate) fn find(&self, segment: u64) -> Option<Arc<Lookup>> {
        self.kept().by_segment.get(&segment).cloned()
    }

    /// Keeps the lookup of a segment in place of another one, for as long as there is room.
    pub(crate) fn keep(&self, segment: u64, lookup: &Arc<Lookup>) {
        let mut kept = self.kept();
        kept.forget(segment);
        while kept.bytes + lookup.cost() > self.most {
            let Some(some) = kept.any() else {
                return;
            };
            kept.forget(some);
        }
        kept.bytes += lookup.cost();
        kept.by_segment.insert(segment, Arc::clone(lookup));
    }
}

impl Kept {
    fn any(&mut self) -> Option<u64> {
        let number = self.chance.below(self.by_segment.len() as u64);
        self.by_segment.keys().nth(number as usize).copied()
    }

    fn forget(&mut self, segment: u64) {
        if let Some(gone) = self.by_segment.remove(&segment) {
            self.bytes -= gone.cost();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_is_kept_than_the_bound_and_as_much_as_goes() {
        let cost = size_of::<Lookup>();
        let lookups = Lookups::within(10 * cost + cost / 2);
        let lookup = Arc::new(Lookup::Records(Vec::new()));
        for segment in (0..30).chain(0..30) {
            lookups.keep(segment, &lookup);
            assert!(
                lookups.find(segment).is_some(),
                "what was kept last is there"
            );
            let kept = lookups.kept();
            assert_eq!(kept.bytes, kept.by_segment.len() * cost);
            assert!(kept.bytes <= lookups.most);
        }
        assert_eq!((0..30).filter(|n| lookups.find(*n).is_some()).count(), 10);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let lookups = Lookups::within(100);
        let large = Arc::new(Lookup::Records(Vec::with_capacity(100)));
        lookups.keep(1, &large);
        assert!(lookups.find(1).is_none());
        assert_eq!(lookups.kept().bytes, 0);
    }
}
