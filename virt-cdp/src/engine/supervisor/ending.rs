//! How a capture ends: why, which last point can still be made, and what gap follows.
//!
//! Invariant: the last point is a state of all volumes together, and the gap begins where that can no longer
//! be said.

use std::{
    thread,
    time::{Duration, Instant},
};

use cdp_core::GapReason;

use super::{Supervisor, WATCH_INTERVAL};
use crate::{
    api::{ApiError, ApiErrorKind},
    engine::{
        errors::sentence,
        machine::{State, now},
        source::Presence,
    },
};

/// How long libvirt may take to notice that a QEMU has ended.
const STOP_NOTICE: Duration = Duration::from_secs(3);

/// Why a capture ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// QEMU has ended.
    MachineStopped,
    /// A tap or a mirror is gone, and QEMU runs.
    TapLost,
    /// The journal takes nothing more.
    JournalFailed,
    /// The user said so.
    Suspended,
    /// The daemon is being stopped.
    DaemonStopped,
}

impl Supervisor {
    /// QEMU let go of a tap: it ended, or a mirror was cancelled.
    pub(super) fn tap_lost(&mut self) {
        if self.machine_stopped() {
            self.put_down(End::MachineStopped);
            self.look_at = Instant::now();
        } else {
            self.put_down(End::TapLost);
            let what = "QEMU has let go of the tap: its mirror was ended";
            self.failed(&ApiError::new(ApiErrorKind::Unavailable, what));
        }
    }

    /// Tells whether the QEMU that was captured has ended: it hangs up on all taps, libvirt learns of it a little later.
    fn machine_stopped(&self) -> bool {
        let Some(active) = &self.capture else {
            return false;
        };
        let give_up = Instant::now() + STOP_NOTICE;
        loop {
            match self.setting.source.presence() {
                Presence::Running(run) if run == active.run => {}
                Presence::Running(_) | Presence::Off => return true,
                Presence::Unknown(_) => {}
            }
            let all_gone = active.capture.lost().len() == active.capture.volumes().len();
            if !all_gone || Instant::now() >= give_up {
                return false;
            }
            thread::sleep(WATCH_INTERVAL);
        }
    }

    /// Ends the capture: a last point where one can be made, then the gap.
    ///
    /// While the machine runs, a point is made before the first tap goes: taps go one after the other, and
    /// what comes through the last ones without the first is no state of the machine. When QEMU has ended,
    /// the last point is made after the last tap.
    pub(super) fn put_down(&mut self, end: End) {
        let Some(mut active) = self.capture.take() else {
            return;
        };
        if let End::TapLost | End::MachineStopped | End::JournalFailed = end {
            self.machine.set_state(State::Retrying, "");
        }
        if let End::TapLost | End::JournalFailed = end {
            // Before anything that may wait for QEMU: it may be waiting for us.
            active.capture.hang_up();
        }
        let (confirmed, recorder) = (active.upkeep.confirmed(), active.capture.recorder().clone());
        let last_point = || {
            if active.ready
                && let Err(error) = recorder.point_if_written()
            {
                tracing::warn!(
                    machine = self.machine.name,
                    error = sentence(&error),
                    "no last point"
                );
            }
        };
        let (reason, start) = match end {
            End::MachineStopped => {
                if active.capture.wait_end() {
                    last_point();
                }
                (GapReason::GuestOff, now())
            }
            End::Suspended | End::DaemonStopped => {
                last_point();
                let reason = match end {
                    End::Suspended => GapReason::Suspended,
                    _ => GapReason::DaemonStopped,
                };
                (reason, now())
            }
            // From when on the mirrors did not stand is not known better than that.
            End::TapLost => (GapReason::TapLost, confirmed.time),
            End::JournalFailed => (GapReason::JournalFailed, now()),
        };
        drop(active.upkeep);
        self.gap = Some((reason, start));
        // Without a base point there are no points that could be missing.
        let recorded = match end {
            _ if !self.harbor().is_seeded() => Ok(()),
            End::TapLost => recorder.open_gap_since(reason, start, confirmed.head),
            _ => recorder.open_gap(reason, start),
        };
        if let Err(error) = recorded {
            tracing::warn!(
                machine = self.machine.name,
                error = sentence(&error),
                "the gap is not recorded yet"
            );
        }
        active.capture.detach();
        active.capture.end();
        self.machine.update(|s| {
            s.attached.clear();
            s.progress = None;
            s.stats = None;
        });
    }
}
