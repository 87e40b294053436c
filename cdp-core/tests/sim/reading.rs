//! What reads the live disks while the guest writes on: the seed of a base point, and the resync.

use cdp_core::{Seq, VolumeId};

use crate::history::{Base, Told};
use crate::world::{Step, World};

impl World {
    /// Reads the live disks while the guest writes on, and closes the gap.
    pub(crate) fn heal(&mut self) -> Step {
        for volume in 0..self.history.sizes.len() {
            self.resync(volume)?;
        }
        self.sync()?;
        let recorder = self.recorder()?;
        let before = recorder.head().0;
        let is_open = self.history.open_gap().is_some();
        self.tell("gap closed");
        let closed = recorder.close_gap();
        self.enter(
            before,
            if is_open {
                vec![Told::GapClose]
            } else {
                Vec::new()
            },
            closed.is_ok(),
        )?;
        closed.map_err(|error| self.failed("closing a gap", &error))?;
        self.promise_all();
        self.is_missing_writes = false;
        Ok(())
    }

    fn resync(&mut self, volume: usize) -> Step {
        self.tell(format!("resync of volume {volume}"));
        let kept = self.harbor()?.latest_image(VolumeId(volume as u16));
        let kept = kept.map_err(|error| self.failed("the latest image", &error))?;
        let handle = self.volume(volume)?;
        let size = self.history.sizes[volume];
        let mut at = 0;
        while at < size {
            let len = (1 + self.chance.below(64) as usize) * 512;
            let range = at..size.min(at + len);
            at = range.end;
            handle.announce(range.start as u64..range.end as u64);
            self.untouchable.begin(volume, size);
            let read = self.live[volume][range.clone()].to_vec();
            if self.chance.once_in(3) {
                self.guest_writes()?;
            }
            let mut held = vec![0; read.len()];
            kept.read_at(&mut held, range.start as u64)
                .map_err(|error| self.failed("the latest image", &error))?;
            if held != read {
                self.take_read(volume, range.start, &read)?;
            }
        }
        handle.end_resync();
        self.untouchable.end(volume);
        Ok(())
    }

    fn take_read(&mut self, volume: usize, offset: usize, read: &[u8]) -> Step {
        let (recorder, handle) = (self.recorder()?, self.volume(volume)?);
        let before = recorder.head().0;
        let parts = self.untouchable.free(volume, offset..offset + read.len());
        let told = parts.into_iter().map(|part| Told::Data {
            volume,
            offset: part.start,
            bytes: read[part.start - offset..part.end - offset].to_vec(),
        });
        let told = told.collect();
        let taken = if read.iter().all(|byte| *byte == 0) {
            handle.resync_zero(offset as u64, read.len() as u64)
        } else {
            handle.resync_data(offset as u64, read)
        };
        self.enter(before, told, taken.is_ok())?;
        taken
            .map(|_| ())
            .map_err(|error| self.failed("a resync", &error))
    }

    pub(crate) fn seed_one(&mut self) -> Step {
        if self.is_missing_writes {
            return Ok(());
        }
        let volume = self.any_volume();
        self.seed(volume)
    }

    /// Writes a base point from the live disk while the guest writes on.
    pub(crate) fn seed(&mut self, volume: usize) -> Step {
        self.tell(format!("seed of volume {volume}"));
        let mut seed = self
            .harbor()?
            .seed(VolumeId(volume as u16))
            .map_err(|error| self.failed("a seed", &error))?;
        let size = self.history.sizes[volume];
        let mut at = 0;
        while at < size {
            let len = (1 + self.chance.below(128) as usize) * 512;
            let range = at..size.min(at + len);
            at = range.end;
            let read = self.live[volume][range.clone()].to_vec();
            if self.chance.once_in(3) {
                self.guest_writes()?;
            }
            seed.data(range.start as u64, &read)
                .map_err(|error| self.failed("a seed", &error))?;
        }
        self.sync()?;
        let base = Base {
            volume,
            seq: self.history.head(),
            content: self.live[volume].clone(),
            is_promised: false,
        };
        if self.chance.once_in(3) {
            self.guest_writes()?;
        }
        let (seq, content) = (Seq(base.seq), base.content.clone());
        let is_known = |known: &Base| known.volume == volume && known.seq == base.seq;
        if !self.history.bases.iter().any(is_known) {
            self.history.bases.push(base);
        }
        let finished = seed
            .finish(seq)
            .map_err(|error| self.failed("a seed", &error));
        if finished.is_ok()
            && let Some(base) = self
                .history
                .bases
                .iter_mut()
                .find(|b| b.volume == volume && b.seq == seq.0)
        {
            base.is_promised = true;
            // A seed that is made again after a crash may have the number of the one before, and takes its place.
            base.content = content;
        }
        if finished.is_ok() {
            self.history.note_first_offered();
        }
        finished.map(|_| ())
    }
}
