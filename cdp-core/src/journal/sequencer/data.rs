//! What changes volumes: the guest's writes, and what is read from the live disk after a gap.
//!
//! Invariant: what was read never covers what the stream wrote since the reading began.

use std::ops::Range;

use super::Sequencer;
use crate::buffer::{IoBuf, Room};
use crate::error::Refused;
use crate::format::Kind;
use crate::journal::draft::{Payload, record_cost};
use crate::machine::VolumeId;
use crate::point::Seq;

impl Sequencer {
    /// Takes a guest write. `room` is what it takes of the budget, unless it has a buffer of its own; it is
    /// wanted on stable storage at once if `wanted`.
    pub(crate) fn take_write(
        &self,
        volume: VolumeId,
        kind: Kind,
        range: Range<u64>,
        (payload, room): (Payload<'_>, Option<Room>),
        wanted: bool,
    ) -> Result<Seq, Refused> {
        let mut line = self.lock();
        line.check_running()?;
        line.counts.writes += 1;
        line.counts.write_bytes += payload.len() as u64;
        if !line.windows.is_empty()
            && let Some(window) = line.windows.get_mut(&volume)
        {
            window.mark(range.clone());
        }
        let seq = self.push_data(&mut line, volume, kind, range, (payload, room));
        if wanted {
            self.want(&mut line, seq);
        }
        Ok(seq)
    }

    /// Takes what was read from the live disk, except where the stream wrote since its window was announced; returns
    /// the bytes taken.
    pub(crate) fn take_resync(
        &self,
        volume: VolumeId,
        kind: Kind,
        range: Range<u64>,
        data: Option<IoBuf>,
    ) -> Result<u64, Refused> {
        let mut line = self.lock();
        line.check_running()?;
        let window = line.windows.get(&volume);
        let parts = window
            .and_then(|window| window.untouched(range.clone()))
            .ok_or(Refused::NotAnnounced)?;
        match data {
            Some(data) if parts.first() == Some(&range) => {
                let carried = (Payload::Own(data), None);
                self.push_data(&mut line, volume, kind, range.clone(), carried);
            }
            Some(data) => {
                for part in &parts {
                    let within = part.start - range.start..part.end - range.start;
                    let carried = (Payload::Own(self.part_of(&data, within)), None);
                    self.push_data(&mut line, volume, kind, part.clone(), carried);
                }
            }
            None => {
                for part in &parts {
                    let carried = (Payload::None, Some(self.budget.force_room(record_cost(0))));
                    self.push_data(&mut line, volume, kind, part.clone(), carried);
                }
            }
        }
        Ok(parts.iter().map(|part| part.end - part.start).sum())
    }

    /// A copy of a part of a resync's payload; past the budget by one piece of a resync at most.
    fn part_of(&self, payload: &IoBuf, range: Range<u64>) -> IoBuf {
        let bytes = payload
            .as_ref()
            .get(range.start as usize..range.end as usize);
        let bytes = bytes.unwrap_or_default();
        let mut buf = self.budget.force(bytes.len());
        buf.as_mut().copy_from_slice(bytes);
        buf
    }
}
