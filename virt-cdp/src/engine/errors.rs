//! Errors of the crates below, as clients see them: kind, sentence with its causes, and the cure.

use std::error::Error;

use cdp_core::{HarborError, Held};
use libvirt_driver::{ErrorKind, LibvirtError};
use qemu_hook::monitor::MonitorError;

use crate::api::{ApiError, ApiErrorKind};

/// What is to be done about a disk that does not answer.
const DISK_HINT: &str =
    "see what holds up the file system under state_dir; the guest is not held up by it";

/// Says that something waits for a disk that does not answer, and what becomes of it.
pub(crate) fn disk_silent(what: &str) -> ApiError {
    let what = format!("the harbor's disk does not answer: {what}");
    ApiError::new(ApiErrorKind::Unavailable, what).hint(DISK_HINT)
}

/// Joins an error and its causes into one sentence, leaving out what is said already.
pub(crate) fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// An error of what is kept.
pub(crate) fn from_harbor(error: HarborError) -> ApiError {
    use ApiErrorKind as K;
    let (kind, hint) = match &error {
        HarborError::AlreadyExists { .. } => (
            K::AlreadyExists,
            Some("if the old data is no longer wanted, move that directory away"),
        ),
        HarborError::NoSpace { .. } => (
            K::ResourceExhausted,
            Some("make room on that file system, or set state_dir to a larger one"),
        ),
        HarborError::NotWritable { .. } => (
            K::PermissionDenied,
            Some("make that directory writable for virtcdpd, or set state_dir elsewhere"),
        ),
        HarborError::Locked { .. } => (
            K::FailedPrecondition,
            Some("another virtcdpd has it open; stop that one first"),
        ),
        HarborError::NoSuchPoint(_) => {
            (K::NotFound, Some("see point-list for the points there are"))
        }
        HarborError::PointDamaged(_) => (
            K::FailedPrecondition,
            Some(
                "take another point, see point-list; verify says what is damaged, and --damaged takes it nevertheless: reading that fails",
            ),
        ),
        HarborError::PointHeld { why, .. } => (
            K::FailedPrecondition,
            Some(match why {
                Held::Locked => "unlock it first: virt-cdp point-unlock",
                Held::InUse => {
                    "close the view, wait for the export, or commit or discard the takeover, first"
                }
                Held::Newest => "make another one first: virt-cdp point-create",
            }),
        ),
        HarborError::NotSeeded(_) => (
            K::FailedPrecondition,
            Some("wait until the seed has finished; see info"),
        ),
        HarborError::Overdue { .. } => (K::Unavailable, Some(DISK_HINT)),
        HarborError::Cancelled => (K::FailedPrecondition, None),
        HarborError::InvalidDescription(_) | HarborError::TooLong { .. } => {
            (K::InvalidArgument, None)
        }
        _ => (K::Internal, None),
    };
    with(kind, sentence(&error), hint)
}

/// An error of libvirt.
pub(crate) fn from_libvirt(error: LibvirtError) -> ApiError {
    use ApiErrorKind as K;
    let (kind, hint) = match error.kind {
        ErrorKind::NotConnected => (
            K::Unavailable,
            Some("is libvirtd running? see [libvirt] uri in the configuration"),
        ),
        ErrorKind::NoSuchDomain => (
            K::NotFound,
            Some("see 'virsh list --all' for the domains there are"),
        ),
        ErrorKind::DomainOff => (K::FailedPrecondition, Some("start the domain first")),
        ErrorKind::DomainExists => (K::AlreadyExists, Some("choose another name with --name")),
        ErrorKind::NoSuchNetwork => (
            K::NotFound,
            Some("see 'virsh net-list --all' for the networks there are"),
        ),
        ErrorKind::NetworkOff => (
            K::FailedPrecondition,
            Some("start it with 'virsh net-start'"),
        ),
        ErrorKind::Denied => (K::PermissionDenied, None),
        ErrorKind::AgentSilent | ErrorKind::Busy => (K::Unavailable, Some("try again")),
        ErrorKind::BadXml => (K::InvalidArgument, None),
        ErrorKind::Refused if error.message.contains("block job: mirror") => (
            K::FailedPrecondition,
            Some(
                "a capture or a block job holds the disk: 'virt-cdp suspend' the domain, or end the job, first",
            ),
        ),
        ErrorKind::Cancelled | ErrorKind::Refused => (K::FailedPrecondition, None),
        ErrorKind::Host => (K::Internal, None),
    };
    // The source is libvirt's own error with the same sentence.
    with(kind, error.to_string(), hint)
}

/// An error of QEMU's monitor.
pub(crate) fn from_monitor(error: &MonitorError) -> ApiError {
    let kind = if error.is_lost() {
        ApiErrorKind::Unavailable
    } else {
        ApiErrorKind::FailedPrecondition
    };
    ApiError::new(kind, sentence(error))
}

fn with(kind: ApiErrorKind, what: String, hint: Option<&str>) -> ApiError {
    let error = ApiError::new(kind, what);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
