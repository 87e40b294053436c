//! Drills and searches of the engine that keeps nothing.

use drill_runner::outcome::{
    CheckReport, Console, Event, FORMAT, Host, MachineReport, PointFacts, Recycling, Report, Times,
    Verdict,
};
use virt_cdp::api::v1;

use crate::fake::point;

/// A report of one machine, proved or not.
pub(crate) fn report(verdict: Verdict) -> Report {
    let why = match verdict {
        Verdict::Proved => "",
        _ => "tcp:22: connection refused",
    };
    let check = CheckReport {
        name: "tcp:22".into(),
        kind: "tcp".into(),
        expects: "TCP port 22 takes a connection".into(),
        verdict,
        why: why.trim_start_matches("tcp:22: ").into(),
        started_ms: Some(4000),
        ended_ms: Some(5000),
        deadline_ms: 60_000,
        attempts_total: 2,
        attempts: Vec::new(),
    };
    let machine = MachineReport {
        name: "web1".into(),
        machine_id: "6f1c9a54-0d34-4c6e-9d0e-1b2f3a4c5d6e".into(),
        domain: "web1-drill-20260102-030405-4f2a".into(),
        point: Some(PointFacts {
            id: 123,
            time: "2026-01-02T03:04:05.123456789Z".into(),
            grade: "crash".into(),
            label: "before".into(),
            seq: 4567,
            chain_hash: String::new(),
        }),
        data_age_ms: Some(1200),
        verdict,
        why: why.into(),
        vcpus: Some(2),
        memory_bytes: Some(1 << 30),
        disks: Vec::new(),
        cards: Vec::new(),
        dropped: Vec::new(),
        times: Times::default(),
        events: vec![Event {
            at_ms: 700,
            what: "its CPUs run".into(),
        }],
        checks: vec![check],
        screenshots: Vec::new(),
        console: Console::default(),
    };
    Report {
        format: FORMAT,
        id: "20260102-030405-4f2a".into(),
        name: "web1".into(),
        verdict,
        why: match verdict {
            Verdict::Proved => String::new(),
            _ => format!("web1: {why}"),
        },
        reason: "by hand".into(),
        asked_by: "root".into(),
        started: "2026-01-02T03:04:05.000000000Z".into(),
        ended: "2026-01-02T03:04:12.000000000Z".into(),
        rto_ms: (verdict == Verdict::Proved).then_some(5000),
        rpo_ms: Some(1200),
        host: Host::default(),
        plan: String::new(),
        machines: vec![machine],
        recycling: Recycling {
            kept: verdict == Verdict::Failed,
            took_ms: 900,
            left: Vec::new(),
        },
        history: Vec::new(),
        previous: None,
    }
}

/// The drill of a job; of the job `drill-bad` one that did not prove its machine.
pub(crate) fn live(job: &str) -> String {
    let verdict = match job {
        "drill-bad" => Verdict::Failed,
        _ => Verdict::Proved,
    };
    serde_json::to_string(&report(verdict)).unwrap()
}

pub(crate) fn list() -> v1::DrillList {
    let machine = v1::DrillMachine {
        name: "web1".into(),
        verdict: "failed".into(),
        point: Some(123),
        point_time: "2026-01-02T03:04:05.123456789Z".into(),
    };
    let drill = v1::Drill {
        id: "20260102-030405-4f2a".into(),
        name: "web1".into(),
        state: "kept".into(),
        verdict: "failed".into(),
        why: "web1: tcp:22: connection refused".into(),
        reason: "after base point".into(),
        started: "2026-01-02T03:04:05.000000000Z".into(),
        ended: "2026-01-02T03:04:12.000000000Z".into(),
        rto_ms: None,
        rpo_ms: Some(75_000),
        machines: vec![machine],
    };
    v1::DrillList {
        drills: vec![drill],
        truncated: true,
    }
}

pub(crate) fn document(request: &v1::DrillDocumentRequest) -> v1::DrillDocument {
    let text = match request.form.as_str() {
        "json" => format!("{{\"report\":{}}}", live("drill-1")),
        form => format!("<{form} of {}>", request.id),
    };
    v1::DrillDocument {
        bytes: text.into_bytes(),
    }
}

pub(crate) fn bisected() -> v1::BisectState {
    let probe = |passed| v1::BisectProbe {
        point: Some(point()),
        passed,
        why: if passed {
            String::new()
        } else {
            "exit code 1 where 0 was expected".into()
        },
        took_ms: 1500,
        drill: String::new(),
        remembered: passed,
        skipped: false,
    };
    let skipped = v1::BisectProbe {
        point: Some(v1::Point { id: 124, ..point() }),
        why: "the drill could not be held".into(),
        skipped: true,
        ..Default::default()
    };
    v1::BisectState {
        points: 86_400,
        probes: vec![probe(true), probe(false), skipped],
        done: true,
        newest_good: Some(point()),
        oldest_bad: Some(v1::Point { id: 125, ..point() }),
        left_most: 0,
    }
}

/// What drills have proved; of the odd machine nothing.
pub(crate) fn drills(is_odd: bool) -> v1::MachineDrills {
    v1::MachineDrills {
        rule: "every 1h".into(),
        proven_point: (!is_odd).then_some(123),
        proven_point_ns: if is_odd { 0 } else { crate::fake::POINT_NS },
        last: "20260102-030405-4f2a".into(),
        last_proved: !is_odd,
        last_why: if is_odd {
            "odd: tcp:22: connection refused".into()
        } else {
            String::new()
        },
        last_ns: crate::fake::POINT_NS,
        rto_ms: (!is_odd).then_some(5000),
        put_off: if is_odd {
            "1 drills run already".into()
        } else {
            String::new()
        },
    }
}
