//! Long work of the daemon: exports, commits, verifications, drills, searches and takeovers of groups, each on a thread of its own, watched by polling.
//!
//! A job's state is a small record behind a mutex; the worker updates it through [`JobHandle`]. Ended
//! jobs are kept (the newest [`ENDED_MAX`]) so that a client that polls late still gets its answer.
//! Invariant: a job that was started ends as done, failed or cancelled, even when its worker panics.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::api::{ApiError, ApiErrorKind, ApiResult, v1};
use crate::engine::guard;

/// How many ended jobs are remembered.
const ENDED_MAX: usize = 100;

/// How long a job that waits may take to see that it is cancelled.
const CANCEL_LATENCY: Duration = Duration::from_millis(20);

/// All jobs of the daemon.
#[derive(Default)]
pub(crate) struct Jobs {
    next: AtomicU64,
    jobs: Mutex<BTreeMap<u64, Arc<JobHandle>>>,
}

/// The worker's and the clients' view of one job.
pub(crate) struct JobHandle {
    record: Mutex<v1::Job>,
    cancelled: AtomicBool,
}

impl JobHandle {
    /// True once somebody asked for the job to be cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Asks the worker to stop at its next step.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Notes how far the work has come, in bytes.
    pub(crate) fn progress(&self, done: u64, total: u64) {
        let mut record = guard(&self.record);
        let what = record.kind.clone();
        record.progress = Some(v1::Progress {
            what,
            done_bytes: done,
            total_bytes: total,
        });
    }

    /// Notes what a verification has found.
    pub(crate) fn found(&self, report: v1::VerifyReport) {
        guard(&self.record).report = Some(report);
    }

    /// Notes which drill it holds.
    pub(crate) fn of_drill(&self, id: &str) {
        guard(&self.record).drill = id.to_owned();
    }

    /// Notes how the drill goes: its report in the making, as JSON.
    pub(crate) fn live(&self, report: String) {
        guard(&self.record).drill_report = report;
    }

    /// Notes how far a bisection has come.
    pub(crate) fn bisected(&self, state: v1::BisectState) {
        guard(&self.record).bisect = Some(state);
    }

    /// Notes a machine that was taken over.
    pub(crate) fn took_over(&self, takeover: v1::TakeoverReply) {
        guard(&self.record).takeovers.push(takeover);
    }

    /// Notes that what was taken over was removed again.
    pub(crate) fn gave_back(&self) {
        guard(&self.record).takeovers.clear();
    }

    /// Waits, unless it is cancelled; tells whether it has waited to the end.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.is_cancelled() || left.is_zero() {
                return !self.is_cancelled();
            }
            thread::sleep(left.min(CANCEL_LATENCY));
        }
    }

    /// Notes a file that was written whole.
    pub(crate) fn wrote(&self, file: String) {
        guard(&self.record).files.push(file);
    }

    /// The job as clients see it.
    pub(crate) fn record(&self) -> v1::Job {
        guard(&self.record).clone()
    }

    fn end(&self, outcome: ApiResult<()>) {
        let mut record = guard(&self.record);
        match outcome {
            Ok(()) => record.state = "done".into(),
            Err(_) if self.is_cancelled() => record.state = "cancelled".into(),
            Err(e) => {
                record.state = "failed".into();
                record.error = e.what;
                record.hint = e.hint.unwrap_or_default();
            }
        }
    }
}

impl Jobs {
    /// Starts `work` on a thread of its own.
    pub(crate) fn start(
        &self,
        kind: &str,
        subject: &str,
        point: Option<v1::Point>,
        work: impl FnOnce(&JobHandle) -> ApiResult<()> + Send + 'static,
    ) -> ApiResult<v1::Job> {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let handle = Arc::new(JobHandle {
            record: Mutex::new(v1::Job {
                id: id.to_string(),
                kind: kind.into(),
                machine: subject.into(),
                state: "running".into(),
                point,
                ..Default::default()
            }),
            cancelled: AtomicBool::new(false),
        });
        let for_worker = Arc::clone(&handle);
        thread::Builder::new()
            .name(format!("{kind}-{id}"))
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| work(&for_worker)));
                for_worker.end(outcome.unwrap_or_else(|_| {
                    Err(ApiError::new(
                        ApiErrorKind::Internal,
                        "the job ended by a defect; the log has it",
                    ))
                }));
            })
            .map_err(|e| {
                ApiError::new(
                    ApiErrorKind::ResourceExhausted,
                    format!("cannot start the job: {e}"),
                )
            })?;
        let mut jobs = guard(&self.jobs);
        jobs.insert(id, Arc::clone(&handle));
        let ended: Vec<u64> = jobs
            .iter()
            .filter(|(_, j)| j.record().state != "running")
            .map(|(id, _)| *id)
            .collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            jobs.remove(id);
        }
        Ok(handle.record())
    }

    /// Finds a job.
    pub(crate) fn get(&self, id: &str) -> ApiResult<Arc<JobHandle>> {
        id.parse()
            .ok()
            .and_then(|id: u64| guard(&self.jobs).get(&id).cloned())
            .ok_or_else(|| {
                ApiError::new(ApiErrorKind::NotFound, format!("there is no job '{id}'"))
                    .hint("jobs do not outlive the daemon; start the work again")
            })
    }

    /// How many jobs run now.
    pub(crate) fn running(&self) -> usize {
        guard(&self.jobs)
            .values()
            .filter(|j| j.record().state == "running")
            .count()
    }

    /// Asks every running job to stop.
    pub(crate) fn cancel_all(&self) {
        guard(&self.jobs).values().for_each(|j| j.cancel());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_waits_ends_soon_when_it_is_cancelled() {
        let jobs = Jobs::default();
        let began = Instant::now();
        let job = jobs.start("takeover", "shop", None, |job| {
            assert!(job.wait(Duration::from_millis(1)));
            match job.wait(Duration::from_secs(600)) {
                true => Ok(()),
                false => Err(ApiError::new(ApiErrorKind::Unavailable, "cancelled")),
            }
        });
        let job = jobs.get(&job.unwrap().id).unwrap();
        job.cancel();
        while job.record().state == "running" && began.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(job.record().state, "cancelled");
    }
}
