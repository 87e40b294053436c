//! The index of a store: its reports as one page, and up to when each machine is proved to come back.
//!
//! It is made again after every report and is not signed: it only leads to the reports, which are.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{
    entry::{MachineSummary, Summary},
    id::is_id,
    paper::page,
    shown::line,
    words::{length_or_none, moment, order, plate},
};
use crate::outcome::Verdict;

/// How many reports the page shows.
const ROWS_MAX: usize = 500;

/// Makes the page; the summaries are in order, the newest last.
pub(super) fn index(summaries: &[Summary]) -> String {
    let body = html! {
        p class="brand" { span { b { "virt-cdp" } " drill reports" } }
        (proven(summaries))
        section class="card" aria-labelledby="drills" {
            h2 id="drills" { "Drills" }
            @if summaries.is_empty() {
                p class="muted" { "No drill was held yet." }
            } @else {
                (drills(summaries))
            }
            @if summaries.len() > ROWS_MAX {
                p class="muted small" {
                    "The newest " (ROWS_MAX) " of " (summaries.len()) " are shown; the older ones are in the same directory."
                }
            }
        }
        footer { "Times are in UTC. This page is not signed; the reports it leads to are." }
    };
    page("Drill reports", &[], &body).into_string() + "\n"
}

fn proven(summaries: &[Summary]) -> Markup {
    let mut newest: BTreeMap<&str, (&MachineSummary, &Summary, &str)> = BTreeMap::new();
    let mut without: BTreeMap<&str, &Summary> = BTreeMap::new();
    for summary in summaries.iter().filter(|summary| !summary.is_probe()) {
        for machine in &summary.machines {
            // Another machine has the name now: what was proved of the one before is nothing of its.
            if newest
                .get(machine.name.as_str())
                .is_some_and(|(known, ..)| is_another(known, machine))
            {
                newest.remove(machine.name.as_str());
            }
            match &machine.point_time {
                Some(time) if machine.verdict == Verdict::Proved => {
                    let best = newest.get(machine.name.as_str());
                    if best.is_none_or(|(_, _, best)| order(best) <= order(time)) {
                        newest.insert(&machine.name, (machine, summary, time));
                    }
                }
                _ => {
                    without.insert(&machine.name, summary);
                }
            }
        }
    }
    without.retain(|name, _| !newest.contains_key(name));
    html! {
        header class="card" {
            h1 { "Drill reports" }
            @if !newest.is_empty() || !without.is_empty() {
                p class="muted" { "The newest data of each machine that a drill has proved to come back." }
                div class="scroll" tabindex="0" {
                    table class="table" {
                        thead { tr {
                            th scope="col" { "Machine" }
                            th scope="col" { "Proved up to" }
                            th scope="col" class="num" { "Point" }
                            th scope="col" { "By the drill" }
                        } }
                        tbody {
                            @for (name, (machine, summary, time)) in &newest {
                                tr {
                                    td { b { bdi { (line(name)) } } }
                                    td { (moment(time)) }
                                    td class="num" { @if let Some(point) = machine.point { (point) } }
                                    td { (link(&summary.id, &summary.id)) }
                                }
                            }
                            @for (name, summary) in &without {
                                tr {
                                    td { b { bdi { (line(name)) } } }
                                    td { "never proved" }
                                    td class="num" { "–" }
                                    td { "last tried by " (link(&summary.id, &summary.id)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Whether two machines of one name are not the same; not where that is not known.
fn is_another(one: &MachineSummary, other: &MachineSummary) -> bool {
    let [one, other] = [&one.machine_id, &other.machine_id];
    !one.is_empty() && !other.is_empty() && one != other
}

fn drills(summaries: &[Summary]) -> Markup {
    html! {
        div class="scroll" tabindex="0" {
            table class="table" {
                thead { tr {
                    th scope="col" { "Drill" }
                    th scope="col" { "Verdict" }
                    th scope="col" { "Began" }
                    th scope="col" { "Machines" }
                    th scope="col" class="num" { "RTO" }
                    th scope="col" class="num" { "RPO" }
                } }
                tbody {
                    @for summary in summaries.iter().rev().take(ROWS_MAX) {
                        tr {
                            td class="text" {
                                b { (link(&summary.id, &summary.name)) }
                                @if !summary.why.is_empty() { div class="muted small" { bdi { (line(&summary.why)) } } }
                            }
                            td { (plate(summary.verdict)) }
                            td { (moment(&summary.started)) div class="muted small" { bdi { (line(&summary.reason)) } } }
                            td class="text" {
                                @for (n, machine) in summary.machines.iter().enumerate() {
                                    @if n > 0 { ", " }
                                    bdi { (line(&machine.name)) }
                                }
                            }
                            td class="num" { (length_or_none(summary.rto_ms)) }
                            td class="num" { (length_or_none(summary.rpo_ms)) }
                        }
                    }
                }
            }
        }
    }
}

/// Leads to a report by some words.
fn link(id: &str, words: &str) -> Markup {
    match is_id(id) {
        true => html! { a href={ (id) ".html" } { bdi { (line(words)) } } },
        false => html! { bdi { (line(words)) } },
    }
}
