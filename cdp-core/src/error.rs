//! What can go wrong: a kind, its context, and the error underneath.
//!
//! [`HarborError`] answers calls on what is kept; [`JournalError`] is the one failure that stops a
//! recording; [`Refused`] answers a write that was not taken.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::machine::VolumeId;
use crate::point::{PointId, Seq, XmlVersion};

/// Result of a call on a harbor.
pub type Result<T, E = HarborError> = std::result::Result<T, E>;

/// Tells what went wrong with a harbor, where, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HarborError {
    /// Something that is to be made is there already.
    #[error("{} is there already", .path.display())]
    AlreadyExists {
        /// What is in the way.
        path: PathBuf,
    },
    /// The directory is not a harbor.
    #[error("{} is not a harbor: {why}", .dir.display())]
    NotAHarbor {
        /// The directory.
        dir: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// The harbor was written by a newer version of the program.
    #[error("{} has format version {found}, this program reads up to {known}", .path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// Another process has the harbor open.
    #[error("{} is in use by another process", .dir.display())]
    Locked {
        /// The harbor.
        dir: PathBuf,
    },
    /// The storage refuses writes: permissions, or mounted read-only.
    #[error("{} is not writable", .path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The storage is full.
    #[error("no space left for {}", .path.display())]
    NoSpace {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The storage failed otherwise.
    #[error("cannot {action} {}: {source}", .path.display())]
    Storage {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// What is kept is not what was written.
    #[error("{} is damaged: {what}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is damaged, and what it costs.
        what: String,
    },
    /// Records between the base point and the point are missing.
    #[error("volume {volume}: records {first} to {last} are missing from the journal")]
    MissingRecords {
        /// The volume that is looked at.
        volume: VolumeId,
        /// First missing record.
        first: Seq,
        /// Last missing record.
        last: Seq,
    },
    /// A description breaks a rule.
    #[error("the machine's description is not valid: {0}")]
    InvalidDescription(String),
    /// An option is out of its bounds.
    #[error("option {name} is out of its bounds: {why}")]
    InvalidOption {
        /// Name of the option.
        name: &'static str,
        /// The bounds.
        why: String,
    },
    /// The machine has no such volume.
    #[error("the machine has no volume {0}")]
    NoSuchVolume(VolumeId),
    /// There is no such recovery point, or it cannot be viewed.
    #[error("there is no recovery point {0}")]
    NoSuchPoint(PointId),
    /// It is known that what the point shows is damaged.
    #[error("recovery point {0} is damaged")]
    PointDamaged(PointId),
    /// The point must stay.
    #[error("recovery point {point} {why}")]
    PointHeld {
        /// The point.
        point: PointId,
        /// What holds it.
        why: Held,
    },
    /// No domain XML is kept under that version.
    #[error("there is no domain XML {0}")]
    NoSuchXml(XmlVersion),
    /// The volume has no base point yet.
    #[error("volume {0} has no base point yet")]
    NotSeeded(VolumeId),
    /// A base point is to be built that would lie before the newest one.
    #[error(
        "recovery point {point} lies before record {newest}, of which volume {volume} has a base point already"
    )]
    BehindBase {
        /// The recovery point.
        point: PointId,
        /// The volume.
        volume: VolumeId,
        /// The record of its newest base point.
        newest: Seq,
    },
    /// No further layer may be laid over a volume.
    #[error("volume {volume} has {layers} layers already: merge them first")]
    TooManyLayers {
        /// The volume.
        volume: VolumeId,
        /// Its layers.
        layers: usize,
    },
    /// A range does not lie within the volume.
    #[error("{len} bytes at {offset} are not within the {size} bytes of volume {volume}")]
    OutOfBounds {
        /// The volume.
        volume: VolumeId,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Bytes the volume has.
        size: u64,
    },
    /// A text is longer than what is kept.
    #[error("{what} of {len} bytes is longer than {max}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its bytes.
        len: u64,
        /// Most bytes that are kept.
        max: u64,
    },
    /// One recording at a time, and one seed per volume.
    #[error("{0} is under way already")]
    Busy(&'static str),
    /// The caller called it off.
    #[error("cancelled")]
    Cancelled,
    /// The storage did not confirm in time; it may still.
    #[error("the harbor's disk does not answer: not within {:.1} s", .limit.as_secs_f64())]
    Overdue {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The recording has ended.
    #[error("the recording is closed")]
    RecordingClosed,
    /// The journal took a failure and takes nothing more; close the harbor and open it again.
    #[error("the journal has failed")]
    JournalFailed(#[source] Arc<JournalError>),
}

/// Tells why a point cannot be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// The user has locked it.
    #[error("is locked")]
    Locked,
    /// A view, an export or a takeover shows it.
    #[error("is in use by a view, an export or a takeover")]
    InUse,
    /// There is none behind it.
    #[error("is the newest")]
    Newest,
}

impl HarborError {
    /// Sorts a storage error by what the user can do about it.
    pub(crate) fn storage(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        let kind = source.kind();
        let source = Arc::new(source);
        match kind {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                HarborError::NoSpace { path, source }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                HarborError::NotWritable { path, source }
            }
            _ => HarborError::Storage {
                action,
                path,
                source,
            },
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        HarborError::Damaged {
            path: path.to_path_buf(),
            what: what.into(),
        }
    }
}

impl From<HarborError> for io::Error {
    fn from(error: HarborError) -> io::Error {
        let kind = match &error {
            HarborError::Damaged { .. } | HarborError::MissingRecords { .. } => {
                io::ErrorKind::InvalidData
            }
            HarborError::OutOfBounds { .. } => io::ErrorKind::InvalidInput,
            HarborError::NoSpace { .. } => io::ErrorKind::StorageFull,
            HarborError::Cancelled => io::ErrorKind::Interrupted,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Tells why the journal takes nothing more: the first write or sync that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", .path.display())]
pub struct JournalError {
    /// What was tried: `write`, `sync`, `seal`, `create`.
    pub action: &'static str,
    /// The segment.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Tells why a write was not taken.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The recording has ended.
    #[error("the recording is closed")]
    Closed,
    /// The journal took a failure and takes nothing more.
    #[error("the journal has failed")]
    Failed(#[source] Arc<JournalError>),
    /// The range does not lie within the volume.
    #[error("{len} bytes at {offset} are not within the volume's {size} bytes")]
    OutOfBounds {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Bytes the volume has.
        size: u64,
    },
    /// The request is larger than what is taken at once.
    #[error("a request of {len} bytes is larger than {max}")]
    TooLarge {
        /// Its bytes.
        len: usize,
        /// Most bytes that are taken.
        max: usize,
    },
    /// What was read of a live disk was not announced before it was read.
    #[error("what was read was not announced before it was read")]
    NotAnnounced,
}

impl From<Refused> for HarborError {
    fn from(refused: Refused) -> HarborError {
        match refused {
            Refused::Failed(cause) => HarborError::JournalFailed(cause),
            Refused::TooLarge { len, max } => HarborError::TooLong {
                what: "a request",
                len: len as u64,
                max: max as u64,
            },
            Refused::Closed | Refused::OutOfBounds { .. } | Refused::NotAnnounced => {
                HarborError::RecordingClosed
            }
        }
    }
}
