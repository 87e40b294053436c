//! What the user wants of a machine, kept in its description.

use std::time::Instant;

use cdp_core::Mode;

use super::{End, RETRY_FIRST, Supervisor};
use crate::{
    api::ApiResult,
    engine::{errors::from_harbor, machine::State, pace::PaceWish},
};

impl Supervisor {
    /// Takes up, suspends or ends the protection.
    pub(super) fn set_mode(&mut self, mode: Mode) -> ApiResult<()> {
        let harbor = self.harbor();
        let mut description = harbor.description();
        if description.mode == mode {
            return Ok(());
        }
        description.mode = mode;
        harbor.set_description(description).map_err(from_harbor)?;
        match mode {
            Mode::Active => {
                self.machine.set_state(State::Starting, "");
                self.pause = RETRY_FIRST;
                self.look_at = Instant::now();
            }
            Mode::Suspended => {
                self.put_down(End::Suspended);
                self.setting.source.release();
                self.machine.set_state(State::Suspended, "");
            }
            Mode::Released => {
                self.put_down(End::Suspended);
                self.remove_bitmaps();
                self.setting.source.release();
                self.machine.set_state(State::Unprotected, "");
            }
        }
        Ok(())
    }

    /// Changes ack rule and flush interval, of the recording that runs too; returns what puts them back.
    pub(super) fn set_pace(&self, wish: PaceWish) -> ApiResult<PaceWish> {
        let harbor = self.harbor();
        let mut description = harbor.description();
        let before = wish.apply(&mut description);
        harbor.set_description(description).map_err(from_harbor)?;
        tracing::info!(
            machine = self.machine.name,
            ack = ?harbor.ack_rule(),
            flush_interval = ?harbor.flush_interval(),
            "ack rule and flush interval"
        );
        Ok(before)
    }
}
