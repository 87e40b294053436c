//! What one attempt of a check has seen.
//!
//! Invariant: what is kept of foreign output is at most [`OUTPUT_KEPT`] bytes of UTF-8, with a word where something was
//! left out.

use std::collections::VecDeque;

use super::bound::{Bound, Stop};
use crate::outcome::OUTPUT_KEPT;

/// What an attempt has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Come {
    /// What was expected was seen.
    Passed,
    /// It was not; it may be another time.
    NotYet,
    /// It was not, and another attempt would see the same.
    Never,
    /// The check itself does not work, which says nothing about the machine.
    Broken,
}

/// What an attempt has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) come: Come,
    /// In a sentence without a full stop.
    pub(super) saw: String,
    /// What was printed or answered.
    pub(super) output: String,
}

impl Seen {
    pub(super) fn new(come: Come, saw: impl Into<String>) -> Self {
        Self {
            come,
            saw: saw.into(),
            output: String::new(),
        }
    }

    pub(super) fn passed(saw: impl Into<String>) -> Self {
        Self::new(Come::Passed, saw)
    }

    pub(super) fn not_yet(saw: impl Into<String>) -> Self {
        Self::new(Come::NotYet, saw)
    }

    pub(super) fn never(saw: impl Into<String>) -> Self {
        Self::new(Come::Never, saw)
    }

    pub(super) fn broken(saw: impl Into<String>) -> Self {
        Self::new(Come::Broken, saw)
    }

    /// What is seen when the bound ends an attempt in the middle of `doing` (`no connection`, `it did not end`).
    pub(super) fn stopped(bound: &Bound<'_>, doing: &str) -> Self {
        Self::not_yet(match bound.stop() {
            Some(Stop::Cancelled) => "it was broken off".to_owned(),
            Some(Stop::Off(why)) => off(why),
            Some(Stop::Over) | None => format!("{doing} within {}", bound.whole()),
        })
    }

    pub(super) fn with_output(mut self, output: &str) -> Self {
        self.output = shorten(output);
        self
    }
}

/// What is said of a machine that is off.
pub(super) fn off(why: &str) -> String {
    match why.is_empty() {
        true => "the machine is off".to_owned(),
        false => format!("the machine is off: {why}"),
    }
}

/// Cuts the middle out of a text that is too long to be kept.
pub(super) fn shorten(text: &str) -> String {
    if text.len() <= OUTPUT_KEPT {
        return text.to_owned();
    }
    // Half of the room for each end; the word between needs less than 64 bytes.
    let half = (OUTPUT_KEPT - 64) / 2;
    let head = text.get(..floor(text, half)).unwrap_or_default();
    let from = ceil(text, text.len() - half);
    let tail = text.get(from..).unwrap_or_default();
    let cut = text.len() - head.len() - tail.len();
    format!("{head}\n[... {cut} bytes left out ...]\n{tail}")
}

/// The text in a sentence: its first line, quoted, not too long.
pub(super) fn quote(text: &str) -> String {
    const MOST: usize = 120;
    let line = text.trim().lines().next().unwrap_or_default();
    let end = floor(line, MOST);
    let is_all = end == line.len() && text.trim().len() == line.len();
    let dots = if is_all { "" } else { "..." };
    format!(
        "{:?}",
        format!("{}{dots}", line.get(..end).unwrap_or_default())
    )
}

fn floor(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn ceil(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

/// What something prints without end, held within bounds: its beginning and its end.
#[derive(Debug, Default)]
pub(super) struct Flood {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    cut: u64,
}

/// How much of each end of a flood is held, for patterns to be looked for.
const FLOOD_END: usize = 512 * 1024;

impl Flood {
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        let room = FLOOD_END - self.head.len();
        if let Some((first, rest)) = bytes.split_at_checked(room) {
            self.head.extend_from_slice(first);
            bytes = rest;
        } else {
            self.head.extend_from_slice(bytes);
            return;
        }
        self.tail.extend(bytes);
        let over = self.tail.len().saturating_sub(FLOOD_END);
        self.tail.drain(..over);
        self.cut += over as u64;
    }

    /// All that is held, lossy, with a word where something was left out.
    pub(super) fn text(&self) -> String {
        let (one, two) = self.tail.as_slices();
        let mut bytes = self.head.clone();
        if self.cut > 0 {
            let word = format!("\n[... {} bytes left out ...]\n", self.cut);
            bytes.extend_from_slice(word.as_bytes());
        }
        bytes.extend_from_slice(one);
        bytes.extend_from_slice(two);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_both_ends_and_says_what_is_missing() {
        let text = format!("<{}>", "ä".repeat(OUTPUT_KEPT));
        let short = shorten(&text);
        assert!(short.len() <= OUTPUT_KEPT, "{}", short.len());
        assert!(short.starts_with("<ä") && short.ends_with("ä>"));
        let number: usize = short
            .split("[... ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .unwrap()
            .parse()
            .unwrap();
        let word = format!("\n[... {number} bytes left out ...]\n").len();
        assert_eq!(short.len() - word + number, text.len());
    }

    #[test]
    fn a_flood_is_held_within_bounds() {
        let mut flood = Flood::default();
        flood.take(b"first");
        for _ in 0..100 {
            flood.take(&[b'x'; 100_000]);
        }
        flood.take(b"last");
        let text = flood.text();
        assert!(text.len() < 2 * FLOOD_END + 100);
        assert!(text.starts_with("firstx") && text.ends_with("xlast"));
        let cut = 10_000_009 - 2 * FLOOD_END;
        assert!(text.contains(&format!("[... {cut} bytes left out ...]")));
    }
}
