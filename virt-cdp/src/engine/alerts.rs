//! Alerts: what somebody should look at, from when it is so until it is so no more.
//!
//! The lookout finds the conditions of each second (`lookout/conditions.rs`), and this turns them into alerts that are
//! raised and cleared, once each. So that nothing flaps, a condition must hold for [`RAISE_AFTER`] until its alert is
//! raised, and be away for [`CLEAR_AFTER`] until it is cleared. An alert is known by its key and its machine; its text may
//! change while it stands.
//!
//! Invariant: an alert is raised before it is cleared, and never twice in between.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use cdp_core::Timestamp;

/// How long a condition must hold until its alert is raised.
pub(crate) const RAISE_AFTER: Duration = Duration::from_secs(3);
/// How long it must be away until the alert is cleared.
pub(crate) const CLEAR_AFTER: Duration = Duration::from_secs(10);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// It is protected still, but not for sure for long.
    Warning,
    /// Something is not protected, or damaged.
    Critical,
}

impl Severity {
    /// The stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Something that is so at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// What it is, in a stable word.
    pub(crate) key: &'static str,
    /// The machine it is about; empty: the daemon.
    pub(crate) machine: String,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// A sentence for people, without a full stop.
    pub(crate) text: String,
}

/// An alert that stands, or stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alert {
    /// What it is, in a stable word.
    pub(crate) key: &'static str,
    /// The machine it is about; empty: the daemon.
    pub(crate) machine: String,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// Since when it is so.
    pub(crate) since: Timestamp,
    /// A sentence for people, without a full stop.
    pub(crate) text: String,
}

/// What has become of an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It stands from now on.
    Raised(Alert),
    /// It stands no more.
    Cleared(Alert),
}

/// All conditions that hold, or held a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Alerts {
    known: BTreeMap<(&'static str, String), Known>,
}

#[derive(Debug)]
struct Known {
    alert: Alert,
    is_raised: bool,
    holds_since: Instant,
    away_since: Option<Instant>,
}

impl Alerts {
    /// Takes what is so at the moment `now`, which the clock calls `at`; returns what has changed.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        at: Timestamp,
        conditions: Vec<Condition>,
    ) -> Vec<Change> {
        let mut holding = Vec::with_capacity(conditions.len());
        for condition in conditions {
            let name = (condition.key, condition.machine.clone());
            holding.push(name.clone());
            let known = self.known.entry(name).or_insert_with(|| Known {
                alert: Alert {
                    key: condition.key,
                    machine: condition.machine,
                    severity: condition.severity,
                    since: at,
                    text: String::new(),
                },
                is_raised: false,
                holds_since: now,
                away_since: None,
            });
            known.alert.severity = condition.severity;
            known.alert.text = condition.text;
            known.away_since = None;
        }
        let mut changes = Vec::new();
        self.known.retain(|name, known| {
            if holding.contains(name) {
                let held = now.saturating_duration_since(known.holds_since);
                if !known.is_raised && held >= RAISE_AFTER {
                    known.is_raised = true;
                    changes.push(Change::Raised(known.alert.clone()));
                }
                return true;
            }
            let away = now.saturating_duration_since(*known.away_since.get_or_insert(now));
            let stays = known.is_raised && away < CLEAR_AFTER;
            if known.is_raised && !stays {
                changes.push(Change::Cleared(known.alert.clone()));
            }
            stays
        });
        changes
    }

    /// Returns what stands, the worst first, then the oldest.
    pub(crate) fn standing(&self) -> Vec<Alert> {
        let raised = self.known.values().filter(|known| known.is_raised);
        let mut standing: Vec<Alert> = raised.map(|known| known.alert.clone()).collect();
        standing.sort_by_key(|alert| (std::cmp::Reverse(alert.severity), alert.since));
        standing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(key: &'static str, machine: &str, severity: Severity) -> Condition {
        Condition {
            key,
            machine: machine.into(),
            severity,
            text: format!("{key} of {machine}"),
        }
    }

    /// Plays seconds, each with the conditions that hold then; returns what changed, as `3 +gap/a`.
    fn play(seconds: impl IntoIterator<Item = (u64, Vec<Condition>)>) -> (Vec<String>, Alerts) {
        let start = Instant::now();
        let mut alerts = Alerts::default();
        let mut told = Vec::new();
        for (s, conditions) in seconds {
            let (now, at) = (start + Duration::from_secs(s), Timestamp(s * 1_000_000_000));
            for change in alerts.look(now, at, conditions) {
                told.push(match change {
                    Change::Raised(a) => format!("{s} +{}/{}", a.key, a.machine),
                    Change::Cleared(a) => format!("{s} -{}/{}", a.key, a.machine),
                });
            }
        }
        (told, alerts)
    }

    #[test]
    fn it_is_raised_once_it_has_held_and_cleared_once_it_has_been_away() {
        let gap = || vec![condition("gap", "a", Severity::Warning)];
        let holds = |s: u64| (s, if (10..20).contains(&s) { gap() } else { vec![] });
        let (told, alerts) = play((0..60).map(holds));
        // Gone from second 20 on.
        assert_eq!(told, ["13 +gap/a", "30 -gap/a"]);
        assert!(alerts.known.is_empty());
    }

    #[test]
    fn what_comes_and_goes_is_neither_raised_nor_cleared_each_time() {
        let gap = || vec![condition("gap", "a", Severity::Warning)];
        // Never for three seconds.
        let short = |s: u64| (s, if s % 4 < 3 { gap() } else { vec![] });
        assert_eq!(play((0..40).map(short)).0, Vec::<String>::new());
        // Away for less than ten seconds, again and again.
        let long = |s: u64| (s, if s % 15 < 6 { gap() } else { vec![] });
        let (told, alerts) = play((0..100).map(long));
        assert_eq!(told, ["3 +gap/a"]);
        let standing = alerts.standing();
        assert_eq!(standing.len(), 1);
        assert_eq!(standing[0].since, Timestamp(0), "since it was so first");
    }

    #[test]
    fn alerts_are_known_by_key_and_machine_and_told_the_worst_first() {
        let all = |s: u64| {
            let mut conditions = vec![
                condition("gap", "a", Severity::Warning),
                condition("gap", "b", Severity::Warning),
            ];
            if s >= 5 {
                conditions.push(condition("damaged", "a", Severity::Critical));
                // It has become worse.
                conditions[1].severity = Severity::Critical;
                conditions[1].text = "worse".into();
            }
            (s, conditions)
        };
        let (told, alerts) = play((0..20).map(all));
        assert_eq!(told, ["3 +gap/a", "3 +gap/b", "8 +damaged/a"]);
        let standing: Vec<String> = alerts
            .standing()
            .iter()
            .map(|a| format!("{} {}/{}: {}", a.severity.name(), a.key, a.machine, a.text))
            .collect();
        assert_eq!(
            standing,
            [
                "critical gap/b: worse",
                "critical damaged/a: damaged of a",
                "warning gap/a: gap of a"
            ]
        );
    }
}
