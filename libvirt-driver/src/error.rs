//! What can go wrong with libvirt: a kind to act upon, what was tried, and libvirt's own sentence.
//!
//! libvirt has over a hundred error codes and uses some of them for unlike things ("operation invalid" is
//! a domain that is off as well as a disk that is busy). [`ErrorKind`] keeps only what a caller acts on.

use thiserror::Error;
use virt::error::{Error as VirtError, ErrorNumber};

/// What a caller can tell apart and act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// libvirt does not answer, or the connection was lost on the way: whether the call took effect is unknown.
    NotConnected,
    /// There is no domain of that name or UUID.
    NoSuchDomain,
    /// The domain is not running, and the call needs it running.
    DomainOff,
    /// A domain of that name or UUID is already there.
    DomainExists,
    /// There is no network of that name.
    NoSuchNetwork,
    /// The network is there and not started.
    NetworkOff,
    /// The guest agent is not installed, not running, or did not answer in time.
    AgentSilent,
    /// Another job holds the domain; the same call may succeed later.
    Busy,
    /// The user may not do this.
    Denied,
    /// The XML, or what was asked of it, cannot be used.
    BadXml,
    /// The caller stopped it.
    Cancelled,
    /// A file or a program of the host failed (`qemu-img`, a directory).
    Host,
    /// libvirt or QEMU refused for a reason told in the message.
    Refused,
}

/// A failed call: its kind, what was tried, and what libvirt said.
#[derive(Debug, Error)]
#[error("{what}: {message}")]
pub struct LibvirtError {
    /// What a caller can act upon.
    pub kind: ErrorKind,
    /// What was tried, such as `start domain web1`.
    pub what: String,
    /// libvirt's, QEMU's or the host's own sentence, with the cure where it is known.
    pub message: String,
    /// The cause, where there is one besides the message.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of a call in this crate.
pub type Result<T> = std::result::Result<T, LibvirtError>;

impl LibvirtError {
    /// Makes an error of our own (libvirt had no part in it).
    pub(crate) fn new(
        kind: ErrorKind,
        what: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            what: what.into(),
            message: message.into(),
            source: None,
        }
    }

    /// Makes the error of a failed file operation.
    pub(crate) fn io(what: impl Into<String>, error: std::io::Error) -> Self {
        let kind = if error.kind() == std::io::ErrorKind::PermissionDenied {
            ErrorKind::Denied
        } else {
            ErrorKind::Host
        };
        Self {
            kind,
            what: what.into(),
            message: error.to_string(),
            source: Some(Box::new(error)),
        }
    }

    /// Wraps what libvirt said.
    pub(crate) fn libvirt(what: impl Into<String>, error: VirtError) -> Self {
        let number = match error.code() {
            virt::enumutil::Enum::Known(number) => Some(number),
            virt::enumutil::Enum::Unknown(_) => None,
        };
        let kind = kind_of(number, error.message());
        Self {
            kind,
            what: what.into(),
            message: error.message().to_owned(),
            source: Some(Box::new(error)),
        }
    }
}

/// Maps libvirt's error number, and its sentence where the number is not enough, to a kind.
fn kind_of(number: Option<ErrorNumber>, message: &str) -> ErrorKind {
    use ErrorNumber as N;
    match number {
        Some(N::NoConnect | N::InvalidConn | N::Rpc | N::GnutlsError | N::AuthFailed) => {
            ErrorKind::NotConnected
        }
        Some(N::SystemError | N::InternalError) if is_connection_loss(message) => {
            ErrorKind::NotConnected
        }
        Some(N::NoDomain | N::InvalidDomain) => ErrorKind::NoSuchDomain,
        Some(N::DomExist) => ErrorKind::DomainExists,
        Some(N::OperationFailed) if message.contains("already exists") => ErrorKind::DomainExists,
        Some(N::OperationInvalid) if message.contains("not running") => ErrorKind::DomainOff,
        Some(N::OperationInvalid | N::OperationFailed) if message.contains("not active") => {
            ErrorKind::DomainOff
        }
        Some(N::NoNetwork | N::InvalidNetwork) => ErrorKind::NoSuchNetwork,
        Some(N::AgentUnresponsive | N::AgentUnsynced | N::AgentCommandTimeout) => {
            ErrorKind::AgentSilent
        }
        Some(N::ArgumentUnsupported) if message.contains("guest agent") => ErrorKind::AgentSilent,
        Some(N::OperationTimeout | N::ResourceBusy) => ErrorKind::Busy,
        Some(N::OperationDenied | N::AccessDenied | N::AuthCancelled) => ErrorKind::Denied,
        Some(N::XmlError | N::XmlDetail | N::XmlInvalidSchema | N::ConfigUnsupported) => {
            ErrorKind::BadXml
        }
        Some(N::OperationAborted) => ErrorKind::Cancelled,
        _ => ErrorKind::Refused,
    }
}

fn is_connection_loss(message: &str) -> bool {
    const SIGNS: [&str; 6] = [
        "client socket is closed",
        "End of file while reading data",
        "Broken pipe",
        "Connection reset",
        "keepalive",
        "Failed to connect socket",
    ];
    SIGNS.iter().any(|sign| message.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_number_and_sentence() {
        let table = [
            (
                ErrorNumber::NoDomain,
                "Domain not found: no domain with matching name 'x'",
                ErrorKind::NoSuchDomain,
            ),
            (
                ErrorNumber::OperationInvalid,
                "Requested operation is not valid: domain is not running",
                ErrorKind::DomainOff,
            ),
            (
                ErrorNumber::OperationInvalid,
                "Requested operation is not valid: disk 'vda' is busy",
                ErrorKind::Refused,
            ),
            (
                ErrorNumber::InternalError,
                "client socket is closed",
                ErrorKind::NotConnected,
            ),
            (
                ErrorNumber::SystemError,
                "Cannot write data: Broken pipe",
                ErrorKind::NotConnected,
            ),
            (
                ErrorNumber::SystemError,
                "Unable to open file: Permission denied",
                ErrorKind::Refused,
            ),
            (
                ErrorNumber::OperationFailed,
                "operation failed: domain 'a' already exists with uuid 1",
                ErrorKind::DomainExists,
            ),
            (
                ErrorNumber::ArgumentUnsupported,
                "argument unsupported: QEMU guest agent is not configured",
                ErrorKind::AgentSilent,
            ),
            (
                ErrorNumber::OperationTimeout,
                "Timed out during operation: cannot acquire state change lock",
                ErrorKind::Busy,
            ),
        ];
        for (number, message, expected) in table {
            assert_eq!(kind_of(Some(number), message), expected, "{message}");
        }
        assert_eq!(kind_of(None, "new in libvirt 99"), ErrorKind::Refused);
    }
}
