//! What a policy keeps, as literal tables; what holds over any sequence of runs is in `tests/core/retention.rs`.

use super::*;

/// The time of the tables: a Thursday, in the middle of an hour, a day, a week and a month.
const NOW: &str = "2026-11-26T12:30:00Z";

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn time(text: &str) -> Timestamp {
    Timestamp::from_jiff(text.parse().unwrap())
}

/// Points 1, 2, 3, ... of those times; `L` in front of one locks it, `P` pins it.
fn points(times: &[&str]) -> Vec<Candidate> {
    let point = |(at, text): (usize, &&str)| Candidate {
        id: PointId(at as u64 + 1),
        time: time(text.trim_start_matches(['L', 'P'])),
        locked: text.starts_with('L'),
        pinned: text.starts_with('P'),
    };
    times.iter().enumerate().map(point).collect()
}

#[track_caller]
fn assert_goes(policy: Policy, times: &[&str], going: &[u64]) {
    let points = points(times);
    let found: Vec<u64> = policy
        .needless(&points, time(NOW))
        .iter()
        .map(|id| id.0)
        .collect();
    assert_eq!(found, going, "{policy:?}");
    // The order in which points are given plays no part.
    let mut turned = points;
    turned.reverse();
    let again = policy.needless(&turned, time(NOW));
    assert_eq!(again.iter().map(|id| id.0).collect::<Vec<_>>(), going);
}

#[test]
fn every_point_of_the_span_of_all_is_kept_and_none_before_it() {
    let policy = Policy {
        all: HOUR,
        ..Policy::default()
    };
    let times = [
        "2026-11-26T11:29:59.999999999Z",
        // An hour old to the moment: the span has passed.
        "2026-11-26T11:30:00Z",
        "2026-11-26T11:30:00.000000001Z",
        "2026-11-26T11:30:01Z",
        "2026-11-26T12:29:00Z",
    ];
    assert_goes(policy, &times, &[1, 2]);
}

#[test]
fn the_last_of_each_bucket_is_kept() {
    let hourly = Policy {
        hourly: DAY,
        ..Policy::default()
    };
    let times = [
        "2026-11-25T12:10:00Z",
        // The last of its hour, but a day old: it goes, and the one before it does not take its place.
        "2026-11-25T12:30:00Z",
        "2026-11-25T13:00:00Z",
        "2026-11-25T13:59:59Z",
        "2026-11-26T10:59:59.999999999Z",
        "2026-11-26T11:00:00Z",
        "2026-11-26T11:30:00Z",
        "2026-11-26T12:00:00Z",
        "2026-11-26T12:28:00Z",
    ];
    assert_goes(hourly, &times, &[1, 2, 3, 6, 8]);
    let daily = Policy {
        daily: 7 * DAY,
        ..Policy::default()
    };
    let times = [
        "2026-11-19T08:00:00Z",
        "2026-11-19T12:30:00.000000001Z",
        "2026-11-20T00:00:00Z",
        "2026-11-24T23:59:59Z",
        "2026-11-25T00:00:00Z",
        "2026-11-25T23:00:00Z",
        "2026-11-26T12:00:00Z",
    ];
    assert_goes(daily, &times, &[1, 5]);
    let weekly = Policy {
        weekly: 28 * DAY,
        ..Policy::default()
    };
    let times = [
        "2026-11-08T22:00:00Z",
        "2026-11-09T01:00:00Z",
        "2026-11-15T23:59:59Z",
        "2026-11-16T00:00:00Z",
        "2026-11-22T10:00:00Z",
        "2026-11-23T10:00:00Z",
    ];
    assert_goes(weekly, &times, &[2, 4]);
    let monthly = Policy {
        monthly: 365 * DAY,
        ..Policy::default()
    };
    let times = [
        "2025-11-26T12:30:00Z",
        "2025-11-30T00:00:00Z",
        "2026-09-30T23:59:59Z",
        "2026-10-01T00:00:00Z",
        "2026-10-31T00:00:00Z",
        "2026-11-01T00:00:00Z",
        "2026-11-26T12:00:00Z",
    ];
    assert_goes(monthly, &times, &[1, 4, 6]);
}

#[test]
fn classes_reach_over_each_other_and_agree() {
    let policy = Policy {
        all: HOUR,
        hourly: DAY,
        daily: 7 * DAY,
        weekly: 28 * DAY,
        monthly: 365 * DAY,
    };
    let times = [
        // By the month alone, the week alone (the last of its week, the month went on), the day alone.
        "2026-09-30T20:00:00Z",
        "2026-11-07T20:00:00Z",
        "2026-11-08T20:00:00Z",
        "2026-11-21T10:00:00Z",
        "2026-11-21T20:00:00Z",
        // By the hour, of which the last is the day's, too.
        "2026-11-25T22:10:00Z",
        "2026-11-25T22:50:00Z",
        "2026-11-25T23:10:00Z",
        "2026-11-25T23:50:00Z",
        // By all.
        "2026-11-26T11:40:00Z",
        "2026-11-26T11:50:00Z",
        "2026-11-26T12:10:00Z",
    ];
    assert_goes(policy, &times, &[2, 4, 6, 8]);
    // A class that is shorter than a finer one wants nothing that the finer one does not.
    let odd = Policy {
        all: DAY,
        daily: HOUR,
        ..Policy::default()
    };
    assert_goes(odd, &["2026-11-25T12:00:00Z", "2026-11-25T13:00:00Z"], &[1]);
}

#[test]
fn locked_pinned_and_the_newest_stay_whatever_the_policy_says() {
    let times = [
        "L2020-01-01T00:00:00Z",
        "2020-01-01T00:00:01Z",
        "P2020-01-01T00:00:02Z",
        "2020-01-01T00:00:03Z",
        "2020-01-01T00:00:04Z",
    ];
    assert_goes(Policy::default(), &times, &[2, 4]);
    assert_goes(Policy::default(), &[], &[]);
    // A locked point is the last of its bucket like any other: it does not make another one wanted.
    let hourly = Policy {
        hourly: DAY,
        ..Policy::default()
    };
    let times = [
        "2026-11-26T10:10:00Z",
        "L2026-11-26T10:20:00Z",
        "2026-11-26T11:10:00Z",
        "L2026-11-26T11:20:00Z",
        "2026-11-26T11:30:00Z",
    ];
    assert_goes(hourly, &times, &[1, 3]);
}

#[test]
fn what_may_still_be_taken_back_stays_and_does_not_count() {
    let hourly = Policy {
        hourly: DAY,
        ..Policy::default()
    };
    let times = [
        "2026-11-26T12:10:00Z",
        // The last of the hour that has settled.
        "2026-11-26T12:20:00Z",
        "2026-11-26T12:29:00.000000001Z",
        "2026-11-26T12:29:30Z",
        "2026-11-26T12:29:59Z",
    ];
    assert_goes(hourly, &times, &[1]);
    // A minute old: settled, and in the place of the one before.
    assert_goes(
        hourly,
        &[
            "2026-11-26T12:20:00Z",
            "2026-11-26T12:29:00Z",
            "2026-11-26T12:29:30Z",
        ],
        &[1],
    );
    // A clock that was set back: later points are as good as new.
    assert_goes(
        Policy::default(),
        &["2026-11-26T12:40:00Z", "2026-11-26T12:50:00Z"],
        &[],
    );
}
