//! The end mark of a volume: tells whether its disk was made smaller, although it has its old size again.
//!
//! QEMU cuts a bitmap together with its disk, and marks nothing when the disk grows: what lies behind the cut reads as
//! zeros, and no bitmap says that it has changed. So a third bitmap lies beside B and B_prev, which records nothing and
//! marks the disk's last area alone. A cut of that area or more takes the mark away. A smaller one leaves it, but
//! then all that is lost lies in that area, which is read in every resync ([`bitmap`] merges the mark into B_prev).
//!
//! How: QEMU has no command that marks something. So a disk of the same size that keeps nothing (null-co) gets a
//! bitmap and, by a backup job, a write to its last area; that bitmap is merged into the end mark, and the disk goes.
//!
//! Invariant: an end mark that stands was put for the size the disk had then. Whoever trusts it has kept that size.
//! A crash leaves no mark, or pieces that the next put clears away; without a mark the whole disk is read.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bitmap::{self, BitmapNames, GRANULARITY};
use crate::monitor::{Monitor, MonitorError};

/// How long the write of one area to a disk that keeps nothing may take.
const JOB_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is asked for.
const JOB_POLL: Duration = Duration::from_millis(5);

/// How an end mark is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndMark {
    /// The disk was not cut by more than its last area.
    Stands,
    /// The disk was cut.
    Gone,
    /// None was put, or it did not outlive QEMU.
    Missing,
}

/// Tells how the end mark of `node` is found.
///
/// # Errors
/// [`MonitorError`].
pub fn find(
    monitor: &dyn Monitor,
    node: &str,
    names: &BitmapNames,
) -> Result<EndMark, MonitorError> {
    let found = bitmap::find(monitor, node)?;
    let mark = found.iter().find(|b| b.name == names.end());
    Ok(match mark {
        Some(mark) if !mark.is_usable() => EndMark::Missing,
        Some(mark) if mark.count == 0 => EndMark::Gone,
        Some(_) => EndMark::Stands,
        None => EndMark::Missing,
    })
}

/// Puts the end mark of `node`, which has `size` bytes and keeps them meanwhile, in place of one that is there; `tag`
/// is the machine's. It is kept in the image where that is `persistent`.
///
/// # Errors
/// [`MonitorError`]; then there is none.
pub fn put(
    monitor: &dyn Monitor,
    (node, size, persistent): (&str, u64, bool),
    tag: &str,
    names: &BitmapNames,
) -> Result<(), MonitorError> {
    bitmap::remove_one(monitor, node, &names.end())?;
    if size == 0 {
        return Ok(());
    }
    let pieces = Pieces::new(tag);
    pieces.clear(monitor);
    let put = pieces
        .mark_last(monitor, size, &names.end())
        .and_then(|()| pieces.take_over(monitor, (node, persistent), &names.end()));
    pieces.clear(monitor);
    put
}

/// The names of what is in QEMU while a mark is put.
struct Pieces {
    job: String,
    /// Keeps nothing, and is as large as the volume's disk.
    disk: String,
    /// Its last area.
    last: String,
    /// As large as that, and zero.
    zero: String,
}

impl Pieces {
    fn new(tag: &str) -> Self {
        let name = |what: &str| format!("vcdp-{tag}-end-{what}");
        Self {
            job: name("job"),
            disk: name("disk"),
            last: name("last"),
            zero: name("zero"),
        }
    }

    /// Makes a bitmap on a disk of our own that marks its last area.
    fn mark_last(
        &self,
        monitor: &dyn Monitor,
        size: u64,
        bitmap: &str,
    ) -> Result<(), MonitorError> {
        let begin = (size - 1) / GRANULARITY * GRANULARITY;
        let len = size - begin;
        let add = |options: Value| monitor.execute("blockdev-add", options);
        add(json!({"driver": "null-co", "node-name": self.disk, "size": size}))?;
        add(
            json!({"driver": "raw", "node-name": self.last, "file": self.disk, "offset": begin, "size": len}),
        )?;
        add(
            json!({"driver": "null-co", "node-name": self.zero, "size": len, "read-zeroes": true}),
        )?;
        monitor.execute(
            "block-dirty-bitmap-add",
            json!({"node": self.disk, "name": bitmap, "granularity": GRANULARITY}),
        )?;
        monitor.execute(
            "blockdev-backup",
            json!({"job-id": self.job, "device": self.zero, "target": self.last, "sync": "full"}),
        )?;
        let give_up = Instant::now() + JOB_DEADLINE;
        while self.job_runs(monitor)? {
            if Instant::now() >= give_up {
                return Err(self.malformed("a write to a disk that keeps nothing does not end"));
            }
            thread::sleep(JOB_POLL);
        }
        match bitmap::find(monitor, &self.disk)?.first() {
            Some(marked) if marked.count > 0 => Ok(()),
            _ => Err(self.malformed("a write to a disk that keeps nothing marks nothing")),
        }
    }

    /// Merges that bitmap into a new one of the volume's, which records nothing.
    fn take_over(
        &self,
        monitor: &dyn Monitor,
        (node, persistent): (&str, bool),
        bitmap: &str,
    ) -> Result<(), MonitorError> {
        let actions = |persistent: bool| {
            json!({"actions": [
                {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": bitmap,
                    "granularity": GRANULARITY, "persistent": persistent, "disabled": true}},
                {"type": "block-dirty-bitmap-merge", "data": {"node": node, "target": bitmap,
                    "bitmaps": [{"node": self.disk, "name": bitmap}]}},
            ]})
        };
        match monitor.execute("transaction", actions(persistent)) {
            Err(MonitorError::Refused { .. }) if persistent => {
                monitor.execute("transaction", actions(false)).map(drop)
            }
            answer => answer.map(drop),
        }
    }

    fn job_runs(&self, monitor: &dyn Monitor) -> Result<bool, MonitorError> {
        let jobs = monitor.execute("query-jobs", Value::Null)?;
        let mut jobs = jobs.as_array().into_iter().flatten();
        Ok(jobs.any(|j| j["id"] == self.job.as_str()))
    }

    /// Takes everything away, whatever there is of it.
    fn clear(&self, monitor: &dyn Monitor) {
        let there = crate::node::names(monitor).unwrap_or_default();
        for node in [&self.last, &self.zero, &self.disk] {
            if there.contains(node)
                && let Err(error) = monitor.execute("blockdev-del", json!({"node-name": node}))
            {
                tracing::warn!(node, %error, "a piece of an end mark stays in QEMU");
            }
        }
    }

    fn malformed(&self, reason: &str) -> MonitorError {
        MonitorError::Malformed {
            command: "blockdev-backup".into(),
            reason: reason.into(),
        }
    }
}
