//! What recovery found and cut, and what a harbor takes.

use serde::Serialize;

use crate::point::Seq;

/// What was found when a harbor was opened, and what was cut.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RecoveryReport {
    /// Segments in the journal.
    pub segments: u64,
    /// Points that can be viewed.
    pub points: u64,
    /// Last record in the journal.
    pub head: Seq,
    /// What was cut off the last segment, if that was not sealed.
    pub cut: Option<Cut>,
    /// Files of unfinished work that were removed.
    pub removed: Vec<String>,
    /// What is not as it was written, in words for the user; the harbor opens nevertheless.
    pub damage: Vec<String>,
}

impl RecoveryReport {
    /// Tells whether the harbor was closed in order and nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.cut.is_none() && self.removed.is_empty() && self.damage.is_empty()
    }
}

/// What recovery did to a segment that was not sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Number of the segment.
    pub segment: u64,
    /// Its last record that is whole.
    pub last: Seq,
    /// Bytes that were cut off behind that; zero if the recording merely was not closed.
    pub bytes: u64,
    /// Why the tail was not taken.
    pub why: String,
}

/// Bytes a harbor takes on its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// The journal's segments.
    pub journal_bytes: u64,
    /// The base points.
    pub base_bytes: u64,
}
