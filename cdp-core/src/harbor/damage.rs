//! What is damaged, as the last verifications found it. Kept as `damage.toml`.
//!
//! Of each file that was verified what was found stands here until that file is verified again and found whole. Of a file
//! that is gone it stays until everything was verified: what was in it may have gone on in another one. Points that are
//! made later are looked at when points are next asked for ([`Shared::judge_new_points`]), also those that have the numbers
//! of points that the journal has lost.
//!
//! Invariant: a point that shows something of which it is known that it is damaged is marked, and layers have what is
//! damaged in them refused to whoever reads them. A crash leaves what was known before, or what is known now; a file that
//! cannot be taken is told of, and then nothing counts as verified.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::scrub::{self, Scrub};
use super::shared::Shared;
use super::{Harbor, checked};
use crate::bounds::{DAMAGE_MAX, FINDINGS_MAX};
use crate::error::{HarborError, Result};
use crate::journal::catalog::Catalog;
use crate::machine::VolumeId;
use crate::point::{Point, PointId, Seq};
use crate::storage::Storage;
use crate::storage::replace::{read_all, replace};
use crate::verify::cost::Costing;
use crate::verify::run::verify;
use crate::verify::{Control, Cost, Finding, Lost, Scope, VerifyReport, Verifying};

/// What is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Damage {
    /// The last point of which it is known what it costs.
    judged: PointId,
    #[serde(default)]
    findings: Vec<Finding>,
    /// The file may say something else: it could not be taken, or could not be replaced.
    #[serde(skip)]
    is_file_behind: bool,
}

/// Returns the path of the file.
fn path_of(dir: &Path) -> PathBuf {
    dir.join("damage.toml")
}

/// Reads what is damaged; what cannot be taken is told in the answer.
pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Result<Result<Damage, String>> {
    let path = path_of(dir);
    let bytes = match read_all(storage, &path, DAMAGE_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(Damage::default())),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            return Ok(Err(format!("it is too long: {e}")));
        }
        Err(e) => return Err(HarborError::storage("read", &path, e)),
    };
    let text = String::from_utf8(bytes).map_err(|e| e.to_string());
    Ok(text.and_then(|text| {
        let rest = checked::of_checked_toml(&text)?;
        toml::from_str(rest).map_err(|e| e.to_string())
    }))
}

/// Replaces the file. Where it would be too long to be read again, what the findings cost is made coarser.
fn write(storage: &dyn Storage, dir: &Path, damage: &mut Damage) -> Result<()> {
    let path = path_of(dir);
    let failed = |e| HarborError::storage("write", &path, e);
    let text_of =
        |damage: &Damage| toml::to_string(damage).map_err(|e| failed(io::Error::other(e)));
    let mut text = text_of(damage)?;
    if text.len() as u64 + checked::TOML_MORE > DAMAGE_MAX {
        damage.coarsen();
        text = text_of(damage)?;
    }
    replace(storage, &path, checked::toml(&text).as_bytes()).map_err(failed)
}

impl Damage {
    /// Marks the points that show something damaged, and no others.
    pub(crate) fn mark(&self, points: &mut [Point]) {
        for point in points {
            point.damaged = self.findings.iter().any(|one| one.costs_point(point.id));
        }
    }

    /// Forgets what was once different from the live disk, when no point shows it any more.
    fn forget_gone(&mut self, points: &[(PointId, Seq)]) {
        let is_shown = |one: &Finding| points.iter().any(|(id, _)| one.costs_point(*id));
        self.findings
            .retain(|one| !is_of_live(one) || is_shown(one));
    }

    /// Forgets points from `next` on, whose numbers will be given to others: the journal has lost them. True if there was
    /// something to forget.
    fn forget_from(&mut self, next: PointId) -> bool {
        let before = self.clone();
        let last = PointId(next.0.saturating_sub(1));
        self.judged = self.judged.min(last);
        for finding in &mut self.findings {
            finding.costs.retain(|cost| cost.first < next);
            for cost in &mut finding.costs {
                cost.last = cost.last.min(last);
            }
        }
        *self != before
    }

    /// Makes one finding of those of a volume's live disk where they are too many: it costs what they did, and no point that
    /// is made later, as what the disk has is journaled by then.
    fn limit_live(&mut self, volume: VolumeId) {
        let name = live_name(volume);
        let (of_live, others): (Vec<Finding>, Vec<Finding>) = std::mem::take(&mut self.findings)
            .into_iter()
            .partition(|one| one.file == name);
        self.findings = others;
        if of_live.len() <= FINDINGS_MAX {
            self.findings.extend(of_live);
            return;
        }
        let costs = of_live.into_iter().flat_map(|one| one.costs).collect();
        let mut all = Finding {
            file: name,
            what: "what is kept is not what the disk has, in many places".to_string(),
            from: 0,
            bytes: 0,
            lost: Lost::Nothing,
            costs,
        };
        all.coarsen();
        self.findings.push(all);
    }

    /// Lets each finding cost one row of points and one area of a volume: rather too much than too little.
    fn coarsen(&mut self) {
        self.findings.iter_mut().for_each(Finding::coarsen);
    }

    fn costs_anything(&self) -> bool {
        self.findings.iter().any(|one| one.lost != Lost::Nothing)
    }

    /// Takes what was found of some files in place of what was known of them; `all` are the files there are, if they were
    /// all verified.
    fn take(
        &mut self,
        verified: &BTreeMap<String, u64>,
        found: Vec<Finding>,
        all: Option<&[String]>,
    ) {
        self.findings.retain(|one| {
            let file = owner(&one.file);
            let is_there = is_of_live(one) || all.is_none_or(|all| all.contains(&file));
            is_there && !verified.contains_key(&file)
        });
        self.findings.extend(found);
        self.findings
            .sort_by(|a, b| (&a.file, a.from).cmp(&(&b.file, b.from)));
    }
}

/// Returns the name under which it is known what the live disk of a volume has otherwise; no file has it.
pub(super) fn live_name(volume: VolumeId) -> String {
    format!("live/vol-{:05}", volume.0)
}

fn is_of_live(finding: &Finding) -> bool {
    finding.file.starts_with("live/")
}

/// Returns the file with which one is verified.
pub(crate) fn owner(file: &str) -> String {
    match file.strip_suffix(".hashes") {
        Some(stem) => format!("{stem}.qcow2"),
        None => file.to_string(),
    }
}

impl Harbor {
    /// Verifies what is kept: the files that `scope` says, those that were not verified for longest first. What is found
    /// is kept, and the points it costs are marked. `control` is told of each piece that was read, and may slow the work
    /// down, or call it off: what was verified until then counts.
    ///
    /// # Errors
    /// [`HarborError::Cancelled`]; the storage failed at something other than reading what is verified.
    pub fn verify(
        &self,
        scope: Scope,
        control: &mut (dyn FnMut(Verifying) -> std::ops::ControlFlow<()> + Send),
    ) -> Result<VerifyReport> {
        let control: Control<'_> = control;
        verify(&self.shared, scope, control)
    }

    /// Returns what is damaged, as far as it is known, file by file.
    pub fn damage(&self) -> Vec<Finding> {
        self.shared.judge_new_points();
        self.shared.damage().findings.clone()
    }

    /// Returns what is damaged of what a point shows.
    pub fn damage_of(&self, point: PointId) -> Vec<Finding> {
        let mut damage = self.damage();
        damage.retain(|one| one.costs_point(point));
        for finding in &mut damage {
            finding
                .costs
                .retain(|cost| cost.first <= point && point <= cost.last);
        }
        damage
    }
}

impl Shared {
    /// Takes down what a verification found: first what is damaged, then what was verified. `all` are all files that there
    /// are, if none was left out, and `judged` the last point whose cost was asked for.
    pub(crate) fn take_verified(
        &self,
        verified: BTreeMap<String, u64>,
        found: Vec<Finding>,
        all: Option<Vec<String>>,
        judged: PointId,
    ) -> Result<()> {
        let _turn = self.turn_to_write();
        let _judging = self.judging();
        let storage = &*self.options.storage;
        let mut damage = self.damage().clone();
        damage.take(&verified, Vec::new(), all.as_deref());
        damage.forget_gone(&self.kept_points());
        // Points that one of them was not asked about are looked at later.
        damage.judged = match damage.costs_anything() {
            true => damage.judged.min(judged),
            false => judged,
        };
        damage.take(&BTreeMap::new(), found, None);
        self.put_damage(damage)?;
        let now = self.options.clock.now();
        let mut scrub = self.scrub().clone();
        scrub.take(verified, now, all.as_deref());
        scrub::write(storage, &self.dir, &scrub)?;
        *self.scrub() = scrub;
        Ok(())
    }

    /// Takes down that what is kept is not what the live disk has, with what that costs.
    pub(super) fn take_differences(
        &self,
        volume: VolumeId,
        mut found: Vec<Finding>,
    ) -> Result<Vec<Finding>> {
        // What is found now is asked about all points there are; so is what was known, then.
        self.judge_new_points();
        let _turn = self.turn_to_write();
        let _judging = self.judging();
        let mut damage = self.damage().clone();
        let mut points = self.kept_points();
        let last = points.last().map(|(id, _)| *id).unwrap_or_default();
        if !damage.costs_anything() {
            damage.judged = last;
        }
        // Those behind are looked at with everything else that is known.
        points.retain(|(id, _)| *id <= damage.judged);
        let costing = Costing::new(self, points);
        for finding in &mut found {
            finding.costs = costing.of(&finding.lost)?;
        }
        // The same places, looked at again for the points made since.
        let is_again = |one: &Finding| {
            found
                .iter()
                .any(|new| (&new.file, &new.lost) == (&one.file, &one.lost))
        };
        damage.findings.retain(|one| !is_again(one));
        damage.take(&BTreeMap::new(), found.clone(), None);
        damage.limit_live(volume);
        self.put_damage(damage)?;
        Ok(found)
    }

    /// Puts what is damaged in the place of what was known, durable on return, and marks the points.
    fn put_damage(&self, mut damage: Damage) -> Result<()> {
        let known = self.damage().clone();
        if damage.findings != known.findings || known.is_file_behind {
            damage.is_file_behind = false;
            let written = write(&*self.options.storage, &self.dir, &mut damage);
            self.damage().is_file_behind = written.is_err();
            written?;
        }
        damage.mark(&mut self.catalog().points);
        *self.damage() = damage;
        Ok(())
    }

    /// Takes a journal that was recovered once more, which may have lost points.
    pub(crate) fn take_recovered(&self, catalog: &mut Catalog) -> Result<()> {
        let mut damage = self.damage().clone();
        if damage.forget_from(catalog.end.next_point) {
            write(&*self.options.storage, &self.dir, &mut damage)?;
        }
        damage.mark(&mut catalog.points);
        *self.damage() = damage;
        Ok(())
    }

    /// Finds out what is damaged of points that were made since the last verification.
    pub(crate) fn judge_new_points(&self) {
        let _judging = self.judging();
        let judged = {
            let damage = self.damage();
            if !damage.costs_anything() {
                return;
            }
            damage.judged
        };
        let mut points = self.kept_points();
        points.retain(|(id, _)| *id > judged);
        let Some((last, _)) = points.last().copied() else {
            return;
        };
        let mut damage = self.damage().clone();
        let costing = Costing::new(self, points.clone());
        for finding in &mut damage.findings {
            let costs = costing.of(&finding.lost).unwrap_or_else(|error| {
                tracing::warn!(%error, file = finding.file, "points count as damaged until it is known better");
                everything(&finding.lost, &points)
            });
            finding.costs.extend(costs);
        }
        damage.judged = last;
        *self.damage() = damage.clone();
        damage.mark(&mut self.catalog().points);
    }

    /// Returns what of a volume's layers is damaged, by the names of their files.
    pub(crate) fn damaged_areas(&self, volume: VolumeId) -> BTreeMap<String, Vec<Range<u64>>> {
        let mut areas: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
        for finding in &self.damage().findings {
            let range = match &finding.lost {
                Lost::Area {
                    volume: of,
                    offset,
                    length,
                    ..
                } if *of == volume => *offset..offset.saturating_add(*length),
                Lost::Layer { volume: of, .. } if *of == volume => 0..u64::MAX,
                _ => continue,
            };
            let name = finding.file.rsplit('/').next().unwrap_or_default();
            areas.entry(name.to_string()).or_default().push(range);
        }
        areas
    }

    /// Refuses to merge layers of which some are known to be damaged: what is damaged in them would get another name.
    pub(crate) fn check_undamaged(&self, volume: VolumeId) -> Result<()> {
        let areas = self.damaged_areas(volume);
        let layers = self.layers_of(volume);
        let names: BTreeSet<&String> = areas.keys().collect();
        let is_hit = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            names.iter().any(|known| **known == name)
        };
        match layers.iter().find(|layer| is_hit(&layer.path)) {
            Some(layer) => Err(HarborError::damaged(
                &layer.path,
                "as long as it is, the layers of its volume are not merged",
            )),
            None => Ok(()),
        }
    }
}

/// What is rather said too much than too little.
fn everything(lost: &Lost, points: &[(PointId, crate::point::Seq)]) -> Vec<Cost> {
    let volume = match lost {
        Lost::Nothing => return Vec::new(),
        Lost::Record { volume, .. } | Lost::Area { volume, .. } | Lost::Layer { volume, .. } => {
            *volume
        }
        Lost::Records { .. } => VolumeId(0),
    };
    let (Some((first, _)), Some((last, _))) = (points.first(), points.last()) else {
        return Vec::new();
    };
    vec![Cost {
        first: *first,
        last: *last,
        volume,
        areas: Vec::new(),
    }]
}

/// Reads what is known of damage and of verifications, as the harbor is opened; says in `told` what cannot be taken.
pub(crate) fn take(
    storage: &dyn Storage,
    dir: &Path,
    catalog: &mut Catalog,
    told: &mut Vec<String>,
) -> Result<(Damage, Scrub)> {
    match read(storage, dir)? {
        Ok(mut damage) => {
            // On the disk before a new point gets such a number.
            if damage.forget_from(catalog.end.next_point) {
                write(storage, dir, &mut damage)?;
            }
            damage.mark(&mut catalog.points);
            Ok((damage, scrub::read(storage, dir)?))
        }
        Err(why) => {
            told.push(format!(
                "damage.toml: {why}; which points are damaged is not known until everything is verified again"
            ));
            // Before there is another one: with that, files would count as verified whose damage stood in this one.
            scrub::forget(storage, dir)?;
            let damage = Damage {
                is_file_behind: true,
                ..Damage::default()
            };
            Ok((damage, Scrub::default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::SimulatedStorage;
    use crate::verify::Area;

    #[test]
    fn a_list_that_would_be_too_long_becomes_coarser_and_marks_no_point_less() {
        let cost = |number: u64| Cost {
            first: PointId(3 * number),
            last: PointId(3 * number + 1),
            volume: VolumeId(number as u16 % 2),
            areas: (0..500)
                .map(|at| Area {
                    offset: (number + at) << 20,
                    length: 512,
                })
                .collect(),
        };
        let finding = Finding {
            file: "journal/000000000001.seg".into(),
            what: "it is damaged".into(),
            from: 0,
            bytes: 0,
            lost: Lost::Nothing,
            costs: (0..4000).map(cost).collect(),
        };
        let mut damage = Damage {
            findings: vec![finding.clone()],
            ..Damage::default()
        };
        let storage = SimulatedStorage::new(1);
        write(&storage, Path::new("/"), &mut damage).unwrap();
        assert_eq!(read(&storage, Path::new("/")).unwrap(), Ok(damage.clone()));
        let costs = &damage.findings[0].costs;
        assert_eq!(costs.len(), 2, "one a volume");
        let area = |from: u64, to: u64| Area {
            offset: from << 20,
            length: ((to - from) << 20) + 512,
        };
        assert_eq!(costs[1].areas, [area(1, 3999 + 499)]);
        for point in (0..12_000).map(PointId).filter(|p| finding.costs_point(*p)) {
            assert!(damage.findings[0].costs_point(point), "{point}");
        }
    }
}
