//! The parts of a view's volumes that are held: those used last, within a bound on their memory.
//!
//! A read looks for its part under a lock that others may hold too. A part that is not there is worked out without that lock,
//! once: whoever needs the same one waits for it in its [`turn`](PartCache::turn), which is also what bounds how
//! many are worked out at a time. Where there is too much, the parts that were not used for the longest time go, an
//! eighth of all at once.
//!
//! Invariant: the parts held never take more than the bound. A part that somebody reads outlives its place here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::part::Part;
use crate::bounds::{PART_LEN_MAX, PARTS_UNDER_WAY_MAX};
use crate::machine::VolumeId;

/// The parts that are held.
#[derive(Debug)]
pub(crate) struct PartCache {
    held: RwLock<Held>,
    turns: [Mutex<()>; PARTS_UNDER_WAY_MAX],
    /// Rises with every use of a part.
    clock: AtomicU64,
    most: usize,
}

#[derive(Debug, Default)]
struct Held {
    /// By volume and first byte.
    by_place: BTreeMap<(VolumeId, u64), Slot>,
    bytes: usize,
}

#[derive(Debug)]
struct Slot {
    part: Arc<Part>,
    /// When it was used last.
    used: AtomicU64,
}

impl PartCache {
    /// Makes a cache of parts that take at most so many bytes.
    pub(crate) fn new(most: usize) -> PartCache {
        PartCache {
            held: RwLock::default(),
            turns: Default::default(),
            clock: AtomicU64::new(0),
            most,
        }
    }

    /// Returns the part of a volume in which byte `at` lies, if it is held.
    pub(super) fn find(&self, volume: VolumeId, at: u64) -> Option<Arc<Part>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let (place, slot) = held.by_place.range(..=(volume, at)).next_back()?;
        if place.0 != volume || !slot.part.range.contains(&at) {
            return None;
        }
        slot.used.store(self.now(), Ordering::Relaxed);
        Some(Arc::clone(&slot.part))
    }

    /// Waits until nobody else works out the part with byte `at`, and keeps others from it while the answer lives.
    pub(super) fn turn(&self, volume: VolumeId, at: u64) -> MutexGuard<'_, ()> {
        // No part is longer, so all bytes of one have the same turn.
        let number = (at / PART_LEN_MAX + u64::from(volume.0)) % PARTS_UNDER_WAY_MAX as u64;
        let [first, ..] = &self.turns;
        let turn = self.turns.get(number as usize).unwrap_or(first);
        turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a part, and lets go of others where there is too much.
    pub(super) fn hold(&self, volume: VolumeId, part: &Arc<Part>) {
        let cost = part.cost();
        if cost > self.most {
            return;
        }
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if held.bytes + cost > self.most {
            held.let_go(self.most - cost.max(self.most / 8));
        }
        let slot = Slot {
            part: Arc::clone(part),
            used: AtomicU64::new(self.now()),
        };
        let place = (volume, part.range.start);
        held.bytes += cost;
        if let Some(before) = held.by_place.insert(place, slot) {
            held.bytes -= before.part.cost();
        }
    }

    /// Lets go of all parts.
    pub(super) fn let_go(&self) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.let_go(0);
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> Vec<Arc<Part>> {
        let held = self.held.read().unwrap();
        held.by_place
            .values()
            .map(|s| Arc::clone(&s.part))
            .collect()
    }
}

impl Held {
    /// Lets go of the parts used the longest time ago, until the others take no more than `most`.
    fn let_go(&mut self, most: usize) {
        let used = |slot: &Slot| slot.used.load(Ordering::Relaxed);
        let places = self.by_place.iter();
        let mut places: Vec<_> = places.map(|(place, slot)| (used(slot), *place)).collect();
        places.sort_unstable();
        for (_, place) in places {
            if self.bytes <= most {
                break;
            }
            if let Some(gone) = self.by_place.remove(&place) {
                self.bytes -= gone.part.cost();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::gathering::Gathered;

    fn part(start: u64) -> Arc<Part> {
        let gathered = Gathered {
            range: start..start + 10,
            spans: Vec::new(),
            records: Vec::new(),
        };
        Arc::new(Part::new(gathered, &[]).unwrap())
    }

    #[test]
    fn what_was_used_last_stays_and_the_bound_holds() {
        let cost = part(0).cost();
        let cache = PartCache::new(16 * cost);
        let volume = VolumeId(3);
        for number in 0..100 {
            cache.hold(volume, &part(number * 10));
            assert!(cache.find(volume, 5).is_some(), "it is used all the time");
            let held = cache.held.read().unwrap();
            assert_eq!(held.bytes, held.by_place.len() * cost);
            assert!(held.bytes <= 16 * cost);
            assert!(
                number < 16 || held.by_place.len() >= 14,
                "and is made use of"
            );
        }
        assert!(cache.find(volume, 999).is_some() && cache.find(volume, 990).is_some());
        assert!(cache.find(volume, 1000).is_none(), "behind the last one");
        assert!(cache.find(volume, 100).is_none(), "not used for long");
        assert!(cache.find(VolumeId(2), 5).is_none() && cache.find(VolumeId(4), 5).is_none());
        cache.let_go();
        assert!(cache.find(volume, 5).is_none());
        assert_eq!(cache.held.read().unwrap().bytes, 0);
    }

    #[test]
    fn a_part_that_takes_the_place_of_another_counts_once() {
        let cache = PartCache::new(1 << 20);
        for _ in 0..3 {
            cache.hold(VolumeId(0), &part(20));
        }
        assert_eq!(cache.held.read().unwrap().bytes, part(20).cost());
    }
}
