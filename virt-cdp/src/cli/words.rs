//! Splits a line of the shell into words, with quotes as in sh: `'as is'`, `"with \" and \\"`, `a\ b`.

/// A word and where it starts in its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Its text, without the quotes.
    pub text: String,
    /// The byte its first character or quote stands at.
    pub start: usize,
}

/// Says that a quote is not closed, or that the line ends in a backslash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the line ends inside {what}")]
pub struct Unfinished {
    /// What is open.
    pub what: &'static str,
    /// The words so far, the open one last.
    pub words: Vec<Word>,
}

/// Splits `line` into words; from a `#` at the start of a word on it is a comment.
///
/// # Errors
/// A quote that is not closed, or a backslash at the end.
pub fn split(line: &str) -> Result<Vec<Word>, Unfinished> {
    let mut words: Vec<Word> = Vec::new();
    let mut word: Option<Word> = None;
    let mut chars = line.char_indices();
    let mut open = None;
    while let Some((at, c)) = chars.next() {
        if c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        if c == '#' && word.is_none() {
            break;
        }
        let current = word.get_or_insert_with(|| Word {
            text: String::new(),
            start: at,
        });
        match c {
            '\'' | '"' => open = quoted(&mut chars, c, &mut current.text).err(),
            '\\' => match chars.next() {
                Some((_, escaped)) => current.text.push(escaped),
                None => open = Some("a backslash"),
            },
            _ => current.text.push(c),
        }
    }
    words.extend(word);
    match open {
        None => Ok(words),
        Some(what) => Err(Unfinished { what, words }),
    }
}

/// Takes what is up to the closing quote.
fn quoted(
    chars: &mut std::str::CharIndices<'_>,
    quote: char,
    text: &mut String,
) -> Result<(), &'static str> {
    while let Some((_, c)) = chars.next() {
        match c {
            _ if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                Some((_, other)) => text.extend(['\\', other]),
                None => break,
            },
            _ => text.push(c),
        }
    }
    Err("a quote")
}

/// Writes `text` as one word that [`split`] reads back.
#[must_use]
pub fn quote(text: &str) -> String {
    let is_plain = |c: char| !(c.is_whitespace() || matches!(c, '\'' | '"' | '\\' | '#'));
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
