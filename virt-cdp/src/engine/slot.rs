//! Work on a harbor's disk beside the machine's supervisor: one piece at a time in each slot.
//!
//! A disk may hang. Whoever wants an answer waits for it a while and goes away then; the thread stays behind until the
//! disk answers, and the slot with it, so that there is never more than one such thread for a slot.
//!
//! Invariant: once a slot is closed and its last work has ended, nothing of it touches the harbor any more.

use std::{
    sync::{
        Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{errors::disk_silent, guard};
use crate::api::{ApiError, ApiErrorKind, ApiResult};

/// How long the harbor's disk may take for something small.
pub(crate) const DISK_DEADLINE: Duration = Duration::from_secs(4);
/// How often it is looked whether work has ended.
const END_POLL: Duration = Duration::from_millis(10);

/// A place for one piece of work.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Place>);

#[derive(Default)]
struct Place {
    thread: Option<JoinHandle<()>>,
    is_closed: bool,
}

impl Slot {
    /// Starts `work` in a thread; false if there is some under way, or the slot is closed.
    ///
    /// # Errors
    /// There can be no thread.
    pub(crate) fn start(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> ApiResult<bool> {
        self.begin(name, &mut Some(work))
    }

    /// As [`start`](Self::start); the work is taken if it is started.
    fn begin(
        &self,
        name: &str,
        work: &mut Option<impl FnOnce() + Send + 'static>,
    ) -> ApiResult<bool> {
        let mut place = guard(&self.0);
        let is_busy = place.thread.as_ref().is_some_and(|t| !t.is_finished());
        let Some(work) = work.take_if(|_| !is_busy && !place.is_closed) else {
            return Ok(false);
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        place.thread = Some(thread.map_err(|e| {
            let what = format!("cannot start a thread: {e}");
            ApiError::new(ApiErrorKind::ResourceExhausted, what)
        })?);
        Ok(true)
    }

    /// Does `work` in a thread, after what is under way; `then` says what becomes of it when the disk does not answer in
    /// time.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        then: &str,
        work: impl FnOnce() -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        self.run_within(DISK_DEADLINE, then, work)
    }

    fn run_within<T: Send + 'static>(
        &self,
        deadline: Duration,
        then: &str,
        work: impl FnOnce() -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let give_up = Instant::now() + deadline;
        let (send, outcome) = mpsc::channel();
        let mut work = Some(move || {
            let _ = send.send(work());
        });
        while !self.begin("disk", &mut work)? {
            if guard(&self.0).is_closed {
                let what = "the machine is being put down";
                return Err(ApiError::new(ApiErrorKind::Unavailable, what));
            }
            if Instant::now() >= give_up {
                return Err(disk_silent("something else waits for it already"));
            }
            thread::sleep(END_POLL);
        }
        match outcome.recv_timeout(give_up.saturating_duration_since(Instant::now())) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(disk_silent(then)),
            Err(RecvTimeoutError::Disconnected) => {
                let what = "work on the harbor's disk ended by a defect";
                Err(ApiError::new(ApiErrorKind::Internal, what))
            }
        }
    }

    /// Tells whether no more work is to begin: what is under way had better end.
    pub(crate) fn is_closed(&self) -> bool {
        guard(&self.0).is_closed
    }

    /// Lets no more work begin, and waits for what is under way until `give_up`; false if that goes on.
    pub(crate) fn close(&self, give_up: Instant) -> bool {
        guard(&self.0).is_closed = true;
        loop {
            let place = guard(&self.0);
            if place.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return true;
            }
            drop(place);
            if Instant::now() >= give_up {
                return false;
            }
            thread::sleep(END_POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_disk_that_hangs_holds_up_nobody_for_long_and_one_thread_only() {
        let slot = Slot::default();
        let (answer, hangs) = mpsc::channel::<()>();
        let late = slot.run_within(SHORT, "it is done later", move || {
            let _ = hangs.recv();
            Ok(())
        });
        let late = late.unwrap_err();
        assert_eq!(late.kind, ApiErrorKind::Unavailable);
        assert!(late.what.contains("it is done later"), "{late:?}");
        let refused = slot.run_within(SHORT, "", || Ok(7)).unwrap_err();
        assert!(
            refused.what.contains("something else waits for it"),
            "{refused:?}"
        );
        assert_eq!(slot.start("tidy", || ()), Ok(false));
        assert!(!slot.close(Instant::now() + SHORT), "it is still under way");
        drop(answer);
        assert!(slot.close(Instant::now() + LONG));
        assert_eq!(slot.start("tidy", || ()), Ok(false), "closed");
        let closed = slot.run_within(LONG, "", || Ok(7)).unwrap_err();
        assert!(closed.what.contains("being put down"), "{closed:?}");
    }

    #[test]
    fn work_is_done_in_turn_and_a_panic_is_its_callers_error() {
        let slot = Slot::default();
        let begun = slot.start("tidy", || thread::sleep(SHORT));
        assert_eq!(begun, Ok(true));
        assert_eq!(
            slot.run_within(LONG, "", || Ok(7)),
            Ok(7),
            "after what is under way"
        );
        let panicked = slot.run_within(LONG, "", || -> ApiResult<()> { panic!("on purpose") });
        assert_eq!(panicked.unwrap_err().kind, ApiErrorKind::Internal);
        assert_eq!(slot.run_within(LONG, "", || Ok(8)), Ok(8));
    }
}
