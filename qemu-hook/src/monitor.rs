//! The door to a running QEMU: one QMP command at a time, over whatever carries it.
//!
//! Two transports stand behind [`Monitor`]: a plain QMP socket ([`crate::qmp::QmpSocket`]) and a
//! libvirt domain (in `libvirt-driver`). Both are blocking and may be called from any thread.

use std::os::fd::BorrowedFd;

use serde_json::Value;
use thiserror::Error;

/// Why a QMP command did not give an answer.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// QEMU answered with an error; the command had no effect.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The QMP command that was refused.
        command: String,
        /// QEMU's error class, such as `GenericError` or `DeviceNotFound`.
        class: String,
        /// QEMU's own sentence.
        desc: String,
    },
    /// The connection is gone: QEMU ended, or libvirt lost it. Whether the command ran is unknown.
    #[error("lost the connection to QEMU's monitor during {command}: {reason}")]
    Lost {
        /// The command under way.
        command: String,
        /// What the transport said.
        reason: String,
    },
    /// QEMU answered something that is not the reply to the command.
    #[error("QEMU's answer to {command} is not understood: {reason}")]
    Malformed {
        /// The command under way.
        command: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl MonitorError {
    /// True when QEMU is no longer there to answer.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// A QEMU monitor: executes QMP commands and returns the `return` member of the answer.
pub trait Monitor: Send + Sync {
    /// Executes `command` with `arguments` (an object, or null for none).
    ///
    /// # Errors
    /// [`MonitorError`]; a refused command changed nothing.
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError>;

    /// Gives QEMU a duplicate of `fd` under `name` (QMP `getfd`): later commands can refer to it.
    ///
    /// # Errors
    /// [`MonitorError`].
    fn send_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), MonitorError>;
}
