//! What drills have proved of each machine, from the reports.

use std::{collections::BTreeMap, sync::Mutex};

use drill_runner::{
    outcome::{Report, Verdict},
    report::{Store, Summary},
};

use crate::engine::guard;

/// What is proved of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Proof {
    /// The newest point that was proved: its number and its time, ns since the epoch.
    pub(crate) proved: Option<(u64, i64)>,
    /// The last drill that said something: its number, whether it proved the machine, and why not.
    pub(crate) last: Option<(String, bool, String)>,
    /// When that ended, ns since the epoch.
    pub(crate) last_ns: i64,
    /// The time of the newest point of which a drill said something, ns since the epoch.
    pub(crate) judged_ns: i64,
    /// The RTO it measured, ms.
    pub(crate) rto_ms: Option<u64>,
    /// How many drills proved it, and how many did not, as far as there are reports.
    pub(crate) counts: (u64, u64),
}

/// All proofs, by machine.
#[derive(Debug, Default)]
pub(super) struct Proofs(Mutex<BTreeMap<String, Proof>>);

impl Proofs {
    pub(super) fn of(store: &Store) -> Self {
        let proofs = Self::default();
        for summary in store.list().unwrap_or_default() {
            proofs.take(&summary);
        }
        proofs
    }

    pub(super) fn of_machine(&self, machine: &str) -> Option<Proof> {
        guard(&self.0).get(machine).cloned()
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
        let mut all = guard(&self.0);
        for machine in &summary.machines {
            let is_proved = match machine.verdict {
                Verdict::Proved => true,
                Verdict::Failed => false,
                _ => continue,
            };
            let proof = all.entry(machine.name.clone()).or_default();
            proof.last = Some((summary.id.clone(), is_proved, summary.why.clone()));
            proof.last_ns = ns(&summary.ended).unwrap_or(0);
            let count = match is_proved {
                true => &mut proof.counts.0,
                false => &mut proof.counts.1,
            };
            *count += 1;
            let time = machine.point_time.as_deref().and_then(ns);
            proof.judged_ns = proof.judged_ns.max(time.unwrap_or(0));
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
