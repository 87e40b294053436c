//! Durations and sizes as people write them: `200ms`, `1h30m`, `64MiB`, `2G`.
//!
//! What: the one parser and the one printer for the configuration, the command line and its tables.
//! How: a text is a row of number-unit pairs (one pair for a size). Numbers may have a fraction; the
//! arithmetic is on integers, so that nothing is rounded but what is below the last unit.
//! Invariant: what [`format_size`] and [`format_duration`] print, the parsers read.

use std::time::Duration;

/// Says why a text is no duration or no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// There is no number where one must be.
    #[error("`{text}` does not start with a number")]
    NoNumber {
        /// What was there.
        text: String,
    },
    /// There is a number and nothing after it.
    #[error("`{text}` has no unit; one of {known} is needed")]
    NoUnit {
        /// What was there.
        text: String,
        /// The units there are.
        known: &'static str,
    },
    /// The unit is none of ours.
    #[error("`{unit}` is no unit; the units are {known}")]
    UnknownUnit {
        /// What was there.
        unit: String,
        /// The units there are.
        known: &'static str,
    },
    /// The value does not fit.
    #[error("`{text}` is too large")]
    TooLarge {
        /// What was there.
        text: String,
    },
}

const DURATION_UNITS: &str = "ms, s, m, h, d, w";
const SIZE_UNITS: &str = "B, KiB, MiB, GiB, TiB (or K, M, G, T), KB, MB, GB, TB";

const NS_PER_S: u128 = 1_000_000_000;

/// Parses a duration: `200ms`, `1s`, `1.5s`, `5m`, `1h30m`, `2d`, `1w`.
///
/// # Errors
/// A missing number, a missing or unknown unit, or more than 2^64 nanoseconds (584 years).
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    let mut total_ns: u128 = 0;
    loop {
        let (value_ns, after) = pair(rest, text, |unit| match unit {
            "ms" => Ok(1_000_000),
            "s" => Ok(NS_PER_S),
            "m" | "min" => Ok(60 * NS_PER_S),
            "h" => Ok(3600 * NS_PER_S),
            "d" => Ok(86_400 * NS_PER_S),
            "w" => Ok(7 * 86_400 * NS_PER_S),
            "" => Err(UnitError::NoUnit {
                text: text.into(),
                known: DURATION_UNITS,
            }),
            _ => Err(UnitError::UnknownUnit {
                unit: unit.into(),
                known: DURATION_UNITS,
            }),
        })?;
        total_ns = total_ns.saturating_add(value_ns);
        rest = after.trim_start();
        if rest.is_empty() {
            break;
        }
    }
    let ns = u64::try_from(total_ns).map_err(|_| UnitError::TooLarge { text: text.into() })?;
    Ok(Duration::from_nanos(ns))
}

/// Parses a size to bytes: `4096`, `64MiB`, `2G` (= 2 GiB), `1.5T`, `10GB` (= 10^10).
///
/// # Errors
/// A missing number, an unknown unit, or more than 2^64-1 bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let trimmed = text.trim();
    let (bytes, rest) = pair(trimmed, text, |unit| {
        match unit.to_ascii_lowercase().as_str() {
            "" | "b" => Ok(1),
            "k" | "kib" => Ok(1 << 10),
            "m" | "mib" => Ok(1 << 20),
            "g" | "gib" => Ok(1 << 30),
            "t" | "tib" => Ok(1 << 40),
            "kb" => Ok(1_000),
            "mb" => Ok(1_000_000),
            "gb" => Ok(1_000_000_000),
            "tb" => Ok(1_000_000_000_000),
            _ => Err(UnitError::UnknownUnit {
                unit: unit.into(),
                known: SIZE_UNITS,
            }),
        }
    })?;
    if !rest.is_empty() {
        return Err(UnitError::UnknownUnit {
            unit: rest.into(),
            known: SIZE_UNITS,
        });
    }
    u64::try_from(bytes).map_err(|_| UnitError::TooLarge { text: text.into() })
}

/// Reads one number and its unit; returns their product and what follows.
fn pair<'a>(
    text: &'a str,
    whole: &str,
    scale: impl Fn(&str) -> Result<u128, UnitError>,
) -> Result<(u128, &'a str), UnitError> {
    let no_number = || UnitError::NoNumber { text: whole.into() };
    let too_large = || UnitError::TooLarge { text: whole.into() };
    let number_len = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(number_len);
    let rest = rest.trim_start();
    let unit_len = rest
        .find(|c: char| c.is_ascii_digit() || c.is_whitespace())
        .unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_len);

    let (integer, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if integer.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(no_number());
    }
    let scale = scale(unit)?;
    let integer: u128 = integer.parse().map_err(|_| too_large())?;
    let mut value = integer.checked_mul(scale).ok_or_else(too_large)?;
    let mut place = scale;
    for digit in fraction.chars().filter_map(|c| c.to_digit(10)) {
        // place is scale / 10^n with its remainder dropped: exact for durations, below a byte for sizes.
        value = value
            .checked_add(place * u128::from(digit) / 10)
            .ok_or_else(too_large)?;
        place /= 10;
    }
    Ok((value, rest))
}

/// Prints a size with a binary unit and at most one decimal: `512 B`, `1.5 GiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut shift = 10;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if bytes >> (shift + 10) == 0 {
            break;
        }
        shift += 10;
        unit = next;
    }
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

/// Prints a size so that it reads back exactly: `64MiB`, `67108865`.
#[must_use]
pub fn exact_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// The beginning of a text that has no more than `most` bytes, in whole letters.
#[must_use]
pub fn cut(text: &str, most: usize) -> &str {
    let ends = text
        .char_indices()
        .map(|(at, letter)| at + letter.len_utf8());
    let end = ends.take_while(|end| *end <= most).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Prints a duration so that it reads back exactly, down to milliseconds: `200ms`, `1s`, `1h30m`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest_ms = duration.as_millis();
    if rest_ms == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (ms, unit) in [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
        (1, "ms"),
    ] {
        if rest_ms >= ms {
            text.push_str(&format!("{}{unit}", rest_ms / ms));
            rest_ms %= ms;
        }
    }
    text
}
