//! Why the daemon does not start, or ended: a sentence, its cure, and the exit code.

use std::{io, path::PathBuf, process::ExitCode};

use super::config::ConfigError;
use crate::api::ApiError;

/// Says why the daemon does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is not right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter cannot be parsed.
    #[error("`{filter}` is no log filter: {what}")]
    LogFilter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        what: String,
    },
    /// A directory cannot be made or written to.
    #[error("cannot use the {role} {}: {source}", path.display())]
    Directory {
        /// What it is for: "state directory", "socket directory".
        role: &'static str,
        /// The directory, or the file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon has the state directory.
    #[error("the state directory {} belongs to another virtcdpd that is running{}", state_dir.display(), pid_text(*pid))]
    Locked {
        /// The state directory.
        state_dir: PathBuf,
        /// The other daemon, where its lock file tells.
        pid: Option<u32>,
    },
    /// Another process serves the socket.
    #[error("another process is serving {}", path.display())]
    SocketServed {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket lies in its place.
    #[error("{} exists and is no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group that shall own the socket does not exist.
    #[error("there is no group `{group}`")]
    NoSuchGroup {
        /// The group.
        group: String,
    },
    /// The operating system refused something else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The engine does not open.
    #[error("{}", .0.what)]
    Engine(ApiError),
    /// The engine did not stop in time.
    #[error("the engine did not stop within {seconds} s; what it held was left to crash recovery")]
    StopOverdue {
        /// The deadline.
        seconds: u64,
    },
    /// The gRPC server ended by itself.
    #[error("the API server failed: {source}")]
    Serve {
        /// Why.
        source: tonic::transport::Error,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl DaemonError {
    /// Returns the cure, where one is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Config(error) => error.hint(),
            Self::LogFilter { .. } => {
                "give a level (error, warn, info, debug, trace) or module=level pairs".into()
            }
            Self::Directory { role, source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                format!("start virtcdpd as root, or give a {role} that this user may write to")
            }
            Self::Directory { role, .. } => format!("make it by hand, or give another {role}"),
            Self::Locked { pid, .. } => {
                let stop = match pid {
                    Some(pid) => format!("`systemctl stop virtcdpd` or `kill {pid}`"),
                    None => "`systemctl stop virtcdpd`".into(),
                };
                format!("stop it ({stop}), or give this one its own --state-dir and --socket")
            }
            Self::SocketServed { .. } => {
                "stop that process, or give this daemon its own --socket".into()
            }
            Self::NotASocket { .. } => "remove it, or give another --socket".into(),
            Self::Listen { .. } => "give a --socket in a directory this user may write to".into(),
            Self::NoSuchGroup { group } => {
                format!("`groupadd --system {group}`, or change socket_group")
            }
            Self::System { .. } => return None,
            Self::Engine(error) => return error.hint.clone(),
            Self::StopOverdue { .. } => {
                "nothing is lost that was kept; see the log for what hung".into()
            }
            Self::Serve { .. } => return None,
        })
    }

    /// Returns the exit code: 2 where the command line or the configuration is wrong, else 1.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::LogFilter { .. } | Self::NoSuchGroup { .. } => {
                ExitCode::from(2)
            }
            _ => ExitCode::FAILURE,
        }
    }
}
