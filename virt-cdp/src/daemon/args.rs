//! The command line of virtcdpd.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Captures every write of the protected machines and serves them as they were at any second.
///
/// virtcdpd runs in the foreground, logs to stderr and stops on SIGTERM. One daemon owns one state
/// directory; several run side by side with a --state-dir and a --socket each.
#[derive(Debug, Clone, Parser)]
#[command(name = "virtcdpd", version)]
pub struct Args {
    /// The configuration [default: /etc/virt-cdp/virtcdpd.toml, where that exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The directory in which everything kept lies, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// The unix socket to listen on, instead of the configuration's
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people and journald.
    Text,
    /// One JSON object a line.
    Json,
}
