//! How a capture ends: why, which last point can still be made, and what gap follows.
//!
//! Invariant: the last point is a state of all volumes together, and the gap begins where that can no longer
//! be said.

use std::{
    thread,
    time::{Duration, Instant},
};

use std::sync::{Arc, atomic::Ordering};

use cdp_core::{GapReason, Marks, Mode, Seq};
use qemu_hook::{
    bitmap::{self, BitmapNames},
    tap::hang_up,
};

use super::{Active, Supervisor, WATCH_INTERVAL, closing::Rest, mode::DISK_DEADLINE};
use crate::{
    api::{ApiError, ApiErrorKind},
    engine::{
        capture::{Capture, Missing},
        errors::{from_monitor, sentence},
        machine::{State, now},
        source::{self, Ended, Presence},
        upkeep::Confirmed,
        watch::{Disks, Inherited, Legacy},
    },
};

/// How long libvirt may take to notice that a QEMU has ended.
const STOP_NOTICE: Duration = Duration::from_secs(3);

/// How long libvirt's event of an end may take when the domain is gone already.
const EVENT_NOTICE: Duration = Duration::from_secs(1);

/// How long a comparison with the disks may take to end, and how often it is looked at.
const LIVE_END: Duration = Duration::from_secs(2);
const LIVE_POLL: Duration = Duration::from_millis(5);

/// What is said of a machine whose tap was overdue.
pub(super) const OVERLOAD: &str = "the harbor's disk does not take the guest's writes in time";

/// Why a capture ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// QEMU has ended.
    MachineStopped,
    /// The guest may run on under another QEMU.
    WentElsewhere,
    /// A disk is to be captured, too.
    DiskAdded,
    /// A tap or a mirror is gone, and QEMU runs.
    TapLost,
    /// A reply to QEMU was overdue: the journal does not keep up.
    Overload,
    /// The journal takes nothing more.
    JournalFailed,
    /// The harbors' file system is short of room; the journal is whole.
    DiskFull,
    /// The user said so.
    Suspended,
    /// The daemon is being stopped.
    DaemonStopped,
}

impl Supervisor {
    /// A tap has ended: it was overdue, or QEMU let go of it, because it ended itself or a mirror was cancelled.
    pub(super) fn tap_lost(&mut self) {
        let overdue = |active: &super::Active| active.capture.is_overdue();
        let overdue = self.capture.as_ref().is_some_and(overdue);
        // From here on points are missing, also while it is found out why.
        self.machine
            .set_state(State::Retrying, if overdue { OVERLOAD } else { "" });
        if overdue {
            tracing::warn!(
                machine = self.machine.name,
                "a reply to QEMU was overdue; its tap was closed"
            );
            if self.put_down(End::Overload) {
                let what = "the harbor's disk did not take the guest's writes in time, so the guest goes on without us";
                self.failed(&ApiError::new(ApiErrorKind::Unavailable, what));
            }
        } else if let Some(end) = self.how_it_ended() {
            self.put_down(end);
            self.look_at = Instant::now();
        } else {
            self.put_down(End::TapLost);
            let what = "QEMU has let go of the tap: its mirror was ended";
            self.failed(&ApiError::new(ApiErrorKind::Unavailable, what));
        }
    }

    /// Tells how the QEMU that was captured has ended; none: it runs. It hangs up on all taps, libvirt learns of it a
    /// little later.
    fn how_it_ended(&self) -> Option<End> {
        let active = self.capture.as_ref()?;
        let give_up = Instant::now() + STOP_NOTICE;
        loop {
            let all_gone = active.capture.lost().len() == active.capture.volumes().len();
            match self.setting.source.presence() {
                Presence::Off(Ended::Here(_)) => return Some(End::MachineStopped),
                Presence::Off(Ended::Elsewhere(_)) => return Some(End::WentElsewhere),
                // A transient domain, or another run: its last event tells.
                Presence::Off(Ended::Forgotten(_)) => return Some(self.end_by_event()),
                Presence::Running(run) if run != active.run => return Some(self.end_by_event()),
                Presence::Migrating if all_gone => return Some(End::WentElsewhere),
                Presence::Running(_) | Presence::Migrating | Presence::Unknown(_) => {}
            }
            if !all_gone || Instant::now() >= give_up {
                return None;
            }
            thread::sleep(WATCH_INTERVAL);
        }
    }

    /// How libvirt's event says that the domain ended; it may come a moment later than the end can be seen.
    fn end_by_event(&self) -> End {
        let give_up = Instant::now() + EVENT_NOTICE;
        loop {
            match self.machine.end_told().as_deref() {
                Some("migrated") => return End::WentElsewhere,
                Some(_) => return End::MachineStopped,
                None if Instant::now() >= give_up => return End::WentElsewhere,
                None => thread::sleep(WATCH_INTERVAL),
            }
        }
    }

    /// Ends the capture: a last point where one can be made, then the gap. False when the harbor's disk does not
    /// answer: the guest is free of us all the same, and the rest is done once it does.
    ///
    /// While the machine runs, a point is made before the first tap goes: taps go one after the other, and
    /// what comes through the last ones without the first is no state of the machine. When QEMU has ended,
    /// the last point is made after the last tap.
    pub(super) fn put_down(&mut self, end: End) -> bool {
        let Some(active) = self.capture.take() else {
            return self.wait_closed();
        };
        let detail = match end {
            End::Overload => OVERLOAD,
            End::DiskFull => "the harbors' file system is short of space",
            _ => "",
        };
        if !matches!(end, End::Suspended | End::DaemonStopped) {
            self.machine.set_state(State::Retrying, detail);
        }
        if let End::TapLost | End::JournalFailed | End::Overload = end {
            // Before anything that may wait for QEMU: it may be waiting for us.
            active.capture.hang_up();
        }
        self.end_live();
        let (confirmed, here) = (active.upkeep.confirmed(), active.upkeep.here());
        let at_once = |reason| Missing {
            reason,
            start: now(),
            sound: None,
        };
        // From when on the mirrors did not stand is not known better than that.
        let since = |reason, known: Confirmed| Missing {
            reason,
            start: known.time,
            sound: Some(known.head),
        };
        let gap = match end {
            End::MachineStopped => at_once(GapReason::GuestOff),
            // What came since may be older than what the other QEMU has written.
            End::WentElsewhere => since(GapReason::GuestOff, here),
            End::Suspended => at_once(GapReason::Suspended),
            End::DiskAdded => at_once(GapReason::Seeding),
            End::DaemonStopped => at_once(GapReason::DaemonStopped),
            End::DiskFull => at_once(GapReason::DiskFull),
            End::TapLost => since(GapReason::TapLost, confirmed),
            End::Overload => since(GapReason::Overload, confirmed),
            End::JournalFailed => since(GapReason::JournalFailed, confirmed),
        };
        self.gap = Some(gap);
        let seeded = self.harbor().is_seeded();
        let closed = self.close(Rest {
            end,
            active,
            gap,
            confirmed,
            seeded,
        });
        self.machine.update(|s| {
            s.attached.clear();
            s.progress = None;
            s.stats = None;
            s.missing = Some(gap.reason);
        });
        closed
    }

    /// Ends a comparison with the disks, and waits a while for what it has put into QEMU to be taken out.
    fn end_live(&self) {
        if let Some(live) = self.live.upgrade() {
            live.store(true, Ordering::SeqCst);
        }
        let give_up = Instant::now() + LIVE_END;
        while self.live.strong_count() > 0 && Instant::now() < give_up {
            thread::sleep(LIVE_POLL);
        }
    }

    /// Removes what marks writes in the images; those of a machine that is off keep theirs.
    pub(super) fn remove_bitmaps(&self) {
        if let Err(error) = self.harbor().set_marks(&Marks::default()) {
            tracing::warn!(machine = self.machine.name, %error, "the bitmaps are still known");
        }
        if !matches!(self.setting.source.presence(), Presence::Running(_)) {
            return;
        }
        let volumes = self.harbor().description().volumes;
        let removed = source::look_closely(&*self.setting.source, &volumes, &self.tag).and_then(
            |(monitor, found)| {
                let running = source::open(monitor, found, &volumes);
                let names = BitmapNames::new(&self.tag);
                running.nodes.iter().try_for_each(|(_, node)| {
                    bitmap::remove(&*running.monitor, &node.name, &names)
                        .map_err(|e| from_monitor(&e))
                })
            },
        );
        if let Err(error) = removed {
            tracing::warn!(machine = self.machine.name, %error, "the bitmaps stay in the images");
        }
    }

    /// Leaves a capture that is in its steady state to the daemon's successor; puts any other down.
    pub(super) fn hand_over(&mut self) {
        let answers = |active: &Active| {
            let synced = active.capture.recorder().sync_within(DISK_DEADLINE);
            synced.is_ok()
        };
        self.end_live();
        match self.capture.take() {
            Some(active)
                if active.ready && active.capture.lost().is_empty() && answers(&active) =>
            {
                let confirmed = active.upkeep.confirmed();
                drop(active.upkeep);
                let disks = Disks {
                    plugged: active.task.disks,
                    left_out: self.machine.status().left_out,
                };
                if !active.capture.bequeath(&active.run, confirmed, &disks) {
                    tracing::warn!(
                        machine = self.machine.name,
                        "not handed over; its taps are closed"
                    );
                }
            }
            other => {
                self.capture = other;
                self.put_down(End::DaemonStopped);
            }
        }
    }

    /// Goes on with what an earlier daemon handed over; a gap is left to the usual way when that cannot be.
    pub(super) fn inherit(&mut self, inherited: Vec<Inherited>) {
        let Some(first) = inherited.first() else {
            return;
        };
        let (legacy, harbor) = (first.legacy.clone(), self.harbor());
        let (run, confirmed) = (legacy.run.clone(), legacy.confirmed());
        let reason = self.cannot_inherit(&inherited, &legacy);
        let outcome = match reason {
            Some(reason) => {
                inherited.iter().for_each(|tap| hang_up(&tap.socket));
                Err(ApiError::new(ApiErrorKind::FailedPrecondition, reason))
            }
            None => {
                let source = Arc::clone(&self.setting.source);
                let watch = Arc::clone(&self.setting.watch);
                Capture::inherit(&harbor, inherited, &*source, &self.tag, &watch)
            }
        };
        let taken = outcome.and_then(|capture| {
            // What was captured counts only if the mirrors stood all the time.
            let side = capture.qemu_side();
            let stood = match side.mirrors_stand() {
                Ok(true) => Ok(()),
                Ok(false) => Err(ApiError::new(
                    ApiErrorKind::Unavailable,
                    "a mirror was ended meanwhile",
                )),
                Err(e) => Err(e),
            };
            match stood {
                Ok(()) => self.begin(capture, run, Some(confirmed), legacy.disks.clone()),
                Err(e) => {
                    capture.hang_up();
                    let recorded = capture.recorder().open_gap_since(
                        GapReason::TapLost,
                        confirmed.time,
                        confirmed.head,
                    );
                    if let Err(error) = recorded {
                        let error = sentence(&error);
                        tracing::warn!(
                            machine = self.machine.name,
                            error,
                            "the gap is not recorded yet"
                        );
                    }
                    capture.end();
                    Err(e)
                }
            }
        });
        match taken {
            Ok(()) => {
                tracing::info!(
                    machine = self.machine.name,
                    "taps taken over from the daemon before"
                );
                self.machine.update(|s| s.missing = None);
                self.machine.set_state(State::Protected, "");
                self.gap = None;
            }
            Err(error) => {
                tracing::warn!(
                    machine = self.machine.name,
                    error = error.what,
                    "the taps of the daemon before are not taken over"
                );
                self.gap = Some(Missing {
                    reason: GapReason::TapLost,
                    start: confirmed.time,
                    sound: Some(confirmed.head),
                });
            }
        }
    }

    /// Says why what was handed over does not fit the harbor.
    fn cannot_inherit(&self, inherited: &[Inherited], legacy: &Legacy) -> Option<String> {
        let description = self.harbor().description();
        let mut there: Vec<u16> = inherited.iter().map(|tap| tap.volume.0).collect();
        there.sort_unstable();
        let mut wanted = legacy.volumes.clone();
        wanted.sort_unstable();
        if description.mode != Mode::Active {
            Some("the machine is not to be captured".into())
        } else if there != wanted {
            Some("not all of its taps are there".into())
        } else if self.harbor().last_record() != Seq(legacy.head) {
            Some("the journal does not end where the daemon before left it".into())
        } else {
            None
        }
    }
}
