//! The steps that turn the journal into base points, keep their chains short, and make what lies behind them small.

use std::time::Duration;

use cdp_core::{Clusters, HarborError, Point, Progress};

use super::{Round, pacer::Pacer};
use crate::{api::ApiResult, engine::errors::from_harbor};

/// Builds the next base point, of the newest recovery point, if it is due.
pub(super) fn build(round: &Round) -> ApiResult<()> {
    let Some(point) = due(round) else {
        return Ok(());
    };
    let Ok(_pin) = round.harbor.pin(point.id) else {
        return Ok(());
    };
    let mut pacer = Pacer::new(round);
    let built = round
        .harbor
        .build_base(point.id, &mut |progress| pacer.take(work(progress)));
    let built = settled(built)?.unwrap_or_default();
    if !built.is_empty() {
        let (machine, bytes) = (&round.machine, pacer.bytes());
        tracing::info!(machine, point = point.id.0, bytes, took = ?pacer.took(), "base point built");
    }
    Ok(())
}

/// Merges layers where a chain is too long, and goes on with what was not finished.
pub(super) fn merge(round: &Round) -> ApiResult<()> {
    let Some(first) = round.harbor.first_kept() else {
        return Ok(());
    };
    let clusters = match round.tidy.compress {
        true => Clusters::Compressed,
        false => Clusters::Plain,
    };
    let mut pacer = Pacer::new(round);
    let merged = round
        .harbor
        .merge_bases(first, clusters, &mut |progress| pacer.take(work(progress)));
    for one in settled(merged)?.unwrap_or_default() {
        tracing::info!(machine = round.machine, merged = ?one, took = ?pacer.took(), "layers merged");
    }
    round.harbor.remove_needless_segments();
    Ok(())
}

/// Makes cold segments of what lies behind the newest base points.
pub(super) fn compact(round: &Round) -> ApiResult<()> {
    let mut pacer = Pacer::new(round);
    loop {
        let done = round.harbor.compact(&mut |bytes| pacer.take(bytes));
        let Some(Some(done)) = settled(done)? else {
            return Ok(());
        };
        tracing::info!(
            machine = round.machine,
            files = done.files,
            bytes_before = done.bytes_before,
            bytes_after = done.bytes_after,
            dropped = done.dropped,
            "journal compacted"
        );
    }
}

/// Returns the point of which a base point is to be built now.
fn due(round: &Round) -> Option<Point> {
    let harbor = &round.harbor;
    let (since, newest) = (harbor.base_time()?, harbor.newest_point()?);
    let behind = harbor.journal_behind_base(newest.seq)?;
    let age = newest.time.0.saturating_sub(since.0);
    let is_old = Duration::from_nanos(age) >= round.tidy.base_interval;
    (behind > 0 && (is_old || behind >= round.tidy.base_journal)).then_some(newest)
}

fn work(progress: Progress) -> u64 {
    progress.read + progress.written
}

/// Takes work that was called off, or that somebody else does just now, for work to be done later.
fn settled<T>(done: cdp_core::error::Result<T>) -> ApiResult<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(HarborError::Cancelled | HarborError::Busy(_)) => Ok(None),
        Err(error) => Err(from_harbor(error)),
    }
}
