//! Foreign text as it may be shown: what it says is seen, and it does nothing.
//!
//! Names, labels, reasons, outputs and consoles may come from a guest. [`line`] and [`block`] escape what has a meaning in
//! HTML and XML, in text as in attributes, and put something visible in the place of every character that is invisible,
//! turns the direction of writing, or is not allowed in XML.
//!
//! Invariant: what they print is valid in HTML and XML, as text and between double quotes, whatever is given to them.

use std::fmt::{self, Display, Formatter, Write as _};

use maud::Render;

/// Shows a text in one line; what would break the line is shown as a sign.
pub(super) fn line(text: &str) -> Shown<'_> {
    Shown {
        text,
        lines: Lines::One,
    }
}

/// Shows a text of several lines; orders to a terminal about colours and places are left out.
pub(super) fn block(text: &str) -> Shown<'_> {
    Shown {
        text,
        lines: Lines::Many,
    }
}

/// Text that is safe to show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown<'a> {
    text: &'a str,
    lines: Lines,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    One,
    Many,
}

impl Render for Shown<'_> {
    fn render_to(&self, buffer: &mut String) {
        let _ = write!(buffer, "{self}");
    }
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut rest = self.text;
        while let Some(letter) = rest.chars().next() {
            let after = rest.get(letter.len_utf8()..).unwrap_or("");
            if self.lines == Lines::Many {
                if let Some(behind) = after_order(rest) {
                    rest = behind;
                    continue;
                }
                if letter == '\r' && after.starts_with('\n') {
                    rest = after;
                    continue;
                }
            }
            put(f, letter, self.lines)?;
            rest = after;
        }
        Ok(())
    }
}

/// What follows an order to a terminal, such as `ESC [ 0 m`; none where no whole one begins.
fn after_order(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("\u{1b}[")?;
    let is_parameter = |letter: char| matches!(letter, '0'..='9' | ';' | ':' | '?');
    let rest = rest.trim_start_matches(is_parameter);
    rest.strip_prefix(|letter: char| letter.is_ascii_alphabetic())
}

fn put(f: &mut Formatter<'_>, letter: char, lines: Lines) -> fmt::Result {
    match letter {
        '&' => f.write_str("&amp;"),
        '<' => f.write_str("&lt;"),
        '>' => f.write_str("&gt;"),
        '"' => f.write_str("&quot;"),
        '\'' => f.write_str("&#39;"),
        '\n' | '\t' if lines == Lines::Many => f.write_char(letter),
        '\0'..='\u{1f}' => {
            let picture = char::from_u32(0x2400 + u32::from(letter));
            f.write_char(picture.unwrap_or('\u{fffd}'))
        }
        '\u{7f}' => f.write_char('\u{2421}'),
        _ if is_hidden(letter) => write!(f, "‹U+{:04X}›", u32::from(letter)),
        _ => f.write_char(letter),
    }
}

/// Tells whether a character is not seen, moves others, or is none.
fn is_hidden(letter: char) -> bool {
    let number = u32::from(letter);
    matches!(number,
        0x80..=0x9f // control characters
        | 0xad | 0x34f | 0x61c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f
        | 0x200b..=0x200f // zero width, marks of direction
        | 0x2028..=0x202e // separators, direction
        | 0x2060..=0x206f | 0x2800 | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0
        | 0xfff0..=0xfffb | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff
        | 0xfdd0..=0xfdef)
        || number & 0xfffe == 0xfffe // no characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_it_is() {
        let text = "Grüße, 東京 - 100 % of 5 + 3 = 8; שלום 🙂";
        assert_eq!(line(text).to_string(), text);
        assert_eq!(block("a\n\tb\r\nc").to_string(), "a\n\tb\nc");
    }

    #[test]
    fn markup_is_text() {
        let shown = line("\"><script>'&").to_string();
        assert_eq!(shown, "&quot;&gt;&lt;script&gt;&#39;&amp;");
    }

    #[test]
    fn what_is_invisible_is_seen() {
        assert_eq!(line("a\nb\tc\0\x1b[1m\x7f").to_string(), "a␊b␉c␀␛[1m␡");
        let turned = line("user\u{202e}nimda\u{200b}\u{feff}").to_string();
        assert_eq!(turned, "user‹U+202E›nimda‹U+200B›‹U+FEFF›");
        assert_eq!(line("\u{9b}\u{ffff}").to_string(), "‹U+009B›‹U+FFFF›");
    }

    #[test]
    fn orders_to_a_terminal_are_left_out_where_they_are_whole() {
        let console = block("\x1b[0;32m OK \x1b[0m done\x1b[K\rover\x1b[12").to_string();
        assert_eq!(console, " OK  done␍over␛[12");
        assert_eq!(block("\x1b]0;title\x07").to_string(), "␛]0;title␇");
    }

    #[test]
    fn every_character_is_allowed_in_xml() {
        for letter in ('\0'..=char::MAX).filter(|letter| u32::from(*letter) < 0x2_0000) {
            for shown in [line(&letter.to_string()), block(&letter.to_string())] {
                let is_allowed = |one: char| {
                    matches!(one, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}'
                        | '\u{10000}'..='\u{10ffff}')
                };
                let text = shown.to_string();
                assert!(text.chars().all(is_allowed), "{letter:?}");
                assert!(!text.contains(['<', '>', '"', '\'']), "{letter:?}");
            }
        }
    }
}
