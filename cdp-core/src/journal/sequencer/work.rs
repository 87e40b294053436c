//! The writer's side of the sequencer: what there is to do, and what has become of it.
//!
//! A sync is begun when the oldest record that is not on stable storage has reached half the flush interval, so that the
//! whole is kept although the sync itself takes its time. When writes have waited long in line because the disk is
//! slower than they come, a quarter of the interval passes between two syncs: one for each frame would make it slower still.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Line, Notice, Phase, Sequencer, lock};
use crate::error::{JournalError, Refused};
use crate::journal::draft::Draft;
use crate::point::Seq;

/// What the writer is to do next.
#[derive(Debug)]
pub(crate) enum Work {
    Write(Draft),
    /// Wait for the writes under way: there is nothing else to do.
    Settle,
    Sync,
    End,
}

impl Sequencer {
    /// Waits for something to do; the writer's only question.
    pub(crate) fn next_work(&self) -> Work {
        let mut line = self.lock();
        loop {
            let now = Instant::now();
            let wake = match self.choose(&mut line, now) {
                Ok(work) => return work,
                Err(wake) => wake,
            };
            line.writer_sleeps = true;
            line = match wake {
                Some(wake) => {
                    let waited = self.work.wait_timeout(line, wake - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(line).unwrap_or_else(PoisonError::into_inner),
            };
            line.writer_sleeps = false;
        }
    }

    /// Returns what is to be done now, or else when something will be.
    fn choose(&self, line: &mut Line, now: Instant) -> Result<Work, Option<Instant>> {
        let sync_due = line
            .dirty_since
            .map(|since| since + self.pace.flush_interval() / 2);
        let wanted = line.wanted.is_some_and(|(first, _)| first <= line.written);
        if wanted || sync_due.is_some_and(|due| due <= now) {
            return Ok(Work::Sync);
        }
        let running = matches!(line.phase, Phase::Running);
        let mut wake = sync_due;
        if let Some(front) = line.waiting.front() {
            let linger_end = front.since + self.pace.linger();
            let at_once = !running || line.wanted.is_some() || line.waiting.len() > 1;
            if at_once || front.is_full() || linger_end <= now {
                return line.waiting.pop_front().map(Work::Write).ok_or(None);
            }
            wake = Some(wake.map_or(linger_end, |due| due.min(linger_end)));
        } else if matches!(line.phase, Phase::Closing) {
            return Ok(if line.dirty_since.is_some() {
                Work::Sync
            } else {
                Work::End
            });
        }
        if line.under_way {
            line.under_way = false;
            return Ok(Work::Settle);
        }
        Err(wake)
    }

    /// Learns from the writer that everything up to `seq` is in the journal's files, or on its way there: `oldest` is
    /// when the oldest of it was taken.
    pub(crate) fn written(&self, seq: Seq, bytes: u64, oldest: Instant) {
        let mut line = self.lock();
        line.written = seq;
        line.under_way = true;
        line.counts.journal_bytes += bytes;
        line.dirty_since.get_or_insert(oldest);
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

    /// Learns from the writer that everything written is on stable storage, and wakes and calls who waits.
    pub(crate) fn synced(&self, took: Duration) {
        let mut line = self.lock();
        if let Some(since) = line.dirty_since.take() {
            line.counts.ages.add(since.elapsed());
        }
        line.last_sync = Some(Instant::now());
        line.under_way = false;
        line.counts.durable = line.written;
        line.counts.syncs += 1;
        line.counts.sync_last = took;
        line.counts.sync_max = line.counts.sync_max.max(took);
        let durable = line.written;
        line.wanted = match line.wanted {
            Some((_, last)) if last > durable => Some((durable.next(), last)),
            _ => None,
        };
        drop(line);
        self.done.notify_all();
        self.call_durable(Some(durable));
    }

    fn call_durable(&self, durable: Option<Seq>) {
        lock(&self.durable_calls).retain(|call| call(durable));
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
        self.call_durable(None);
        for call in calls {
            call(Arc::clone(&cause));
        }
    }
}
