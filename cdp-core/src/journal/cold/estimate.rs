//! What compaction would leave out, without doing it.
//!
//! The same [`choose`] and the same records are gone through as when cold segments are made, one run of segments after the
//! other, so the memory is that of one making. What a record takes in a cold segment depends on how its neighbours
//! compress: each is counted with its share of its segment.

use std::collections::HashSet;
use std::sync::Arc;

use super::choose::choose;
use super::compact::{Records, Source, candidates};
use crate::bounds::SECTOR;
use crate::error::Result;
use crate::format::{COLD_END_LEN, ColdFooter, RECORD_LEN, Record};
use crate::harbor::Freed;
use crate::harbor::shared::Shared;
use crate::journal::segment::Segment;
use crate::point::{PointId, Seq};

/// How many of so many bytes of payload are stored.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    stored: u64,
    of: u64,
}

impl Share {
    fn of_cold(footer: &ColdFooter) -> Share {
        Share {
            stored: footer.table.saturating_sub(COLD_END_LEN as u64),
            of: footer.space,
        }
    }

    /// Returns what a record takes, in bytes; its payload as it is where nothing is known.
    fn bytes(self, record: &Record) -> u64 {
        let payload = u64::from(record.payload_length).next_multiple_of(SECTOR as u64);
        let stored = match self.of {
            0 => payload,
            of => (u128::from(payload) * u128::from(self.stored) / u128::from(of)) as u64,
        };
        stored + RECORD_LEN as u64
    }
}

/// Returns what there is to gain if the points `gone` of those that are `kept`, in order, were deleted.
///
/// What is not cold yet is counted as if it compressed as the cold segments do, and its compression is no gain.
pub(crate) fn gain(
    shared: &Shared,
    kept: &[(PointId, Seq)],
    gone: &HashSet<PointId>,
) -> Result<Freed> {
    let segments = shared.catalog().segments.clone();
    let estimate = Estimate {
        shared,
        usual: usual_share(&segments),
        segments,
    };
    let seqs = |points: &[(PointId, Seq)]| points.iter().map(|(_, seq)| *seq).collect::<Vec<Seq>>();
    let is_going = |point: &(PointId, Seq)| gone.contains(&point.0);
    let (going, rest): (Vec<_>, Vec<_>) = kept.iter().copied().partition(is_going);
    let base = shared.newest_common_base();
    let (now, _) = estimate.due(kept, base)?;
    let (then, mut made) = estimate.due(&rest, base)?;
    let soon = then.saturating_sub(now);
    let mut later = 0;
    if going.last().is_some_and(|(_, seq)| Some(*seq) > base) {
        // As if there were a base point behind all that is sealed.
        let end = Some(Seq(u64::MAX));
        let (now, _) = estimate.due(kept, end)?;
        let (then, all) = estimate.due(&rest, end)?;
        later = then.saturating_sub(now).saturating_sub(soon);
        made = all;
    }
    later += estimate.not_due(&made, &seqs(&going), &seqs(kept), &seqs(&rest))?;
    Ok(Freed { soon, later })
}

/// The journal as it is estimated.
struct Estimate<'a> {
    shared: &'a Shared,
    segments: Vec<Arc<Segment>>,
    /// Of all cold segments together.
    usual: Share,
}

impl Estimate<'_> {
    /// Returns how many bytes compaction would leave out for points at the records `kept`, if the newest base points were
    /// at record `base`, and which segments it would make anew.
    fn due(&self, kept: &[(PointId, Seq)], base: Option<Seq>) -> Result<(u64, Vec<bool>)> {
        let mut candidates = candidates(self.shared, &self.segments, kept, base)?;
        let seqs: Vec<Seq> = kept.iter().map(|(_, seq)| *seq).collect();
        let mut made = vec![false; self.segments.len()];
        let mut bytes = 0;
        while let Some(run) = choose(&candidates) {
            for one in candidates.get_mut(run.clone()).unwrap_or_default() {
                // What is made of it is not worth it again.
                one.eligible = false;
            }
            made.get_mut(run.clone()).unwrap_or_default().fill(true);
            let run = self.segments.get(run).unwrap_or_default();
            bytes += self.left_out_of(run, &seqs)?;
        }
        Ok((bytes, made))
    }

    /// Returns how many bytes more would be left out of the segments that are not `made` anew yet and have points that
    /// are `going`, each by itself.
    fn not_due(&self, made: &[bool], going: &[Seq], before: &[Seq], after: &[Seq]) -> Result<u64> {
        let mut bytes = 0;
        for (segment, made) in self.segments.iter().zip(made) {
            let from = going.partition_point(|seq| *seq < segment.first_seq);
            let is_touched = going
                .get(from)
                .is_some_and(|seq| *seq <= segment.last_seq());
            if *made || !is_touched || !segment.is_sealed() {
                continue;
            }
            let run = std::slice::from_ref(segment);
            let (now, then) = (
                self.left_out_of(run, before)?,
                self.left_out_of(run, after)?,
            );
            bytes += then.saturating_sub(now);
        }
        Ok(bytes)
    }

    /// Returns how many bytes of some segments would be left out if they were made into one.
    fn left_out_of(&self, run: &[Arc<Segment>], kept: &[Seq]) -> Result<u64> {
        let records = Records::read(&open(self.shared, run)?)?;
        let taken = |records: &Records| {
            let all = records.data.iter().chain(&records.others);
            all.map(|one| self.share(run.get(one.source)).bytes(&one.record))
                .sum::<u64>()
        };
        let before = taken(&records);
        let after = taken(&records.leave_out(&self.shared.oldest_bases(), kept));
        Ok(before.saturating_sub(after))
    }

    fn share(&self, segment: Option<&Arc<Segment>>) -> Share {
        let footer = segment.and_then(|segment| segment.cold());
        footer.map_or(self.usual, Share::of_cold)
    }
}

/// Returns the share of the harbor's cold segments together.
fn usual_share(segments: &[Arc<Segment>]) -> Share {
    let cold = segments.iter().filter_map(|segment| segment.cold());
    cold.map(Share::of_cold)
        .fold(Share::default(), |all, one| Share {
            stored: all.stored + one.stored,
            of: all.of + one.of,
        })
}

/// Opens the segments of a run.
fn open(shared: &Shared, run: &[Arc<Segment>]) -> Result<Vec<Source>> {
    let _no_removal = shared.keep_segments();
    let storage = &*shared.options.storage;
    run.iter()
        .map(|segment| Ok((Arc::clone(segment), segment.open(storage)?)))
        .collect()
}
