//! What a command ends with when it does not succeed: a sentence, its cure, an exit code.

use std::process::ExitCode;

use tonic::{Code, Status};

use super::{at::AtError, text::plain};
use crate::{api::HINT_KEY, units::UnitError};

/// The result of a command.
pub(super) type CliResult<T = ()> = Result<T, CliError>;

/// Decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The command was understood and did not succeed: 1.
    Failure,
    /// The command line is wrong: 2.
    Usage,
    /// A drill was held, and something that was asked for does not hold: 3.
    Unproved,
    /// The user pressed Ctrl-C: 1, and a shell fed from a file ends.
    Interrupted,
}

/// An error as the user sees it.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) fault: Fault,
    what: String,
    hint: Option<String>,
}

impl CliError {
    /// Makes the error of a command that was understood and did not succeed.
    pub(super) fn failure(what: impl Into<String>) -> Self {
        Self {
            fault: Fault::Failure,
            what: what.into(),
            hint: None,
        }
    }

    /// Makes the error of a command line that is wrong.
    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self {
            fault: Fault::Usage,
            ..Self::failure(what)
        }
    }

    /// Makes the error of a drill that proved the contrary.
    pub(super) fn unproved(what: impl Into<String>) -> Self {
        Self {
            fault: Fault::Unproved,
            ..Self::failure(what)
        }
    }

    /// Makes the error of a command that the user broke off.
    pub(super) fn interrupted(what: impl Into<String>) -> Self {
        Self {
            fault: Fault::Interrupted,
            ..Self::failure(what)
        }
    }

    /// Adds the cure.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints `error: ...` and `hint: ...` on stderr.
    pub(super) fn print(&self) {
        eprintln!("error: {}", plain(&self.what));
        if let Some(hint) = &self.hint {
            eprintln!("hint: {}", plain(hint));
        }
    }

    /// Returns the exit code.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self.fault {
            Fault::Failure | Fault::Interrupted => ExitCode::FAILURE,
            Fault::Usage => ExitCode::from(2),
            Fault::Unproved => ExitCode::from(3),
        }
    }
}

/// Takes over what the daemon answered.
impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let hint = status
            .metadata()
            .get_bin(HINT_KEY)
            .and_then(|hint| hint.to_bytes().ok());
        let hint = hint.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let hint = hint.or_else(|| match status.code() {
            Code::Unimplemented => {
                Some("virtcdpd is of another version; compare with `virt-cdp version`".into())
            }
            _ => None,
        });
        let what = match status.message() {
            "" => format!("virtcdpd answered {:?} without saying why", status.code()),
            message => message.into(),
        };
        Self {
            hint,
            ..Self::failure(what)
        }
    }
}

impl From<UnitError> for CliError {
    fn from(error: UnitError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<AtError> for CliError {
    fn from(error: AtError) -> Self {
        let hint = error.hint();
        match error {
            AtError::Future { .. } => Self::failure(error.to_string()),
            _ => Self::usage(error.to_string()),
        }
        .hint(hint)
    }
}
