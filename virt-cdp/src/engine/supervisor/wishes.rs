//! How the user wants a machine's writes to be kept, as its description says.

use super::Supervisor;
use crate::{
    api::ApiResult,
    engine::{errors::from_harbor, pace::PaceWish},
};

impl Supervisor {
    /// Changes ack rule and flush interval, of the recording that runs too; returns what puts them back.
    pub(super) fn set_pace(&mut self, wish: PaceWish) -> ApiResult<PaceWish> {
        let harbor = self.harbor();
        let before = wish.apply(&mut harbor.description());
        let theirs = harbor.clone();
        self.on_disk("it is changed once it does", move || {
            let changed = theirs.update_description(|description| {
                wish.apply(description);
            });
            changed.map_err(from_harbor)
        })?;
        tracing::info!(
            machine = self.machine.name,
            ack = ?harbor.ack_rule(),
            flush_interval = ?harbor.flush_interval(),
            "ack rule and flush interval"
        );
        Ok(before)
    }
}
