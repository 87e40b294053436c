//! Recovery points, gaps, and the numbers by which records are known.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Number of a record in the machine's one sequence; the first is 1, 0 stands before it.
    Seq(u64)
}
number! {
    /// Number of a recovery point; rises by one, also over restarts.
    PointId(u64)
}
number! {
    /// Number of a kept domain XML; the first is 1.
    XmlVersion(u32)
}

impl Seq {
    /// Returns the number that follows.
    pub fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }
}

/// Tells what a machine finds that is started from a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// The disks as after a power cut.
    Crash,
    /// The disks with the guest's file systems frozen.
    Quiesced,
}

/// Which grade a point is to get, decided when it takes its place in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GradeRule {
    /// This one.
    Given(Grade),
    /// Quiesced if no guest write was taken since this many had been, else crash.
    QuiescedIfStill {
        /// Guest writes taken when the file systems were frozen.
        writes: u64,
    },
}

impl GradeRule {
    /// Returns the grade of a point before which `writes` guest writes were taken.
    pub(crate) fn grade(self, writes: u64) -> Grade {
        match self {
            Self::Given(grade) => grade,
            Self::QuiescedIfStill { writes: then } if then == writes => Grade::Quiesced,
            Self::QuiescedIfStill { .. } => Grade::Crash,
        }
    }
}

/// A moment of the whole machine that can be viewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its number.
    pub id: PointId,
    /// Its time; later points have later times.
    pub time: Timestamp,
    /// Its place in the sequence: every record up to it belongs to it.
    pub seq: Seq,
    /// What a machine finds that is started from it.
    pub grade: Grade,
    /// Text the user gave it.
    pub label: Option<String>,
    /// The domain XML of that time.
    pub xml: Option<XmlVersion>,
    /// The user wants it kept, whatever a policy says.
    #[serde(default)]
    pub locked: bool,
    /// It is known that something of what it shows is damaged.
    #[serde(default)]
    pub damaged: bool,
}

/// A span of time with no valid recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Since when writes may be missing; where it follows on another gap, the end of that one.
    pub start: Timestamp,
    /// When they were made up for; none while the gap is open.
    pub end: Option<Timestamp>,
    /// Why.
    pub reason: GapReason,
}

/// Tells why there is a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum GapReason {
    /// The connection to QEMU ended without our doing.
    TapLost,
    /// The daemon was stopped or restarted.
    DaemonStopped,
    /// The daemon or the host crashed.
    Crash,
    /// The IO buffer stayed full, or a reply was overdue.
    Overload,
    /// The journal's storage failed, or was full to the last byte.
    JournalFailed,
    /// The user suspended the protection.
    Suspended,
    /// A volume was added or seeded again.
    Seeding,
    /// The machine was off, and may have been written to meanwhile.
    GuestOff,
    /// Captured again, but what was missed is still being read.
    Resync,
    /// Less room was left on the journal's file system than is to be kept free.
    DiskFull,
    /// A reason a newer version wrote.
    #[serde(other)]
    Unknown,
}

impl GapReason {
    /// Tells whether an open gap of this reason ends where one of `next` begins.
    ///
    /// A cause and the resync that makes up for it are told apart; of two causes the first one stands.
    pub(crate) fn yields_to(self, next: GapReason) -> bool {
        (self == GapReason::Resync) != (next == GapReason::Resync)
    }

    /// Returns the reason's code in the journal.
    pub fn code(self) -> u8 {
        match self {
            GapReason::Unknown => 0,
            GapReason::TapLost => 1,
            GapReason::DaemonStopped => 2,
            GapReason::Crash => 3,
            GapReason::Overload => 4,
            GapReason::JournalFailed => 5,
            GapReason::Suspended => 6,
            GapReason::Seeding => 7,
            GapReason::GuestOff => 8,
            GapReason::Resync => 9,
            GapReason::DiskFull => 10,
        }
    }

    /// Returns the reason with that code; codes that are not known are [`GapReason::Unknown`].
    pub fn from_code(code: u8) -> GapReason {
        match code {
            1 => GapReason::TapLost,
            2 => GapReason::DaemonStopped,
            3 => GapReason::Crash,
            4 => GapReason::Overload,
            5 => GapReason::JournalFailed,
            6 => GapReason::Suspended,
            7 => GapReason::Seeding,
            8 => GapReason::GuestOff,
            9 => GapReason::Resync,
            10 => GapReason::DiskFull,
            _ => GapReason::Unknown,
        }
    }
}
