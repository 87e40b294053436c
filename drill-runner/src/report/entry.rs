//! A report of a store in short: what lists and the index need, without the pictures and consoles.
//!
//! It is kept beside the report in a file of its own, and is made again from the report whenever it does not fit it.

use serde::{Deserialize, Serialize};

use super::verify::{signed_json, verify};
use crate::outcome::{BISECT, Link, MachineReport, Report, Verdict};

/// A report in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its number.
    pub id: String,
    /// The plan's name.
    pub name: String,
    /// What the drill has come to.
    pub verdict: Verdict,
    /// Why; empty where everything was proved.
    pub why: String,
    /// Why it was held.
    pub reason: String,
    /// When it began.
    pub started: String,
    /// When it ended.
    pub ended: String,
    /// The RTO measured.
    pub rto_ms: Option<u64>,
    /// The RPO measured.
    pub rpo_ms: Option<u64>,
    /// Its machines, in boot order.
    pub machines: Vec<MachineSummary>,
}

/// A machine of a report in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSummary {
    /// The protected machine's name.
    pub name: String,
    /// Its id; empty where the report has none.
    #[serde(default)]
    pub machine_id: String,
    /// What it has come to.
    pub verdict: Verdict,
    /// Number of the recovery point; none if none was found.
    pub point: Option<u64>,
    /// Time of the recovery point.
    pub point_time: Option<String>,
}

impl MachineSummary {
    fn of(machine: &MachineReport) -> Self {
        Self {
            name: machine.name.clone(),
            machine_id: machine.machine_id.clone(),
            verdict: machine.verdict,
            point: machine.point.as_ref().map(|point| point.id),
            point_time: machine.point.as_ref().map(|point| point.time.clone()),
        }
    }
}

impl Summary {
    /// Whether it is a probe of a bisection, which proves nothing and belongs to no trend.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.reason == BISECT
    }

    /// Shortens a report.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        Self {
            id: report.id.clone(),
            name: report.name.clone(),
            verdict: report.verdict,
            why: report.why.clone(),
            reason: report.reason.clone(),
            started: report.started.clone(),
            ended: report.ended.clone(),
            rto_ms: report.rto_ms,
            rpo_ms: report.rpo_ms,
            machines: report.machines.iter().map(MachineSummary::of).collect(),
        }
    }
}

/// What a store keeps of a report in short: the summary, and its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Length of the JSON file it was made from, bytes.
    pub(super) bytes: u64,
    /// SHA-256 of the JSON file's signed bytes.
    pub(super) sha256: String,
    /// The report before it.
    pub(super) previous: Option<Link>,
    /// The report in short.
    pub(super) summary: Summary,
}

impl Entry {
    /// Makes it from a JSON file; none if that is not what was signed.
    pub(super) fn of(json: &[u8]) -> Option<Self> {
        let verified = verify(json, None).ok()?;
        let report: Report = serde_json::from_str(signed_json(json)?).ok()?;
        Some(Self {
            bytes: json.len() as u64,
            sha256: verified.sha256,
            previous: verified.previous,
            summary: Summary::of(&report),
        })
    }

    /// The link by which the next report names it.
    pub(super) fn link(&self) -> Link {
        Link {
            id: self.summary.id.clone(),
            sha256: self.sha256.clone(),
        }
    }
}

/// Puts entries in the order of the chain, the newest first; what the chain does not reach follows by number.
pub(super) fn newest_first(entries: &[Entry]) -> Vec<&Entry> {
    let mut rest: std::collections::BTreeMap<&str, &Entry> = entries
        .iter()
        .map(|entry| (entry.summary.id.as_str(), entry))
        .collect();
    let named: std::collections::HashSet<&str> = entries
        .iter()
        .filter_map(|entry| Some(entry.previous.as_ref()?.id.as_str()))
        .collect();
    let head = rest
        .iter()
        .rev()
        .find(|(id, _)| !named.contains(*id))
        .map(|(id, _)| *id);
    let mut order = Vec::with_capacity(entries.len());
    let mut next = head;
    while let Some(entry) = next.and_then(|id| rest.remove(id)) {
        order.push(entry);
        next = entry.previous.as_ref().map(|link| link.id.as_str());
    }
    order.extend(rest.into_values().rev());
    order
}
