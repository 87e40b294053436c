//! When writes are acknowledged and synced: what the machine's description says, else the options.
//!
//! Read anew for every write and every sync, and replaced while a recording runs. Whoever changes it wakes the
//! writer, which may be waiting for a later moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::options::{AckRule, Options};
use crate::bounds::FRAME_LINGER;
use crate::machine::MachineDescription;

/// When writes are acknowledged and synced, for whoever takes and writes them.
#[derive(Debug)]
pub(crate) struct Pace {
    durable: AtomicBool,
    flush_ns: AtomicU64,
}

impl Pace {
    /// Takes what `description` says, else what `options` say.
    pub(crate) fn new(options: &Options, description: &MachineDescription) -> Pace {
        let pace = Pace {
            durable: AtomicBool::new(false),
            flush_ns: AtomicU64::new(0),
        };
        pace.set(options, description);
        pace
    }

    /// Replaces it; true when something has changed.
    pub(crate) fn set(&self, options: &Options, description: &MachineDescription) -> bool {
        let rule = description.ack.unwrap_or(options.ack_rule);
        let own = description.flush_interval_ms.map(Duration::from_millis);
        let flush = own.unwrap_or(options.flush_interval);
        let flush_ns = u64::try_from(flush.as_nanos()).unwrap_or(u64::MAX);
        let durable = rule == AckRule::Durable;
        let was_durable = self.durable.swap(durable, Ordering::SeqCst);
        let was_ns = self.flush_ns.swap(flush_ns, Ordering::SeqCst);
        (was_durable, was_ns) != (durable, flush_ns)
    }

    /// Returns when a write may be acknowledged.
    pub(crate) fn ack_rule(&self) -> AckRule {
        if self.durable.load(Ordering::SeqCst) {
            AckRule::Durable
        } else {
            AckRule::Buffered
        }
    }

    /// Returns the longest time a buffered write waits for its sync.
    pub(crate) fn flush_interval(&self) -> Duration {
        Duration::from_nanos(self.flush_ns.load(Ordering::SeqCst))
    }

    /// Returns how long a record waits for company in its frame.
    pub(crate) fn linger(&self) -> Duration {
        match self.ack_rule() {
            AckRule::Buffered => FRAME_LINGER,
            AckRule::Durable => Duration::ZERO,
        }
    }
}
