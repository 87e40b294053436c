//! What a harbor takes is what `du` says, and what deleting points frees is what was said before.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use cdp_core::{Freed, Harbor, Options, Point, PointId, Recorder, SpaceTaken, VolumeId};
use tempfile::TempDir;

use crate::harness::{
    Chance, KIB, Machine, Model, crash_image, machine, open_again, small_segments,
};

const SIZES: [u64; 2] = [512 * KIB, 256 * KIB];

fn steps(model: &mut Model, recorder: &Recorder, chance: &mut Chance, count: usize) {
    for _ in 0..count {
        model.step(recorder, chance);
    }
    recorder.sync().unwrap();
}

/// Builds a layer of every volume at the newest point.
fn build(harbor: &Harbor) {
    let newest = harbor.newest_point().unwrap().id;
    let built = harbor.build_base(newest, &mut |_| ControlFlow::Continue(()));
    assert_eq!(built.unwrap().len(), SIZES.len());
}

fn compact(harbor: &Harbor) {
    let once = || harbor.compact(&mut |_| ControlFlow::Continue(())).unwrap();
    while once().is_some() {}
}

/// A machine with a history of so many layers beside the first, all of it cold that can be.
fn aged(seed: u64, layers: usize) -> (Machine, Model, Chance) {
    let machine = machine(&SIZES, small_segments());
    let (mut model, mut chance) = (Model::new(&SIZES), Chance::new(seed));
    for _ in 0..layers {
        steps(&mut model, &machine.recorder, &mut chance, 400);
        build(&machine.harbor);
    }
    steps(&mut model, &machine.recorder, &mut chance, 40);
    (machine, model, chance)
}

/// Bytes that files and folders have been given.
fn given(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let below = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => given(&entry.path()),
        false => given_to(&entry.path()),
    });
    below.sum::<u64>() + given_to(dir)
}

fn given_to(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn du(dir: &Path) -> u64 {
    let output = Command::new("du")
        .args(["-s", "--block-size=1"])
        .arg(dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// What is said, with what `du` says; in a moment in which the keeper changes nothing.
fn said(harbor: &Harbor) -> (SpaceTaken, u64) {
    loop {
        let before = du(harbor.dir());
        let said = harbor.space().unwrap();
        if du(harbor.dir()) == before {
            return (said, before);
        }
    }
}

fn names(dir: &Path, folder: &str, ending: &str) -> usize {
    let entries = fs::read_dir(dir.join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(ending)).count()
}

/// Bytes of the journal behind which nothing is recorded any more.
fn settled(harbor: &Harbor) -> u64 {
    let journal = harbor.space().unwrap().journal;
    journal.sealed + journal.cold
}

fn ids(points: &[Point]) -> Vec<PointId> {
    points.iter().map(|point| point.id).collect()
}

/// Closes the recording, so that the journal stays as it is.
fn closed(machine: Machine) -> (Harbor, TempDir) {
    let dir = machine.dir();
    let Machine {
        home,
        harbor,
        recorder,
    } = machine;
    recorder.close().unwrap();
    drop((harbor, recorder));
    (open_again(&dir, Options::default()).0, home)
}

#[test]
fn the_parts_add_up_to_what_du_says() {
    let (machine, mut model, mut chance) = aged(1, 3);
    let harbor = &machine.harbor;
    harbor.record_xml("<domain>of a test</domain>").unwrap();
    let point = harbor.points()[5].id;
    harbor.lock_point(point).unwrap();
    let hot = said(harbor);
    compact(harbor);
    let cold = said(harbor);
    steps(&mut model, &machine.recorder, &mut chance, 300);
    fs::write(harbor.dir().join("base/vol-00000/x.part"), [7; 9000]).unwrap();
    let later = said(harbor);
    for (space, du) in [&hot, &cold, &later] {
        assert_eq!(space.total(), *du, "{space:?}");
        assert_eq!(space.layers.len(), 8);
        assert!(space.other >= given_to(&harbor.dir().join("machine.toml")));
        assert!(space.layers.iter().all(|layer| layer.hashes > 0));
    }
    for layer in &later.0.layers {
        let base = harbor.base_points(layer.volume);
        let base = base.iter().find(|base| base.seq == layer.seq).unwrap();
        assert_eq!(layer.image, given_to(&base.path), "{layer:?}");
        assert_eq!(layer.hashes, given_to(&base.path.with_extension("hashes")));
    }
    assert_eq!(later.1, given(harbor.dir()), "the test's own sum");
    let (dir, journal) = (machine.dir(), later.0.journal);
    assert_eq!(journal.cold_count, names(&dir, "journal", ".cold") as u64);
    // One is recorded to.
    let segments = names(&dir, "journal", ".seg") as u64;
    assert_eq!(journal.sealed_count, segments - 1);
    assert!(journal.recorded > 0 && journal.cold_count > 0 && journal.sealed_count > 0);
    assert_eq!(
        later.0.unfinished,
        given_to(&dir.join("base/vol-00000/x.part"))
    );
    assert!(cold.0.journal.sealed < hot.0.journal.sealed);
}

#[test]
fn a_layer_is_named_after_the_first_point_that_is_shown_with_it() {
    let (machine, ..) = aged(2, 3);
    let harbor = &machine.harbor;
    let offered = harbor.points();
    let of_one = |volume| {
        let mut layers = harbor.space().unwrap().layers;
        layers.retain(|layer| layer.volume == volume);
        layers
    };
    let layers = of_one(VolumeId(0));
    assert_eq!(layers.len(), 4);
    for (at, layer) in layers.iter().enumerate() {
        let end = layers.get(at + 1).map(|next| next.seq);
        let its = |point: &&Point| point.seq >= layer.seq && end.is_none_or(|end| point.seq < end);
        assert_eq!(layer.first_point.as_ref(), offered.iter().find(its));
        assert!(layer.first_point.is_some());
    }
    // A layer above which no point is left before the next.
    let between = harbor.points_between(
        layers[1].first_point.as_ref().map(|point| point.time),
        layers[2].first_point.as_ref().map(|point| point.time),
        usize::MAX,
    );
    harbor
        .delete_points(&ids(&between[..between.len() - 1]))
        .unwrap();
    let layers = of_one(VolumeId(0));
    assert_eq!(layers[1].first_point, None);
    assert_eq!(layers[2].first_point.as_ref(), between.last());
}

#[test]
fn locked_points_the_newest_and_those_in_use_are_no_gain() {
    let (machine, ..) = aged(3, 1);
    let harbor = &machine.harbor;
    let points = harbor.points();
    harbor.lock_point(points[2].id).unwrap();
    let _pin = harbor.pin(points[4].id).unwrap();
    let mut expected = ids(&points);
    expected.retain(|id| ![points[2].id, points[4].id].contains(id));
    expected.pop();
    assert_eq!(harbor.deletable(&points), expected);
    assert_eq!(
        harbor.deletable(&points[1..4]),
        ids(&[points[1].clone(), points[3].clone()])
    );
    harbor.delete_points(&expected).unwrap();
    assert_eq!(harbor.deletable(&points), []);
}

/// Checks an estimate. A tenth of what the model writes is one byte again and again, and takes nothing where it is
/// compressed; how much of that is in what goes is chance. Files are whole blocks.
#[track_caller]
fn check_about(said: u64, freed: u64) {
    assert!(
        said.abs_diff(freed) <= freed / 10 + 16 * KIB,
        "{said}, not {freed}"
    );
}

#[test]
fn what_compaction_frees_is_what_was_said() {
    for seed in 1..6 {
        let (machine, ..) = aged(seed, 4);
        let (harbor, _home) = closed(machine);
        compact(&harbor);
        let points = harbor.points();
        let count = points.len();
        assert_eq!(harbor.gain(&[]).unwrap(), Freed::default());
        // The second time some of the points are gone already.
        for range in [count / 4..count * 3 / 4, 1..count - 1] {
            let going = harbor.deletable(&points[range]);
            let before = settled(&harbor);
            let said = harbor.gain(&going).unwrap();
            assert_eq!(settled(&harbor), before, "to ask changes nothing");
            harbor.delete_points(&going).unwrap();
            compact(&harbor);
            let freed = before - settled(&harbor);
            assert!(freed > 2_000 * KIB, "{freed} of {before}");
            check_about(said.soon, freed);
        }
    }
}

#[test]
fn what_is_not_due_yet_goes_when_more_points_do() {
    for seed in 1..4 {
        let (machine, ..) = aged(seed, 3);
        let (harbor, _home) = closed(machine);
        compact(&harbor);
        let (few, more) = {
            let points = harbor.points();
            let (few, more) = points.split_at(points.len() / 3);
            (harbor.deletable(few), harbor.deletable(more))
        };
        let before = settled(&harbor);
        let of_few = harbor.gain(&few).unwrap();
        let of_all = harbor.gain(&[few.clone(), more.clone()].concat()).unwrap();
        harbor.delete_points(&few).unwrap();
        compact(&harbor);
        assert_eq!((of_few.soon, settled(&harbor)), (0, before));
        assert!(of_few.later > 500 * KIB, "{of_few:?}");
        let of_more = harbor.gain(&more).unwrap();
        harbor.delete_points(&more).unwrap();
        compact(&harbor);
        let freed = before - settled(&harbor);
        check_about(of_all.soon, freed);
        // What was not due for a few is had with the others.
        check_about(of_more.soon, freed);
        assert!(of_few.later < freed);
    }
}

#[test]
fn what_lies_behind_the_newest_base_point_goes_once_there_is_another() {
    let (machine, mut model, mut chance) = aged(9, 1);
    let behind = machine.harbor.points().len();
    steps(&mut model, &machine.recorder, &mut chance, 600);
    let (harbor, home) = closed(machine);
    compact(&harbor);
    let points = harbor.points();
    let going = harbor.deletable(&points[behind..]);
    let said = harbor.gain(&going).unwrap();
    let copy = home.path().join("copy");
    crash_image(harbor.dir(), &copy);
    let (other, _) = Harbor::open(&copy, Options::default()).unwrap();
    harbor.delete_points(&going).unwrap();
    for harbor in [&harbor, &other] {
        build(harbor);
        compact(harbor);
    }
    let freed = settled(&other) - settled(&harbor);
    assert!(freed > 1_000 * KIB, "{freed}");
    assert_eq!(said.soon, 0);
    check_about(said.later, freed);
}

#[test]
fn compression_to_come_is_no_gain_of_deleting() {
    let (machine, ..) = aged(6, 4);
    let (harbor, home) = closed(machine);
    let going = harbor.deletable(&harbor.points());
    let said = harbor.gain(&going).unwrap();
    let copy = home.path().join("copy");
    crash_image(harbor.dir(), &copy);
    let (other, _) = Harbor::open(&copy, Options::default()).unwrap();
    harbor.delete_points(&going).unwrap();
    compact(&harbor);
    compact(&other);
    let freed = settled(&other) - settled(&harbor);
    assert!(freed > 4_000 * KIB, "{freed}");
    // Nothing is cold yet that would tell how it compresses: see `check_about`.
    check_about(said.soon * 9 / 10, freed);
}
