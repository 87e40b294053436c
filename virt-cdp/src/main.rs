//! One binary, two programs: `virt-cdp`, and `virtcdpd` when it is called by that name.

use std::{path::Path, process::ExitCode, sync::Arc};

use clap::Parser as _;
use virt_cdp::{
    api::{ApiError, ApiErrorKind, ApiResult, Engine},
    cli,
    daemon::{self, config::Config},
};

fn main() -> ExitCode {
    let called = std::env::args_os().next();
    let name = called
        .as_deref()
        .and_then(|called| Path::new(called).file_name());
    if name.is_some_and(|name| name == "virtcdpd") {
        return daemon::main(&daemon::args::Args::parse(), open_engine);
    }
    cli::main(open_engine)
}

fn open_engine(_: &Config) -> ApiResult<Arc<dyn Engine>> {
    Err(ApiError::new(
        ApiErrorKind::Unavailable,
        "this build has no engine",
    ))
}
