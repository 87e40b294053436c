//! The step that verifies what is kept, some of it in each round, so that everything is verified within the configured time.
//!
//! A round reads as much as its share of that time demands; with a file it began it goes on to the end. What is found
//! damaged is kept in the harbor, which marks the points, and is told as an alert; what the live disks have of it is had
//! again from them. Files in which a view came upon damage are verified first.

use std::{sync::Mutex, time::Duration};

use cdp_core::{HarborError, Scope, Timestamp, Usage};

use super::{Round, pacer::Pacer};
use crate::{
    api::{ApiErrorKind, ApiResult},
    engine::{
        errors::from_harbor,
        guard, live,
        machine::{State, now},
    },
};

/// So much sooner than it must be it is to be done with everything: a round may be left out.
const AHEAD: u32 = 2;

/// Verifies what was not verified for longest.
pub(super) fn run(round: &Round) -> ApiResult<()> {
    let (interval, harbor) = (round.tidy.scrub_interval, &round.harbor);
    if harbor.has_suspects() {
        let scope = Scope {
            suspects: true,
            // By one thread, as all that is done in the background.
            bytes: Some(u64::MAX),
            not_since: None,
        };
        verify(round, scope)?;
    }
    if !interval.is_zero() {
        verify_some(round, interval)?;
    }
    heal(round)
}

/// Has what was found damaged again from the live disks, once for what was found.
fn heal(round: &Round) -> ApiResult<()> {
    let Some(machine) = round.theirs.upgrade() else {
        return Ok(());
    };
    let damage = round.harbor.damage();
    if machine.status().state != State::Protected || !machine.is_new_damage(&damage) {
        return Ok(());
    }
    let pacer = Mutex::new(Pacer::new(round));
    let healed = live::heal(&machine, &|bytes| guard(&pacer).take(bytes).is_continue());
    match healed {
        // What is found from now on is another thing.
        Ok(_) => machine.note_healing(round.harbor.damage()),
        // The round is over, the capture has ended, or somebody else compares: the next round tries it again.
        Err(error) if error.kind == ApiErrorKind::FailedPrecondition => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Verifies the share of a round.
fn verify_some(round: &Round, interval: Duration) -> ApiResult<()> {
    let harbor = &round.harbor;
    let usage = harbor.usage().map_err(from_harbor)?;
    let scope = Scope {
        not_since: Some(since(now(), interval / AHEAD)),
        suspects: false,
        bytes: Some(slice(usage, round.tidy.interval, interval / AHEAD)),
    };
    verify(round, scope)
}

fn verify(round: &Round, scope: Scope) -> ApiResult<()> {
    let mut pacer = Pacer::new(round);
    let done = round
        .harbor
        .verify(scope, &mut |told| pacer.take(told.read));
    let report = match done {
        Ok(report) => report,
        Err(HarborError::Cancelled | HarborError::Busy(_)) => return Ok(()),
        Err(error) => return Err(from_harbor(error)),
    };
    for finding in &report.findings {
        tracing::error!(
            machine = round.machine,
            file = finding.file,
            what = finding.what,
            costs = ?finding.costs,
            "damage found"
        );
    }
    Ok(())
}

fn since(now: Timestamp, ago: Duration) -> Timestamp {
    let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
    Timestamp(now.0.saturating_sub(ago))
}

/// Returns the bytes that are to be read in a round for all to be read within a time; never none.
fn slice(usage: Usage, round: Duration, within: Duration) -> u64 {
    let all = u128::from(usage.journal_bytes) + u128::from(usage.base_bytes);
    let share = all * round.as_millis() / within.as_millis().max(1);
    u64::try_from(share).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_reads_its_share() {
        let usage = |journal_bytes, base_bytes| Usage {
            journal_bytes,
            base_bytes,
        };
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let table = [
            (usage(600, 0), hour, 10),
            (usage(300, 300), hour, 10),
            (usage(0, 0), hour, 1),
            (usage(600, 0), Duration::ZERO, 600 * 60_000),
            (
                usage(u64::MAX, u64::MAX),
                Duration::from_millis(1),
                u64::MAX,
            ),
        ];
        for (usage, within, expected) in table {
            assert_eq!(
                slice(usage, minute, within),
                expected,
                "{usage:?} {within:?}"
            );
        }
        assert_eq!(
            since(Timestamp(5_000_000_000), Duration::from_secs(2)),
            Timestamp(3_000_000_000)
        );
    }
}
