//! `host-uninstall`: takes away what `host-install` laid down.

use std::path::PathBuf;

use serde::Serialize;

use super::{error::CliResult, host_install::told, json, session::Session};
use crate::host::{self, Host};

/// Takes away what host-install laid down, and nothing else
///
/// A file that somebody changed since is left and named. What is kept of the machines stays where it is. The daemon
/// has to be stopped and disabled first.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A directory that stands for / (for packages)
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/",
        hide_default_value = true
    )]
    root: PathBuf,

    /// Only tells what would be done
    #[arg(long)]
    dry_run: bool,
}

/// What was done, to programs.
#[derive(Debug, Serialize)]
struct Answer {
    dry_run: bool,
    steps: Vec<json::HostStep>,
    kept: Option<PathBuf>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let host = Host {
        root: args.root,
        dry_run: args.dry_run,
    };
    let done = host::uninstall(&host)?;
    let answer = Answer {
        dry_run: host.dry_run,
        steps: done.steps.iter().map(json::HostStep::from).collect(),
        kept: done.kept.clone(),
    };
    session.answer(&answer, || {
        let mut text = told(&done.steps, host.dry_run);
        if let Some(dir) = &done.kept {
            text.push_str(&format!(
                "{}: left alone, it holds what is kept of the machines\n",
                dir.display()
            ));
        }
        text
    })
}
