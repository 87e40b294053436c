//! The daemon's log: structured lines on stderr.
//!
//! What: tracing, filtered by `$RUST_LOG` or else by `log_level`. Where stderr is journald's stream
//! (`$JOURNAL_STREAM`), lines have no time and no colour, as journald adds its own time. A panic anywhere
//! is one line of the log, with its place.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use super::{args::LogFormat, error::DaemonError};

/// Starts the log of this process.
///
/// # Errors
/// [`DaemonError::LogFilter`] where the filter cannot be parsed.
pub fn start(log_level: &str, format: LogFormat) -> Result<(), DaemonError> {
    let filter = std::env::var("RUST_LOG")
        .ok()
        .filter(|filter| !filter.is_empty());
    let filter = filter.as_deref().unwrap_or(log_level);
    let parsed = EnvFilter::try_new(filter).map_err(|error| DaemonError::LogFilter {
        filter: filter.into(),
        what: error.to_string(),
    })?;
    let under_journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let ansi = std::io::stderr().is_terminal() && !under_journald;
    let builder = fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(ansi);
    // A second start in one process (tests) keeps the first.
    let started = match (format, under_journald) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).try_init(),
        (LogFormat::Text, true) => builder.without_time().try_init(),
        (LogFormat::Text, false) => builder.try_init(),
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic
                .location()
                .map(ToString::to_string)
                .unwrap_or_default();
            let thread = std::thread::current()
                .name()
                .unwrap_or("unnamed")
                .to_owned();
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(place, thread, %backtrace, "panic: {}", words(panic.payload()));
        }));
    }
    Ok(())
}

/// Returns what a panic said.
fn words(payload: &dyn std::any::Any) -> &str {
    match payload.downcast_ref::<String>() {
        Some(text) => text,
        None => payload.downcast_ref::<&str>().unwrap_or(&"without words"),
    }
}
