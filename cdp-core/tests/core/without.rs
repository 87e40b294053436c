//! `tests/restore-without`, which reads a harbor without this program, shows what the program shows.

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cdp_core::bounds::LAYERS_MAX;
use cdp_core::{
    Clusters, GapReason, Grade, Harbor, Options, Point, PointId, Seq, Timestamp, VolumeId,
};
use tempfile::TempDir;

use crate::harness::{
    Chance, KIB, Machine, Model, crash_image, machine, segments, small_segments, written,
};
use crate::layers_check::go_on;

const SIZES: [u64; 3] = [512 * KIB, 256 * KIB, 64 * KIB];

/// Tells aloud that a test is not done where one of the tools is missing.
fn is_ready() -> bool {
    let works = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output();
        output.is_ok_and(|output| output.status.success())
    };
    let ready = works("python3", &["-c", "import tomllib"]) && works("qemu-img", &["--version"]);
    if !ready {
        drop(writeln!(
            std::io::stderr(),
            "SKIPPED: it takes python3 of version 3.11 and qemu-img"
        ));
    }
    ready
}

fn script(words: &[&str]) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/restore-without");
    Command::new(path).args(words).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// What the script restores of a volume.
fn restored(dir: &Path, volume: &str, when: &str) -> Result<Vec<u8>, String> {
    let home = TempDir::new().unwrap();
    let image = home.path().join("image");
    let output = script(&[dir.to_str().unwrap(), volume, when, image.to_str().unwrap()]);
    match output.status.code() {
        Some(0) => Ok(fs::read(&image).unwrap()),
        Some(1) => {
            assert!(fs::read_dir(home.path()).unwrap().next().is_none());
            Err(said(&output))
        }
        _ => panic!("{output:?}"),
    }
}

/// The lines that the script lists of points and of gaps.
fn listed(dir: &Path) -> (Vec<String>, Vec<String>) {
    let output = script(&[dir.to_str().unwrap(), "--list"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = |word: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with(word));
        lines.map(String::from).collect()
    };
    (lines("point "), lines("gap "))
}

/// Checks all that the script says of a harbor, and volumes of some points, against the program, which opens a copy.
fn compare(dir: &Path, chosen: impl Fn(usize, usize) -> bool) {
    let home = TempDir::new().unwrap();
    crash_image(dir, &home.path().join("copy"));
    let (harbor, _) = Harbor::open(&home.path().join("copy"), Options::default()).unwrap();
    let points = harbor.points();
    let line = |point: &Point| {
        let grade = match point.grade {
            Grade::Quiesced => "quiesced",
            _ => "crash",
        };
        let label = point.label.as_deref().unwrap_or_default();
        let line = format!(
            "point {}  {}  {grade}  {label}",
            point.id,
            nanos(point.time)
        );
        line.trim_end().to_owned()
    };
    let (lines, gaps) = listed(dir);
    assert_eq!(lines, points.iter().map(line).collect::<Vec<String>>());
    let starts = harbor.gaps().into_iter().map(|gap| {
        let end = gap.end.map_or("open".into(), nanos);
        format!("gap  {}  {end}  ", nanos(gap.start))
    });
    let starts: Vec<String> = starts.collect();
    assert_eq!(gaps.len(), starts.len(), "{gaps:?} {starts:?}");
    for (gap, start) in gaps.iter().zip(starts) {
        assert!(gap.starts_with(&start), "{gap} {start}");
    }
    for (_, point) in points
        .iter()
        .enumerate()
        .filter(|(number, _)| chosen(*number, points.len()))
    {
        let view = harbor.view(point.id).unwrap();
        for volume in harbor.description().volumes {
            let number = volume.id.0.to_string();
            let found = restored(dir, &number, &point.id.to_string());
            let Ok(size) = view.size(volume.id) else {
                let error = found.unwrap_err();
                assert!(error.contains("was not there"), "{error}");
                continue;
            };
            let mut expected = vec![0xee; size as usize];
            view.read_at(volume.id, &mut expected, 0).unwrap();
            let found = found.unwrap();
            assert_eq!(found.len(), expected.len(), "{number} at {}", point.id);
            assert!(found == expected, "volume {number} at point {}", point.id);
        }
    }
}

/// A time as the script has it: with all nine digits behind the second.
fn nanos(time: Timestamp) -> String {
    let whole = Timestamp(time.0 / 1_000_000_000 * 1_000_000_000).to_string();
    let (second, _) = whole.split_at("2026-03-01T12:00:00".len());
    format!("{second}.{:09}Z", time.0 % 1_000_000_000)
}

/// Ends the recording, changes the size of a volume or unplugs it, and goes on.
fn change(machine: &mut Machine, volume: VolumeId, size: Option<u64>) {
    machine.recorder.close().unwrap();
    let mut description = machine.harbor.description();
    let head = machine.harbor.head();
    let found = description.volumes.iter_mut().find(|v| v.id == volume);
    found.unwrap().change(head, size);
    machine.harbor.set_description(description).unwrap();
    machine.recorder = machine.harbor.record().unwrap();
}

/// Some points, and two within a gap, of which one was made before it was noticed.
fn steps(machine: &Machine, model: &mut Model, chance: &mut Chance, count: u64) {
    let point = |label| machine.recorder.point(Grade::Quiesced, label).unwrap();
    for _ in 0..count {
        model.step(&machine.recorder, chance);
    }
    let sound = point(Some("the last sound one"));
    point(Some("taken back"));
    let since = (sound.time, sound.seq);
    let reason = GapReason::TapLost;
    machine
        .recorder
        .open_gap_since(reason, since.0, since.1)
        .unwrap();
    point(Some("within the gap"));
    machine.write(0, 0, &[7; 512]);
    machine
        .recorder
        .open_gap(GapReason::Resync, Timestamp(0))
        .unwrap();
    machine.recorder.close_gap().unwrap();
    point(None);
}

/// Builds layers, with points between them.
fn build(machine: &Machine, model: &mut Model, chance: &mut Chance, layers: usize) {
    for _ in 0..layers {
        for _ in 0..15 {
            model.step(&machine.recorder, chance);
        }
        let point = machine.recorder.point(Grade::Crash, None).unwrap();
        machine.harbor.build_base(point.id, &mut go_on).unwrap();
    }
}

/// Builds more layers than are kept: some become one, and when the oldest points are deleted some go into the full.
fn build_and_merge(machine: &Machine, model: &mut Model, chance: &mut Chance) {
    let harbor = &machine.harbor;
    let layers = || harbor.base_points(VolumeId(0));
    let merge = |first_kept| {
        let merged = harbor.merge_bases(first_kept, Clusters::Compressed, &mut go_on);
        assert!(merged.unwrap().len() >= 2 * SIZES.len());
        assert_eq!(layers().len(), LAYERS_MAX);
    };
    build(machine, model, chance, LAYERS_MAX + 1);
    merge(Seq(0));
    assert_eq!(layers()[0].seq, Seq(0));
    let oldest = layers()[2].seq;
    assert!(delete(harbor, |point| point.seq < oldest) > 0);
    build(machine, model, chance, 2);
    merge(harbor.first_kept().unwrap());
    assert_eq!(layers()[0].seq, oldest, "the full took others in");
}

/// Deletes points; returns how many went.
fn delete(harbor: &Harbor, goes: impl Fn(&Point) -> bool) -> usize {
    let mut going = harbor.points();
    going.retain(goes);
    let going: Vec<PointId> = going.iter().map(|point| point.id).collect();
    harbor.delete_points(&going).unwrap();
    going.len()
}

/// Makes all cold that is worth it; returns how many segments went, and how many records.
fn compact(harbor: &Harbor) -> (usize, u64) {
    let (mut files, mut dropped) = (0, 0);
    while let Some(one) = harbor.compact(&mut |_| ControlFlow::Continue(())).unwrap() {
        files += one.files;
        dropped += one.dropped;
    }
    (files, dropped)
}

/// A machine with all there is: layers that were built and merged, cold segments, hot ones, gaps, points that were deleted, a
/// volume that grew and one that was unplugged.
fn aged(seed: u64) -> Machine {
    let mut machine = machine(&SIZES, small_segments());
    let mut model = Model::new(&SIZES);
    let mut chance = Chance::new(seed);
    build_and_merge(&machine, &mut model, &mut chance);
    for layers in [0, 0, 0, 1] {
        steps(&machine, &mut model, &mut chance, 100);
        build(&machine, &mut model, &mut chance, layers);
    }
    let grown = 400 * KIB + 512;
    change(&mut machine, VolumeId(1), Some(grown));
    model.volumes[1].resize(grown as usize, 0);
    steps(&machine, &mut model, &mut chance, 60);
    let newest = machine.recorder.point(Grade::Crash, None).unwrap();
    let view = machine.harbor.view(newest.id).unwrap();
    for (number, size) in [(0, SIZES[0]), (1, grown), (2, SIZES[2])] {
        let mut content = vec![0; size as usize];
        view.read_at(VolumeId(number), &mut content, 0).unwrap();
        let mut seed = machine.harbor.seed(VolumeId(number)).unwrap();
        seed.data(0, &content).unwrap();
        seed.finish(machine.recorder.sync().unwrap()).unwrap();
    }
    drop(view);
    steps(&machine, &mut model, &mut chance, 60);
    change(&mut machine, VolumeId(2), None);
    machine.write(1, 300 * KIB, &[3; 5000]);
    let newest = machine.recorder.point(Grade::Crash, None).unwrap();
    let third = |point: &Point| point.id.0 % 3 == 1 && point.id != newest.id;
    assert!(delete(&machine.harbor, third) > 10);
    crash_image(&machine.dir(), &sources(&machine));
    let (files, dropped) = compact(&machine.harbor);
    assert!(files > 5 && dropped > 10);
    machine
}

/// Where the harbor is as it was before it had cold segments.
fn sources(machine: &Machine) -> PathBuf {
    machine.home.path().join("sources")
}

#[test]
fn every_point_is_restored_as_it_is_viewed() {
    if !is_ready() {
        return;
    }
    let machine = aged(1);
    machine.write(0, 4096, &[9; 70_000]);
    machine.recorder.point(Grade::Crash, Some("hot")).unwrap();
    let dir = machine.home.path().join("crashed");
    crash_image(&machine.dir(), &dir);
    // Files that a crash leaves: unfinished work, and what cold segments stand for.
    fs::write(
        dir.join("journal/000000000001-000000000099.cold.part"),
        b"unfinished",
    )
    .unwrap();
    for number in [1, 2, 5] {
        let name = format!("journal/{number:012}.seg");
        assert!(!dir.join(&name).exists());
        fs::copy(sources(&machine).join(&name), dir.join(&name)).unwrap();
    }
    compare(&dir, |number, count| number % 15 == 4 || number + 2 > count);

    // The last frame is torn: what it had is no more.
    let last = segments(&dir)
        .into_iter()
        .rfind(|path| {
            path.extension().is_some_and(|end| end == "seg") && written(path).len() > 8192
        })
        .unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let end = written(&last).len() - 4096;
    bytes[end..].fill(0);
    fs::write(&last, bytes).unwrap();
    let before = listed(&dir).0.len();
    compare(&dir, |number, count| number + 1 == count);
    assert!(before > 20, "{before}");
}

#[test]
fn a_time_stands_for_the_newest_point_up_to_it() {
    if !is_ready() {
        return;
    }
    let machine = aged(2);
    machine.recorder.close().unwrap();
    let dir = machine.dir();
    let points = machine.harbor.points();
    let shown = |point: &Point| {
        let view = machine.harbor.view(point.id).unwrap();
        let mut bytes = vec![0; SIZES[0] as usize];
        view.read_at(VolumeId(0), &mut bytes, 0).unwrap();
        bytes
    };
    let half = points.len() / 2;
    let differs = |at: &usize| shown(&points[*at]) != shown(&points[*at - 1]);
    let at = (half..points.len()).find(differs).unwrap();
    let chosen = &points[at];
    let by_number = restored(&dir, "vd0", &chosen.id.to_string()).unwrap();
    let by_time = restored(&dir, "vd0", &nanos(chosen.time)).unwrap();
    assert!(by_time == by_number);
    let before = Timestamp(chosen.time.0 - 1);
    let before = restored(&dir, "vd0", &nanos(before)).unwrap();
    let expected = points[at - 1].id.to_string();
    assert!(before == restored(&dir, "vd0", &expected).unwrap() && before != by_time);
    let refused = [
        ("vd0", "9999"),
        ("vd7", "newest"),
        ("vd0", "then"),
        ("vd0", "1970-01-01T00:00:00Z"),
    ];
    for (volume, when) in refused {
        let error = restored(&dir, volume, when).unwrap_err();
        assert!(error.starts_with("restore-without: error: "), "{error}");
    }
    let usage = script(&[dir.to_str().unwrap()]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn damage_is_told_and_never_another_byte() {
    if !is_ready() {
        return;
    }
    let machine = aged(3);
    let newest = machine.harbor.newest_point().unwrap();
    let layers = machine.harbor.base_points(VolumeId(0));
    let behind = |point: &Point| {
        let below = layers.iter().filter(|layer| layer.seq <= point.seq);
        point.seq.0 - below.map(|layer| layer.seq.0).max().unwrap()
    };
    let points = machine.harbor.points();
    // Of all points the one that most of the journal is read for.
    let earlier = points.iter().max_by_key(|point| behind(point)).unwrap().id;
    let home = TempDir::new().unwrap();
    let mut chance = Chance::new(33);
    let (mut refused, mut shown) = (0, 0);
    for round in 0..16 {
        let dir = home.path().join(round.to_string());
        crash_image(&machine.dir(), &dir);
        let paths: Vec<PathBuf> = segments(&dir);
        let path = &paths[chance.below(paths.len() as u64) as usize];
        let mut bytes = fs::read(path).unwrap();
        // In what was written, wherever that is.
        let at = loop {
            let at = chance.below(bytes.len() as u64) as usize;
            if bytes[at] != 0 {
                break at;
            }
        };
        bytes[at] ^= 1 << chance.below(8);
        fs::write(path, bytes).unwrap();
        for point in [earlier, newest.id] {
            let view = machine.harbor.view(point).unwrap();
            let mut expected = vec![0; SIZES[0] as usize];
            view.read_at(VolumeId(0), &mut expected, 0).unwrap();
            match restored(&dir, "0", &point.to_string()) {
                Ok(found) => assert!(found == expected, "round {round}, byte {at}"),
                Err(error) => {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    assert!(error.contains(&name), "{name}: {error}");
                    refused += 1;
                }
            }
            shown += 1;
        }
    }
    assert!(refused > 3 && refused < shown, "{refused} of {shown}");
}

#[test]
fn what_points_toml_says_is_done() {
    if !is_ready() {
        return;
    }
    let machine = aged(4);
    let harbor = &machine.harbor;
    let points = harbor.points();
    let ids: Vec<u64> = points.iter().map(|point| point.id.0).collect();
    let (last, named) = (ids[4], ids[6]);
    delete(harbor, |point| ids[2..5].contains(&point.id.0));
    harbor.label_point(PointId(named), Some("later")).unwrap();
    let dir = machine.home.path().join("crashed");
    crash_image(&machine.dir(), &dir);
    let lines = listed(&dir).0;
    let numbers = lines
        .iter()
        .map(|line| line.split(' ').nth(1).unwrap().parse().unwrap());
    let numbers: Vec<u64> = numbers.collect();
    assert_eq!(numbers, [&ids[..2], &ids[5..]].concat());
    assert!(
        lines[3].starts_with(&format!("point {named} ")) && lines[3].ends_with("  later"),
        "{lines:?}"
    );
    assert!(restored(&dir, "0", &last.to_string()).is_err());
    let path = dir.join("points.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("later", "Later")).unwrap();
    let output = script(&[dir.to_str().unwrap(), "--list"]);
    assert!(
        said(&output).contains("points.toml is damaged"),
        "{output:?}"
    );
    // Also those that were deleted before.
    assert!(listed(&dir).0.len() > ids.len());
}

#[test]
fn every_version_is_restored() {
    if !is_ready() {
        return;
    }
    for version in ["v1", "v3"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        compare(&golden.join(version), |_, _| true);
    }
}
