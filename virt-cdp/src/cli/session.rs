//! What a command works with: the daemon, and the place its answer goes to.

use std::io::{self, Write as _};

use serde::Serialize;

use super::{
    client::Client,
    error::{CliError, CliResult},
};

/// Who reads the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Tables, sentences, progress.
    People,
    /// One JSON document on stdout.
    Programs,
}

/// The daemon, and who reads.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) reader: Reader,
}

impl Session {
    /// Answers with `document` to programs, or with `text` to people.
    pub(super) fn answer(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> CliResult {
        match self.reader {
            Reader::People => put(text().trim_end_matches('\n')),
            Reader::Programs => match serde_json::to_string(document) {
                Ok(text) => put(&text),
                Err(error) => {
                    return Err(CliError::failure(format!(
                        "cannot print the answer: {error}"
                    )));
                }
            },
        }
        Ok(())
    }

    /// Says something on the way, to people only.
    pub(super) fn say(&self, text: &str) {
        if self.reader == Reader::People {
            put(text);
        }
    }
}

/// Writes a line to stdout; a reader who went away ends the program.
pub(super) fn put(line: &str) {
    let mut stdout = io::stdout().lock();
    if writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// The answer of a command after which there is nothing left to show.
#[derive(Debug, Serialize)]
pub(super) struct Done<'a> {
    pub(super) name: &'a str,
    pub(super) done: &'a str,
}
