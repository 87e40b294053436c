//! The step that lets go of points that the machine's policy does not want.

use super::Round;
use crate::{
    api::ApiResult,
    engine::{errors::from_harbor, machine::now},
};

/// Runs the policy once.
pub(super) fn run(round: &Round) -> ApiResult<()> {
    let Some(in_force) = &round.in_force else {
        return Ok(());
    };
    let keep = &in_force.policy.keep;
    let went = round
        .harbor
        .apply_policy(keep, now())
        .map_err(from_harbor)?;
    if let (Some(first), Some(last)) = (went.first(), went.last()) {
        tracing::debug!(
            machine = round.machine,
            points = went.len(),
            first = first.id.0,
            last = last.id.0,
            "points removed by policy"
        );
    }
    Ok(())
}
