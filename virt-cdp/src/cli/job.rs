//! Follows a job of the daemon to its end.

use super::{
    client::Pause,
    error::{CliError, CliResult},
    progress::{Meter, POLL_INTERVAL},
    session::Session,
};
use crate::api::v1;

/// What Ctrl-C means to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnInterrupt {
    /// The job is cancelled.
    Cancel,
    /// The job goes on; the text says how it is seen again.
    Leave(&'static str),
}

/// Waits until `job` is done; returns it, or its error.
pub(super) fn follow(
    session: &mut Session,
    mut job: v1::Job,
    on_interrupt: OnInterrupt,
) -> CliResult<v1::Job> {
    let mut meter = Meter::new(session.reader);
    let mut cancelled = false;
    while job.state == "running" {
        meter.show(job.progress.as_ref());
        let pause = session.client.pause(POLL_INTERVAL)?;
        let request = v1::JobRequest { id: job.id.clone() };
        job = match (pause, on_interrupt) {
            (Pause::Interrupted, OnInterrupt::Leave(hint)) => {
                meter.end();
                return Err(CliError::interrupted(format!(
                    "interrupted; the {} goes on",
                    job.kind
                ))
                .hint(hint));
            }
            (Pause::Interrupted, OnInterrupt::Cancel) if !cancelled => {
                cancelled = true;
                session
                    .client
                    .call(async |api| api.cancel_job(request).await)?
            }
            _ => session
                .client
                .call(async |api| api.get_job(request).await)?,
        };
    }
    meter.end();
    match job.state.as_str() {
        "done" => Ok(job),
        "cancelled" if cancelled => Err(CliError::interrupted(format!(
            "the {} was cancelled",
            job.kind
        ))),
        "cancelled" => Err(CliError::failure(format!(
            "the {} was cancelled by another client",
            job.kind
        ))),
        _ => {
            let why = if job.error.is_empty() {
                "virtcdpd does not say why"
            } else {
                &job.error
            };
            let error = CliError::failure(format!("the {} failed: {why}", job.kind));
            Err(if job.hint.is_empty() {
                error
            } else {
                error.hint(job.hint)
            })
        }
    }
}
