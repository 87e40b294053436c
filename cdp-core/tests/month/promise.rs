//! What a policy promises, worked out the plain way over all points that were ever made: not by what the product uses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cdp_core::bounds::POINT_SETTLE;
use cdp_core::{Policy, Timestamp};

/// Returns those of the points (number and time, oldest first) that a policy promises at a moment.
pub(crate) fn promised(
    made: &[(u64, Timestamp)],
    policy: &Policy,
    now: Timestamp,
) -> BTreeSet<u64> {
    let age = |time: Timestamp| now.since(time);
    let mut promised: BTreeSet<u64> = made
        .iter()
        .filter(|(_, time)| age(*time) < POINT_SETTLE.max(policy.all))
        .map(|(id, _)| *id)
        .collect();
    promised.extend(made.last().map(|(id, _)| *id));
    type Bucket = fn(Timestamp) -> String;
    let classes: [(Duration, Bucket); 4] = [
        (policy.hourly, |time| {
            time.to_jiff().strftime("%F %H").to_string()
        }),
        (policy.daily, |time| {
            time.to_jiff().strftime("%F").to_string()
        }),
        (policy.weekly, |time| {
            time.to_jiff().strftime("%G-%V").to_string()
        }),
        (policy.monthly, |time| {
            time.to_jiff().strftime("%Y-%m").to_string()
        }),
    ];
    for (span, bucket) in classes {
        let mut last = BTreeMap::new();
        for (id, time) in made.iter().filter(|(_, time)| age(*time) >= POINT_SETTLE) {
            // Older ones than the span reaches by a month cannot be the last of a bucket that it reaches.
            if age(*time) < span + Duration::from_secs(32 * 24 * 3600) {
                last.insert(bucket(*time), (*id, *time));
            }
        }
        let in_span = last.into_values().filter(|(_, time)| age(*time) < span);
        promised.extend(in_span.map(|(id, _)| id));
    }
    promised
}
