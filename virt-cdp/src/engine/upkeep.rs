//! What a capture needs done now and then through the monitor or libvirt, off the supervisor's thread.
//!
//! All of it may be slow to answer; points must not wait for it. Each second the machine's definition is
//! looked at (later points carry it) and the mirrors are confirmed; at the bitmap interval the bitmaps are
//! rotated; what a rotation took aside is dropped once the mirrors are confirmed after it.
//!
//! Invariant: whatever was captured up to [`Upkeep::confirmed`] came through mirrors that stood.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cdp_core::{Harbor, Recorder, Seq, Timestamp};
use qemu_hook::{
    attach::{self, Names},
    bitmap,
    monitor::Monitor,
};

use crate::{
    api::ApiResult,
    engine::{errors::from_monitor, guard, machine::now, marking::Marking, source::Source},
};

/// How often the definition and the mirrors are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The QEMU side of a capture, for any thread: its bitmaps, and whether its mirrors stand.
pub(crate) struct QemuSide {
    /// QEMU's monitor.
    pub(crate) monitor: Arc<dyn Monitor>,
    /// Of the volumes' pieces in QEMU.
    pub(crate) names: Vec<Names>,
    /// The bitmaps.
    pub(crate) marking: Arc<Marking>,
    /// Where the taps write to.
    pub(crate) recorder: Recorder,
}

impl QemuSide {
    /// The moment it is now, and the last record taken.
    pub(crate) fn moment(&self) -> Confirmed {
        // In this order: a point that belongs to the head is not later than the time.
        let head = self.recorder.head();
        Confirmed { time: now(), head }
    }

    /// Tells whether all mirrors are there still.
    pub(crate) fn mirrors_stand(&self) -> ApiResult<bool> {
        attach::mirrors_stand(&*self.monitor, &self.names).map_err(|e| from_monitor(&e))
    }

    /// Waits until every write that QEMU has under way has reached its tap.
    pub(crate) fn drain(&self) -> ApiResult<()> {
        bitmap::drain(&*self.monitor).map_err(|e| from_monitor(&e))
    }

    /// Rotates the bitmaps: what was marked so far is in the journal, on stable storage, if the mirrors stood.
    pub(crate) fn rotate(&self) -> ApiResult<()> {
        self.marking.rotate(&self.recorder)
    }
}

/// The running upkeep of one capture; dropped, it ends.
pub(crate) struct Upkeep {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Seen>,
}

/// Up to where the mirrors are known to have stood.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confirmed {
    /// When they were looked at.
    pub(crate) time: Timestamp,
    /// The last record taken by then.
    pub(crate) head: Seq,
}

/// What was last seen of the mirrors.
struct Seen {
    confirmed: Mutex<Confirmed>,
    lost: AtomicBool,
}

impl Upkeep {
    /// Starts the upkeep of a capture whose mirrors stand.
    pub(crate) fn start(
        source: Arc<dyn Source>,
        harbor: Harbor,
        qemu: QemuSide,
        bitmap_interval: Duration,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let seen = Arc::new(Seen {
            confirmed: Mutex::new(qemu.moment()),
            lost: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&seen);
        let thread = thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || {
                let mut rotate_at = Instant::now() + bitmap_interval;
                while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK_INTERVAL)
                {
                    theirs.confirm(&qemu);
                    keep_definition(&*source, &harbor);
                    if Instant::now() >= rotate_at {
                        if let Err(error) = qemu.rotate() {
                            tracing::warn!(%error, "the bitmaps were not rotated");
                        }
                        rotate_at = Instant::now() + bitmap_interval;
                    }
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            seen,
        })
    }

    /// Until when the mirrors are known to have stood.
    pub(crate) fn confirmed(&self) -> Confirmed {
        *guard(&self.seen.confirmed)
    }

    /// True once a mirror was found gone.
    pub(crate) fn lost(&self) -> bool {
        self.seen.lost.load(Ordering::SeqCst)
    }
}

impl Seen {
    fn confirm(&self, qemu: &QemuSide) {
        let asked = qemu.moment();
        match qemu.mirrors_stand() {
            Ok(true) => {
                *guard(&self.confirmed) = asked;
                if let Err(error) = qemu.marking.confirm() {
                    tracing::debug!(%error, "what was marked before the last rotation stays in doubt");
                }
            }
            Ok(false) => self.lost.store(true, Ordering::SeqCst),
            Err(error) => tracing::debug!(%error, "the mirrors cannot be confirmed now"),
        }
    }
}

/// Keeps the machine's definition in the harbor as it is now, where there is one.
pub(crate) fn keep_definition(source: &dyn Source, harbor: &Harbor) {
    match source.definition() {
        Ok(Some(xml)) => {
            if let Err(error) = harbor.record_xml(&xml) {
                tracing::warn!(%error, "the domain XML was not kept");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "the domain XML cannot be read now"),
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
