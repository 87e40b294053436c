//! The coverage map: which part of a span of time can be gone back to, as a line for people.
//!
//! What: a bar of cells, each of the same time, and below it from when to when it goes, what its signs mean,
//! and what the gaps were. How: the daemon's spans are laid over the cells; the rest is arithmetic.
//! Invariant: a gap is never too short to be seen, and what has a gap is never called 100 %.

use std::{collections::BTreeMap, io::IsTerminal as _};

use jiff::tz::TimeZone;

use super::text::{local_in, plain, seconds};
use crate::api::v1;

/// Cells where there is no terminal to measure.
const CELLS_USUAL: usize = 40;
/// Cells at least, and at most: what lies between is up to the terminal.
const CELLS: std::ops::RangeInclusive<usize> = 10..=60;
/// Columns that the rest of the line takes: the name, the bars, and `96.2 % of 23h59m59s, 100 gaps`.
const BESIDE: usize = 46;
const NAME: &str = "Coverage:";

/// How a map is drawn.
#[derive(Debug, Clone)]
struct Look {
    cells: usize,
    signs: Signs,
    zone: TimeZone,
}

/// What stands for a cell.
#[derive(Debug, Clone, Copy)]
struct Signs {
    covered: char,
    partly: char,
    gap: char,
}

const ASCII: Signs = Signs {
    covered: '#',
    partly: '+',
    gap: '.',
};
const BLOCKS: Signs = Signs {
    covered: '█',
    partly: '▒',
    gap: '·',
};

/// Draws the coverage for who reads stdout; nothing where nothing is known.
pub(super) fn map(spans: &[v1::Span]) -> String {
    draw(spans, &Look::of_stdout())
}

impl Look {
    fn of_stdout() -> Self {
        let zone = TimeZone::system();
        let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        match columns.filter(|_| std::io::stdout().is_terminal()) {
            Some(columns) => Self {
                cells: columns
                    .saturating_sub(BESIDE)
                    .clamp(*CELLS.start(), *CELLS.end()),
                signs: if speaks_utf8() { BLOCKS } else { ASCII },
                zone,
            },
            None => Self {
                cells: CELLS_USUAL,
                signs: ASCII,
                zone,
            },
        }
    }
}

/// Whether the locale is one of UTF-8, by the first of the variables that says something.
fn speaks_utf8() -> bool {
    let said = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|value| !value.is_empty());
    let said = said.unwrap_or_default().to_lowercase();
    said.ends_with("utf-8") || said.ends_with("utf8")
}

fn draw(spans: &[v1::Span], look: &Look) -> String {
    let (Some(first), Some(last)) = (spans.first(), spans.last()) else {
        return String::new();
    };
    let (start_ns, end_ns) = (first.start_ns, last.end_ns);
    let total = ns(end_ns - start_ns);
    let gaps: Vec<&v1::Span> = spans.iter().filter(|span| span.kind == "gap").collect();
    let missing: u64 = gaps.iter().map(|gap| length(gap)).sum();
    let bar: String = (0..look.cells)
        .map(|cell| sign(&gaps, look, (start_ns, end_ns), cell))
        .collect();
    let count = match gaps.len() {
        0 => "no gap".to_owned(),
        1 => "1 gap".to_owned(),
        n => format!("{n} gaps"),
    };
    let mut text = format!(
        "{NAME} |{bar}| {} % of {}, {count}\n",
        percent(total - missing.min(total), total),
        seconds(total)
    );
    let indent = " ".repeat(NAME.len() + 1);
    let Signs {
        covered,
        partly,
        gap,
    } = look.signs;
    text.push_str(&format!(
        "{indent}{} to {}\n",
        local_in(start_ns, &look.zone),
        local_in(end_ns, &look.zone)
    ));
    if !gaps.is_empty() {
        text.push_str(&format!(
            "{indent}{covered} points, {partly} partly, {gap} gap: {}\n",
            plain(&reasons(&gaps))
        ));
    }
    text
}

/// The sign of cell number `cell`.
fn sign(gaps: &[&v1::Span], look: &Look, (start_ns, end_ns): (i64, i64), cell: usize) -> char {
    let edge = |cell: usize| {
        let part = i128::from(end_ns - start_ns) * cell as i128 / look.cells as i128;
        i128::from(start_ns) + part
    };
    let (from, to) = (edge(cell), edge(cell + 1));
    let within = |gap: &&v1::Span| {
        let (start, end) = (i128::from(gap.start_ns), i128::from(gap.end_ns));
        (end.min(to) - start.max(from)).max(0)
    };
    match gaps.iter().map(within).sum::<i128>() {
        0 => look.signs.covered,
        missing if missing < to - from => look.signs.partly,
        _ => look.signs.gap,
    }
}

/// The covered part with one decimal, rounded down: `96.2`, `100`.
fn percent(covered: u64, total: u64) -> String {
    if covered >= total {
        return "100".into();
    }
    let tenths = u128::from(covered) * 1000 / u128::from(total.max(1));
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// The gaps by their reason, the longest first: `machine-stopped 2h, tap-lost 4.0 s in 2`.
fn reasons(gaps: &[&v1::Span]) -> String {
    let mut by_reason: BTreeMap<&str, (u64, u32)> = BTreeMap::new();
    for gap in gaps {
        let (time, count) = by_reason.entry(&gap.reason).or_default();
        *time += length(gap);
        *count += 1;
    }
    let mut sorted: Vec<_> = by_reason.into_iter().collect();
    sorted.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
    let told = sorted.iter().map(|(reason, (time, count))| match count {
        1 => format!("{reason} {}", seconds(*time)),
        n => format!("{reason} {} in {n}", seconds(*time)),
    });
    told.collect::<Vec<_>>().join(", ")
}

fn length(span: &v1::Span) -> u64 {
    ns(span.end_ns - span.start_ns)
}

fn ns(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000_000;
    /// 2026-01-02 03:00 UTC.
    const START: i64 = 1_767_322_800_000_000_000;

    /// Spans by their ends in minutes; a reason makes a gap.
    fn spans(parts: &[(i64, &str)]) -> Vec<v1::Span> {
        let mut at = START;
        let mut spans = Vec::new();
        for (end, reason) in parts {
            let end_ns = START + end * MINUTE;
            let kind = if reason.is_empty() { "points" } else { "gap" };
            spans.push(v1::Span {
                start_ns: at,
                end_ns,
                kind: kind.into(),
                reason: (*reason).into(),
                points: 0,
            });
            at = end_ns;
        }
        spans
    }

    /// Spans, a look, and the map.
    type Case<'a> = (&'a [(i64, &'a str)], &'a Look, &'a str);

    #[test]
    fn maps_are_drawn() {
        let ascii = Look {
            cells: 10,
            signs: ASCII,
            zone: TimeZone::UTC,
        };
        let blocks = Look {
            cells: 20,
            signs: BLOCKS,
            ..ascii.clone()
        };
        let cet = Look {
            zone: TimeZone::fixed(jiff::tz::offset(1)),
            ..ascii.clone()
        };
        let table: &[Case<'_>] = &[
            (&[], &ascii, ""),
            (
                &[(60, "")],
                &ascii,
                "Coverage: |##########| 100 % of 1h, no gap\n\
                 \x20         2026-01-02 03:00:00.000 to 2026-01-02 04:00:00.000\n",
            ),
            // A whole cell, parts of two, and the rest.
            (
                &[(12, ""), (27, "machine-stopped"), (60, "")],
                &cet,
                "Coverage: |##..+#####| 75.0 % of 1h, 1 gap\n\
                 \x20         2026-01-02 04:00:00.000 to 2026-01-02 05:00:00.000\n\
                 \x20         # points, + partly, . gap: machine-stopped 15m\n",
            ),
            // The longest reason first; short gaps are seen, and nothing is 100 %.
            (
                &[
                    (1, "tap-lost"),
                    (5000, ""),
                    (5001, "tap-lost"),
                    (9990, ""),
                    (10_000, "guest-off"),
                ],
                &blocks,
                "Coverage: |▒█████████▒████████▒| 99.8 % of 6d22h40m, 3 gaps\n\
                 \x20         2026-01-02 03:00:00.000 to 2026-01-09 01:40:00.000\n\
                 \x20         █ points, ▒ partly, · gap: guest-off 10m, tap-lost 2m in 2\n",
            ),
            (
                &[(9_999_999, ""), (10_000_000, "x\u{7}")],
                &ascii,
                "Coverage: |#########+| 99.9 % of 6944d10h40m, 1 gap\n\
                 \x20         2026-01-02 03:00:00.000 to 2045-01-06 13:40:00.000\n\
                 \x20         # points, + partly, . gap: x\\u{7} 1m\n",
            ),
            (
                &[(10, "suspended")],
                &ascii,
                "Coverage: |..........| 0.0 % of 10m, 1 gap\n\
                 \x20         2026-01-02 03:00:00.000 to 2026-01-02 03:10:00.000\n\
                 \x20         # points, + partly, . gap: suspended 10m\n",
            ),
        ];
        for (parts, look, expected) in table {
            assert_eq!(&draw(&spans(parts), look), expected, "{parts:?}");
        }
    }

    #[test]
    fn percentages_are_rounded_down() {
        let table = [
            (0, 10, "0.0"),
            (10, 10, "100"),
            (999_999, 1_000_000, "99.9"),
            (1, 3, "33.3"),
            (2, 3, "66.6"),
            (u64::MAX - 1, u64::MAX, "99.9"),
        ];
        for (covered, total, expected) in table {
            assert_eq!(percent(covered, total), expected, "{covered}/{total}");
        }
    }
}
