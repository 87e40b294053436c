//! One binary: `virt-cdp`; `virtcdpd` when it is called by that name; and the daemon's guard.

use std::{path::Path, process::ExitCode};

use clap::Parser as _;
use virt_cdp::{cli, daemon, engine, guard};

fn main() -> ExitCode {
    let called = std::env::args_os().next();
    let name = called
        .as_deref()
        .and_then(|called| Path::new(called).file_name());
    if name.is_some_and(|name| name == "virtcdpd") {
        return daemon::main(&daemon::args::Args::parse(), engine::open);
    }
    if name.is_some_and(|name| name == guard::NAME)
        && let Some(socket) = std::env::args_os().nth(1)
    {
        return guard::main(Path::new(&socket));
    }
    cli::main(engine::open)
}
