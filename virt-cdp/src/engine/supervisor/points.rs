//! Points: the first one after the barrier, and those that somebody asks for.
//!
//! Here they are begun. Nobody waits on this thread until they are on stable storage: a disk that hangs must not keep
//! it from noticing what comes of it. Whoever asked for a point waits, and the first one is looked at again.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use cdp_core::{Grade, Point, PointUnderWay};

use super::{Active, RETRY_FIRST, Supervisor, WATCH_INTERVAL, ending::End};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        capture::ReadState,
        errors::{from_harbor, sentence},
        live::LiveSide,
        machine::{PointWish, State, Still},
        quiesce::Quiet,
    },
};

/// What cannot be done of a machine that is not captured.
const NO_POINT: &str = "no recovery point can be made now";

impl Supervisor {
    /// The capture, if points can be made of it now; else `what` cannot be done.
    fn marking(&self, what: &str) -> ApiResult<&Active> {
        match &self.capture {
            Some(active) if active.ready && !active.capture.is_cut() => Ok(active),
            _ => {
                let state = self.machine.status().state.name();
                let what = format!("{what}: '{}' is {state}", self.machine.name);
                Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                    .hint("wait until its state is 'protected'; see 'virt-cdp info'"))
            }
        }
    }

    /// Looks how the reading of the disks, or the first point after it, stands.
    pub(super) fn look_at_reading(&mut self) {
        let Some(active) = &mut self.capture else {
            return;
        };
        if active.first_point.is_some() {
            return self.look_at_first_point();
        }
        match active.capture.read_state() {
            ReadState::Reading => {}
            ReadState::Finished(resync) => {
                if resync.is_some() {
                    self.machine.update(|s| s.last_resync = resync);
                }
                self.begin_first_point();
            }
            ReadState::Idle => self.begin_first_point(),
            ReadState::Failed(error) => {
                self.put_down(End::TapLost);
                self.failed(&error);
            }
        }
    }

    /// The barrier was reached: the gap ends, points begin.
    fn begin_first_point(&mut self) {
        let Some(active) = &mut self.capture else {
            return;
        };
        let recorder = active.capture.recorder();
        let begun = recorder
            .begin_close_gap()
            .and_then(|_| recorder.begin_point(Grade::Crash, None));
        match begun {
            Ok(point) => active.first_point = Some(point),
            Err(error) => {
                let error = sentence(&error);
                return tracing::warn!(machine = self.machine.name, error, "no first point");
            }
        }
        self.look_at_first_point();
    }

    /// The machine is protected once its first point is on stable storage.
    fn look_at_first_point(&mut self) {
        let interval = Duration::from_millis(self.machine.description().point_interval_ms);
        let Some(active) = &mut self.capture else {
            return;
        };
        // No longer than between two looks.
        let durable = active
            .first_point
            .as_ref()
            .map_or(Ok(false), |point| point.is_durable(WATCH_INTERVAL));
        match durable {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let error = sentence(&error);
                return tracing::warn!(machine = self.machine.name, error, "no first point");
            }
        }
        active.first_point = None;
        active.ready = true;
        active.reading = None;
        active.next_point = Instant::now() + interval;
        self.gap = None;
        self.pause = RETRY_FIRST;
        self.machine.update(|s| {
            s.progress = None;
            s.missing = None;
        });
        self.machine.set_state(State::Protected, "");
    }

    /// Begins a point that somebody asks for.
    pub(super) fn make_point(&self, wish: &PointWish) -> ApiResult<PointUnderWay> {
        let active = self.marking(NO_POINT)?;
        let recorder = active.capture.recorder();
        let label = wish.label.as_deref();
        let unwanted = |what: &str| Err(ApiError::new(ApiErrorKind::FailedPrecondition, what));
        let made = match wish.still {
            None => recorder.begin_point(Grade::Crash, label),
            Some(still) if still.capture != active.number => {
                return unwanted("the capture was begun anew meanwhile");
            }
            Some(still) if Instant::now() > still.until => {
                return unwanted("it is too late for the point");
            }
            Some(still) => recorder.begin_point_if_still(still.writes, label),
        };
        made.map_err(from_harbor)
    }

    /// Tells whether it is known by now whether the mirrors stood behind a point: a look at them says that they did, or the
    /// capture has ended since, and has taken back what it had to.
    pub(super) fn is_confirmed(&mut self, point: &Point) -> bool {
        match &self.capture {
            Some(Active { upkeep, .. }) => {
                upkeep.confirmed().head >= point.seq && upkeep.here().head >= point.seq
            }
            None => self.is_closed(),
        }
    }

    /// One comparison at a time: QEMU has one NBD server.
    pub(super) fn live_side(&mut self) -> ApiResult<LiveSide> {
        let ended = Arc::<AtomicBool>::default();
        let side = {
            let active = self.marking("its disks cannot be compared now")?;
            let dir = self.setting.private_dir.clone();
            active.capture.live_side(&self.tag, dir, Arc::clone(&ended))
        };
        if self.live.strong_count() > 0 {
            let what = format!(
                "the disks of '{}' are being compared already",
                self.machine.name
            );
            return Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                .hint("wait for that verification, or cancel it"));
        }
        self.live = Arc::downgrade(&ended);
        Ok(side)
    }

    pub(super) fn quiet(&self) -> ApiResult<Quiet> {
        let active = self.marking(NO_POINT)?;
        Ok(Quiet {
            source: Arc::clone(&self.setting.source),
            run: active.run.clone(),
            qemu: active.capture.qemu_side(),
            still: Still {
                capture: active.number,
                writes: active.capture.recorder().stats().writes,
                until: Instant::now(),
            },
        })
    }
}
