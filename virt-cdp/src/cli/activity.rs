//! Rates, latencies and forecasts as people read them: in `status` and `info`.
//!
//! Invariant: no figure is shown without the time it was measured over, where that is not the same for all.

use std::time::Duration;

use super::text::seconds;
use crate::{
    api::v1,
    units::{format_duration, format_size},
};

/// Prints `1.5 MiB/s, 384 writes/s`; `-` while nothing is known.
pub(super) fn rate(activity: &v1::Activity) -> String {
    if activity.window_ms == 0 {
        return "-".into();
    }
    let bytes = format_size(activity.bytes_per_second.round() as u64);
    format!("{bytes}/s, {:.0} writes/s", activity.writes_per_second)
}

/// Prints median and 99th percentile: `12 us, 1.5 ms`; `-` where nothing was written.
pub(super) fn latency(activity: &v1::Activity) -> String {
    match (activity.latency_p50_us, activity.latency_p99_us) {
        (Some(half), Some(most)) => format!("{}, {}", short(half), short(most)),
        _ => "-".into(),
    }
}

/// Prints microseconds with what precision they deserve.
fn short(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// Prints an age: `0.4 s`, `3m5s`; `-` for none.
pub(super) fn age(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".into(), |ms| seconds(ms.saturating_mul(1_000_000)))
}

/// Prints the time a figure is of: `the last 5m`.
pub(super) fn window(ms: u64) -> String {
    format!("the last {}", span(ms))
}

/// Says how a harbor grows, and when what is full at that rate; each a line.
pub(super) fn growth(growth: Option<&v1::Growth>) -> Vec<(&'static str, String)> {
    let Some(growth) = growth else {
        return vec![("Growth", "not known yet: it takes a minute".into())];
    };
    let measured = window(growth.window_ms);
    let size = format_size(growth.bytes_per_day.unsigned_abs());
    let rate = match growth.bytes_per_day {
        0 => format!("none in {measured}"),
        1.. => format!("{size} a day, at the rate of {measured}"),
        _ => format!("shrinks by {size} a day, at the rate of {measured}"),
    };
    let mut lines = vec![("Growth", rate)];
    if growth.limit_bytes > 0 {
        let limit = format_size(growth.limit_bytes);
        let until = match growth.limit_in_ms {
            Some(ms) => format!("{limit}, reached in {} at that rate", span(ms)),
            None => format!("{limit}, never reached at that rate"),
        };
        lines.push(("Limit", until));
    }
    if let Some(ms) = growth.file_system_in_ms {
        let until = format!(
            "down to its reserve in {} at the present rate of all machines",
            span(ms)
        );
        lines.push(("File system", until));
    }
    lines
}

/// Prints a length of time in its two largest units.
fn span(ms: u64) -> String {
    const MINUTE: u64 = 60;
    const DAY: u64 = 86_400;
    let s = ms / 1000;
    // A figure that is an estimate is not told to the second.
    let grain = match s {
        0..MINUTE => 1,
        MINUTE..DAY => MINUTE,
        DAY.. if s < 100 * DAY => 3600,
        _ => DAY,
    };
    format_duration(Duration::from_secs(s / grain * grain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_honest() {
        for (us, expected) in [
            (7, "7 us"),
            (999, "999 us"),
            (1_499, "1.5 ms"),
            (99_900, "99.9 ms"),
            (250_000, "250 ms"),
            (2_000_000, "2.0 s"),
        ] {
            assert_eq!(short(us), expected);
        }
        for (ms, expected) in [
            (900, "0s"),
            (59_000, "59s"),
            (301_000, "5m"),
            (3_661_000, "1h1m"),
            (90_061_000, "1d1h"),
            (100 * 86_400_000 + 3_600_000, "100d"),
        ] {
            assert_eq!(span(ms), expected);
        }
    }

    #[test]
    fn a_forecast_names_the_time_it_was_measured_over() {
        let of = |bytes_per_day, limit_in_ms, file_system_in_ms| v1::Growth {
            window_ms: 1_500_000,
            bytes_per_day,
            limit_bytes: 200 << 30,
            limit_in_ms,
            file_system_in_ms,
        };
        let table = [
            (None, "Growth: not known yet: it takes a minute"),
            (
                Some(of(12 << 30, Some(864_000_000), Some(90_000_000))),
                "Growth: 12 GiB a day, at the rate of the last 25m; Limit: 200 GiB, reached in 10d at that rate; \
                 File system: down to its reserve in 1d1h at the present rate of all machines",
            ),
            (
                Some(of(-(1 << 30), None, None)),
                "Growth: shrinks by 1 GiB a day, at the rate of the last 25m; Limit: 200 GiB, never reached at that rate",
            ),
            (
                Some(v1::Growth {
                    limit_bytes: 0,
                    ..of(0, None, None)
                }),
                "Growth: none in the last 25m",
            ),
        ];
        for (growth, expected) in table {
            let lines = super::growth(growth.as_ref());
            let lines: Vec<String> = lines.iter().map(|(n, v)| format!("{n}: {v}")).collect();
            assert_eq!(lines.join("; "), expected);
        }
    }
}
