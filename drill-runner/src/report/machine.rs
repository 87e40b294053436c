//! The part of a page that is about one machine.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use maud::{Markup, html};

use super::{
    checks::checks,
    hex::sha256,
    shown::{block, line},
    timeline::timeline,
    words::{class, exact_moment, length, plate},
};
use crate::{
    outcome::{CardFacts, Console, MachineReport, PointFacts, Screenshot, Verdict},
    units::format_size,
};

const PNG_START: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Where a machine stands in the page.
pub(super) fn anchor(number: usize) -> String {
    format!("m{number}")
}

/// Shows a machine; `number` counts from 1.
pub(super) fn machine(machine: &MachineReport, number: usize) -> Markup {
    let is_bad = matches!(machine.verdict, Verdict::Failed | Verdict::Error);
    html! {
        section class={ "card " (class(machine.verdict)) } id=(anchor(number)) aria-labelledby={ "m" (number) "-name" } {
            div class="head" {
                h2 id={ "m" (number) "-name" } { bdi { (line(&machine.name)) } }
                (plate(machine.verdict))
            }
            @if !machine.why.is_empty() {
                div class="why" { p { bdi { (line(&machine.why)) } } }
            }
            h3 { "Timeline" }
            (timeline(machine, number))
            @if machine.times == Default::default() && machine.checks.is_empty() {
                p class="muted" { "It reached nothing." }
            }
            (events(machine))
            (screenshots(machine))
            (checks(machine, number))
            (console(&machine.console, is_bad))
            (point(machine))
            (hardware(machine))
            (cards(&machine.cards))
            (dropped(machine))
        }
    }
}

fn events(machine: &MachineReport) -> Markup {
    html! {
        @if !machine.events.is_empty() {
            details {
                summary { "What happened (" (machine.events.len()) ")" }
                ol class="attempts" {
                    @for event in &machine.events {
                        li { span class="muted" { "at " (length(event.at_ms)) ": " } bdi { (line(&event.what)) } }
                    }
                }
            }
        }
    }
}

fn screenshots(machine: &MachineReport) -> Markup {
    html! {
        @if !machine.screenshots.is_empty() {
            h3 { "Screen" }
            div class="shots" {
                @for shot in &machine.screenshots { (screenshot(machine, shot)) }
            }
        }
    }
}

fn screenshot(machine: &MachineReport, shot: &Screenshot) -> Markup {
    let caption = html! { bdi { (line(&shot.what)) } ", at " (length(shot.at_ms)) };
    html! {
        figure {
            @match picture(shot) {
                Some(png) => {
                    img src={ "data:image/png;base64," (png) } width=(shot.width) height=(shot.height)
                        alt={ "Screen of " (line(&machine.name)) " at " (length(shot.at_ms)) ": " (line(&shot.what)) };
                }
                None => p class="why bad" { "This picture is not shown: it is not the PNG file whose hash is told." },
            }
            figcaption {
                (caption) ", " (shot.width) " × " (shot.height)
                code class="hash" { "SHA-256 " (line(&shot.sha256)) }
            }
        }
    }
}

/// The picture in base64 as it may be embedded; none if it is not the PNG file that the report tells of.
fn picture(shot: &Screenshot) -> Option<String> {
    let bytes = STANDARD.decode(&shot.png).ok()?;
    (bytes.starts_with(PNG_START) && sha256(&bytes) == shot.sha256).then(|| STANDARD.encode(bytes))
}

fn console(console: &Console, is_open: bool) -> Markup {
    html! {
        h3 { "Console" }
        @if console.head.is_empty() && console.tail.is_empty() {
            p class="muted" { "It wrote nothing to its console." }
        } @else {
            details open[is_open] {
                summary { (format_size(console.bytes)) " were written" }
                pre tabindex="0" { (block(&console.head)) }
                @if !console.tail.is_empty() {
                    p class="gap" { "What was written between is left out. Its end:" }
                    pre tabindex="0" { (block(&console.tail)) }
                }
                p class="muted small" { "Orders to the terminal about colours and places are not shown; the JSON report has them." }
            }
        }
    }
}

fn point(machine: &MachineReport) -> Markup {
    html! {
        h3 { "Recovery point" }
        @match &machine.point {
            None => p class="muted" { "No point was found." },
            Some(point) => (point_facts(point, machine.data_age_ms)),
        }
    }
}

fn point_facts(point: &PointFacts, data_age_ms: Option<u64>) -> Markup {
    html! {
        dl class="facts" {
            (fact("Time", &exact_moment(&point.time)))
            @if let Some(ms) = data_age_ms { (fact("Age when the drill began", &html! { (length(ms)) })) }
            (fact("Number", &html! { (point.id) }))
            (fact("Grade", &html! { bdi { (line(&point.grade)) } }))
            @if !point.label.is_empty() { (fact("Label", &html! { bdi { (line(&point.label)) } })) }
            (fact("Last record", &html! { (point.seq) }))
            @if !point.chain_hash.is_empty() {
                div class="wide" { dt { "Hash of the journal's chain" } dd { code { (line(&point.chain_hash)) } } }
            }
        }
    }
}

fn hardware(machine: &MachineReport) -> Markup {
    html! {
        h3 { "Machine" }
        dl class="facts" {
            @if !machine.domain.is_empty() { (fact("Domain of the drill", &html! { code { (line(&machine.domain)) } })) }
            @if let Some(vcpus) = machine.vcpus { (fact("vCPUs", &html! { (vcpus) })) }
            @if let Some(bytes) = machine.memory_bytes { (fact("Memory", &html! { (format_size(bytes)) })) }
            @for disk in &machine.disks {
                (fact("Disk", &html! { code { (line(&disk.target)) } ", " (format_size(disk.size_bytes)) }))
            }
            @if let Some(ms) = machine.times.removed_ms { (fact("Removed", &html! { "at " (length(ms)) })) }
        }
    }
}

fn cards(cards: &[CardFacts]) -> Markup {
    html! {
        @if !cards.is_empty() {
            h3 { "Network cards" }
            div class="scroll" tabindex="0" {
                table class="table" {
                    thead { tr {
                        th scope="col" { "MAC" }
                        th scope="col" { "Stands in for" }
                        th scope="col" { "Address" }
                        th scope="col" { "Known from" }
                    } }
                    tbody {
                        @for card in cards {
                            tr {
                                td { code { (line(&card.mac)) } }
                                td { bdi { (line(&card.network)) } }
                                td { code { (text_or_none(&card.address)) } }
                                td { bdi { (text_or_none(&card.learnt_from)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn dropped(machine: &MachineReport) -> Markup {
    html! {
        @if !machine.dropped.is_empty() {
            h3 { "What of the original did not come along" }
            ul { @for what in &machine.dropped { li { bdi { (line(what)) } } } }
        }
    }
}

fn text_or_none(text: &str) -> Markup {
    match text {
        "" => html! { "–" },
        _ => html! { (line(text)) },
    }
}

/// A fact with its name.
pub(super) fn fact(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shot(bytes: &[u8]) -> Screenshot {
        Screenshot {
            at_ms: 1,
            what: "boot".into(),
            sha256: sha256(bytes),
            width: 1,
            height: 1,
            png: STANDARD.encode(bytes),
        }
    }

    #[test]
    fn only_the_png_file_that_is_told_of_is_embedded() {
        let png = [PNG_START, b"rest"].concat();
        assert!(picture(&shot(&png)).is_some());
        assert_eq!(picture(&shot(b"<svg onload=alert(1)>")), None);
        let mut other_hash = shot(&png);
        other_hash.sha256 = sha256(b"other");
        assert_eq!(picture(&other_hash), None);
        let mut no_base64 = shot(&png);
        no_base64.png.push_str("\" onerror=\"alert(1)");
        assert_eq!(picture(&no_base64), None);
    }
}
