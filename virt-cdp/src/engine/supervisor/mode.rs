//! What the user wants of a machine, and work on the harbor's disk that this thread must not wait for.
//!
//! A wish is written to the harbor first and followed then. A disk that does not answer keeps it in a thread of
//! its own: whoever asked gets an error that says so, and the wish is followed when the disk has taken it.
//!
//! Invariant: at most one such thread is under way for a machine.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use cdp_core::Mode;

use super::{RETRY_FIRST, Supervisor, ending::End};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::{disk_silent, from_harbor},
        machine::State,
    },
};

/// How long the harbor's disk may take for something small.
pub(super) const DISK_DEADLINE: Duration = Duration::from_secs(4);

impl Supervisor {
    /// Takes over what the user wants.
    pub(super) fn set_mode(&mut self, mode: Mode) -> ApiResult<()> {
        let harbor = self.harbor();
        let kept = harbor.description().mode;
        if kept == mode && self.followed == mode {
            return Ok(());
        }
        if kept != mode {
            self.on_disk("this is carried out once it does", move || {
                let changed = harbor.update_description(|description| description.mode = mode);
                changed.map_err(from_harbor)
            })?;
        }
        self.follow(mode)
    }

    /// Does what a mode asks for, once.
    pub(super) fn follow(&mut self, mode: Mode) -> ApiResult<()> {
        let late = || disk_silent("the capture has ended, its journal is closed once it does");
        match mode {
            Mode::Active => {
                self.machine.set_state(State::Starting, "");
                self.pause = RETRY_FIRST;
                self.look_at = Instant::now();
            }
            Mode::Suspended => {
                let closed = self.put_down(End::Suspended);
                self.setting.source.release();
                self.machine.set_state(State::Suspended, "");
                self.followed = mode;
                return closed.then_some(()).ok_or_else(late);
            }
            Mode::Released => {
                let closed = self.put_down(End::Suspended);
                self.machine.set_state(State::Unprotected, "");
                if !closed {
                    return Err(late());
                }
                self.remove_bitmaps();
                self.setting.source.release();
            }
        }
        self.followed = mode;
        Ok(())
    }

    /// Does `work` on the harbor's disk, in a thread that is left behind when the disk does not answer; `then` says
    /// what becomes of it in that case.
    pub(super) fn on_disk(
        &mut self,
        then: &str,
        work: impl FnOnce() -> ApiResult<()> + Send + 'static,
    ) -> ApiResult<()> {
        if self.disk_work.as_ref().is_some_and(|t| !t.is_finished()) {
            return Err(disk_silent("something else waits for it already"));
        }
        let (send, outcome) = mpsc::channel();
        let machine = Arc::downgrade(&self.machine);
        let thread = thread::Builder::new()
            .name(format!("disk-{}", self.tag))
            .spawn(move || {
                let _ = send.send(work());
                // Whoever waited may not wait any more.
                if let Some(machine) = machine.upgrade() {
                    machine.go_on();
                }
            })
            .map_err(|e| {
                let what = format!("cannot start a thread: {e}");
                ApiError::new(ApiErrorKind::ResourceExhausted, what)
            })?;
        self.disk_work = Some(thread);
        match outcome.recv_timeout(DISK_DEADLINE) {
            Ok(outcome) => outcome,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(disk_silent(then)),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let what = "work on the harbor's disk ended by a defect";
                Err(ApiError::new(ApiErrorKind::Internal, what))
            }
        }
    }
}
