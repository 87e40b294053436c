//! Which segments are made into one cold segment next: a pure function over what is known of each.
//!
//! Worth the work is a segment that is not cold yet, and a cold one half of whose points, or more, are not kept any more;
//! or a number of small ones. Neighbours that are not worth it by themselves are taken along while they are
//! small, so that files do not become many.

use std::ops::Range;

use crate::bounds::{COLD_PAYLOAD_MAX, COLD_RECORDS_MAX, COLD_SMALL_BYTES, COLD_SMALL_COUNT};

/// What is known of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// It is behind the newest base points, sealed, and nothing else is against it.
    pub(super) eligible: bool,
    pub(super) is_cold: bool,
    pub(super) records: u64,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// Points it has records of; of a segment that is not cold, nobody asks.
    pub(super) points: u64,
    /// Points in it that are kept.
    pub(super) kept: u64,
}

impl Candidate {
    /// Tells whether it is worth the work by itself.
    fn is_due(&self) -> bool {
        !self.is_cold || (self.points > self.kept && self.kept <= self.points / 2)
    }

    fn is_small(&self) -> bool {
        self.is_cold && self.bytes <= COLD_SMALL_BYTES
    }
}

/// Returns the segments to be made into one, the oldest that are worth it.
pub(super) fn choose(candidates: &[Candidate]) -> Option<Range<usize>> {
    let mut start = 0;
    while start < candidates.len() {
        let run = run_from(candidates.get(start..).unwrap_or_default());
        let members = candidates.get(start..start + run).unwrap_or_default();
        let due = members.iter().any(Candidate::is_due);
        if due || members.len() >= COLD_SMALL_COUNT {
            return Some(start..start + run);
        }
        start += run.max(1);
    }
    None
}

/// Returns how many from the first on can become one.
fn run_from(candidates: &[Candidate]) -> usize {
    let (mut records, mut bytes) = (0, 0);
    let fits = candidates.iter().take_while(|one| {
        records += one.records;
        bytes += one.bytes;
        let alone = records == one.records;
        one.eligible
            && (one.is_due() || one.is_small())
            && (alone || (records <= COLD_RECORDS_MAX && bytes <= COLD_PAYLOAD_MAX))
    });
    fits.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOT: Candidate = Candidate {
        eligible: true,
        is_cold: false,
        records: 1000,
        bytes: 64 << 20,
        points: 0,
        kept: 10,
    };
    const COLD: Candidate = Candidate {
        is_cold: true,
        points: 10,
        ..HOT
    };
    const SMALL: Candidate = Candidate {
        bytes: 1 << 20,
        ..COLD
    };
    const THIN: Candidate = Candidate { kept: 5, ..COLD };
    const EMPTY: Candidate = Candidate {
        points: 0,
        kept: 0,
        ..COLD
    };
    const NEW: Candidate = Candidate {
        eligible: false,
        ..HOT
    };
    const FULL: Candidate = Candidate {
        records: COLD_RECORDS_MAX,
        ..HOT
    };

    #[test]
    fn the_oldest_run_that_is_worth_it_is_taken() {
        let mut smalls = vec![SMALL; COLD_SMALL_COUNT];
        smalls.push(NEW);
        type Case<'a> = (&'a [Candidate], Option<Range<usize>>);
        let cases: [Case<'_>; 12] = [
            (&[], None),
            (&[COLD, COLD], None),
            (&[EMPTY, COLD], None),
            (&[NEW], None),
            (&[HOT, HOT, NEW], Some(0..2)),
            (&[COLD, HOT, NEW], Some(1..2)),
            (&[COLD, THIN, COLD, HOT], Some(1..2)),
            (&[SMALL, HOT, NEW, HOT], Some(0..2)),
            (&[FULL, HOT], Some(0..1)),
            (&[HOT, FULL, HOT], Some(0..1)),
            (&[SMALL, SMALL, NEW], None),
            (&smalls, Some(0..COLD_SMALL_COUNT)),
        ];
        for (candidates, expected) in cases {
            assert_eq!(choose(candidates), expected, "{candidates:?}");
        }
    }
}
