//! Layers are built and merged in between, as of any point that the newest ones are not behind.

use std::ops::ControlFlow;

use cdp_core::bounds::LAYERS_MAX;
use cdp_core::{Clusters, HarborError, PointId, Progress, Seq, VolumeId};

use crate::history::{Base, Told};
use crate::world::{Step, World, wrong};

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

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
                return match harbor.build_base(PointId(id), &mut go_on) {
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
        let built = harbor.build_base(PointId(id), &mut go_on);
        built.map_err(|error| self.failed("layers", &error))?;
        for base in self.history.bases.iter_mut().filter(|base| base.seq == seq) {
            base.is_promised = true;
        }
        Ok(())
    }

    /// Merges layers; from some point on all are kept.
    pub(crate) fn merge_layers(&mut self) -> Step {
        let harbor = self.harbor()?;
        let points = self.history.points();
        let first_kept = match self.chance.below(3) {
            0 => None,
            _ => points
                .get(self.chance.below(points.len() as u64) as usize)
                .map(|p| p.seq),
        };
        let first_kept = first_kept.unwrap_or(0);
        let clusters = match self.chance.below(2) {
            0 => Clusters::Plain,
            _ => Clusters::Compressed,
        };
        self.tell(format!(
            "merge, kept from record {first_kept}, {clusters:?}"
        ));
        self.views
            .retain(|(view, _)| view.point().seq.0 >= first_kept);
        let before = self.history.first_valid().unwrap_or(0);
        self.history.kept_from = self.history.kept_from.max(before.max(first_kept));
        let merged = harbor.merge_bases(Seq(first_kept), clusters, &mut go_on);
        // Which of them are left is the harbor's to say, also where the power is cut in between.
        for base in &mut self.history.bases {
            base.is_promised = false;
        }
        let is_done = merged.is_ok();
        let outcome = merged.map_err(|error| self.failed("a merge", &error));
        if self.storage.is_cut() {
            return outcome.map(|_| ());
        }
        for volume in 0..self.history.sizes.len() {
            let found = self.found_layers(volume)?;
            if is_done && found.len() > LAYERS_MAX {
                return wrong(format!("{} layers are left", found.len()));
            }
            for base in self
                .history
                .bases
                .iter_mut()
                .filter(|base| base.volume == volume)
            {
                base.is_promised = found.contains(&base.seq);
            }
        }
        self.check_kept()?;
        outcome.map(|_| ())
    }

    /// Checks that merging has taken no point that is kept.
    pub(crate) fn check_kept(&self) -> Step {
        let (first, kept) = (self.history.first_valid(), self.history.kept_from);
        match first {
            Some(first) if first > kept && kept > 0 => wrong(format!(
                "there are no points before record {first}, though they are kept from {kept}"
            )),
            _ => Ok(()),
        }
    }
}
