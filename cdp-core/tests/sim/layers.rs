//! Layers are built and merged in between, as of any point that the newest ones are not behind.

use std::ops::ControlFlow;

use cdp_core::bounds::LAYERS_MAX;
use cdp_core::{Clusters, HarborError, PointId, Seq, VolumeId};

use crate::history::{Base, Told};
use crate::keeping::pass;
use crate::world::{Step, World, wrong};

impl World {
    /// The records of the layers that the harbor has of a volume.
    fn found_layers(&self, volume: usize) -> Step<Vec<u64>> {
        let layers = self.harbor()?.base_points(VolumeId(volume as u16));
        Ok(layers.iter().map(|layer| layer.seq.0).collect())
    }

    /// Builds the layers of some of the last points, one after the other.
    pub(crate) fn build_layers(&mut self) -> Step {
        let count = self.history.points().len();
        let first = count.saturating_sub(1 + self.chance.below(7) as usize);
        for at in first..count {
            self.build_layer(at)?;
        }
        Ok(())
    }

    /// Builds the layers of one point.
    fn build_layer(&mut self, at: usize) -> Step {
        let points = self.history.points();
        let Some(point) = points.get(at) else {
            return Ok(());
        };
        let Told::Point { id, .. } = point.told else {
            return wrong("a point that is none");
        };
        let (id, seq, disks) = (*id, point.seq, point.disks.clone());
        self.tell(format!("layers of point {id} at record {seq}"));
        let harbor = self.harbor()?;
        for (volume, content) in disks.iter().enumerate() {
            if self
                .found_layers(volume)?
                .iter()
                .any(|newest| *newest > seq)
            {
                return match harbor.build_base(PointId(id), &mut |_| ControlFlow::Continue(())) {
                    Err(HarborError::BehindBase { .. }) => Ok(()),
                    other => wrong(format!("layers before the newest ones: {other:?}")),
                };
            }
            let is_known = |base: &Base| base.volume == volume && base.seq == seq;
            if !self.history.bases.iter().any(is_known) {
                self.history.bases.push(Base {
                    volume,
                    seq,
                    content: content.clone(),
                    is_promised: false,
                });
            }
        }
        let mut left = self.patience();
        let built = harbor.build_base(PointId(id), &mut |_| pass(&mut left));
        if matches!(built, Err(HarborError::Cancelled)) {
            self.tell("building was called off");
            return self.promise_found();
        }
        let built = built.map_err(|error| self.failed("layers", &error))?;
        self.count("layers built", built.len() as u64);
        for base in self.history.bases.iter_mut().filter(|base| base.seq == seq) {
            base.is_promised = true;
        }
        Ok(())
    }

    /// Merges layers; all points that are offered are kept.
    pub(crate) fn merge_layers(&mut self) -> Step {
        let harbor = self.harbor()?;
        // The oldest point that is offered, as it is in use, or less.
        let Some(Seq(first_kept)) = harbor.first_kept() else {
            return Ok(());
        };
        let first_kept = match self.chance.below(4) {
            0 => self.chance.below(first_kept),
            _ => first_kept,
        };
        let clusters = match self.chance.below(2) {
            0 => Clusters::Plain,
            _ => Clusters::Compressed,
        };
        self.tell(format!(
            "merge, kept from record {first_kept}, {clusters:?}"
        ));
        let mut left = self.patience();
        let merged = harbor.merge_bases(Seq(first_kept), clusters, &mut |_| pass(&mut left));
        // Which of them are left is the harbor's to say, also where the power is cut in between.
        for base in &mut self.history.bases {
            base.is_promised = false;
        }
        let is_done = merged.is_ok();
        let outcome = match merged {
            Err(HarborError::Cancelled) => {
                self.tell("merging was called off");
                Ok(())
            }
            Ok(merged) => {
                self.tell(format!("merged: {merged:?}"));
                self.count("layers merged", merged.len() as u64);
                Ok(())
            }
            Err(error) => Err(self.failed("a merge", &error)),
        };
        if self.storage.is_cut() {
            return outcome;
        }
        self.promise_found()?;
        for volume in 0..self.history.sizes.len() {
            let count = self.found_layers(volume)?.len();
            if is_done && count > LAYERS_MAX {
                return wrong(format!("{count} layers are left"));
            }
        }
        outcome
    }

    /// Takes the layers that are there for promised, and no others.
    pub(crate) fn promise_found(&mut self) -> Step {
        for volume in 0..self.history.sizes.len() {
            let found = self.found_layers(volume)?;
            let bases = self.history.bases.iter_mut();
            for base in bases.filter(|base| base.volume == volume) {
                base.is_promised = found.contains(&base.seq);
            }
        }
        Ok(())
    }
}
