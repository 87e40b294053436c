//! What virt-cdp keeps and how it is found again: buffer, journal, points, base points, views.
//!
//! Everything kept of one machine lives in one directory, its [`Harbor`]. Two verbs:
//!
//! - **append a write**: [`Harbor::record`] gives a [`Recorder`]; its [`VolumeRecorder`]s hand out
//!   buffers, take writes, number them in one sequence over all volumes and journal them.
//!   [`Recorder::point`] marks a moment; [`Harbor::seed`] writes the base point underneath.
//! - **keep it small**: [`Harbor::build_base`] writes what changed as a layer, [`Harbor::merge_bases`] makes few layers of
//!   many.
//! - **view a machine at a point**: [`Harbor::view`] merges base point and journal into a
//!   read-only [`View`] of every volume.
//!
//! The crate knows nothing of QEMU, NBD, libvirt or the network. `FORMAT.md` gives every byte of
//! what it writes.
//!
//! Modules are listed in the order in which a write meets them.

pub mod bounds;
pub mod chance;
pub mod error;

pub mod clock;
pub mod machine;
pub mod point;
pub mod retention;

pub mod storage;

pub mod buffer;
pub mod recorder;

pub mod format;
mod journal;

pub mod base;
pub mod qcow2;

pub mod extents;
pub mod view;

pub mod verify;

pub mod harbor;

pub use base::{BasePoint, Merged, Progress, SeedWriter};
pub use buffer::IoBuf;
pub use clock::{Clock, SystemClock, Timestamp};
pub use error::{HarborError, Held, JournalError, Refused};
pub use harbor::{
    AckRule, Compacted, Freed, Harbor, JournalSpace, LayerSpace, Marks, Options, Pin,
    RecoveryReport, SpaceTaken, Usage, VolumeMarks,
};
pub use machine::{MachineDescription, MachineSource, Mode, Plug, VolumeDescription, VolumeId};
pub use point::{Gap, GapReason, Grade, Point, PointId, Seq, XmlVersion};
pub use qcow2::Clusters;
pub use recorder::{Ack, PointUnderWay, Recorder, RecorderStats, VolumeRecorder};
pub use retention::Policy;
pub use verify::{Finding, Lost, Scope, VerifyReport, Verifying};
pub use view::{LatestImage, View, ViewExtent};
