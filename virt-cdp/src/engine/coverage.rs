//! What of a span of time can be gone back to: its coverage, as spans of points and gaps.
//!
//! A pure function of points and gaps, in nanoseconds since the epoch. Time outside of gaps is covered also
//! where there are no points: nothing was written there, and the point before is the state of that time.
//!
//! Invariant: the spans follow on each other from the first moment to the last, and no point is counted in a gap.

use crate::api::v1;

/// How far back a machine's own coverage goes: 24 hours.
pub(crate) const MACHINE_SPAN_NS: i64 = 24 * 3600 * 1_000_000_000;

const POINTS: &str = "points";
const GAP: &str = "gap";

/// Divides the time from `from_ns` to `to_ns` into spans; `points_ns` and `gaps` are in the order of time.
///
/// A gap with no end lasts to `to_ns`. Where gaps overlap, the earlier one keeps its reason. Empty when `to_ns` is
/// not after `from_ns`.
pub(crate) fn spans(
    (from_ns, to_ns): (i64, i64),
    points_ns: &[i64],
    gaps: &[v1::Gap],
) -> Vec<v1::Span> {
    // A point at the moment a gap begins stands before it.
    let covered = |start_ns: i64, end_ns: i64| {
        let before = points_ns.partition_point(|point| *point < start_ns);
        let until = points_ns.partition_point(|point| *point <= end_ns);
        v1::Span {
            start_ns,
            end_ns,
            kind: POINTS.into(),
            reason: String::new(),
            points: until.saturating_sub(before) as u64,
        }
    };
    let mut spans = Vec::new();
    let mut at_ns = from_ns;
    for gap in gaps {
        let open = gap.end_ns == 0;
        let start_ns = gap.start_ns.max(at_ns);
        let end_ns = if open { to_ns } else { gap.end_ns.min(to_ns) };
        if end_ns <= start_ns {
            continue;
        }
        if start_ns > at_ns {
            spans.push(covered(at_ns, start_ns));
        }
        spans.push(v1::Span {
            start_ns,
            end_ns,
            kind: GAP.into(),
            reason: gap.reason.clone(),
            points: 0,
        });
        at_ns = end_ns;
    }
    if at_ns < to_ns {
        spans.push(covered(at_ns, to_ns));
    }
    spans
}

/// The gaps that reach into the time from `from_ns` to `to_ns`, as they are.
pub(crate) fn gaps_within((from_ns, to_ns): (i64, i64), gaps: &[v1::Gap]) -> Vec<v1::Gap> {
    gaps.iter()
        .filter(|gap| gap.start_ns <= to_ns && (gap.end_ns == 0 || gap.end_ns > from_ns))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(start_ns: i64, end_ns: i64, reason: &str) -> v1::Gap {
        v1::Gap {
            start_ns,
            end_ns,
            reason: reason.into(),
        }
    }

    /// `10-20 points 3` or `20-30 gap why`.
    fn told(spans: &[v1::Span]) -> String {
        let told = spans.iter().map(|span| match span.kind.as_str() {
            GAP => format!("{}-{} gap {}", span.start_ns, span.end_ns, span.reason),
            kind => format!("{}-{} {kind} {}", span.start_ns, span.end_ns, span.points),
        });
        told.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn time_is_divided_into_points_and_gaps() {
        let points: &[i64] = &[10, 20, 30, 50, 60];
        let table: &[((i64, i64), &[v1::Gap], &str)] = &[
            ((10, 60), &[], "10-60 points 5"),
            (
                (10, 60),
                &[gap(31, 50, "a")],
                "10-31 points 3, 31-50 gap a, 50-60 points 2",
            ),
            // Open, from the newest point on.
            (
                (10, 100),
                &[gap(60, 0, "off")],
                "10-60 points 5, 60-100 gap off",
            ),
            // Clipped on both sides, and beside the span.
            (
                (20, 60),
                &[
                    gap(1, 5, "x"),
                    gap(12, 25, "a"),
                    gap(55, 90, "b"),
                    gap(95, 99, "y"),
                ],
                "20-25 gap a, 25-55 points 2, 55-60 gap b",
            ),
            // One after the other, and overlapping.
            (
                (0, 60),
                &[gap(10, 30, "a"), gap(30, 40, "b"), gap(35, 45, "c")],
                "0-10 points 1, 10-30 gap a, 30-40 gap b, 40-45 gap c, 45-60 points 2",
            ),
            // A gap within a gap, and one that lasts all the time.
            (
                (0, 60),
                &[gap(0, 0, "all"), gap(10, 20, "b")],
                "0-60 gap all",
            ),
            // Nothing to divide.
            ((60, 60), &[], ""),
            ((60, 10), &[gap(0, 0, "a")], ""),
        ];
        for (range, gaps, expected) in table {
            assert_eq!(&told(&spans(*range, points, gaps)), expected, "{range:?}");
        }
    }

    #[test]
    fn gaps_that_reach_in_are_told_whole() {
        let gaps = [
            gap(0, 10, "a"),
            gap(5, 11, "b"),
            gap(20, 0, "c"),
            gap(31, 40, "d"),
        ];
        let told: Vec<String> = gaps_within((10, 30), &gaps)
            .into_iter()
            .map(|gap| gap.reason)
            .collect();
        assert_eq!(told, ["b", "c"]);
    }
}
