//! What the commands about drills share: plan files, and times as people read them.

use std::time::Duration;

use drill_runner::plan::Plan;

use super::{
    at,
    error::{CliError, CliResult},
};
use crate::units::format_duration;

/// Reads a plan's file; what is wrong is told with its line.
pub(super) fn read_plan(path: &str) -> CliResult<Plan> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::failure(format!("cannot read the plan {path}: {error}"))
            .hint("give a machine's name, or the path of a plan")
    })?;
    let moment = |text: &str| {
        at::parse_here(text)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    Plan::parse(&text, &moment).map_err(|error| {
        let place = error
            .line
            .map(|line| format!(", line {line}"))
            .unwrap_or_default();
        CliError::failure(format!("{path}{place}: {}", error.what)).hint(error.hint)
    })
}

/// How long something took.
pub(super) fn took(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

/// How old something is, to the second where it is older than some.
pub(super) fn age(ms: u64) -> String {
    match ms {
        0..10_000 => took(ms),
        _ => format_duration(Duration::from_secs(ms / 1000)),
    }
}
