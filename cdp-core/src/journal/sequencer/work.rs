//! The writer's side of the sequencer: what there is to do, and what has become of it.
//!
//! A sync is begun when the oldest record that no sync was begun for has reached half the flush interval, so that the
//! whole is kept although the sync itself takes its time; one at a time. When records have waited long in line because the
//! disk is slower than they come, a quarter of the interval passes between two syncs: one for each frame would make it
//! slower still.

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
    /// Have everything up to this record put on stable storage.
    Sync(Seq),
    /// Nothing more gets to stable storage.
    Fail(JournalError),
    End,
}

/// A sync under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syncing {
    /// When the oldest record was taken that it is for.
    since: Option<Instant>,
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
        if let Some(cause) = line.broken.take() {
            return Ok(Work::Fail(cause));
        }
        let sync_due = self.sync_due(line);
        if sync_due.is_some_and(|due| due <= now) {
            return Ok(line.begin_sync(now));
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
        }
        if line.under_way {
            line.under_way = false;
            return Ok(Work::Settle);
        }
        let closing = matches!(line.phase, Phase::Closing) && line.waiting.is_empty();
        match closing && line.syncing.is_none() {
            true if line.dirty_since.is_some() => Ok(line.begin_sync(now)),
            true => Ok(Work::End),
            false => Err(wake),
        }
    }

    /// When the next sync is to begin; none while one is under way or nothing wants it.
    fn sync_due(&self, line: &Line) -> Option<Instant> {
        let flush = self.pace.flush_interval();
        if line.syncing.is_some() {
            return None;
        }
        let wanted = line.wanted.is_some_and(|(first, _)| first <= line.written);
        if wanted && line.dirty_since.is_some() {
            return line.dirty_since;
        }
        let due = line.dirty_since? + flush / 2;
        let spaced = line.sync_began.map(|began| began + flush / 4);
        Some(spaced.map_or(due, |spaced| spaced.max(due)))
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

    /// Returns what the catalog is to learn when everything up to `up_to` is on stable storage.
    pub(crate) fn notices(&self, up_to: Seq) -> Vec<Notice> {
        let mut line = self.lock();
        let due = |(seq, _): &&(Seq, Notice)| *seq <= up_to;
        let count = line.notices.iter().take_while(due).count();
        line.notices
            .drain(..count)
            .map(|(_, notice)| notice)
            .collect()
    }

    /// Learns that everything up to `durable` is on stable storage, and wakes and calls who waits.
    pub(crate) fn synced(&self, durable: Seq, took: Duration) {
        let mut line = self.lock();
        if let Some(since) = line.syncing.take().and_then(|syncing| syncing.since) {
            line.counts.ages.add(since.elapsed());
        }
        line.counts.durable = durable;
        line.counts.syncs += 1;
        line.counts.sync_last = took;
        line.counts.sync_max = line.counts.sync_max.max(took);
        line.wanted = match line.wanted {
            Some((_, last)) if last > durable => Some((durable.next(), last)),
            _ => None,
        };
        self.wake(&mut line);
        drop(line);
        self.done.notify_all();
        self.call_durable(Some(durable));
    }

    /// Learns that nothing more gets to stable storage; the writer is told.
    pub(crate) fn broken(&self, cause: JournalError) {
        let mut line = self.lock();
        line.broken.get_or_insert(cause);
        self.wake(&mut line);
    }

    /// Returns what [`broken`](Self::broken) was told, once.
    pub(crate) fn why_broken(&self) -> Option<JournalError> {
        self.lock().broken.take()
    }

    /// Returns the age of the oldest record that is not on stable storage; zero without one.
    pub(crate) fn unsynced_age(&self) -> Duration {
        let line = self.lock();
        let syncing = line.syncing.and_then(|syncing| syncing.since);
        let written = syncing.or(line.dirty_since);
        let since = written.or_else(|| line.waiting.front().map(|draft| draft.since));
        since.map_or(Duration::ZERO, |since| since.elapsed())
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

impl Line {
    /// Notes that a sync of everything written is under way.
    fn begin_sync(&mut self, now: Instant) -> Work {
        let since = self.dirty_since.take();
        self.syncing = Some(Syncing { since });
        self.sync_began = Some(now);
        Work::Sync(self.written)
    }
}
