//! Verification: what is whole is found whole; whatever is flipped is found, and what it costs is what cannot be read.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cdp_core::{
    Clusters, Finding, Harbor, HarborError, Lost, Marks, Options, PointId, RecoveryReport, Scope,
    Seq, Timestamp, VerifyReport, VolumeId, VolumeMarks,
};
use tempfile::TempDir;

use crate::harness::{Chance, KIB, Machine, Model, crash_image, machine, small_segments};
use crate::layers_check::go_on;

pub(crate) const SIZES: [u64; 2] = [1024 * KIB + 512, 192 * KIB];
/// What is read at a time to find out what cannot be read.
const BLOCK: u64 = 4096;

/// A harbor with everything there can be in one, closed in good order.
pub(crate) struct Kept {
    _home: TempDir,
    pub(crate) dir: PathBuf,
    pub(crate) model: Model,
}

pub(crate) fn kept(seed: u64, clusters: Clusters) -> Kept {
    let machine = machine(&SIZES, small_segments());
    let (mut model, mut chance) = (Model::new(&SIZES), Chance::new(seed));
    let mut steps = |machine: &Machine, model: &mut Model, count| {
        (0..count).for_each(|_| model.step(&machine.recorder, &mut chance));
    };
    steps(&machine, &mut model, 150);
    for (number, content) in model.volumes.iter().enumerate() {
        let mut seed = machine.harbor.seed(VolumeId(number as u16)).unwrap();
        seed.data(0, content).unwrap();
        seed.finish(machine.recorder.sync().unwrap()).unwrap();
    }
    for _ in 0..2 {
        steps(&machine, &mut model, 120);
        let volumes = model.volumes.clone();
        let point = machine
            .recorder
            .point(cdp_core::Grade::Crash, None)
            .unwrap();
        model.points.insert(point.id.0, (point.clone(), volumes));
        machine.harbor.build_base(point.id, &mut go_on).unwrap();
    }
    machine
        .harbor
        .merge_bases(Seq(0), clusters, &mut go_on)
        .unwrap();
    let mut cold = 0;
    while machine
        .harbor
        .compact(&mut |_| ControlFlow::Continue(()))
        .unwrap()
        .is_some()
    {
        cold += 1;
    }
    assert!(cold > 0);
    steps(&machine, &mut model, 200);
    let harbor = &machine.harbor;
    for version in 0..3 {
        harbor
            .record_xml(&format!("<domain>{version}</domain>"))
            .unwrap();
    }
    let ids: Vec<u64> = model.points.keys().copied().collect();
    for (id, (point, _)) in &mut model.points {
        if id % 3 == 0 {
            harbor.lock_point(PointId(*id)).unwrap();
            point.locked = true;
        }
    }
    let gone = ids.iter().copied().find(|id| id % 3 == 1).unwrap();
    harbor.delete_points(&[PointId(gone)]).unwrap();
    model.points.remove(&gone);
    let marks = VolumeMarks {
        id: VolumeId(0),
        image: "/i".into(),
        size: SIZES[0],
        epochs: vec!["e1".into()],
        rest: None,
    };
    harbor
        .set_marks(&Marks {
            volumes: vec![marks],
        })
        .unwrap();
    machine.recorder.close().unwrap();
    let dir = machine.dir();
    Kept {
        dir,
        model,
        _home: machine.home,
    }
}

pub(crate) fn open(dir: &Path) -> (Harbor, RecoveryReport) {
    Harbor::open(dir, Options::default()).unwrap()
}

pub(crate) fn verify(harbor: &Harbor, scope: Scope) -> VerifyReport {
    harbor
        .verify(scope, &mut |_| ControlFlow::Continue(()))
        .unwrap()
}

/// All files of a harbor, from its directory on.
fn files(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    let names = files.iter().map(|file| file.strip_prefix(dir).unwrap());
    let mut names: Vec<String> = names
        .map(|name| name.to_str().unwrap().to_string())
        .collect();
    names.sort();
    names
}

/// The kind of a file: how its name ends, or all of it.
fn kind(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((_, "toml")) | None => name,
        Some((_, ending)) => ending,
    }
}

#[test]
fn what_is_whole_is_found_whole_and_nothing_is_left_out() {
    for (seed, clusters) in [(1, Clusters::Plain), (2, Clusters::Compressed)] {
        let Kept { dir, model, _home } = kept(seed, clusters);
        let (harbor, _) = open(&dir);
        let mut read = 0;
        let report = harbor.verify(Scope::default(), &mut |told| {
            assert!(
                told.read <= 1024 * 1024 && told.done <= told.total,
                "{told:?}"
            );
            read += told.read;
            ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert_eq!(report.findings, []);
        assert_eq!((report.unchecked.len(), report.left), (0, 0), "{report:?}");
        let kinds: BTreeSet<String> = files(&dir).iter().map(|name| kind(name).into()).collect();
        let all = [
            "LOCK",
            "cold",
            "hashes",
            "machine.toml",
            "marks.toml",
            "points.toml",
            "qcow2",
        ];
        for wanted in all.into_iter().chain(["scrub.toml", "seg", "xml"]) {
            assert!(kinds.contains(wanted), "{wanted}: {kinds:?}");
        }
        // All but the lock, the hashes, which belong to their layers, and what was written just now.
        let of_others = files(&dir).into_iter();
        let of_others = of_others.filter(|f| !["LOCK", "hashes", "scrub.toml"].contains(&kind(f)));
        assert_eq!(report.files, of_others.count() as u64);
        assert_eq!(report.bytes, read);
        model.check(&harbor, "verified");
    }
}

#[test]
fn every_older_version_is_found_whole() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("v1");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    crash_image(&golden, &dir);
    let (harbor, _) = open(&dir);
    let report = verify(&harbor, Scope::default());
    assert_eq!(report.findings, []);
    assert_eq!(report.unchecked.len(), 1, "no hashes then: {report:?}");
    drop(harbor);
    // Its hash covers every byte.
    let path = dir.join("journal/000000000001.seg");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096 + 64 + 64 * 3 + 10] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (harbor, _) = open(&dir);
    assert_ne!(verify(&harbor, Scope::default()).findings, []);
}

/// The blocks of each volume at each point that cannot be read, or are not what was there.
type Broken = BTreeSet<(PointId, VolumeId, u64)>;

/// Reads everything at every point: what cannot be read, and what is wrong without an error.
fn read_all(harbor: &Harbor, model: &Model) -> (Broken, Broken) {
    let (mut failed, mut wrong) = (Broken::new(), Broken::new());
    for (id, (_, volumes)) in &model.points {
        let id = PointId(*id);
        if harbor.point(id).is_none() {
            continue;
        }
        let view = harbor.view_damaged(id);
        for (number, expected) in volumes.iter().enumerate() {
            let volume = VolumeId(number as u16);
            for (block, right) in (0..).zip(expected.chunks(BLOCK as usize)) {
                let mut found = vec![0xee; right.len()];
                let read = view
                    .as_ref()
                    .map(|v| v.read_at(volume, &mut found, block * BLOCK));
                match read {
                    Ok(Ok(())) if found == right => {}
                    Ok(Ok(())) => {
                        wrong.insert((id, volume, block));
                    }
                    Ok(Err(_)) | Err(_) => {
                        failed.insert((id, volume, block));
                    }
                }
            }
        }
    }
    (failed, wrong)
}

/// What findings say that cannot be read.
fn told(harbor: &Harbor, findings: &[Finding]) -> Broken {
    let mut broken = Broken::new();
    for cost in findings.iter().flat_map(|one| &one.costs) {
        let points = harbor.points().into_iter().map(|point| point.id);
        for id in points.filter(|id| (cost.first..=cost.last).contains(id)) {
            for area in &cost.areas {
                let blocks = area.offset / BLOCK..(area.offset + area.length).div_ceil(BLOCK);
                broken.extend(blocks.map(|block| (id, cost.volume, block)));
            }
        }
    }
    broken
}

fn points_of(broken: &Broken) -> BTreeSet<PointId> {
    broken.iter().map(|(id, _, _)| *id).collect()
}

/// Tells whether a byte of an image is one that nothing covers: it belongs to no cluster that is in use, or lies between
/// compressed ones.
fn is_uncovered(name: &str) -> bool {
    name == "LOCK" || name.ends_with(".qcow2")
}

/// Flips some bytes of one file, and checks everything that is then said and shown.
fn flip(kept: &Kept, name: &str, chance: &mut Chance, home: &Path) -> (bool, bool) {
    let dir = home.join("copy");
    crash_image(&kept.dir, &dir);
    let path = dir.join(name);
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len() as u64;
    // By chance anywhere, and at the ends, where the tables are.
    let at = match chance.below(3) {
        0 => chance.below(len.min(600)),
        1 => len - 1 - chance.below(len.min(8192)),
        _ => chance.below(len),
    };
    let run = 1 + chance.below(2) * chance.below(3000);
    let behind = (at + run).min(len);
    for place in at..behind {
        bytes[place as usize] ^= 1 << chance.below(8);
    }
    fs::write(&path, bytes).unwrap();
    let context = format!("{name}, {at}..{behind} of {len}");
    let (found, cost) = judge(&dir, &kept.model, &context, is_uncovered(name));
    fs::remove_dir_all(&dir).unwrap();
    (found, cost)
}

/// Opens a damaged harbor, verifies it, and compares what is said with what can be read.
fn judge(dir: &Path, model: &Model, context: &str, may_be_uncovered: bool) -> (bool, bool) {
    let (harbor, opened) = match Harbor::open(dir, Options::default()) {
        Ok(opened) => opened,
        // What is no harbor any more offers nothing.
        Err(HarborError::NotAHarbor { .. } | HarborError::InvalidDescription(_)) => {
            return (true, true);
        }
        Err(other) => panic!("{context}: {other}"),
    };
    let unnoticed = read_all(&harbor, model).1;
    let first = unnoticed.first();
    assert!(
        first.is_none(),
        "{context}: wrong bytes at {first:?} before"
    );
    let report = verify(&harbor, Scope::default());
    // The last segment without a footer is one that was not closed: it is sealed again, and that is told.
    let is_found = !report.findings.is_empty() || !opened.damage.is_empty() || opened.cut.is_some();
    assert!(is_found || may_be_uncovered, "{context}: nothing was found");
    let (failed, wrong) = read_all(&harbor, model);
    let first = wrong.first();
    assert!(
        first.is_none(),
        "{context}: wrong bytes at {first:?}, {report:#?}"
    );
    // A volume of another size cannot be read to its end, and nothing tells which size it had: that the description is
    // damaged is said, and what that costs cannot be.
    let described = report.findings.iter().any(|one| one.file == "machine.toml");
    if described && !failed.is_empty() {
        return (is_found, true);
    }
    let told = told(&harbor, &report.findings);
    let (costed, hit) = (points_of(&told), points_of(&failed));
    assert_eq!(costed, hit, "{context}: {report:#?}");
    // Where not even the view opens, the other volumes cannot be read either.
    let shut: BTreeSet<PointId> = hit
        .iter()
        .copied()
        .filter(|id| harbor.view_damaged(*id).is_err())
        .collect();
    let differ = told
        .symmetric_difference(&failed)
        .filter(|(id, _, _)| !shut.contains(id));
    let differ: Vec<_> = differ.take(9).collect();
    assert!(differ.is_empty(), "{context}: {differ:?}, {report:#?}");
    let marked = harbor.points().into_iter().filter(|point| point.damaged);
    let marked: BTreeSet<PointId> = marked.map(|point| point.id).collect();
    assert_eq!(marked, points_of(&failed), "{context}");
    for id in &marked {
        let refused = harbor.view(*id);
        assert!(
            matches!(refused, Err(HarborError::PointDamaged(_))),
            "{context}"
        );
    }
    drop(harbor);
    let (harbor, _) = open(dir);
    let again = harbor.points().into_iter().filter(|point| point.damaged);
    let again: BTreeSet<PointId> = again.map(|point| point.id).collect();
    assert_eq!(again, marked, "{context}: opened again");
    (is_found, !failed.is_empty())
}

#[test]
fn whatever_is_flipped_is_found_and_costs_what_cannot_be_read() {
    let home = TempDir::new().unwrap();
    let mut chance = Chance::new(77);
    let mut costly = BTreeSet::new();
    for (seed, clusters) in [(3, Clusters::Plain), (4, Clusters::Compressed)] {
        let kept = kept(seed, clusters);
        // So that there is something of a verification, too.
        verify(&open(&kept.dir).0, Scope::default());
        let mut by_kind: std::collections::BTreeMap<String, Vec<String>> = Default::default();
        for name in files(&kept.dir).into_iter().filter(|name| name != "LOCK") {
            by_kind
                .entry(kind(&name).to_string())
                .or_default()
                .push(name);
        }
        for (kind, names) in by_kind {
            let mut found = 0;
            let rounds = if ["seg", "cold", "qcow2"].contains(&kind.as_str()) {
                24
            } else {
                5
            };
            for _ in 0..rounds {
                let name = &names[chance.below(names.len() as u64) as usize];
                let (is_found, cost) = flip(&kept, name, &mut chance, home.path());
                found += u32::from(is_found);
                if cost {
                    costly.insert(kind.clone());
                }
            }
            assert!(found * 3 >= rounds * 2, "{kind}: {found} of {rounds}");
        }
    }
    for kind in ["seg", "cold", "qcow2"] {
        assert!(costly.contains(kind), "{costly:?}");
    }
}

#[test]
fn index_and_frames_that_are_broken_cost_the_points_that_need_the_segment() {
    let kept = kept(5, Clusters::Plain);
    let names = files(&kept.dir);
    let hot: Vec<&String> = names.iter().filter(|name| name.ends_with(".seg")).collect();
    let path = kept.dir.join(hot[hot.len() / 2]);
    let mut bytes = fs::read(&path).unwrap();
    let index = bytes.len() - 8192;
    bytes[index] ^= 1;
    // The table of its first frame.
    bytes[4096 + 64 + 18] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (_, cost) = judge(&kept.dir, &kept.model, "both", false);
    assert!(cost);
}

#[test]
fn a_segment_or_a_layer_that_is_missing_costs_what_needs_it() {
    for ending in [".seg", ".cold", ".qcow2"] {
        let kept = kept(6, Clusters::Plain);
        let names = files(&kept.dir);
        let of_kind: Vec<&String> = names.iter().filter(|name| name.ends_with(ending)).collect();
        let name = of_kind[of_kind.len() / 2];
        let (harbor, _) = open(&kept.dir);
        fs::remove_file(kept.dir.join(name)).unwrap();
        let report = verify(&harbor, Scope::default());
        let hit = report.findings.iter().find(|one| one.file == **name);
        let hit = hit.unwrap_or_else(|| panic!("{name}: {report:?}"));
        assert_ne!(hit.lost, Lost::Nothing, "{name}");
        let (failed, wrong) = read_all(&harbor, &kept.model);
        assert_eq!(wrong, Broken::new());
        assert_eq!(
            points_of(&told(&harbor, &report.findings)),
            points_of(&failed),
            "{name}"
        );
    }
}

#[test]
fn a_mark_goes_when_what_was_damaged_is_found_whole() {
    let kept = kept(7, Clusters::Plain);
    let name = files(&kept.dir)
        .into_iter()
        .find(|name| name.ends_with(".cold"))
        .unwrap();
    let path = kept.dir.join(&name);
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[5000..9000].fill(0x55);
    fs::write(&path, bytes).unwrap();
    let (harbor, _) = open(&kept.dir);
    verify(&harbor, Scope::default());
    let marked = |harbor: &Harbor| harbor.points().iter().filter(|one| one.damaged).count();
    assert!(marked(&harbor) > 0);
    let first = harbor
        .points()
        .into_iter()
        .find(|one| one.damaged)
        .unwrap()
        .id;
    let damage = harbor.damage_of(first);
    assert!(
        damage
            .iter()
            .all(|one| one.file == name && one.costs_point(first)),
        "{damage:?}"
    );
    // What others are found to be does not matter.
    let later = Scope {
        not_since: Some(Timestamp(0)),
        suspects: false,
        bytes: None,
    };
    assert_eq!(verify(&harbor, later).files, 0);
    assert!(marked(&harbor) > 0);
    drop(harbor);
    fs::write(&path, whole).unwrap();
    let (harbor, _) = open(&kept.dir);
    assert!(marked(&harbor) > 0, "until it is verified");
    assert_eq!(verify(&harbor, Scope::default()).findings, []);
    assert_eq!((marked(&harbor), harbor.damage()), (0, vec![]));
    harbor.view(first).unwrap();
}

#[test]
fn points_made_later_are_marked_as_long_as_they_show_what_is_damaged() {
    let machine = machine(&[256 * KIB], small_segments());
    let point = || {
        machine
            .recorder
            .point(cdp_core::Grade::Crash, None)
            .unwrap()
            .id
    };
    for byte in 1..20 {
        machine.write(0, 0, &vec![byte; 30 * KIB as usize]);
    }
    machine.write(0, 64 * KIB, &vec![99; 8 * KIB as usize]);
    let hit = point();
    for byte in 1..30 {
        machine.write(0, 128 * KIB, &vec![byte; 60 * KIB as usize]);
    }
    machine.recorder.sync().unwrap();
    let is_hit = |path: &PathBuf| {
        fs::read(path)
            .unwrap()
            .windows(8192)
            .any(|w| w == [99; 8192])
    };
    let path = crate::harness::segments(&machine.dir())
        .into_iter()
        .find(is_hit)
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8192).position(|w| w == [99; 8192]).unwrap();
    bytes[at + 700] ^= 4;
    fs::write(&path, bytes).unwrap();
    let report = verify(&machine.harbor, Scope::default());
    assert_eq!(report.findings.len(), 1, "{report:?}");
    let is_marked = |id| machine.harbor.point(id).unwrap().damaged;
    assert!(is_marked(hit));
    let later = point();
    assert!(is_marked(later), "it shows the same");
    machine.write(0, 64 * KIB, &vec![1; 4 * KIB as usize]);
    let in_part = point();
    assert!(is_marked(in_part));
    machine.write(0, 60 * KIB, &vec![2; 16 * KIB as usize]);
    let covered = point();
    assert!(!is_marked(covered), "it shows nothing of it");
    assert!(is_marked(hit) && is_marked(later));
    machine.harbor.view(covered).unwrap();
    let areas: Vec<(u64, u64)> = machine.harbor.damage_of(in_part)[0].costs[0]
        .areas
        .iter()
        .map(|area| (area.offset, area.length))
        .collect();
    assert_eq!(areas, [(68 * KIB, 4 * KIB)]);
}

#[test]
fn what_was_called_off_is_gone_on_with_the_oldest_first() {
    let kept = kept(8, Clusters::Plain);
    let (harbor, _) = open(&kept.dir);
    let whole = verify(&harbor, Scope::default());
    let begun = harbor.verified_since().unwrap();
    let mut seen = BTreeSet::new();
    let mut rounds = 0;
    loop {
        let scope = Scope {
            not_since: Some(Timestamp(begun.0 + 1)),
            suspects: false,
            bytes: Some(300_000),
        };
        let report = verify(&harbor, scope);
        if report.files == 0 {
            break;
        }
        rounds += 1;
        seen.insert(report.files);
        assert!(report.bytes < 300_000 + 2 * 1024 * 1024, "{report:?}");
        assert!(rounds < 100);
    }
    assert!(rounds > 2, "{rounds} rounds for {} files", whole.files);
    assert!(harbor.verified_since().unwrap() > begun);
    let mut calls = 0;
    let ended = harbor.verify(Scope::default(), &mut |_| {
        calls += 1;
        if calls > 30 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(ended, Err(HarborError::Cancelled)), "{ended:?}");
}
