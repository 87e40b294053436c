//! What is kept in memory of the tables of a chain: slices of them, within a bound.
//!
//! Each slice has a set of few ways in which it may be; the one used least recently yields. A lock is held for
//! moments, never while something is read.

use std::sync::{Arc, Mutex, PoisonError};

use crate::bounds::{TABLE_SLICE, TABLES_KEPT_MAX};
use crate::error::Result;

/// Slices that a set holds.
const WAYS: usize = 4;
/// Sets.
const SETS: usize = TABLES_KEPT_MAX / TABLE_SLICE / WAYS;
/// Entries of a slice.
pub(super) const SLICE_ENTRIES: usize = TABLE_SLICE / 8;

/// Which slice: the layer's number in the chain, its table, the slice in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SliceKey {
    pub(super) layer: u32,
    pub(super) table: u32,
    pub(super) slice: u32,
}

type Set = Vec<(SliceKey, Arc<[u64]>)>;

/// The slices that are kept.
#[derive(Debug)]
pub(super) struct SliceCache {
    sets: Box<[Mutex<Set>]>,
}

impl SliceCache {
    pub(super) fn new() -> SliceCache {
        SliceCache {
            sets: (0..SETS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Returns a slice, read if it is not there.
    pub(super) fn get(
        &self,
        key: SliceKey,
        read: impl FnOnce() -> Result<Arc<[u64]>>,
    ) -> Result<Arc<[u64]>> {
        let Some(set) = self.sets.get(key.set()) else {
            return read();
        };
        {
            let mut ways = set.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = ways.iter().position(|(kept, _)| *kept == key) {
                ways.get_mut(..=at).unwrap_or_default().rotate_right(1);
                if let Some((_, slice)) = ways.first() {
                    return Ok(Arc::clone(slice));
                }
            }
        }
        let slice = read()?;
        let mut ways = set.lock().unwrap_or_else(PoisonError::into_inner);
        ways.truncate(WAYS - 1);
        ways.insert(0, (key, Arc::clone(&slice)));
        Ok(slice)
    }
}

impl SliceKey {
    fn set(self) -> usize {
        let mixed =
            (u64::from(self.layer) << 40 ^ u64::from(self.table) << 8 ^ u64::from(self.slice))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as usize % SETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_not_read_again_and_there_is_never_more_than_the_bound() {
        let cache = SliceCache::new();
        let key = |table| SliceKey {
            layer: 3,
            table,
            slice: 1,
        };
        let slice: Arc<[u64]> = vec![7; SLICE_ENTRIES].into();
        let mut reads = 0;
        for _ in 0..2 {
            let found = cache.get(key(5), || {
                reads += 1;
                Ok(Arc::clone(&slice))
            });
            assert_eq!(found.unwrap()[0], 7);
        }
        assert_eq!(reads, 1);
        for table in 0..100_000 {
            cache.get(key(table), || Ok(Arc::clone(&slice))).unwrap();
        }
        let kept: usize = cache.sets.iter().map(|set| set.lock().unwrap().len()).sum();
        assert!(kept <= TABLES_KEPT_MAX / TABLE_SLICE, "{kept}");
        assert!(
            kept > TABLES_KEPT_MAX / TABLE_SLICE / 2,
            "{kept}: badly spread"
        );
        let mut is_read = false;
        let found = cache.get(key(99_999), || {
            is_read = true;
            Ok(Arc::clone(&slice))
        });
        assert!(found.is_ok() && !is_read, "the newest stays");
    }
}
