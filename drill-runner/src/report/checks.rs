//! The checks of a machine as a table: what was expected, what it came to, and every attempt that was kept.

use maud::{Markup, html};

use super::{
    shown::{block, line},
    words::{class, length, plate},
};
use crate::outcome::{Attempt, CheckReport, MachineReport, Verdict};

/// Where a check stands in the page; both numbers from 1.
pub(super) fn anchor(machine: usize, check: usize) -> String {
    format!("m{machine}-c{check}")
}

/// Shows the checks of a machine.
pub(super) fn checks(machine: &MachineReport, number: usize) -> Markup {
    html! {
        h3 { "Checks" }
        @if machine.checks.is_empty() {
            p class="muted" { "The plan has no checks for this machine." }
        } @else {
            table class="checks" {
                thead { tr {
                    th scope="col" { "Check" }
                    th scope="col" { "Expected" }
                    th scope="col" { "Verdict" }
                    th scope="col" class="num" { "Began" }
                    th scope="col" class="num" { "Took" }
                } }
                tbody {
                    @for (n, check) in machine.checks.iter().enumerate() {
                        (row(check, &anchor(number, n + 1)))
                    }
                }
            }
        }
    }
}

fn row(check: &CheckReport, anchor: &str) -> Markup {
    let took = match (check.started_ms, check.ended_ms) {
        (Some(started), Some(ended)) => Some(ended.saturating_sub(started)),
        _ => None,
    };
    html! {
        tr class="check" id=(anchor) {
            td class="name" { bdi { (line(&check.name)) } small { bdi { (line(&check.kind)) } } }
            td { bdi { (line(&check.expects)) } }
            td { (plate(check.verdict)) }
            td class="num" { @if let Some(ms) = check.started_ms { "at " (length(ms)) } @else { "–" } }
            td class="num" { @if let Some(ms) = took { (length(ms)) } @else { "–" } }
        }
        tr class="more" {
            td colspan="5" {
                @if !check.why.is_empty() {
                    p class={ "saw " (class(check.verdict)) } { bdi { (line(&check.why)) } }
                }
                (attempts(check))
            }
        }
    }
}

fn attempts(check: &CheckReport) -> Markup {
    if check.attempts_total == 0 && check.attempts.is_empty() {
        return html! {};
    }
    let is_open = matches!(check.verdict, Verdict::Failed | Verdict::Error);
    let kept = check.attempts.len() as u64;
    html! {
        details open[is_open] {
            summary {
                (check.attempts_total) @if check.attempts_total == 1 { " attempt" } @else { " attempts" }
                " in at most " (length(check.deadline_ms))
            }
            @if kept < check.attempts_total {
                p class="muted small" { "The first and the last ones are kept: " (kept) " of " (check.attempts_total) "." }
            }
            ol class="attempts" {
                @for one in &check.attempts { (attempt(one)) }
            }
        }
    }
}

fn attempt(attempt: &Attempt) -> Markup {
    let (tone, sign, word) = match attempt.passed {
        true => ("good", "✓", "passed"),
        false => ("bad", "✕", "did not pass"),
    };
    html! {
        li class=(tone) {
            span class="muted" { "#" (attempt.number) " at " (length(attempt.at_ms)) ", took " (length(attempt.took_ms)) ": " }
            span class="saw" { (sign) " " (word) }
            @if !attempt.saw.is_empty() { ", " bdi { (line(&attempt.saw)) } }
            @if !attempt.output.is_empty() {
                pre class="out" tabindex="0" { (block(&attempt.output)) }
            }
        }
    }
}
