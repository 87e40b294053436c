//! The console of a machine, read as it grows.
//!
//! The file may be large, be cut to nothing, or be moved to `FILE.0` while a new one takes its place. It is read in pieces;
//! from piece to piece the last lines are kept, so that a pattern is found across the border. Escape sequences of terminals
//! are taken out, and a carriage return ends a line like a line feed does.
//!
//! Invariant: however large the file is, not more than a piece and [`KEPT`] bytes of it are held.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::plan::Pattern;

/// How much is read at once.
const PIECE: usize = 64 * 1024;
/// How much is kept for a pattern that goes on in the next piece, unless a line ends earlier.
const KEPT: usize = 16 * 1024;
/// How many pieces are read in one look.
const PIECES: usize = 64;
/// How long an escape sequence can be; a longer one is none.
const ESCAPE_MAX: usize = 4096;

/// What is read of a console.
pub(super) struct Follower {
    path: PathBuf,
    file: Option<(File, u64)>,
    offset: u64,
    window: Vec<u8>,
    strip: Strip,
}

impl Follower {
    /// Begins with what was moved away already, if there is some.
    pub(super) fn new(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(".0");
        let moved = Path::new(&name);
        Self {
            path: path.to_owned(),
            file: open(moved).or_else(|_| open(path)).ok(),
            offset: 0,
            window: Vec::new(),
            strip: Strip::default(),
        }
    }

    /// Reads on for a while; whether the pattern was there, and whether there is more to be read at once.
    pub(super) fn look(&mut self, pattern: &Pattern) -> (bool, bool) {
        for _ in 0..PIECES {
            let read = match self.piece() {
                Some(read) => read,
                None if self.next_file() => 0,
                None => return (false, false),
            };
            // At the end of what there is, a line without its end is one, such as a prompt.
            let is_end = read < PIECE;
            if self.has(pattern, is_end) {
                return (true, false);
            }
            self.forget();
        }
        (false, true)
    }

    /// What was seen last, for people.
    pub(super) fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.window);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.unwrap_or_default().to_owned()
    }

    /// How much of the file is held in memory, bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.window.capacity()
    }

    /// Reads a piece into the window; none where there is nothing new.
    fn piece(&mut self) -> Option<usize> {
        let (file, _) = self.file.as_ref()?;
        let size = file.metadata().ok()?.len();
        if size < self.offset {
            self.offset = 0;
            self.window.clear();
            self.strip = Strip::default();
        }
        let mut piece = vec![0; PIECE];
        let mut read = 0;
        while let Some(room) = piece.get_mut(read..).filter(|room| !room.is_empty()) {
            match file.read_at(room, self.offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if read == 0 {
            return None;
        }
        self.offset += read as u64;
        for byte in piece.get(..read).unwrap_or_default() {
            self.strip.take(*byte, &mut self.window);
        }
        Some(read)
    }

    /// Goes over to the file that has the name now, if that is another one; the old one is read to its end by then.
    fn next_file(&mut self) -> bool {
        let Ok((file, number)) = open(&self.path) else {
            return false;
        };
        if self.file.as_ref().is_some_and(|(_, old)| *old == number) {
            return false;
        }
        // Something may have come to the old one just before it was moved.
        while self.window.len() < KEPT && self.piece().is_some() {}
        self.file = Some((file, number));
        self.offset = 0;
        true
    }

    /// Whether the pattern is there. Where more is to come, what reaches up to the border may be half of something else; it
    /// is kept for the next piece.
    fn has(&self, pattern: &Pattern, is_end: bool) -> bool {
        let text = String::from_utf8_lossy(&self.window);
        match is_end {
            true => pattern.0.is_match(&text),
            false => pattern
                .0
                .find_iter(&text)
                .any(|found| found.end() < text.len()),
        }
    }

    /// Forgets all but the last lines.
    fn forget(&mut self) {
        let over = self.window.len().saturating_sub(KEPT);
        if over == 0 {
            return;
        }
        // Where a line begins, so that `^` means what it says, unless the line is too long for that.
        let rest = self.window.get(over..over + KEPT / 2).unwrap_or_default();
        let line = rest.iter().position(|byte| *byte == b'\n');
        self.window.drain(..over + line.map_or(0, |at| at + 1));
    }
}

/// Opens a file that is one, with its number. A pipe in its place does not hold anybody up.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    match found.is_file() {
        true => Ok((file, found.ino())),
        false => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

/// Returns what was written to a terminal as text, without what steers it.
#[must_use]
pub fn plain_text(bytes: &[u8]) -> String {
    let (mut strip, mut text) = (Strip::default(), Vec::with_capacity(bytes.len()));
    for byte in bytes {
        strip.take(*byte, &mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Takes escape sequences and control characters out of what a terminal would show.
#[derive(Default)]
struct Strip {
    state: State,
    length: usize,
    had_return: bool,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and a byte that takes one more.
    One,
    /// `ESC [` up to a letter.
    Control,
    /// `ESC ]` and its like up to BEL or ST.
    Words,
    /// An ESC in those words.
    WordsEscape,
}

impl Strip {
    fn take(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.length += 1;
        let was = self.state;
        self.state = match (was, byte) {
            (State::Text, 0x1b) => {
                self.length = 0;
                State::Escape
            }
            (State::Text, _) => {
                self.text(byte, out);
                State::Text
            }
            (State::Escape, b'[') => State::Control,
            (State::Escape, b']' | b'P' | b'_' | b'^' | b'X') => State::Words,
            (State::Escape, b'(' | b')' | b'*' | b'+' | b'#' | b'%' | b' ') => State::One,
            (State::Control, 0x20..=0x3f) if self.length < ESCAPE_MAX => State::Control,
            (State::Words, 0x07) | (State::WordsEscape, b'\\') => State::Text,
            (State::Words, 0x1b) => State::WordsEscape,
            (State::Words | State::WordsEscape, _) if self.length < ESCAPE_MAX => State::Words,
            // A line that ends in the middle of one is still a line.
            (State::Escape | State::Control | State::One, b'\n' | b'\r') => {
                self.text(byte, out);
                State::Text
            }
            (State::Escape | State::One | State::Control, 0x1b) => State::Escape,
            _ => State::Text,
        };
    }

    fn text(&mut self, byte: u8, out: &mut Vec<u8>) {
        // A return and a feed end one line together.
        if self.had_return && byte != b'\n' {
            out.push(b'\n');
        }
        self.had_return = byte == b'\r';
        if matches!(byte, b'\n' | b'\t' | 0x20..=0x7e | 0x80..) {
            out.push(byte);
        }
    }
}
