//! A capture that ends before the file system is full, and begins again when there is room.
//!
//! Invariant: what is waited for is known without asking the file system, which may not answer.

use std::time::Instant;

use super::{End, RETRY_FIRST, RETRY_MAX, Supervisor};
use crate::engine::{machine::State, room::Low};

impl Supervisor {
    /// Ends the capture if room is low; true when it did.
    pub(super) fn yields_room(&mut self) -> bool {
        let is_ready = self.capture.as_ref().is_some_and(|active| active.ready);
        let Some(low) = self.setting.room.to_yield(is_ready) else {
            return false;
        };
        tracing::warn!(machine = self.machine.name, "the capture ends: {low}");
        self.put_down(End::DiskFull);
        self.machine.set_state(State::Failed, &low.to_string());
        // A seed or resync that runs out of room again and again is tried less and less often.
        self.look_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
        true
    }

    /// Begins no capture while room is low; it is looked for again soon.
    pub(super) fn wait_for_room(&mut self, low: &Low) {
        self.machine.set_state(State::Failed, &low.to_string());
        self.look_at = Instant::now() + RETRY_FIRST;
    }
}
