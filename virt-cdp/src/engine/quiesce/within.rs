//! Waits for what may hang, up to a deadline: the work goes on in a thread of its own, its outcome is dropped.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// Does `work` and waits for it at most for `deadline`; `what` names it in the error.
///
/// # Errors
/// Those of the work; it did not end in time, and may still do what it does.
pub(super) fn within<T: Send + 'static>(
    deadline: Duration,
    what: &str,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (send, outcome) = mpsc::channel();
    thread::Builder::new()
        .name("quiesce".into())
        .spawn(move || {
            let _ = send.send(work());
        })
        .map_err(|e| format!("cannot start a thread: {e}"))?;
    match outcome.recv_timeout(deadline) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => Err(format!(
            "{what} did not come within {:.1} s",
            deadline.as_secs_f64()
        )),
        Err(RecvTimeoutError::Disconnected) => Err(format!("{what} failed by a defect")),
    }
}
