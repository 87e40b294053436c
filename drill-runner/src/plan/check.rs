//! What must hold in a machine, and until when.

use std::{path::PathBuf, time::Duration};

use regex::Regex;

/// A pattern with its text; two are the same when their texts are.
#[derive(Debug, Clone)]
pub struct Pattern(pub Regex);

impl Pattern {
    /// Compiles a pattern; `^` and `$` stand for the ends of lines.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        regex::RegexBuilder::new(text)
            .multi_line(true)
            .size_limit(1 << 20)
            .build()
            .map(Self)
            .map_err(|error| {
                let what = error.to_string();
                let what = what.lines().last().unwrap_or_default().to_owned();
                format!(
                    "{text:?} is no pattern: {}",
                    what.trim_start_matches("error: ")
                )
            })
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

/// When the boot of a machine counts as finished.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Ready {
    /// When the agent answers if the machine has a channel for one, else when its screen stands still.
    #[default]
    Auto,
    /// When the guest agent answers.
    Agent,
    /// When it answers a ping.
    Ping,
    /// When its console has shown this.
    Console(Pattern),
    /// When its screen has not changed for a while.
    Screen,
    /// At once, when its CPUs run.
    Running,
}

impl Ready {
    /// Parses `auto`, `agent`, `ping`, `screen`, `running`, or `console:PATTERN`.
    ///
    /// # Errors
    /// What is wrong with it and what would be right, in a sentence each.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        Ok(match text {
            "auto" => Self::Auto,
            "agent" => Self::Agent,
            "ping" => Self::Ping,
            "screen" => Self::Screen,
            "running" => Self::Running,
            other => match other.strip_prefix("console:") {
                Some(text) if !text.is_empty() => {
                    let pattern = Pattern::new(text);
                    Self::Console(pattern.map_err(|what| (what, "correct the pattern".into()))?)
                }
                _ => {
                    return Err((
                        format!("there is no sign of readiness {other:?}"),
                        "give auto, agent, ping, screen, running, or console:PATTERN".into(),
                    ));
                }
            },
        })
    }
}

/// A check.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckPlan {
    /// Its name; none: its short form.
    pub name: Option<String>,
    /// What must hold.
    pub kind: CheckKind,
    /// How long it may take until it does, from when the machine is ready.
    pub deadline: Duration,
    /// The time between two attempts.
    pub interval: Duration,
    /// How many attempts there may be; none: as many as the deadline allows.
    pub attempts: Option<u32>,
    /// How long one attempt may take.
    pub timeout: Duration,
}

/// What must hold.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// The guest agent answers.
    Agent,
    /// The boot has finished, by that sign; `auto` is the sign that the machine is waited for by.
    Boot(Ready),
    /// It answers a ping.
    Ping,
    /// A TCP port takes a connection; and says this, where a banner is given.
    Tcp {
        /// The port.
        port: u16,
        /// What it says by itself within the time of an attempt.
        banner: Option<Pattern>,
    },
    /// A web server answers.
    Http {
        /// Whether over TLS; certificates are not checked, as the drill is no place they are made for.
        tls: bool,
        /// The port.
        port: u16,
        /// The path, from `/` on, with its query.
        path: String,
        /// The name in the `Host` header; none: the address.
        host: Option<String>,
        /// The status it must answer with; none: any from 200 to 399.
        status: Option<u16>,
        /// What its body must hold.
        body: Option<Pattern>,
    },
    /// A program of the host says so.
    Script {
        /// Its path, absolute.
        path: PathBuf,
        /// Its arguments.
        args: Vec<String>,
        /// The exit code it must have.
        exit_code: i32,
        /// What it must print.
        output: Option<Pattern>,
    },
    /// A command in the guest says so, through the agent.
    Exec {
        /// The command, for the guest's shell (`/bin/sh -c`, or `cmd.exe /c` in Windows).
        command: String,
        /// The exit code it must have.
        exit_code: i32,
        /// What it must print.
        output: Option<Pattern>,
    },
    /// The file systems on the disks are in order, after their journals are replayed; no boot is needed.
    Fsck {
        /// The disks, by target; empty: all.
        disks: Vec<String>,
    },
    /// Files in the guest are what they should be, read through the agent.
    Files(Vec<FileSum>),
    /// A check of a type that was added: an executable of that name in the folder of plugins.
    Plugin {
        /// The type: the executable's name.
        name: String,
        /// Its settings, given to it as JSON.
        settings: serde_json::Map<String, serde_json::Value>,
    },
}

/// A file and its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSum {
    /// Its path in the guest.
    pub path: String,
    /// Its SHA-256, 64 hexadecimal digits in lower case.
    pub sha256: String,
}

/// What a web server's body must hold.
pub type Body = Pattern;

impl CheckKind {
    /// The stable name of its type.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Agent => "agent",
            Self::Boot(_) => "boot",
            Self::Ping => "ping",
            Self::Tcp { .. } => "tcp",
            Self::Http { .. } => "http",
            Self::Script { .. } => "script",
            Self::Exec { .. } => "exec",
            Self::Fsck { .. } => "fsck",
            Self::Files(_) => "files",
            Self::Plugin { name, .. } => name,
        }
    }

    /// True for a check that needs no machine that runs.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        matches!(self, Self::Fsck { .. })
    }
}

impl CheckPlan {
    /// A check with the usual times for its type.
    #[must_use]
    pub fn of(kind: CheckKind) -> Self {
        let s = Duration::from_secs;
        let (deadline, timeout) = match &kind {
            CheckKind::Agent | CheckKind::Boot(_) => (s(120), s(5)),
            CheckKind::Ping => (s(60), s(2)),
            CheckKind::Tcp { .. } => (s(60), s(5)),
            CheckKind::Http { .. } => (s(60), s(10)),
            CheckKind::Script { .. } | CheckKind::Exec { .. } | CheckKind::Plugin { .. } => {
                (s(120), s(60))
            }
            CheckKind::Fsck { .. } | CheckKind::Files(_) => (s(600), s(600)),
        };
        Self {
            name: None,
            kind,
            deadline,
            interval: Duration::from_millis(500),
            attempts: None,
            timeout,
        }
    }

    /// Parses the short form of the command line: `ping`, `tcp:22`, `http:80/health`, `script:/path`, `exec:COMMAND`, ...
    ///
    /// # Errors
    /// What is wrong with it and what would be right, in a sentence each.
    pub fn parse_short(text: &str) -> Result<Self, (String, String)> {
        super::short::parse(text)
    }

    /// What it is called: its name, or its short form.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => super::short::write(&self.kind),
        }
    }
}
