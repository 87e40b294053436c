//! The command line, `virt-cdp`: one file a command.
//!
//! How: the command line is parsed, the command gets a [`session::Session`] (the daemon, and who reads
//! the answer), and its result becomes the exit code: 0, 1 for failure, 2 for a command line that is
//! wrong, 3 for a drill that proved the contrary. Without a command it is a shell.
//! Invariant: stdout holds the answer and nothing else; errors, hints and progress go to stderr.

pub mod at;
mod client;
mod error;
mod session;

mod bisect;
mod drill_discard;
mod drill_list;
mod drill_report;
mod drill_run;
mod drill_shell;
mod export;
mod generate;
mod hook;
mod host_install;
mod host_uninstall;
mod info;
mod list;
mod plan_check;
mod point_create;
mod point_delete;
mod point_label;
mod point_list;
mod point_lock;
mod point_unlock;
mod policy_assign;
mod policy_list;
mod policy_preview;
mod policy_set;
mod policy_show;
mod protect;
mod report_verify;
mod resume;
mod space;
mod status;
mod suspend;
mod takeover;
mod takeover_commit;
mod takeover_discard;
mod takeover_list;
mod thaw_watch;
mod unprotect;
mod verify;
mod version;
mod view_close;
mod view_list;
mod view_open;

mod activity;
mod coverage;
mod drills;
mod job;
mod json;
mod json_drill;
mod json_space;
mod json_watch;
mod points;
mod policy;
mod progress;
mod text;

pub mod complete;
mod shell;
pub mod words;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::{
    client::{Address, Client},
    error::CliResult,
    session::{Reader, Session},
};
use crate::daemon::{self, OpenEngine};

/// What is said about `--at` below the help of the commands that have it.
const AT_HELP: &str = "\
T is one of
  latest                       the newest point
  123                          the point of that id
  30s, 5m, 2h, 1d              that long ago
  2026-11-22 05:12:01[.123]    local time
  2026-11-22T04:12:01.5Z       RFC 3339

The newest point not later than T is taken, and named in the answer.";

/// What is said about POINT below the help of the commands that have it.
const POINT_HELP: &str = "\
POINT is one of
  latest                       the newest point
  123                          the point of that id
  30s, 5m, 2h, 1d              that long ago
  2026-11-22 05:12:01[.123]    local time
  2026-11-22T04:12:01.5Z       RFC 3339

The newest point not later is taken, and named in the answer.";

/// Continuous data protection for libvirt/KVM machines: every write is kept, and every second can be
/// looked at, started, or taken out again
///
/// Without a command it opens a shell with history and completion.
#[derive(Debug, Parser)]
#[command(name = "virt-cdp", version)]
struct Cli {
    /// Where virtcdpd listens: unix:///path or /path [default: unix:///run/virt-cdp/virtcdpd.sock]
    #[arg(
        short = 'c',
        long = "connect",
        value_name = "URI",
        env = "VIRT_CDP_URI",
        hide_env_values = true
    )]
    #[arg(global = true, help_heading = "Global options")]
    connect: Option<String>,

    /// Answers with one JSON document
    ///
    /// Times are RFC 3339 in UTC with nanoseconds, sizes are bytes; field names do not change.
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
enum Command {
    Protect(protect::Args),
    Unprotect(unprotect::Args),
    List(list::Args),
    Info(info::Args),
    Suspend(suspend::Args),
    Resume(resume::Args),
    PointList(point_list::Args),
    PointCreate(point_create::Args),
    PointLabel(point_label::Args),
    PointLock(point_lock::Args),
    PointUnlock(point_unlock::Args),
    PointDelete(point_delete::Args),
    PolicyList(policy_list::Args),
    PolicyShow(policy_show::Args),
    PolicySet(policy_set::Args),
    PolicyAssign(policy_assign::Args),
    PolicyPreview(policy_preview::Args),
    Space(space::Args),
    Verify(verify::Args),
    ViewOpen(view_open::Args),
    ViewList(view_list::Args),
    ViewClose(view_close::Args),
    Export(export::Args),
    Takeover(takeover::Args),
    TakeoverList(takeover_list::Args),
    TakeoverDiscard(takeover_discard::Args),
    TakeoverCommit(takeover_commit::Args),
    DrillRun(drill_run::Args),
    DrillList(drill_list::Args),
    DrillReport(drill_report::Args),
    DrillShell(drill_shell::Args),
    DrillDiscard(drill_discard::Args),
    PlanCheck(plan_check::Args),
    ReportVerify(report_verify::Args),
    Bisect(bisect::Args),
    Status(status::Args),
    HostInstall(host_install::Args),
    HostUninstall(host_uninstall::Args),
    Version(version::Args),
    #[command(hide = true)]
    Completions(generate::Completions),
    #[command(hide = true)]
    Man(generate::Man),
    #[command(hide = true)]
    Hook(hook::Args),
    #[command(hide = true)]
    ThawWatch(thaw_watch::Args),
    #[command(hide = true)]
    Daemon(daemon::args::Args),
}

impl Command {
    fn run(self, session: &mut Session) -> CliResult {
        match self {
            Self::Protect(args) => protect::run(args, session),
            Self::Unprotect(args) => unprotect::run(args, session),
            Self::List(args) => list::run(args, session),
            Self::Info(args) => info::run(args, session),
            Self::Suspend(args) => suspend::run(args, session),
            Self::Resume(args) => resume::run(args, session),
            Self::PointList(args) => point_list::run(args, session),
            Self::PointCreate(args) => point_create::run(args, session),
            Self::PointLabel(args) => point_label::run(args, session),
            Self::PointLock(args) => point_lock::run(args, session),
            Self::PointUnlock(args) => point_unlock::run(args, session),
            Self::PointDelete(args) => point_delete::run(args, session),
            Self::PolicyList(args) => policy_list::run(args, session),
            Self::PolicyShow(args) => policy_show::run(args, session),
            Self::PolicySet(args) => policy_set::run(args, session),
            Self::PolicyAssign(args) => policy_assign::run(args, session),
            Self::PolicyPreview(args) => policy_preview::run(args, session),
            Self::Space(args) => space::run(args, session),
            Self::Verify(args) => verify::run(args, session),
            Self::ViewOpen(args) => view_open::run(args, session),
            Self::ViewList(args) => view_list::run(args, session),
            Self::ViewClose(args) => view_close::run(args, session),
            Self::Export(args) => export::run(args, session),
            Self::Takeover(args) => takeover::run(args, session),
            Self::TakeoverList(args) => takeover_list::run(args, session),
            Self::TakeoverDiscard(args) => takeover_discard::run(args, session),
            Self::TakeoverCommit(args) => takeover_commit::run(args, session),
            Self::DrillRun(args) => drill_run::run(args, session),
            Self::DrillList(args) => drill_list::run(args, session),
            Self::DrillReport(args) => drill_report::run(args, session),
            Self::DrillShell(args) => drill_shell::run(args, session),
            Self::DrillDiscard(args) => drill_discard::run(args, session),
            Self::PlanCheck(args) => plan_check::run(args, session),
            Self::ReportVerify(args) => report_verify::run(args, session),
            Self::Bisect(args) => bisect::run(args, session),
            Self::Status(args) => status::run(args, session),
            Self::HostInstall(args) => host_install::run(args, session),
            Self::HostUninstall(args) => host_uninstall::run(args, session),
            Self::Version(args) => version::run(args, session),
            Self::Completions(args) => {
                generate::completions(&args);
                Ok(())
            }
            Self::Man(args) => generate::man(&args),
            Self::Hook(args) => {
                hook::run(args, session);
                Ok(())
            }
            Self::ThawWatch(args) => {
                thaw_watch::run(&args);
                Ok(())
            }
            // Taken before a session is made; there is nothing to do with it here.
            Self::Daemon(_) => Ok(()),
        }
    }
}

/// Returns the whole command line, for help texts, completion and man pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program on its command line; `open_engine` is for the hidden `daemon`.
#[must_use]
pub fn main(open_engine: OpenEngine) -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Daemon(args)) = &cli.command {
        return daemon::main(args, open_engine);
    }
    let result = Address::parse(cli.connect.as_deref()).and_then(|address| {
        let reader = if cli.json {
            Reader::Programs
        } else {
            Reader::People
        };
        let mut session = Session {
            client: Client::new(address),
            reader,
        };
        match cli.command {
            Some(command) => command.run(&mut session).map(|()| ExitCode::SUCCESS),
            None => Ok(shell::run(&mut session)),
        }
    });
    result.unwrap_or_else(|error| {
        error.print();
        error.exit_code()
    })
}
