//! How things are put before people: tables as virsh prints them, pairs of name and value, local times.
//!
//! Invariant: nothing that came from outside reaches a terminal with control characters in it.

use jiff::{Timestamp, tz::TimeZone};

/// Returns `text` with its control characters escaped.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut plain, c| {
            match c.is_control() {
                true => plain.extend(c.escape_default()),
                false => plain.push(c),
            }
            plain
        })
}

/// Quotes a text for a shell where it needs that, so that what is printed can be pasted.
pub(super) fn quoted(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    match !text.is_empty() && text.chars().all(harmless) {
        true => text.to_owned(),
        false => format!("'{}'", plain(text).replace('\'', "'\\''")),
    }
}

/// A table: a header, a line of dashes, aligned rows.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self {
            rows: vec![header.map(str::to_owned).into()],
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| plain(&cell)).into());
    }

    /// Returns the table as text, a line feed after each line.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell: &String| cell.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!(" {cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
            if number == 0 {
                text.push_str(&"-".repeat(widths.iter().map(|width| width + 3).sum()));
                text.push('\n');
            }
        }
        text
    }
}

/// Prints pairs as virsh's `dominfo` does: `Name:           web1`.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0)
        + 1;
    let line = |(name, value): &(&str, String)| {
        format!(
            "{} {}",
            format_args!("{:<width$}", format!("{name}:")),
            plain(value)
        )
        .trim_end()
        .to_owned()
            + "\n"
    };
    pairs.iter().map(line).collect()
}

/// Prints a moment in local time with milliseconds: `2026-11-22 05:12:01.123`; `-` for none (0).
pub(super) fn local(ns: i64) -> String {
    local_in(ns, &TimeZone::system())
}

/// Prints a moment in the local time of `zone`.
pub(super) fn local_in(ns: i64, zone: &TimeZone) -> String {
    match Timestamp::from_nanosecond(i128::from(ns)) {
        Ok(time) if ns != 0 => time
            .to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S%.3f")
            .to_string(),
        _ => "-".into(),
    }
}

/// Prints seconds with what precision they deserve: `0.4 s`, `12 s`, `3m5s`.
pub(super) fn seconds(ns: u64) -> String {
    let ms = ns.saturating_add(500_000) / 1_000_000;
    match ms {
        0..9_950 => format!("{}.{} s", (ms + 50) / 1000, (ms + 50) % 1000 / 100),
        9_950..59_500 => format!("{} s", (ms + 500) / 1000),
        _ => crate::units::format_duration(std::time::Duration::from_secs(ms / 1000)),
    }
}

/// Returns `text`, or `-` where it is empty.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.into()
    }
}
