//! The writer's side of the sequencer: what there is to do, and what has become of it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Notice, Pending, Phase, Sequencer};
use crate::error::{JournalError, Refused};
use crate::point::Seq;

/// What the writer is to do next.
#[derive(Debug)]
pub(crate) enum Work {
    Write(Vec<Pending>),
    Sync,
    End,
}

impl Sequencer {
    /// Waits for something to do; the writer's only question.
    pub(crate) fn next_work(&self) -> Work {
        let mut line = self.lock();
        loop {
            let sync_due = line.dirty_since.map(|since| since + self.flush_interval);
            let now = Instant::now();
            let wanted = line
                .sync_targets
                .first()
                .is_some_and(|target| *target <= line.written);
            if wanted || sync_due.is_some_and(|due| due <= now) {
                return Work::Sync;
            }
            let mut wake = sync_due;
            if !line.waiting.is_empty() {
                let linger_end = line.waiting_since + self.linger;
                let running = matches!(line.phase, Phase::Running);
                if !running
                    || line.is_batch_full()
                    || !line.sync_targets.is_empty()
                    || linger_end <= now
                {
                    return Work::Write(line.take_batch());
                }
                wake = Some(wake.map_or(linger_end, |due| due.min(linger_end)));
            } else if matches!(line.phase, Phase::Closing) {
                return if line.dirty_since.is_some() {
                    Work::Sync
                } else {
                    Work::End
                };
            }
            line = match wake {
                Some(wake) => {
                    let waited = self.work.wait_timeout(line, wake - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(line).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Learns from the writer that everything up to `seq` is in the journal's files.
    pub(crate) fn written(&self, seq: Seq, bytes: u64) {
        let mut line = self.lock();
        line.written = seq;
        line.counts.journal_bytes += bytes;
        line.dirty_since.get_or_insert_with(Instant::now);
    }

    /// Returns what the catalog is to learn when everything written is on stable storage.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        let mut line = self.lock();
        let count = line
            .notices
            .iter()
            .take_while(|(seq, _)| *seq <= line.written)
            .count();
        line.notices
            .drain(..count)
            .map(|(_, notice)| notice)
            .collect()
    }

    /// Learns from the writer that everything written is on stable storage, and wakes who waits.
    pub(crate) fn synced(&self, took: Duration) {
        let mut line = self.lock();
        line.dirty_since = None;
        line.counts.durable = line.written;
        line.counts.syncs += 1;
        line.counts.sync_last = took;
        line.counts.sync_max = line.counts.sync_max.max(took);
        let rest = line.written.next();
        line.sync_targets = line.sync_targets.split_off(&rest);
        drop(line);
        self.done.notify_all();
    }

    /// Learns from the writer that the journal is closed in order.
    pub(crate) fn closed(&self) {
        self.lock().phase = Phase::Closed;
        self.done.notify_all();
    }

    /// Learns from the writer that it failed: nothing is taken any more; calls `first`, then wakes
    /// everybody.
    pub(crate) fn fail(&self, cause: JournalError, first: impl FnOnce(Arc<JournalError>)) {
        let cause = Arc::new(cause);
        first(Arc::clone(&cause));
        let mut line = self.lock();
        line.phase = Phase::Failed(Arc::clone(&cause));
        let lost = std::mem::take(&mut line.waiting);
        let calls = std::mem::take(&mut line.failure_calls);
        drop(line);
        self.budget.close(Refused::Failed(Arc::clone(&cause)));
        drop(lost);
        self.done.notify_all();
        for call in calls {
            call(Arc::clone(&cause));
        }
    }
}
