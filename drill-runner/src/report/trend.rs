//! How the RTO of a plan went from drill to drill, as a picture and as a table.

use maud::{Markup, html};

use super::{
    shown::line,
    words::{class, length, length_or_none, moment, plate, sign, word},
};
use crate::outcome::{BISECT, Earlier, Report};

const PLOT_PX: f64 = 120.0;
const TOP_PX: f64 = 18.0;
/// Where drills without an RTO are marked.
const BELOW_PX: f64 = 24.0;
const HEIGHT_PX: f64 = TOP_PX + PLOT_PX + BELOW_PX + 8.0;

/// Shows earlier drills and this one; nothing where there is no earlier one.
pub(super) fn trend(report: &Report) -> Markup {
    if report.reason == BISECT {
        return html! { p class="muted" { "It was a probe of a bisection, which has no place in the trend." } };
    }
    if report.history.is_empty() {
        return html! { p class="muted" { "This is the first drill of this plan on this host." } };
    }
    let this = Earlier {
        id: report.id.clone(),
        started: report.started.clone(),
        verdict: report.verdict,
        rto_ms: report.rto_ms,
        rpo_ms: report.rpo_ms,
    };
    let all: Vec<&Earlier> = report.history.iter().chain([&this]).collect();
    html! {
        (picture(&all))
        details {
            summary { "The same as a table" }
            div class="scroll" tabindex="0" {
                table class="table" {
                    thead { tr {
                        th scope="col" { "Began" }
                        th scope="col" { "Verdict" }
                        th scope="col" class="num" { "RTO" }
                        th scope="col" class="num" { "RPO" }
                        th scope="col" { "Drill" }
                    } }
                    tbody {
                        @for (place, one) in all.iter().rev().enumerate() {
                            tr class=[(place == 0).then_some("now-row")] {
                                td { (moment(&one.started)) }
                                td { (plate(one.verdict)) }
                                td class="num" { (length_or_none(one.rto_ms)) }
                                td class="num" { (length_or_none(one.rpo_ms)) }
                                td { code { (line(&one.id)) } @if place == 0 { " (this drill)" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn picture(all: &[&Earlier]) -> Markup {
    let highest_ms = all.iter().filter_map(|one| one.rto_ms).max().unwrap_or(0);
    let top_ms = top_of(highest_ms);
    let y = |ms: u64| TOP_PX + PLOT_PX * (1.0 - ratio(ms, top_ms));
    let x = |n: usize| 13.0 + 84.0 * ratio(n as u64, (all.len() - 1).max(1) as u64);
    let dots: Vec<(f64, f64, &Earlier)> = all
        .iter()
        .enumerate()
        .filter_map(|(n, one)| Some((x(n), y(one.rto_ms?), *one)))
        .collect();
    let pairs = dots.iter().zip(dots.iter().skip(1));
    html! {
        figure {
            svg role="img" aria-labelledby="trend-title trend-desc" width="100%" height=(HEIGHT_PX) {
                title id="trend-title" { "RTO of " (all.len()) " drills of this plan, the oldest on the left" }
                desc id="trend-desc" { "The numbers are in the table below the picture." }
                @for ms in [0, top_ms / 2, top_ms] {
                    line class=(if ms == 0 { "base" } else { "grid" }) x1="0" x2="100%" y1=(px(y(ms))) y2=(px(y(ms))) {}
                    @if ms > 0 {
                        text class="axis" x="0" y=(px(y(ms) - 4.0)) { (length(ms)) }
                    }
                }
                @for ((x1, y1, _), (x2, y2, _)) in pairs {
                    line class="path" x1=(percent(*x1)) y1=(px(*y1)) x2=(percent(*x2)) y2=(px(*y2)) {}
                }
                @for (x, y, one) in &dots {
                    circle class={ "dot " (class(one.verdict)) } cx=(percent(*x)) cy=(px(*y)) r="4" { title { (said(one)) } }
                }
                @if let (Some(last), Some((x, y, one))) = (all.last(), dots.last()) {
                    @if std::ptr::eq(*last, *one) {
                        circle class={ "now " (class(one.verdict)) } cx=(percent(*x)) cy=(px(*y)) r="8" {}
                    }
                }
                @for (n, one) in all.iter().enumerate().filter(|(_, one)| one.rto_ms.is_none()) {
                    text class={ "sign " (class(one.verdict)) } x=(percent(x(n))) y=(px(TOP_PX + PLOT_PX + 18.0))
                        text-anchor="middle" { (sign(one.verdict)) title { (said(one)) } }
                }
            }
            figcaption class="key" {
                span { "RTO of each drill, the oldest on the left, this one on the right." }
                span { "Below the line: drills without an RTO (✕ failed, ! error, ■ cancelled, – skipped)." }
            }
        }
    }
}

fn said(one: &Earlier) -> Markup {
    html! {
        (line(&one.started)) ": " (word(one.verdict))
        @if let Some(ms) = one.rto_ms { ", RTO " (length(ms)) }
    }
}

/// A round number that is not below another: 1, 2, 3, 4, 5, 6 or 8 times a power of ten, or whole minutes.
fn top_of(highest_ms: u64) -> u64 {
    let mut unit = 10;
    while unit < 10_000 && highest_ms > unit * 8 {
        unit *= 10;
    }
    if highest_ms > 60_000 {
        unit = 60_000;
        while highest_ms / unit > 8 {
            unit = unit.saturating_mul(if unit < 600_000 { 5 } else { 2 });
        }
    }
    let times = [1, 2, 3, 4, 5, 6, 8].map(|n: u64| unit.saturating_mul(n));
    times
        .into_iter()
        .find(|top| *top >= highest_ms)
        .unwrap_or_else(|| unit.saturating_mul(9))
        .max(2)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a place in a picture needs no more digits"
)]
fn ratio(part: u64, whole: u64) -> f64 {
    (part as f64 / whole.max(1) as f64).clamp(0.0, 1.0)
}

fn percent(value: f64) -> String {
    format!("{value:.2}%")
}

fn px(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::top_of;

    #[test]
    fn the_top_is_round_and_above_everything() {
        for (highest, top) in [(0, 10), (850, 1000), (12_300, 20_000), (47_000, 50_000)] {
            assert_eq!(top_of(highest), top);
        }
        for highest in [61_000, 500_000, 86_400_000, u64::MAX] {
            assert!(top_of(highest) >= highest, "{highest}");
        }
    }
}
