//! A machine's drill as a picture: when it reached what, and how each check went.
//!
//! One row for each event and each check, under an axis of the time since the drill began. Places are told in percent, so
//! that the picture fits every width while its letters keep their size. What it shows is in the tables as well.

use std::ops::RangeInclusive;

use maud::{Markup, html};

use super::{
    shown::line,
    words::{class, length, sign, word},
};
use crate::outcome::{CheckReport, MachineReport, Verdict};

const ROW_PX: usize = 26;
const AXIS_PX: usize = 26;
/// Steps of the axis that people read easily, in ms; above the last it is doubled.
const STEPS_MS: [u64; 22] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 30_000, 60_000, 120_000,
    300_000, 600_000, 1_800_000, 3_600_000, 7_200_000,
];
const STEPS_MAX: u64 = 5;

/// The time axis of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    from_ms: u64,
    to_ms: u64,
    step_ms: u64,
}

impl Axis {
    /// An axis that shows a range, from tick to tick.
    fn over(range: RangeInclusive<u64>) -> Self {
        let (start, end) = (*range.start(), (*range.end()).max(*range.start()));
        let span = (end - start).max(1);
        let mut step_ms = STEPS_MS
            .into_iter()
            .find(|step| span.div_ceil(*step) <= STEPS_MAX)
            .unwrap_or(14_400_000);
        while span.div_ceil(step_ms) > STEPS_MAX {
            step_ms = step_ms.saturating_mul(2);
        }
        let from_ms = (start / step_ms * step_ms).min(u64::MAX - 1);
        let to_ms = end.div_ceil(step_ms).max(1).saturating_mul(step_ms);
        Self {
            from_ms,
            to_ms: to_ms.max(from_ms.saturating_add(1)),
            step_ms,
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a place in a picture needs no more digits"
    )]
    fn percent(self, at_ms: u64) -> f64 {
        let at = at_ms.clamp(self.from_ms, self.to_ms) - self.from_ms;
        100.0 * at as f64 / (self.to_ms - self.from_ms) as f64
    }

    fn ticks(self) -> impl Iterator<Item = u64> {
        (0..=STEPS_MAX + 1)
            .map_while(move |n| self.from_ms.checked_add(n.checked_mul(self.step_ms)?))
            .take_while(move |tick| *tick <= self.to_ms)
    }
}

/// Draws a machine's drill; nothing where it reached nothing.
pub(super) fn timeline(machine: &MachineReport, number: usize) -> Markup {
    let reached = reached(machine);
    let checks = || machine.checks.iter();
    let moments = || {
        let events = reached.iter().map(|(_, at_ms)| *at_ms);
        events.chain(checks().flat_map(|check| check.started_ms.into_iter().chain(check.ended_ms)))
    };
    let (Some(first), Some(last)) = (moments().min(), moments().max()) else {
        return html! {};
    };
    // A machine that began early is shown from the beginning of the drill.
    let first = if first < last / 3 { 0 } else { first };
    let axis = Axis::over(first..=last);
    let rows = reached.len() + machine.checks.len();
    let height = AXIS_PX + rows * ROW_PX;
    let top = |row: usize| AXIS_PX + row * ROW_PX;
    html! {
        figure {
            svg role="img" aria-labelledby={ "t" (number) "-title t" (number) "-desc" } width="100%" height=(height) {
                title id={ "t" (number) "-title" } { "Timeline of " (line(&machine.name)) }
                desc id={ "t" (number) "-desc" } {
                    @for (name, at_ms) in &reached { (name) " at " (length(*at_ms)) ". " }
                    @for check in checks() { (line(&check.name)) ": " (word(check.verdict)) ". " }
                }
                svg x="28%" width="70%" height=(height) overflow="visible" {
                    @for tick in axis.ticks() {
                        @let x = place(axis.percent(tick));
                        line class="grid" x1=(x) x2=(x) y1="18" y2=(height) {}
                        text class="axis" x=(x) y="11" text-anchor=(anchor(axis, tick)) { (tick_name(tick, axis.step_ms)) }
                    }
                }
                @for (row, (name, at_ms)) in reached.iter().enumerate() {
                    (event(axis, top(row), name, *at_ms))
                }
                @for (row, check) in checks().enumerate() {
                    (check_row(axis, top(reached.len() + row), check))
                }
            }
            figcaption class="key" {
                span { "Time since the drill began." }
                span { "✓ proved, ✕ failed, ! error, ■ cancelled, – skipped." }
                span { "In a bar: thin lines are attempts that failed, a thick one is the attempt that passed." }
            }
        }
    }
}

/// What a machine reached, and when.
fn reached(machine: &MachineReport) -> Vec<(&'static str, u64)> {
    let times = machine.times;
    let named = [
        ("Turn", times.turn_ms),
        ("Running", times.running_ms),
        ("Ping", times.ping_ms),
        ("Agent", times.agent_ms),
        ("Ready", times.ready_ms),
        ("Proved", times.proved_ms),
    ];
    let mut reached: Vec<_> = named
        .into_iter()
        .filter_map(|(name, at_ms)| Some((name, at_ms?)))
        .collect();
    reached.sort_by_key(|(_, at_ms)| *at_ms);
    reached
}

fn event(axis: Axis, top: usize, name: &str, at_ms: u64) -> Markup {
    let x = axis.percent(at_ms);
    let tone = if name == "Proved" { "good" } else { "idle" };
    html! {
        svg class=(tone) x="0" y=(top) width="27%" height=(ROW_PX) {
            text x="0" y="17" { (name) }
        }
        svg class=(tone) x="28%" y=(top) width="70%" height=(ROW_PX) overflow="visible" {
            line class="stem" x1="0%" x2=(place(x)) y1="13" y2="13" stroke-dasharray="1 4" {}
            circle class="dot" cx=(place(x)) cy="13" r="4.5" {}
            (beside_dot(x, &length(at_ms)))
        }
    }
}

fn check_row(axis: Axis, top: usize, check: &CheckReport) -> Markup {
    let tone = class(check.verdict);
    html! {
        svg class=(tone) x="0" y=(top) width="27%" height=(ROW_PX) {
            text x="0" y="17" {
                tspan class="sign" { (sign(check.verdict)) }
                " " (line(&check.name))
                title { (line(&check.name)) ": " (word(check.verdict)) }
            }
        }
        svg class=(tone) x="28%" y=(top) width="70%" height=(ROW_PX) overflow="visible" {
            @match check.started_ms {
                Some(started_ms) => (bar(axis, check, started_ms)),
                None => text class="axis" x="0" y="17" { "did not come to it" },
            }
        }
    }
}

fn bar(axis: Axis, check: &CheckReport, started_ms: u64) -> Markup {
    let ended_ms = check.ended_ms.unwrap_or(axis.to_ms).max(started_ms);
    let (start, end) = (axis.percent(started_ms), axis.percent(ended_ms));
    let said = match check.verdict {
        Verdict::Proved => length(ended_ms - started_ms),
        other => format!("{} {}", sign(other), length(ended_ms - started_ms)),
    };
    html! {
        rect class="bar" x=(place(start)) y="5" width=(place((end - start).max(0.6))) height="16" rx="3" {}
        @for attempt in &check.attempts {
            @let x = place(axis.percent(attempt.at_ms));
            @if attempt.passed {
                @let after = axis.percent(attempt.at_ms.saturating_add(attempt.took_ms));
                rect class="hit" x=(x) y="5" width=(place((after - axis.percent(attempt.at_ms)).max(0.6))) height="16" rx="1" {
                    title { "Attempt " (attempt.number) " at " (length(attempt.at_ms)) ": " (line(&attempt.saw)) }
                }
            } @else {
                line class="try" x1=(x) x2=(x) y1="13" y2="20" {
                    title { "Attempt " (attempt.number) " at " (length(attempt.at_ms)) ": " (line(&attempt.saw)) }
                }
            }
        }
        (beside_bar(start, end, &said))
    }
}

/// Puts words beside a dot on its stem: behind it, or before it where there is no room.
fn beside_dot(x: f64, said: &str) -> Markup {
    let (shift, anchor) = match x {
        ..74.0 => ("9", "start"),
        _ => ("-9", "end"),
    };
    html! { text class="halo" x=(place(x)) dx=(shift) y="17" text-anchor=(anchor) { (said) } }
}

/// Puts words behind a bar; before it where there is no room, and into it where there is none either.
fn beside_bar(start: f64, end: f64, said: &str) -> Markup {
    let (x, shift, anchor) = match (start, end) {
        (_, ..74.0) => (end, "9", "start"),
        (26.0.., _) => (start, "-8", "end"),
        _ => (f64::midpoint(start, end), "0", "middle"),
    };
    html! { text x=(place(x)) dx=(shift) y="17" text-anchor=(anchor) { (said) } }
}

fn place(percent: f64) -> String {
    format!("{percent:.2}%")
}

fn anchor(axis: Axis, tick: u64) -> &'static str {
    match tick {
        _ if tick == axis.from_ms => "start",
        _ if tick == axis.to_ms => "end",
        _ => "middle",
    }
}

/// A tick with no more digits than its step has.
fn tick_name(at_ms: u64, step_ms: u64) -> String {
    match at_ms {
        0 => "0".to_owned(),
        _ if step_ms >= 60_000 => length(at_ms),
        _ if step_ms >= 1000 => format!("{} s", at_ms / 1000),
        _ if step_ms >= 100 => format!("{}.{} s", at_ms / 1000, at_ms % 1000 / 100),
        _ => format!("{at_ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(range: RangeInclusive<u64>) -> Vec<String> {
        let axis = Axis::over(range);
        let name = |tick| tick_name(tick, axis.step_ms);
        axis.ticks().map(name).collect()
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0..=12_345), ["0", "5 s", "10 s", "15 s"]);
        assert_eq!(
            ticks(0..=850),
            ["0", "0.2 s", "0.4 s", "0.6 s", "0.8 s", "1.0 s"]
        );
        assert_eq!(
            ticks(61_000..=78_000),
            ["60 s", "65 s", "70 s", "75 s", "80 s"]
        );
        assert_eq!(
            ticks(0..=400_000),
            ["0", "2 min", "4 min", "6 min", "8 min"]
        );
    }

    #[test]
    fn any_range_has_an_axis_that_holds_it() {
        for range in [
            0..=0,
            7..=7,
            0..=u64::MAX,
            u64::MAX..=u64::MAX,
            5..=86_400_000_000,
        ] {
            let axis = Axis::over(range.clone());
            assert!(axis.from_ms < axis.to_ms, "{axis:?}");
            assert!(axis.ticks().count() <= 8, "{axis:?}");
            for at_ms in [*range.start(), *range.end(), 0, u64::MAX] {
                let percent = axis.percent(at_ms);
                assert!((0.0..=100.0).contains(&percent), "{axis:?} {at_ms}");
            }
        }
    }
}
