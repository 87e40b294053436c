//! `host-install`: lays down what belongs around the program on a host.

use std::path::{Path, PathBuf};

use clap_complete::Shell;
use serde::Serialize;

use super::{
    error::{CliError, CliResult},
    generate, json,
    session::Session,
};
use crate::host::{self, Done, Host, HostError, Step, files};

/// Lays down program, unit, configuration, libvirt hook, AppArmor rules, completions and manual pages
///
/// The program that is running is copied to PREFIX/bin, with virtcdpd as a link to it in PREFIX/sbin. What was laid
/// down is listed in /etc/virt-cdp/host-install.json. Run again, also by a newer version, it brings everything up to
/// date; a file that somebody changed since is left and named. host-uninstall takes away exactly what is in the list.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the program goes
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,

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
struct Answer<'a> {
    dry_run: bool,
    steps: Vec<json::HostStep>,
    next: &'a [String],
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    if !args.prefix.is_absolute() {
        return Err(CliError::usage("--prefix is no absolute path").hint("give one such as /usr"));
    }
    let host = Host {
        root: args.root,
        dry_run: args.dry_run,
    };
    let apparmor = host
        .root
        .join(files::APPARMOR_DIR.trim_start_matches('/'))
        .is_dir();
    let items = files::items(&args.prefix, apparmor, generated()?);
    let steps = host::install(&host, &args.prefix, &items)?;
    let next = match host.dry_run {
        true => Vec::new(),
        false => next(&host, &steps),
    };
    let answer = Answer {
        dry_run: host.dry_run,
        steps: steps.iter().map(json::HostStep::from).collect(),
        next: &next,
    };
    session.answer(&answer, || {
        let mut text = told(&steps, host.dry_run);
        for line in &next {
            text.push_str(&format!("next: {line}\n"));
        }
        text
    })
}

/// What the program makes of itself.
fn generated() -> CliResult<files::Generated> {
    let program = std::env::current_exe()
        .and_then(std::fs::read)
        .map_err(|e| CliError::failure(format!("cannot read this program: {e}")))?;
    let pages = generate::pages()
        .map_err(|e| CliError::failure(format!("cannot make the manual pages: {e}")))?;
    Ok(files::Generated {
        program,
        pages,
        completions: [Shell::Bash, Shell::Zsh, Shell::Fish].map(generate::completion),
    })
}

/// What is left to do for whoever installs on the host itself.
fn next(host: &Host, steps: &[Step]) -> Vec<String> {
    if host.root != Path::new("/") {
        return Vec::new();
    }
    let changed = |end: &str| {
        let mut changed = steps
            .iter()
            .filter(|s| matches!(s.done, Done::Made | Done::Updated));
        changed.any(|step| step.path.ends_with(end))
    };
    let mut next = Vec::new();
    if changed("virtcdpd.service") {
        next.push("systemctl daemon-reload && systemctl enable --now virtcdpd".to_owned());
    } else if changed("bin/virt-cdp") {
        next.push("systemctl reload virtcdpd (takes the new program over)".to_owned());
    }
    if changed("50-virt-cdp") {
        next.push(
            "systemctl reload libvirtd (it looks for new hooks then; guests go on)".to_owned(),
        );
    }
    next
}

/// Tells people what was done, path by path.
pub(super) fn told(steps: &[Step], dry_run: bool) -> String {
    let mut text = String::new();
    for step in steps {
        let done = match (&step.done, dry_run) {
            (Done::Made, false) => "made",
            (Done::Made, true) => "would be made",
            (Done::Updated, false) => "brought up to date",
            (Done::Updated, true) => "would be brought up to date",
            (Done::Kept, _) => "is up to date",
            (Done::Removed, false) => "removed",
            (Done::Removed, true) => "would be removed",
            (Done::Left(reason), _) => {
                text.push_str(&format!("{}: left alone, {reason}\n", step.path.display()));
                continue;
            }
        };
        text.push_str(&format!("{}: {done}\n", step.path.display()));
    }
    text
}

impl From<HostError> for CliError {
    fn from(error: HostError) -> Self {
        Self::failure(error.to_string()).hint(error.hint())
    }
}
