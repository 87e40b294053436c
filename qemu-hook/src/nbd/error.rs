//! What can go wrong between us and an NBD peer.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why an NBD connection or server did not do what it was asked for.
#[derive(Debug, Error)]
pub enum NbdError {
    /// The connection failed under us; it is of no more use.
    #[error("the NBD connection failed while {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the socket said.
        source: io::Error,
    },
    /// The peer sent nothing, or took nothing, for too long; the connection is of no more use.
    #[error("the NBD peer did not answer in time while {doing}")]
    TimedOut {
        /// What was being done.
        doing: &'static str,
    },
    /// The peer sent what the protocol does not allow; the connection is of no more use.
    #[error("the NBD peer broke the protocol while {doing}: {found}")]
    Protocol {
        /// What was being done.
        doing: &'static str,
        /// What was found instead of what had to be there.
        found: String,
    },
    /// The server refused an option of the handshake.
    #[error("the NBD server refused {option} for export {export:?}: {reason}")]
    Refused {
        /// The option, by its name in the protocol.
        option: &'static str,
        /// The export that was asked for.
        export: String,
        /// The error's name, and the server's own sentence where it sent one.
        reason: String,
    },
    /// The server answered one request with an error; the connection can be used further.
    #[error("the NBD server failed a {command} of {len} bytes at byte {offset}")]
    Failed {
        /// The command, in lower case.
        command: &'static str,
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// The server's error number, as the system's error of that number.
        source: io::Error,
    },
    /// The caller asked for bytes that the device does not have; nothing was sent.
    #[error("{len} bytes at byte {offset} are not within the {size} bytes of the device")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Length asked for in bytes.
        len: u64,
        /// Size of the device in bytes.
        size: u64,
    },
    /// The meta context was not agreed on at the start of the connection.
    #[error("the NBD server does not offer the meta context {context:?}")]
    NoContext {
        /// The context's name.
        context: String,
    },
    /// An export cannot be offered.
    #[error("cannot offer the export {name:?}: {reason}")]
    BadExport {
        /// The export's name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server's socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for NBD")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
}

impl NbdError {
    /// Names what was being done when the socket failed; a time-out becomes [`NbdError::TimedOut`].
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut { doing },
            _ => Self::Io { doing, source },
        }
    }

    /// Names what the peer sent instead of what it had to send.
    pub(crate) fn protocol(doing: &'static str, found: impl Into<String>) -> Self {
        Self::Protocol {
            doing,
            found: found.into(),
        }
    }

    /// Tells whether the connection can be used for further requests.
    pub fn is_connection_usable(&self) -> bool {
        matches!(
            self,
            Self::Failed { .. } | Self::OutOfRange { .. } | Self::NoContext { .. }
        )
    }
}
