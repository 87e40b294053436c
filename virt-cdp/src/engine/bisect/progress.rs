//! How far a search has come: what was found, what was passed over, and what clients are told of it.

use std::collections::BTreeMap;

use cdp_core::Point;
use drill_runner::bisect::Search;

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::messages,
};

/// How many points in a row may be passed over: whatever is in the way of so many is in the way of all.
const SKIPPED_MAX: u32 = 8;

/// What was found at a point.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) passed: bool,
    pub(super) why: String,
    pub(super) drill: String,
}

/// How far a search has come.
pub(super) struct Progress {
    pub(super) search: Search,
    state: v1::BisectState,
    /// How many points were passed over since one was looked at.
    skipped: u32,
}

impl Progress {
    /// Begins with what an earlier run has found.
    pub(super) fn of(points: &[Point], notes: BTreeMap<u64, Found>) -> Self {
        let mut progress = Self {
            search: Search::new(points.len()),
            state: v1::BisectState {
                points: points.len() as u64,
                ..Default::default()
            },
            skipped: 0,
        };
        for (id, found) in notes {
            if let Ok(at) = points.binary_search_by_key(&id, |point| point.id.0)
                && let Some(point) = points.get(at)
            {
                progress.search.note(at, found.passed);
                progress.state.probes.push(told(point, &found, 0, true));
            }
        }
        progress
    }

    /// Notes what was found at a point.
    pub(super) fn found(&mut self, at: usize, point: &Point, found: &Found, took_ms: u64) {
        self.skipped = 0;
        self.search.note(at, found.passed);
        self.state.probes.push(told(point, found, took_ms, false));
    }

    /// Notes that a point could not be looked at: another beside it is.
    ///
    /// # Errors
    /// So many in a row could not.
    pub(super) fn skip(
        &mut self,
        at: usize,
        point: &Point,
        why: &str,
        took_ms: u64,
    ) -> ApiResult<()> {
        self.skipped += 1;
        self.search.skip(at);
        self.state.probes.push(v1::BisectProbe {
            point: Some(messages::point(point)),
            why: why.to_owned(),
            took_ms,
            skipped: true,
            ..Default::default()
        });
        match self.skipped < SKIPPED_MAX {
            true => Ok(()),
            false => Err(unseen(
                &format!("{SKIPPED_MAX} points in a row could not be looked at"),
                why,
            )),
        }
    }

    /// Whether anything was found at all; an error tells why not.
    pub(super) fn verdict(&self) -> ApiResult<()> {
        let mut probes = self.state.probes.iter();
        match probes.next_back() {
            Some(last) if last.skipped && probes.all(|one| one.skipped) => {
                Err(unseen("no point could be looked at", &last.why))
            }
            _ => Ok(()),
        }
    }

    /// The state for clients, with the answer as far as it is known.
    pub(super) fn told(&mut self, points: &[Point]) -> v1::BisectState {
        let point = |at: Option<usize>| at.and_then(|at| points.get(at)).map(messages::point);
        self.state.left_most = u64::from(self.search.left_most());
        self.state.newest_good = point(self.search.newest_good());
        self.state.oldest_bad = point(self.search.oldest_bad());
        self.state.clone()
    }
}

/// A search that cannot go on, as points cannot be looked at.
fn unseen(what: &str, why: &str) -> ApiError {
    ApiError::new(
        ApiErrorKind::FailedPrecondition,
        format!("{what}, the last because: {why}"),
    )
    .hint("put that right; the same command goes on where it was")
}

fn told(point: &Point, found: &Found, took_ms: u64, remembered: bool) -> v1::BisectProbe {
    v1::BisectProbe {
        point: Some(messages::point(point)),
        passed: found.passed,
        why: found.why.clone(),
        took_ms,
        drill: found.drill.clone(),
        remembered,
        skipped: false,
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::{Grade, PointId, Seq, Timestamp};

    use super::*;

    fn points(count: u64) -> Vec<Point> {
        let point = |id| Point {
            id: PointId(id),
            time: Timestamp(id),
            seq: Seq(id),
            grade: Grade::Crash,
            label: None,
            xml: None,
            locked: false,
            damaged: false,
        };
        (1..=count).map(point).collect()
    }

    #[test]
    fn points_that_cannot_be_looked_at_are_neither_good_nor_bad() {
        let points = points(100);
        let mut progress = Progress::of(&points, BTreeMap::new());
        for round in 1..SKIPPED_MAX {
            let at = progress.search.next(1)[0];
            progress.skip(at, &points[at], "no room", 1).unwrap();
            assert_eq!(progress.skipped, round);
        }
        let state = progress.told(&points);
        assert!(
            state
                .probes
                .iter()
                .all(|probe| probe.skipped && !probe.passed)
        );
        assert_eq!((state.newest_good, state.oldest_bad), (None, None));
        let found = Found {
            passed: true,
            why: String::new(),
            drill: String::new(),
        };
        progress.found(10, &points[10], &found, 1);
        assert_eq!(progress.skipped, 0, "one in between was looked at");
        progress.verdict().unwrap();
        for _ in 1..SKIPPED_MAX {
            let at = progress.search.next(1)[0];
            progress.skip(at, &points[at], "no room", 1).unwrap();
        }
        let at = progress.search.next(1)[0];
        let error = progress.skip(at, &points[at], "no room", 1).unwrap_err();
        assert!(error.what.contains("8 points in a row") && error.what.contains("no room"));
    }

    #[test]
    fn a_search_that_could_look_at_nothing_has_no_answer() {
        let points = points(2);
        let mut progress = Progress::of(&points, BTreeMap::new());
        while let Some(at) = progress.search.next(1).first().copied() {
            progress.skip(at, &points[at], "it cannot run", 1).unwrap();
        }
        let error = progress.verdict().unwrap_err();
        assert!(error.what.contains("it cannot run"), "{}", error.what);
    }
}
