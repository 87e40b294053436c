//! The hidden `thaw-watch`: what the daemon starts beside a freeze, in case it is killed meanwhile.

use std::{path::PathBuf, time::Duration};

use crate::engine;

/// Thaws a guest if its daemon does not
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The marker of the freeze
    #[arg(value_name = "MARKER")]
    marker: PathBuf,

    /// How long the freeze may last, in milliseconds
    #[arg(value_name = "MS")]
    limit_ms: u64,
}

pub(super) fn run(args: &Args) {
    engine::watch_freeze(&args.marker, Duration::from_millis(args.limit_ms));
}
