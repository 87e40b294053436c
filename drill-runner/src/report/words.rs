//! Verdicts, lengths of time and moments in words and signs.

use jiff::{Timestamp, tz::TimeZone};
use maud::{Markup, html};

use super::shown::line;
use crate::outcome::Verdict;

/// The sign of a verdict: it is told without colours, too.
pub(super) fn sign(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Proved => "✓",
        Verdict::Failed => "✕",
        Verdict::Error => "!",
        Verdict::Cancelled => "■",
        Verdict::Skipped => "–",
    }
}

/// A verdict in a word.
pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Proved => "Proved",
        Verdict::Failed => "Failed",
        Verdict::Error => "Error",
        Verdict::Cancelled => "Cancelled",
        Verdict::Skipped => "Skipped",
    }
}

/// A drill's verdict as a headline.
pub(super) fn headline(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Proved => "Recovery proved",
        Verdict::Failed => "Recovery failed",
        Verdict::Error => "Drill could not be held",
        Verdict::Cancelled => "Drill cancelled",
        Verdict::Skipped => "Drill skipped",
    }
}

/// The class a verdict's colours go by.
pub(super) fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Proved => "good",
        Verdict::Failed => "bad",
        Verdict::Error => "warn",
        Verdict::Cancelled | Verdict::Skipped => "idle",
    }
}

/// A verdict as a small plate.
pub(super) fn plate(verdict: Verdict) -> Markup {
    html! {
        span class={ "plate " (class(verdict)) } {
            span aria-hidden="true" { (sign(verdict)) } " " (word(verdict))
        }
    }
}

/// A length of time for people: `850 ms`, `12.3 s`, `2 min 5 s`, `3 h 20 min`, `4 d 2 h`.
pub(super) fn length(ms: u64) -> String {
    let seconds = ms / 1000;
    let pair = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {small_unit}"),
    };
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3600 => pair(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// A length of time, or that there is none.
pub(super) fn length_or_none(ms: Option<u64>) -> String {
    ms.map_or_else(|| "–".to_owned(), length)
}

/// A moment to the second, in UTC; text that is no moment is shown as it is.
pub(super) fn moment(text: &str) -> Markup {
    written(text, "%Y-%m-%d %H:%M:%S UTC")
}

/// A moment to the millisecond.
pub(super) fn exact_moment(text: &str) -> Markup {
    written(text, "%Y-%m-%d %H:%M:%S.%3f UTC")
}

fn written(text: &str, format: &str) -> Markup {
    match text.parse::<Timestamp>() {
        Ok(time) => {
            let shown = time.to_zoned(TimeZone::UTC).strftime(format).to_string();
            html! { time datetime=(line(text)) { (shown) } }
        }
        Err(_) => html! { (line(text)) },
    }
}

/// Where a moment is among others; text that is no moment comes first.
pub(super) fn order(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_the_unit_that_fits() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (12_399, "12.3 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
            (125_000, "2 min 5 s"),
            (3_600_000, "1 h"),
            (12_000_000, "3 h 20 min"),
            (352_800_000, "4 d 2 h"),
            (u64::MAX, "213503982334 d 14 h"),
        ] {
            assert_eq!(length(ms), text);
        }
    }

    #[test]
    fn moments_are_in_utc_and_foreign_text_is_text() {
        let shown = moment("2026-11-27T03:15:00.123456789Z").into_string();
        assert!(shown.contains(">2026-11-27 03:15:00 UTC<"), "{shown}");
        let shown = exact_moment("2026-11-27T04:15:00.123456789+01:00").into_string();
        assert!(shown.contains(">2026-11-27 03:15:00.123 UTC<"), "{shown}");
        assert_eq!(moment("<b>").into_string(), "&lt;b&gt;");
    }
}
