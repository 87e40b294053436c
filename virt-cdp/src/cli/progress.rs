//! Progress of long work: a bar on a terminal, a line every few seconds elsewhere, nothing for programs.
//!
//! Invariant: it goes to stderr, so that stdout holds the answer only.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::session::Reader;
use crate::{api::v1, units::format_size};

/// How often work is looked at.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// When the first of them is written: what ends sooner needs none.
const LINE_FIRST: Duration = Duration::from_secs(1);

/// Shows how far one piece of work is.
pub(super) struct Meter {
    face: Face,
}

enum Face {
    /// Made when there is something to show.
    Bar(Option<ProgressBar>),
    Lines {
        next: Instant,
    },
    Silent,
}

impl Meter {
    pub(super) fn new(reader: Reader) -> Self {
        let face = match reader {
            Reader::Programs => Face::Silent,
            Reader::People if std::io::stderr().is_terminal() => Face::Bar(None),
            Reader::People => Face::Lines {
                next: Instant::now() + LINE_FIRST,
            },
        };
        Self { face }
    }

    /// Shows how far it is now.
    pub(super) fn show(&mut self, progress: Option<&v1::Progress>) {
        let Some(v1::Progress {
            what,
            done_bytes,
            total_bytes,
        }) = progress
        else {
            return;
        };
        if *total_bytes == 0 {
            return; // nothing is known yet
        }
        match &mut self.face {
            Face::Bar(bar) => {
                let bar = bar.get_or_insert_with(bar_on_stderr);
                bar.set_message(what.clone());
                bar.set_length(*total_bytes);
                bar.set_position(*done_bytes);
            }
            Face::Lines { next } if Instant::now() >= *next => {
                *next = Instant::now() + LINE_INTERVAL;
                let percent = u128::from(*done_bytes) * 100 / u128::from((*total_bytes).max(1));
                eprintln!(
                    "{what}: {percent} %, {} of {}",
                    format_size(*done_bytes),
                    format_size(*total_bytes)
                );
            }
            Face::Lines { .. } | Face::Silent => {}
        }
    }

    /// Takes the bar away.
    pub(super) fn end(self) {
        if let Face::Bar(Some(bar)) = self.face {
            bar.finish_and_clear();
        }
    }
}

fn bar_on_stderr() -> ProgressBar {
    let template = "{msg} [{wide_bar}] {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("=> "))
}
