//! The HTML page of a report: the verdict first, then what it rests on.

use maud::{Markup, html};

use super::{
    checks,
    form::Form,
    id::is_id,
    machine::{self, fact, machine},
    paper::page,
    shown::{block, line},
    sign::{Key, PublicKey},
    trend::trend,
    verify::{ID_NAME, PREVIOUS_NAME},
    words::{class, headline, length, length_or_none, moment, plate, sign},
};
use crate::outcome::{Host, MachineReport, Recycling, Report, Verdict};

/// Writes a report as one signed HTML page.
#[must_use]
pub fn html(report: &Report, key: &Key) -> Vec<u8> {
    let page = unsigned(report, &key.public()).into_string();
    key.sign_page(Form::Html, page + "\n")
}

pub(super) fn unsigned(report: &Report, key: &PublicKey) -> Markup {
    let title = format!(
        "{}: {} ({})",
        report.name,
        headline(report.verdict),
        report.id
    );
    let mut facts = vec![(ID_NAME, report.id.clone())];
    if let Some(previous) = &report.previous {
        facts.push((
            PREVIOUS_NAME,
            format!("{} {}", previous.id, previous.sha256),
        ));
    }
    let body = html! {
        p class="brand" {
            span { b { "virt-cdp" } " drill report" }
            span class="mono" { (line(&report.id)) }
        }
        (verdict(report))
        @if report.machines.len() > 1 { (overview(report)) }
        @for (n, one) in report.machines.iter().enumerate() { (machine(one, n + 1)) }
        section class="card" aria-labelledby="trend" {
            h2 id="trend" { "Trend" }
            (trend(report))
        }
        section class="card" aria-labelledby="plan" {
            h2 id="plan" { "Plan" }
            details {
                summary { "The plan as TOML" }
                pre tabindex="0" { (block(&report.plan)) }
            }
        }
        section class="card" aria-labelledby="host" {
            h2 id="host" { "Host" }
            (host(&report.host))
            (recycling(&report.recycling))
        }
        (signature(report, key))
        footer { "Times are in UTC; lengths of time are cut, not rounded." }
    };
    page(&title, &facts, &body)
}

fn verdict(report: &Report) -> Markup {
    let proved = report
        .machines
        .iter()
        .filter(|one| one.verdict == Verdict::Proved);
    html! {
        header class={ "card verdict " (class(report.verdict)) } {
            p class="eyebrow" { "Recovery drill " bdi { (line(&report.name)) } }
            h1 { span class="mark" aria-hidden="true" { (sign(report.verdict)) } (headline(report.verdict)) }
            @if !report.why.is_empty() {
                p class="lead" { bdi { (line(&report.why)) } }
            }
            @if report.verdict != Verdict::Proved { (reasons(report)) }
            dl class="figures" {
                (figure("RTO", &match report.rto_ms {
                    Some(ms) => html! { "Recovered in " (length(ms)) small { "from the start to the last check passed" } },
                    None => html! { "None measured" small { "it did not come to that" } },
                }))
                (figure("RPO", &match report.rpo_ms {
                    Some(ms) => html! { "Data " (length(ms)) " old" small { "when the drill began" } },
                    None => html! { "None measured" small { "no point was found" } },
                }))
                (figure("Machines", &html! {
                    (proved.count()) " of " (report.machines.len()) " proved"
                    small { "on " bdi { (line(&report.host.name)) } }
                }))
                (figure("Held", &html! {
                    (moment(&report.started))
                    small { "until " (moment(&report.ended)) }
                    small { bdi { (line(&report.reason)) } ", asked by " bdi { (line(&report.asked_by)) } }
                }))
            }
        }
    }
}

fn figure(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// What fails, by name: the machines and their checks.
fn reasons(report: &Report) -> Markup {
    let is_bad = |verdict| matches!(verdict, Verdict::Failed | Verdict::Error);
    let mut reasons: Vec<Markup> = Vec::new();
    for (n, one) in report.machines.iter().enumerate() {
        let bad_checks = || {
            let numbered = one.checks.iter().enumerate();
            numbered.filter(|(_, check)| is_bad(check.verdict))
        };
        if is_bad(one.verdict) && bad_checks().next().is_none() {
            reasons.push(html! {
                "Machine " (link(n, one)) ": " bdi { (line(&one.why)) }
            });
        }
        for (c, check) in bad_checks() {
            reasons.push(html! {
                "Check " a href={ "#" (checks::anchor(n + 1, c + 1)) } { bdi { (line(&check.name)) } }
                " of machine " (link(n, one)) ": " bdi { (line(&check.why)) }
            });
        }
    }
    html! {
        @if !reasons.is_empty() {
            ul class="why" { @for one in &reasons { li { (one) } } }
        }
    }
}

fn link(n: usize, machine: &MachineReport) -> Markup {
    html! { a href={ "#" (machine::anchor(n + 1)) } { bdi { (line(&machine.name)) } } }
}

fn overview(report: &Report) -> Markup {
    html! {
        section class="card" aria-labelledby="machines" {
            h2 id="machines" { "Machines" }
            div class="scroll" tabindex="0" {
                table class="table" {
                    thead { tr {
                        th scope="col" { "Machine" }
                        th scope="col" { "Verdict" }
                        th scope="col" { "Point" }
                        th scope="col" class="num" { "Data age" }
                        th scope="col" class="num" { "Ready" }
                        th scope="col" class="num" { "Proved" }
                    } }
                    tbody {
                        @for (n, one) in report.machines.iter().enumerate() {
                            tr {
                                td { (link(n, one)) }
                                td { (plate(one.verdict)) }
                                td { @match &one.point { Some(point) => (moment(&point.time)), None => "–" } }
                                td class="num" { (length_or_none(one.data_age_ms)) }
                                td class="num" { (length_or_none(one.times.ready_ms)) }
                                td class="num" { (length_or_none(one.times.proved_ms)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn host(host: &Host) -> Markup {
    let facts = [
        ("Name", &host.name),
        ("virt-cdp", &host.virt_cdp),
        ("QEMU", &host.qemu),
        ("libvirt", &host.libvirt),
        ("Kernel", &host.kernel),
    ];
    html! {
        dl class="facts" {
            @for (name, value) in facts {
                (fact(name, &if value.is_empty() { html! { "not known" } } else { html! { bdi { (line(value)) } } }))
            }
        }
    }
}

fn recycling(recycling: &Recycling) -> Markup {
    html! {
        h3 { "Recycling" }
        @if recycling.kept {
            p { "What the drill had made was left on purpose, to be looked at." }
        } @else {
            p { "Removing what the drill had made took " (length(recycling.took_ms)) "." }
        }
        @if !recycling.left.is_empty() {
            div class="why warn" {
                p { "This is left though it should not be; the daemon goes on trying:" }
                ul { @for what in &recycling.left { li { bdi { (line(what)) } } } }
            }
        } @else if !recycling.kept {
            p { "Nothing is left." }
        }
    }
}

fn signature(report: &Report, key: &PublicKey) -> Markup {
    html! {
        section class="card" aria-labelledby="signature" {
            h2 id="signature" { "Signature and chain" }
            p class="muted small" {
                "This page ends with an Ed25519 signature of all bytes before it. It says who signed the report only to whoever "
                "knows the host's key: compare the fingerprint."
            }
            dl class="facts" {
                (fact("Report", &html! { code { (line(&report.id)) } }))
                (fact("Fingerprint of the key", &html! { code { (key.fingerprint()) } }))
                div class="wide" { dt { "Public key" } dd { code { (key) } } }
                @match &report.previous {
                    None => (fact("Report before it", &html! { "none, it is the first" })),
                    Some(previous) => {
                        (fact("Report before it", &if is_id(&previous.id) {
                            html! { a href={ (previous.id) ".html" } { code { (previous.id) } } }
                        } else {
                            html! { code { (line(&previous.id)) } }
                        }))
                        div class="wide" { dt { "SHA-256 of the report before it" } dd { code { (line(&previous.sha256)) } } }
                    }
                }
            }
        }
    }
}
