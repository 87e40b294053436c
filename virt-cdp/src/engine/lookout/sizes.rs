//! What the harbors take, asked of their disks by a thread of its own, which may have to wait for them.
//!
//! Whoever wants to know reads the last answer, and can tell from its age that a disk does not answer. One harbor after
//! the other is measured, with pauses that keep it to a small part of the time however many files there are.
//!
//! Invariant: nobody else waits for a disk because of it.

use std::{
    io,
    sync::{Arc, Mutex, Weak},
    thread,
    time::{Duration, Instant},
};

use cdp_core::Usage;

use crate::engine::{guard, machine::Machine};

/// The least time between two measurements.
const PAUSE: Duration = Duration::from_secs(10);
/// How often it is looked whether the machines are still there meanwhile.
const STEP: Duration = Duration::from_millis(250);
/// A measurement is followed by at least this many times of what it took.
const REST: u32 = 20;

/// What a harbor took when it was last measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// When that was.
    pub(crate) at: Instant,
    /// What it took.
    pub(crate) usage: Usage,
    /// Of that, room in which nothing stands yet.
    pub(crate) unwritten: u64,
}

impl Sizes {
    /// Returns what is kept, without room for what comes next.
    pub(crate) fn kept(&self) -> u64 {
        let all = self
            .usage
            .journal_bytes
            .saturating_add(self.usage.base_bytes);
        all.saturating_sub(self.unwritten)
    }
}

/// The thread that measures, as others see it.
#[derive(Debug, Default)]
pub(crate) struct Measuring {
    /// Since when a harbor is being measured, and whose.
    under_way: Mutex<Option<(Instant, String)>>,
}

impl Measuring {
    /// Starts to measure the machines that `machines` lists, until it lists none for good.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn start(
        machines: impl Fn() -> Option<Vec<Arc<Machine>>> + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let measuring = Arc::new(Self::default());
        let theirs = Arc::downgrade(&measuring);
        thread::Builder::new()
            .name("sizes".into())
            .spawn(move || measure(&theirs, machines))?;
        Ok(measuring)
    }

    /// Returns whose disk has not answered for longer than `limit`, and for how long.
    pub(crate) fn waits(&self, now: Instant, limit: Duration) -> Option<(String, Duration)> {
        let under_way = guard(&self.under_way).clone();
        let (since, machine) = under_way?;
        let waited = now.saturating_duration_since(since);
        (waited > limit).then_some((machine, waited))
    }

    fn begin(&self, machine: Option<&Machine>) {
        let begun = machine.map(|machine| (Instant::now(), machine.name.clone()));
        *guard(&self.under_way) = begun;
    }
}

fn measure(
    measuring: &Weak<Measuring>,
    machines: impl Fn() -> Option<Vec<Arc<Machine>>> + Send + 'static,
) {
    while let Some(all) = machines() {
        let begun = Instant::now();
        for machine in &all {
            let Some(measuring) = measuring.upgrade() else {
                return;
            };
            measuring.begin(Some(machine));
            let harbor = machine.harbor();
            let found = harbor
                .usage()
                .and_then(|usage| Ok((usage, harbor.unwritten_bytes()?)));
            measuring.begin(None);
            match found {
                Ok((usage, unwritten)) => machine.note_sizes(Sizes {
                    at: Instant::now(),
                    usage,
                    unwritten,
                }),
                // A file that was just removed; the next time it is not asked for.
                Err(error) => {
                    tracing::debug!(machine = machine.name, %error, "its harbor is not measured");
                }
            }
        }
        let first_of_any = all.iter().any(|machine| machine.sizes().is_none());
        drop(all);
        let rest = (begun.elapsed() * REST).max(PAUSE);
        let until = Instant::now() + if first_of_any { STEP } else { rest };
        while Instant::now() < until {
            thread::sleep(STEP);
            let Some(all) = machines() else { return };
            // One that has just come is not kept waiting.
            if all.iter().any(|machine| machine.sizes().is_none()) {
                break;
            }
        }
    }
}
