//! How the user wants a machine's writes to be kept, as its description says.

use super::Supervisor;
use crate::{
    api::ApiResult,
    engine::{errors::from_harbor, pace::PaceWish},
};

impl Supervisor {
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
