//! Drills and searches as programs read them.

use drill_runner::outcome::Report;
use serde::Serialize;

use super::json::{self, document, time};
use crate::api::v1;

document! {
    /// What drills have proved of a machine.
    MachineDrills(d: v1::MachineDrills) {
        rule: Option<String> = some(&d.rule).map(str::to_owned),
        proven_point: Option<u64> = d.proven_point,
        proven_point_time: Option<String> = time(d.proven_point_ns),
        last: Option<String> = some(&d.last).map(str::to_owned),
        last_proved: Option<bool> = some(&d.last).map(|_| d.last_proved),
        last_why: String = d.last_why.clone(),
        last_ended: Option<String> = time(d.last_ns),
        rto_ms: Option<u64> = d.rto_ms,
        put_off: Option<String> = some(&d.put_off).map(str::to_owned),
    }
}

/// `drill-run`.
#[derive(Debug, Serialize)]
pub(super) struct HeldAll<'a> {
    pub(super) drills: Vec<Held<'a>>,
}

/// A drill that was held.
#[derive(Debug, Serialize)]
pub(super) struct Held<'a> {
    id: String,
    name: String,
    verdict: &'a str,
    why: String,
    started: String,
    ended: String,
    rto_ms: Option<u64>,
    rpo_ms: Option<u64>,
    kept: bool,
    machines: Vec<Machine<'a>>,
}

#[derive(Debug, Serialize)]
struct Machine<'a> {
    name: String,
    domain: String,
    verdict: &'a str,
    why: String,
    point: Option<u64>,
    point_time: Option<String>,
    addresses: Vec<String>,
    checks: Vec<Check<'a>>,
}

#[derive(Debug, Serialize)]
struct Check<'a> {
    name: String,
    kind: String,
    verdict: &'a str,
    why: String,
    attempts: u64,
}

impl From<&Report> for Held<'_> {
    fn from(report: &Report) -> Self {
        let machines = report.machines.iter().map(|machine| Machine {
            name: machine.name.clone(),
            domain: machine.domain.clone(),
            verdict: machine.verdict.name(),
            why: machine.why.clone(),
            point: machine.point.as_ref().map(|point| point.id),
            point_time: machine.point.as_ref().map(|point| point.time.clone()),
            addresses: machine
                .cards
                .iter()
                .map(|card| card.address.clone())
                .filter(|address| !address.is_empty())
                .collect(),
            checks: machine
                .checks
                .iter()
                .map(|check| Check {
                    name: check.name.clone(),
                    kind: check.kind.clone(),
                    verdict: check.verdict.name(),
                    why: check.why.clone(),
                    attempts: check.attempts_total,
                })
                .collect(),
        });
        Self {
            id: report.id.clone(),
            name: report.name.clone(),
            verdict: report.verdict.name(),
            why: report.why.clone(),
            started: report.started.clone(),
            ended: report.ended.clone(),
            rto_ms: report.rto_ms,
            rpo_ms: report.rpo_ms,
            kept: report.recycling.kept,
            machines: machines.collect(),
        }
    }
}

/// `drill-list`.
#[derive(Debug, Serialize)]
pub(super) struct Drills<'a> {
    drills: Vec<Drill<'a>>,
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct Drill<'a> {
    id: &'a str,
    name: &'a str,
    state: &'a str,
    verdict: Option<&'a str>,
    why: &'a str,
    reason: &'a str,
    started: &'a str,
    ended: Option<&'a str>,
    rto_ms: Option<u64>,
    rpo_ms: Option<u64>,
    machines: Vec<DrillMachine<'a>>,
}

#[derive(Debug, Serialize)]
struct DrillMachine<'a> {
    name: &'a str,
    verdict: Option<&'a str>,
    point: Option<u64>,
    point_time: Option<&'a str>,
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl<'a> From<&'a v1::DrillList> for Drills<'a> {
    fn from(list: &'a v1::DrillList) -> Self {
        let drill = |drill: &'a v1::Drill| Drill {
            id: &drill.id,
            name: &drill.name,
            state: &drill.state,
            verdict: some(&drill.verdict),
            why: &drill.why,
            reason: &drill.reason,
            started: &drill.started,
            ended: some(&drill.ended),
            rto_ms: drill.rto_ms,
            rpo_ms: drill.rpo_ms,
            machines: drill
                .machines
                .iter()
                .map(|machine| DrillMachine {
                    name: &machine.name,
                    verdict: some(&machine.verdict),
                    point: machine.point,
                    point_time: some(&machine.point_time),
                })
                .collect(),
        };
        Self {
            drills: list.drills.iter().map(drill).collect(),
            truncated: list.truncated,
        }
    }
}

/// `bisect`.
#[derive(Debug, Serialize)]
pub(super) struct Bisected<'a> {
    points: u64,
    newest_good: Option<json::Point>,
    oldest_bad: Option<json::Point>,
    not_looked_at: Vec<json::Point>,
    probes: Vec<Probe<'a>>,
}

#[derive(Debug, Serialize)]
struct Probe<'a> {
    point: Option<json::Point>,
    outcome: &'a str,
    passed: bool,
    why: &'a str,
    took_ms: u64,
    drill: Option<&'a str>,
    remembered: bool,
}

impl<'a> From<&'a v1::BisectState> for Bisected<'a> {
    fn from(state: &'a v1::BisectState) -> Self {
        let probe = |probe: &'a v1::BisectProbe| Probe {
            point: probe.point.as_ref().map(json::Point::from),
            outcome: match super::bisect::outcome(probe) {
                "not looked at" => "not-looked-at",
                other => other,
            },
            passed: probe.passed,
            why: &probe.why,
            took_ms: probe.took_ms,
            drill: some(&probe.drill),
            remembered: probe.remembered,
        };
        Self {
            points: state.points,
            newest_good: state.newest_good.as_ref().map(json::Point::from),
            oldest_bad: state.oldest_bad.as_ref().map(json::Point::from),
            not_looked_at: super::bisect::unknown(state)
                .into_iter()
                .map(json::Point::from)
                .collect(),
            probes: state.probes.iter().map(probe).collect(),
        }
    }
}
