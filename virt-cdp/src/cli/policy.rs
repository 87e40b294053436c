//! A policy, as people are shown it.

use std::time::Duration;

use super::text::{or_dash, pairs};
use crate::{
    api::v1,
    units::{format_duration, format_size},
};

/// How far back a class is kept; `-` where it is not used.
pub(super) fn span(ms: u64) -> String {
    match ms {
        0 => "-".into(),
        ms => format_duration(Duration::from_millis(ms)),
    }
}

/// A size limit; `-` where there is none.
pub(super) fn limit(bytes: u64) -> String {
    match bytes {
        0 => "-".into(),
        bytes => format_size(bytes),
    }
}

/// Describes a policy to people.
pub(super) fn describe(policy: &v1::Policy) -> String {
    pairs(&[
        ("Name", policy.name.clone()),
        ("Every point", span(policy.all_ms)),
        ("One an hour", span(policy.hourly_ms)),
        ("One a day", span(policy.daily_ms)),
        ("One a week", span(policy.weekly_ms)),
        ("One a month", span(policy.monthly_ms)),
        ("Size limit", limit(policy.size_limit_bytes)),
        ("Drills", or_dash(&policy.drill)),
        ("From", policy.origin.clone()),
        ("Machines", or_dash(&policy.machines.join(", "))),
    ])
}
