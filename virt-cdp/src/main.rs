//! One binary, two programs: `virt-cdp`, and `virtcdpd` when it is called by that name.

use std::{path::Path, process::ExitCode};

use clap::Parser as _;
use virt_cdp::{cli, daemon, engine};

fn main() -> ExitCode {
    let called = std::env::args_os().next();
    let name = called
        .as_deref()
        .and_then(|called| Path::new(called).file_name());
    if name.is_some_and(|name| name == "virtcdpd") {
        return daemon::main(&daemon::args::Args::parse(), engine::open);
    }
    cli::main(engine::open)
}
