//! What drills have proved of each machine, from the reports.
//!
//! A machine is known by its id, so that one that has the name of another that was deleted has none of its proofs. Reports
//! from before ids were kept count for the machine of that name that was protected when they ended.
//!
//! Probes of bisections prove nothing: they look for points that fail.

use std::{collections::BTreeMap, sync::Mutex};

use drill_runner::{
    outcome::{Report, Verdict},
    report::{Store, Summary},
};

use crate::engine::{guard, machine::Machine, messages};

/// What is proved of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Proof {
    /// The newest point that was proved: its number and its time, ns since the epoch.
    pub(crate) proved: Option<(u64, i64)>,
    /// The last drill that said something of the newest points: its number, whether it proved the machine, and why not. One of
    /// an older point than was judged already says nothing of how the machine is now.
    pub(crate) last: Option<(String, bool, String)>,
    /// When that ended, ns since the epoch.
    pub(crate) last_ns: i64,
    /// When the last drill of any point ended, ns since the epoch.
    pub(crate) ended_ns: i64,
    /// The time of the newest point of which a drill said something, ns since the epoch.
    pub(crate) judged_ns: i64,
    /// The RTO it measured, ms.
    pub(crate) rto_ms: Option<u64>,
    /// How many drills proved it, and how many did not, as far as there are reports.
    pub(crate) counts: (u64, u64),
}

/// What a machine is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Id(String),
    /// In reports without ids.
    Name(String),
}

/// All proofs, by machine.
#[derive(Debug, Default)]
pub(super) struct Proofs(Mutex<BTreeMap<Key, Proof>>);

impl Proofs {
    pub(super) fn of(store: &Store) -> Self {
        let proofs = Self::default();
        for summary in store.list().unwrap_or_default() {
            proofs.take(&summary);
        }
        proofs
    }

    pub(super) fn of_machine(&self, machine: &Machine) -> Option<Proof> {
        let created = messages::time(machine.description().created);
        self.find(&machine.id, &machine.name, created)
    }

    /// What is proved of a machine of that id and name that is protected since then.
    fn find(&self, id: &str, name: &str, created_ns: i64) -> Option<Proof> {
        let all = guard(&self.0);
        let of_name = || {
            all.get(&Key::Name(name.to_owned()))
                .filter(|proof| proof.ended_ns >= created_ns)
        };
        all.get(&Key::Id(id.to_owned())).or_else(of_name).cloned()
    }

    /// Takes a drill that has just ended into account.
    pub(super) fn note(&self, report: &Report) {
        self.take(&Summary::of(report));
    }

    fn take(&self, summary: &Summary) {
        let ns = |time: &str| {
            let time: Option<jiff::Timestamp> = time.parse().ok();
            time.and_then(|time| i64::try_from(time.as_nanosecond()).ok())
        };
        if summary.is_probe() {
            return;
        }
        let mut all = guard(&self.0);
        for machine in &summary.machines {
            let is_proved = match machine.verdict {
                Verdict::Proved => true,
                Verdict::Failed => false,
                _ => continue,
            };
            let key = match machine.machine_id.as_str() {
                "" => Key::Name(machine.name.clone()),
                id => Key::Id(id.to_owned()),
            };
            let proof = all.entry(key).or_default();
            let ended_ns = ns(&summary.ended).unwrap_or(0);
            proof.ended_ns = proof.ended_ns.max(ended_ns);
            let count = match is_proved {
                true => &mut proof.counts.0,
                false => &mut proof.counts.1,
            };
            *count += 1;
            let time = machine.point_time.as_deref().and_then(ns);
            let judged_ns = time.unwrap_or(0);
            if judged_ns >= proof.judged_ns {
                proof.judged_ns = judged_ns;
                proof.last = Some((summary.id.clone(), is_proved, summary.why.clone()));
                proof.last_ns = ended_ns;
            }
            if !is_proved {
                continue;
            }
            proof.rto_ms = summary.rto_ms.or(proof.rto_ms);
            if let Some((id, time)) = machine.point.zip(time)
                && proof.proved.is_none_or(|(_, known)| time >= known)
            {
                proof.proved = Some((id, time));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use drill_runner::{outcome::BISECT, report::MachineSummary};

    use super::*;

    const ID: &str = "0b9f2c1e";

    /// A drill of a point that was made in that second, which ended 100 s later.
    fn drill(id: &str, is_proved: bool, second: i64) -> Summary {
        let time = |second: i64| jiff::Timestamp::from_second(second).unwrap().to_string();
        let verdict = match is_proved {
            true => Verdict::Proved,
            false => Verdict::Failed,
        };
        Summary {
            id: format!("drill {second}"),
            name: "web1".into(),
            verdict,
            why: String::new(),
            reason: "by hand".into(),
            started: time(second + 50),
            ended: time(second + 100),
            rto_ms: Some(1),
            rpo_ms: None,
            machines: vec![MachineSummary {
                name: "web1".into(),
                machine_id: id.into(),
                verdict,
                point: Some(second.unsigned_abs()),
                point_time: Some(time(second)),
            }],
        }
    }

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn an_older_point_that_starts_does_not_hide_that_a_newer_one_does_not() {
        let proofs = Proofs::default();
        proofs.take(&drill(ID, false, 2000));
        proofs.take(&drill(ID, true, 1000));
        let proof = proofs.find(ID, "web1", 0).unwrap();
        assert_eq!(
            proof.last.unwrap(),
            ("drill 2000".into(), false, String::new())
        );
        assert_eq!(proof.proved, Some((1000, 1000 * SECOND)));
        assert_eq!(
            (proof.counts, proof.last_ns, proof.judged_ns),
            ((1, 1), 2100 * SECOND, 2000 * SECOND)
        );
        // The same point again, and a newer one, say something.
        proofs.take(&drill(ID, true, 2000));
        assert!(proofs.find(ID, "web1", 0).unwrap().last.unwrap().1);
    }

    #[test]
    fn a_probe_of_a_bisection_proves_nothing() {
        let proofs = Proofs::default();
        for is_proved in [true, false] {
            let mut probe = drill(ID, is_proved, 1000);
            probe.reason = BISECT.into();
            proofs.take(&probe);
        }
        assert_eq!(proofs.find(ID, "web1", 0), None);
    }

    #[test]
    fn a_machine_has_its_own_proofs_and_not_those_of_one_that_had_its_name() {
        let proofs = Proofs::default();
        proofs.take(&drill(ID, true, 1000));
        assert!(proofs.find(ID, "web1", 500 * SECOND).is_some());
        assert!(proofs.find(ID, "renamed", 500 * SECOND).is_some());
        assert_eq!(proofs.find("another", "web1", 1200 * SECOND), None);
        // Of reports without an id those count that are of its time.
        proofs.take(&drill("", true, 3000));
        assert!(proofs.find("another", "web1", 1200 * SECOND).is_some());
        assert_eq!(proofs.find("another", "web1", 3200 * SECOND), None);
    }
}
