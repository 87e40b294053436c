//! How a harbor is worked with.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounds::{
    BUFFER_BUDGET_DEFAULT, BUFFER_BUDGET_MAX, BUFFER_BUDGET_MIN, FLUSH_INTERVAL_DEFAULT,
    FLUSH_INTERVAL_MAX, SEGMENT_DEFAULT, SEGMENT_MAX, SEGMENT_MIN,
};
use crate::clock::{Clock, SystemClock};
use crate::error::{HarborError, Result};
use crate::storage::{RealStorage, Storage};

/// Tells when a write may be acknowledged to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AckRule {
    /// From the IO buffer; on stable storage within the flush interval.
    #[default]
    Buffered,
    /// After the journal's sync (group commit).
    Durable,
}

/// How a harbor is worked with; nothing of it is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// When a write may be acknowledged.
    pub ack_rule: AckRule,
    /// Longest time a buffered write waits for its sync.
    pub flush_interval: Duration,
    /// Bytes of the IO buffer.
    pub buffer_bytes: usize,
    /// Length at which a segment is sealed.
    pub segment_bytes: u64,
    /// Bytes of the file system that reserved room must leave free; at most a tenth of it counts.
    pub kept_free: u64,
    /// The door to the storage.
    pub storage: Arc<dyn Storage>,
    /// The door to the clock.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ack_rule: AckRule::Buffered,
            flush_interval: FLUSH_INTERVAL_DEFAULT,
            buffer_bytes: BUFFER_BUDGET_DEFAULT,
            segment_bytes: SEGMENT_DEFAULT,
            kept_free: 0,
            storage: Arc::new(RealStorage),
            clock: Arc::new(SystemClock),
        }
    }
}

impl Options {
    /// Checks every option against its bounds.
    ///
    /// # Errors
    /// [`HarborError::InvalidOption`] names the option.
    pub fn validate(&self) -> Result<()> {
        if !(BUFFER_BUDGET_MIN..=BUFFER_BUDGET_MAX).contains(&self.buffer_bytes) {
            let why = format!("{BUFFER_BUDGET_MIN} to {BUFFER_BUDGET_MAX} bytes");
            return Err(HarborError::InvalidOption {
                name: "buffer_bytes",
                why,
            });
        }
        if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&self.segment_bytes) {
            let why = format!("{SEGMENT_MIN} to {SEGMENT_MAX} bytes");
            return Err(HarborError::InvalidOption {
                name: "segment_bytes",
                why,
            });
        }
        if self.flush_interval > FLUSH_INTERVAL_MAX {
            let why = format!("at most {FLUSH_INTERVAL_MAX:?}");
            return Err(HarborError::InvalidOption {
                name: "flush_interval",
                why,
            });
        }
        Ok(())
    }
}
