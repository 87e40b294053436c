//! A capture that is put down: what may wait for QEMU or for the harbor's disk is done by a thread of its own.
//!
//! In order: a last point where one can be made, the gap, the mirrors' end, the journal's. The supervisor waits for
//! that as long as the journal gets on. When it does not, because the disk hangs, the supervisor goes on: the guest has
//! been let go, or is by the bypass, and the thread ends when the disk answers. Until then no capture begins.
//!
//! A crash leaves the journal without the gap's beginning: the next start takes the newest point for that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cdp_core::{Recorder, Seq, Timestamp};

use super::{Active, Supervisor, ending::End};
use crate::engine::{
    capture::{Capture, Missing},
    errors::sentence,
    machine::Machine,
    upkeep::Confirmed,
};

/// How long the journal may stand still while a capture is put down, before it is not waited for any more.
const STANDSTILL: Duration = Duration::from_secs(4);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(5);

/// A capture that is being put down.
pub(super) struct Closing {
    thread: JoinHandle<()>,
    recorder: Recorder,
    /// It waits for QEMU, which has deadlines of its own.
    at_qemu: Arc<AtomicBool>,
}

/// What is still to be done about a capture that has ended.
pub(super) struct Rest {
    pub(super) end: End,
    pub(super) active: Active,
    /// The gap that follows.
    pub(super) gap: Missing,
    /// Up to where the mirrors are known to have stood.
    pub(super) confirmed: Confirmed,
    pub(super) seeded: bool,
}

impl Supervisor {
    /// Has the rest done about a capture; false when the disk did not answer and it is still under way.
    pub(super) fn close(&mut self, rest: Rest) -> bool {
        let recorder = rest.active.capture.recorder().clone();
        let machine = Arc::clone(&self.machine);
        let name = format!("end-{}", self.tag);
        // Handed over in a cell, so that it is still there when there is no thread.
        let slot = Arc::new(std::sync::Mutex::new(Some(rest)));
        let theirs = Arc::clone(&slot);
        let at_qemu = Arc::<AtomicBool>::default();
        let asks = Arc::clone(&at_qemu);
        let spawned = thread::Builder::new().name(name).spawn(move || {
            // Taken out first: the lock is not held over what waits.
            let rest = crate::engine::guard(&theirs).take();
            if let Some(rest) = rest {
                rest.finish(&machine, &asks);
            }
            machine.go_on();
        });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(_) => {
                let rest = crate::engine::guard(&slot).take();
                if let Some(rest) = rest {
                    rest.finish(&self.machine, &at_qemu);
                }
                return true;
            }
        };
        self.closing = Some(Closing {
            thread,
            recorder,
            at_qemu,
        });
        self.wait_closed()
    }

    /// Waits until no capture of before is being put down, as long as its journal gets on; false when it does not.
    pub(super) fn wait_closed(&mut self) -> bool {
        let (mut moved, mut last) = (Instant::now(), None);
        while !self.is_closed() {
            let now = self.closing.as_ref().and_then(Closing::owes);
            if now.is_none() || now != last {
                (moved, last) = (Instant::now(), now);
            }
            if moved.elapsed() > STANDSTILL {
                tracing::warn!(
                    machine = self.machine.name,
                    "the journal is not closed yet: its disk does not answer"
                );
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }

    /// True when no capture of before is still being put down.
    pub(super) fn is_closed(&mut self) -> bool {
        match self.closing.take_if(|c| c.thread.is_finished()) {
            Some(closing) => {
                let _ = closing.thread.join();
                true
            }
            None => self.closing.is_none(),
        }
    }
}

impl Closing {
    /// How far the journal has come, while it is the journal that is waited for.
    fn owes(&self) -> Option<(Seq, u64, u64)> {
        let stats = self.recorder.stats();
        let at_disk = stats.head > stats.durable || !self.at_qemu.load(Ordering::SeqCst);
        at_disk.then_some((stats.durable, stats.journal_bytes, stats.syncs))
    }
}

impl Rest {
    fn finish(mut self, machine: &Machine, at_qemu: &AtomicBool) {
        let at = |qemu: bool| at_qemu.store(qemu, Ordering::SeqCst);
        let active = &mut self.active;
        let recorder = active.capture.recorder().clone();
        let mut gap = self.gap;
        let mut last_point = || {
            if !active.ready {
                return;
            }
            match recorder.point_if_written() {
                // The gap begins behind it.
                Ok(Some(point)) => gap.start = gap.start.max(Timestamp(point.time.0 + 1)),
                Ok(None) => {}
                Err(error) => {
                    let error = sentence(&error);
                    tracing::warn!(machine = machine.name, error, "no last point");
                }
            }
        };
        match self.end {
            End::MachineStopped => {
                at(true);
                let ended = active.capture.wait_end();
                at(false);
                if ended {
                    last_point();
                    if active.ready
                        && let Err(error) = active.capture.rest()
                    {
                        tracing::warn!(machine = machine.name, %error, "the images' rest is not noted");
                    }
                }
            }
            End::Suspended | End::DaemonStopped | End::DiskAdded | End::DiskFull => last_point(),
            End::WentElsewhere | End::TapLost | End::Overload | End::JournalFailed => {}
        }
        at(true);
        active.upkeep.stop();
        let gap = gap_now(self.end, gap, self.confirmed, &active.capture);
        at(false);
        // Without a base point there are no points that could be missing.
        let recorded = match self.seeded {
            true => gap.record(&recorder),
            false => Ok(()),
        };
        if let Err(error) = recorded {
            let error = sentence(&error);
            tracing::warn!(machine = machine.name, error, "the gap is not recorded yet");
        }
        drop(recorder);
        at(true);
        active.capture.detach();
        at(false);
        self.active.capture.end();
    }
}

/// The gap as it is known after the last point: that point, and those since the mirrors were last confirmed, count only
/// if all taps and mirrors stood until then.
fn gap_now(end: End, gap: Missing, confirmed: Confirmed, capture: &Capture) -> Missing {
    match end {
        End::Suspended | End::DaemonStopped | End::DiskAdded | End::DiskFull => {}
        _ => return gap,
    }
    let tapped = || !capture.is_cut() && capture.lost().is_empty();
    if tapped() && matches!(capture.qemu_side().mirrors_stand(), Ok(true)) && tapped() {
        return gap;
    }
    Missing {
        start: confirmed.time,
        sound: Some(confirmed.head),
        ..gap
    }
}
