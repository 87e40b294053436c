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

/// Waits until `job` is done; returns it, or its error. How far it is is shown meanwhile.
pub(super) fn follow(
    session: &mut Session,
    job: v1::Job,
    on_interrupt: OnInterrupt,
) -> CliResult<v1::Job> {
    let mut meter = Meter::new(session.reader);
    let done = watch(session, job, on_interrupt, &mut |job| {
        meter.show(job.progress.as_ref());
    });
    meter.end();
    done
}

/// Waits until `job` is done; returns it, or its error. All that is seen of it is given to `look`, its end too.
pub(super) fn watch(
    session: &mut Session,
    mut job: v1::Job,
    on_interrupt: OnInterrupt,
    look: &mut dyn FnMut(&v1::Job),
) -> CliResult<v1::Job> {
    let mut cancelled = false;
    loop {
        look(&job);
        if job.state != "running" {
            break;
        }
        let pause = session.client.pause(POLL_INTERVAL)?;
        let request = v1::JobRequest { id: job.id.clone() };
        job = match (pause, on_interrupt) {
            (Pause::Interrupted, OnInterrupt::Leave(hint)) => {
                let what = format!("interrupted; the {} goes on", job.kind);
                return Err(CliError::interrupted(what).hint(hint));
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
    let kind = &job.kind;
    match job.state.as_str() {
        "done" => Ok(job),
        "cancelled" if cancelled => {
            let what = format!("the {kind} was cancelled");
            Err(CliError::interrupted(what))
        }
        "cancelled" => {
            let what = format!("the {kind} was cancelled by another client");
            Err(CliError::failure(what))
        }
        _ => {
            let why = match job.error.as_str() {
                "" => "virtcdpd does not say why",
                why => why,
            };
            let error = CliError::failure(format!("the {kind} failed: {why}"));
            Err(match job.hint.as_str() {
                "" => error,
                hint => error.hint(hint),
            })
        }
    }
}
