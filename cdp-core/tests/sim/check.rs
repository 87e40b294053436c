//! Compares what a harbor has with what the oracle says.

use cdp_core::qcow2::Chain;
use cdp_core::{Harbor, HarborError, Point, PointId, RecoveryReport, View, VolumeId, XmlVersion};

use crate::history::{Disks, Expected, Told};
use crate::said::Said;
use crate::world::{Step, Stop, World, wrong};

/// Points whose views are compared in a check that is not the last.
const VIEWS: usize = 6;

impl World {
    /// Checks what recovery found, cuts the history accordingly, and checks everything.
    pub(crate) fn check_recovered(&mut self, report: &RecoveryReport) -> Step {
        let (found, head) = (report.head.0, self.history.head());
        self.tell(format!(
            "recovered: head {found} of {head}, promised {}",
            self.history.promised
        ));
        if !report.damage.is_empty() {
            return wrong(format!("damage where there is none: {:?}", report.damage));
        }
        if found < self.history.promised || found > head {
            let promised = self.history.promised;
            return wrong(format!(
                "record {found} is the last; promised up to {promised}, given up to {head}"
            ));
        }
        self.is_missing_writes |= found < head;
        self.history.cut(found);
        self.check_bases()?;
        self.check_xml()?;
        self.settle_said()?;
        self.check(VIEWS)
    }

    /// Finds out which of the changes that failed, or were under way, have come to be.
    fn settle_said(&mut self) -> Step {
        let points = self.harbor()?.points();
        let history = &self.history;
        let is_found =
            |said: &Said| compare_points(&points, &history.points_by(said), said).is_ok();
        let possible = history.sayings.possible();
        // Otherwise the check that follows tells what is wrong.
        if let Some(found) = possible.into_iter().find(is_found) {
            self.history.sayings.settle(found);
        }
        Ok(())
    }

    /// Compares points, gaps, the newest content, and the views of up to `views` points.
    pub(crate) fn check(&mut self, views: usize) -> Step {
        let harbor = self.harbor()?;
        let points = harbor.points();
        let expected = self.history.points();
        compare_points(&points, &expected, self.history.sayings.now())?;
        let gaps: Vec<_> = harbor
            .gaps()
            .iter()
            .map(|gap| (gap.reason, gap.end.is_some()))
            .collect();
        let told = self.history.gaps();
        let missing = told.len().checked_sub(gaps.len());
        let may_miss = |missing: &usize| *missing <= self.history.gaps_forgotten();
        if missing.filter(may_miss).and_then(|count| told.get(count..)) != Some(&gaps) {
            return wrong(format!("gaps are {gaps:?}, not {told:?}"));
        }
        let mut wanted: Vec<usize> = (0..expected.len().min(views))
            .map(|back| expected.len() - 1 - back)
            .collect();
        if expected.len() > views {
            wanted = wanted.split_off(wanted.len() / 2);
            for _ in 0..views {
                wanted.push(self.chance.below(expected.len() as u64) as usize);
            }
        }
        for at in wanted {
            let view = harbor
                .view(points[at].id)
                .map_err(|e| without_reason("a view", &e))?;
            compare_view(&view, expected[at].disks)?;
        }
        self.check_latest(&harbor)
    }

    fn check_latest(&self, harbor: &Harbor) -> Step {
        if self
            .recorder
            .as_ref()
            .is_some_and(|recorder| recorder.failure().is_some())
        {
            return Ok(());
        }
        for (number, size) in self.history.sizes.iter().enumerate() {
            let volume = VolumeId(number as u16);
            let Some(expected) = self.history.volume(number) else {
                continue;
            };
            let image = harbor
                .latest_image(volume)
                .map_err(|e| without_reason("the latest image", &e))?;
            let mut found = vec![0xee; *size];
            image
                .read_at(&mut found, 0)
                .map_err(|e| without_reason("reading the latest image", &e))?;
            if found != expected {
                return wrong(format!(
                    "volume {number} as of record {}: {}",
                    image.seq(),
                    first_difference(&found, &expected)
                ));
            }
        }
        Ok(())
    }

    /// Base points that were promised are there; others may be, and then are for good.
    fn check_bases(&mut self) -> Step {
        let harbor = self.harbor()?;
        for volume in 0..self.history.sizes.len() {
            let found: Vec<u64> = harbor
                .base_points(VolumeId(volume as u16))
                .iter()
                .map(|base| base.seq.0)
                .collect();
            for base in self
                .history
                .bases
                .iter_mut()
                .filter(|base| base.volume == volume)
            {
                match found.contains(&base.seq) {
                    true => base.is_promised = true,
                    false if base.is_promised => {
                        return wrong(format!(
                            "the base point {} of volume {volume} is lost",
                            base.seq
                        ));
                    }
                    false => {}
                }
            }
            let known = |seq: &u64| {
                self.history
                    .bases
                    .iter()
                    .any(|base| base.volume == volume && base.seq == *seq)
            };
            if let Some(stranger) = found.iter().find(|seq| !known(seq)) {
                return wrong(format!(
                    "nobody made the base point {stranger} of volume {volume}"
                ));
            }
        }
        self.history.bases.retain(|base| base.is_promised);
        self.history.note_first_offered();
        self.check_layers()
    }

    /// Every layer shows what its record does, also below points that nobody keeps.
    fn check_layers(&self) -> Step {
        let harbor = self.harbor()?;
        for base in &self.history.bases {
            let layers = harbor.base_points(VolumeId(base.volume as u16));
            for layer in layers.iter().filter(|layer| layer.seq.0 == base.seq) {
                let name = layer.path.display();
                let mut found = vec![0xee; base.content.len()];
                Chain::open(&self.storage, &layer.path)
                    .and_then(|chain| chain.read_at(&mut found, 0))
                    .map_err(|error| without_reason("a layer", &error))?;
                if found != base.content {
                    let difference = first_difference(&found, &base.content);
                    return wrong(format!("{name}: {difference}"));
                }
            }
        }
        Ok(())
    }

    fn check_xml(&mut self) -> Step {
        let harbor = self.harbor()?;
        for (number, (text, _)) in self.history.xml.iter().enumerate() {
            let version = XmlVersion(number as u32 + 1);
            let kept = harbor
                .xml(version)
                .map_err(|e| without_reason("a kept XML", &e))?;
            if kept != *text {
                return wrong(format!("XML {version} is {kept}, not {text}"));
            }
        }
        // One that was refused may have come to be kept.
        let next = XmlVersion(self.history.xml.len() as u32 + 1);
        if let Ok(text) = harbor.xml(next) {
            self.history.xml.push((text, true));
        }
        Ok(())
    }

    /// Reads the views that are held open.
    pub(crate) fn read_views(&mut self) -> Step {
        for (view, disks) in &self.views {
            match compare_view(view, disks) {
                Err(Stop::Wrong(words))
                    if self.is_trouble && words.starts_with("without reason") => {}
                other => other?,
            }
        }
        Ok(())
    }
}

pub(crate) fn without_reason(what: &str, error: &HarborError) -> Stop {
    let source = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    Stop::Wrong(format!("without reason: {what}: {error}: {source}"))
}

fn compare_points(found: &[Point], expected: &[Expected<'_>], said: &Said) -> Step {
    let ids = |points: &[Point]| points.iter().map(|point| point.id.0).collect::<Vec<_>>();
    if found.len() != expected.len() {
        let wanted: Vec<u64> = expected.iter().map(Expected::id).collect();
        return wrong(format!(
            "points {:?} are offered, not {wanted:?}",
            ids(found)
        ));
    }
    if !found.is_sorted_by(|a, b| a.time < b.time && a.id < b.id && a.seq < b.seq) {
        return wrong(format!("points are not in order: {found:?}"));
    }
    for (point, wanted) in found.iter().zip(expected) {
        let Told::Point {
            id,
            grade,
            label,
            xml,
            made,
            ..
        } = wanted.told
        else {
            return wrong("a point that is none");
        };
        let label = said.labels.get(id).unwrap_or(label);
        let locked = said.locked.contains(id);
        let made = made.as_ref().map(|made| Point {
            label: label.clone(),
            locked,
            ..made.clone()
        });
        let is_same = point.id.0 == *id
            && point.seq.0 == wanted.seq
            && point.grade == *grade
            && point.label == *label
            && point.locked == locked
            && point.xml.map(|version| version.0) == *xml
            && made.is_none_or(|made| made == *point);
        if !is_same {
            return wrong(format!(
                "{point:?} is not {:?} at record {}, label {label:?}, locked {locked}",
                wanted.id(),
                wanted.seq
            ));
        }
    }
    Ok(())
}

/// Compares every byte of a view, and what it says of zeros.
pub(crate) fn compare_view(view: &View, disks: &Disks) -> Step {
    for (number, expected) in disks.iter().enumerate() {
        let volume = VolumeId(number as u16);
        let mut found = vec![0xee; expected.len()];
        view.read_at(volume, &mut found, 0)
            .map_err(|e| without_reason("reading a view", &e))?;
        let PointId(point) = view.point().id;
        if found != *expected {
            return wrong(format!(
                "volume {number} at point {point}: {}",
                first_difference(&found, expected)
            ));
        }
        let extents = view.extents(volume, 0, expected.len() as u64);
        let mut at = 0;
        for extent in extents.map_err(|e| without_reason("the extents of a view", &e))? {
            let range = at..at + extent.len as usize;
            at = range.end;
            if extent.zero && expected[range.clone()].iter().any(|byte| *byte != 0) {
                return wrong(format!(
                    "volume {number} at point {point}: {range:?} is not zero"
                ));
            }
        }
    }
    Ok(())
}

fn first_difference(found: &[u8], expected: &[u8]) -> String {
    let differs = |(a, b): (&u8, &u8)| a != b;
    let first = found
        .iter()
        .zip(expected)
        .position(differs)
        .unwrap_or_default();
    let count = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    format!("{count} bytes differ, the first at {first}")
}
