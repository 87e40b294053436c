//! The JUnit XML of a report: a suite for each machine, a case for each check.
//!
//! What went wrong without a check that says so, such as a boot that never ended, has a case of its own.
//!
//! Invariant: it has a failure or an error exactly where the drill was not proved.

use maud::{Markup, html};

use super::{
    form::Form,
    shown::{block, line},
    sign::Key,
    verify::{ID_NAME, PREVIOUS_NAME},
};
use crate::outcome::{CheckReport, Console, MachineReport, Report, Verdict};

/// How much of a console is shown.
const CONSOLE_BYTES: usize = 16 * 1024;

/// A case: what has a verdict.
struct Case<'a> {
    name: &'a str,
    verdict: Verdict,
    why: &'a str,
    took_ms: u64,
    output: String,
}

/// Writes a report as signed JUnit XML.
#[must_use]
pub fn junit(report: &Report, key: &Key) -> Vec<u8> {
    key.sign_page(Form::JUnit, unsigned(report) + "\n")
}

pub(super) fn unsigned(report: &Report) -> String {
    let mut suites: Vec<(&str, Vec<Case<'_>>, Option<&MachineReport>)> = Vec::new();
    for machine in &report.machines {
        suites.push((&machine.name, cases(machine), Some(machine)));
    }
    let is_red = |suites: &[(&str, Vec<Case<'_>>, Option<&MachineReport>)]| {
        let cases = suites.iter().flat_map(|(_, cases, _)| cases);
        cases
            .into_iter()
            .any(|case| is_failure(case.verdict) || is_error(case.verdict))
    };
    if report.machines.is_empty() || (report.verdict != Verdict::Proved && !is_red(&suites)) {
        let drill = Case {
            name: "drill",
            verdict: match report.verdict {
                Verdict::Skipped => Verdict::Error,
                other => other,
            },
            why: &report.why,
            took_ms: report.rto_ms.unwrap_or(0),
            output: String::new(),
        };
        suites.push((&report.name, vec![drill], None));
    }
    let all = || suites.iter().flat_map(|(_, cases, _)| cases);
    let body = html! {
        testsuites name=(line(&report.name)) tests=(all().count()) failures=(count(all(), is_failure))
            errors=(count(all(), is_error)) skipped=(count(all(), is_skipped)) time=(seconds(report.rto_ms.unwrap_or(0))) {
            @for (name, cases, machine) in &suites {
                "\n"
                testsuite name=(line(name)) tests=(cases.len()) failures=(count(cases, is_failure))
                    errors=(count(cases, is_error)) skipped=(count(cases, is_skipped))
                    time=(seconds(cases.iter().fold(0, |sum, case| case.took_ms.saturating_add(sum))))
                    timestamp=(line(&report.started)) hostname=(line(&report.host.name)) {
                    (properties(report, *machine))
                    @for case in cases { "\n" (case.markup(name)) }
                    @if let Some(machine) = machine {
                        "\n" system-out { (block(tail(&machine.console))) }
                    }
                }
            }
        }
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}",
        body.into_string()
    )
}

/// The cases of a machine: its checks, and itself where they do not say what it came to.
fn cases(machine: &MachineReport) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = machine.checks.iter().map(Case::of).collect();
    let says_why = cases
        .iter()
        .any(|case| is_failure(case.verdict) || is_error(case.verdict));
    if cases.is_empty() || (machine.verdict != Verdict::Proved && !says_why) {
        let recovery = Case {
            name: "recovery",
            verdict: machine.verdict,
            why: &machine.why,
            took_ms: machine.times.ready_ms.unwrap_or(0),
            output: String::new(),
        };
        cases.insert(0, recovery);
    }
    cases
}

impl<'a> Case<'a> {
    fn of(check: &'a CheckReport) -> Self {
        let took_ms = match (check.started_ms, check.ended_ms) {
            (Some(started), Some(ended)) => ended.saturating_sub(started),
            _ => 0,
        };
        let last = check.attempts.last();
        Self {
            name: &check.name,
            verdict: check.verdict,
            why: &check.why,
            took_ms,
            output: last.map_or_else(String::new, |attempt| {
                format!("{}\n{}\n{}", check.expects, attempt.saw, attempt.output)
            }),
        }
    }

    fn markup(&self, suite: &str) -> Markup {
        html! {
            testcase name=(line(self.name)) classname=(line(suite)) time=(seconds(self.took_ms)) {
                @match self.verdict {
                    Verdict::Proved => {}
                    Verdict::Failed => failure message=(line(self.why)) type="failed" { (block(&self.output)) },
                    Verdict::Error => error message=(line(self.why)) type="error" { (block(&self.output)) },
                    Verdict::Cancelled => error message=(line(self.why)) type="cancelled" { (block(&self.output)) },
                    Verdict::Skipped => skipped message=(line(self.why)) {},
                }
            }
        }
    }
}

fn properties(report: &Report, machine: Option<&MachineReport>) -> Markup {
    let mut all: Vec<(&str, String)> = vec![(ID_NAME, report.id.clone())];
    if let Some(previous) = &report.previous {
        all.push((
            PREVIOUS_NAME,
            format!("{} {}", previous.id, previous.sha256),
        ));
    }
    all.push(("verdict", report.verdict.name().to_owned()));
    all.extend(report.rto_ms.map(|ms| ("rto_ms", ms.to_string())));
    all.extend(report.rpo_ms.map(|ms| ("rpo_ms", ms.to_string())));
    if let Some(point) = machine.and_then(|machine| machine.point.as_ref()) {
        all.push(("point", point.id.to_string()));
        all.push(("point_time", point.time.clone()));
        all.push(("point_grade", point.grade.clone()));
    }
    html! {
        "\n" properties {
            @for (name, value) in &all { property name=(name) value=(line(value)) {} }
        }
    }
}

/// The end of a console, from a whole character on.
fn tail(console: &Console) -> &str {
    let text = match console.tail.as_str() {
        "" => &console.head,
        tail => tail,
    };
    let mut start = text.len().saturating_sub(CONSOLE_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or("")
}

fn count<'a>(cases: impl IntoIterator<Item = &'a Case<'a>>, is: fn(Verdict) -> bool) -> usize {
    cases.into_iter().filter(|case| is(case.verdict)).count()
}

fn is_failure(verdict: Verdict) -> bool {
    verdict == Verdict::Failed
}

fn is_error(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Error | Verdict::Cancelled)
}

fn is_skipped(verdict: Verdict) -> bool {
    verdict == Verdict::Skipped
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}
