//! Cold segments: what stands for others shows the same, and nothing else, whatever happens while it is made.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use cdp_core::storage::{Left, SimulatedStorage};
use cdp_core::{Compacted, Harbor, HarborError, Options, VolumeId};
use tempfile::TempDir;

use crate::harness::{
    Chance, KIB, Machine, Model, crash_image, description, machine, small_segments,
};

const SIZES: [u64; 2] = [512 * KIB, 256 * KIB];

/// A machine with a history, behind which new base points lie.
fn aged(seed: u64) -> (Machine, Model) {
    let machine = machine(&SIZES, small_segments());
    let mut model = Model::new(&SIZES);
    let mut chance = Chance::new(seed);
    for _ in 0..600 {
        model.step(&machine.recorder, &mut chance);
    }
    rebase(&machine, &model);
    for _ in 0..60 {
        model.step(&machine.recorder, &mut chance);
    }
    (machine, model)
}

/// Makes a base point of every volume of what it holds now.
fn rebase(machine: &Machine, model: &Model) {
    for (number, content) in model.volumes.iter().enumerate() {
        let mut seed = machine.harbor.seed(VolumeId(number as u16)).unwrap();
        seed.data(0, content).unwrap();
        seed.finish(machine.recorder.sync().unwrap()).unwrap();
    }
}

fn compact(harbor: &Harbor) -> Vec<Compacted> {
    let mut all = Vec::new();
    while let Some(one) = harbor.compact(&mut |_| ControlFlow::Continue(())).unwrap() {
        assert!(one.files > 0 && all.len() < 100, "{all:?}");
        all.push(one);
    }
    all
}

fn names(dir: &Path, ending: &str) -> Vec<String> {
    let entries = fs::read_dir(dir.join("journal")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(ending))
        .collect();
    names.sort();
    names
}

#[test]
fn what_stands_for_segments_shows_the_same() {
    for seed in 1..4 {
        let (machine, model) = aged(seed);
        let before = names(&machine.dir(), ".seg").len();
        let view = machine.harbor.view(machine.harbor.points()[3].id).unwrap();
        let mut shown = vec![0; SIZES[0] as usize];
        view.read_at(VolumeId(0), &mut shown, 0).unwrap();

        let done = compact(&machine.harbor);
        let files: usize = done.iter().map(|one| one.files).sum();
        assert!(files > 10, "{done:?}");
        assert!(done.iter().any(|one| one.dropped > 0), "{done:?}");
        assert!(done.iter().all(|one| one.bytes_after < one.bytes_before));
        let (hot, cold) = (
            names(&machine.dir(), ".seg"),
            names(&machine.dir(), ".cold"),
        );
        // The keeper may have named the next segment meanwhile.
        assert!(hot.len() + files - before <= 1, "{hot:?}");
        assert_eq!(cold.len(), done.len());
        model.check(&machine.harbor, "after it");
        let mut again = vec![0; SIZES[0] as usize];
        view.read_at(VolumeId(0), &mut again, 0).unwrap();
        assert!(again == shown, "a view that was open goes on");

        let dir = machine.dir();
        let Machine {
            home,
            harbor,
            recorder,
        } = machine;
        recorder.close().unwrap();
        drop((view, harbor, recorder));
        for round in 0..2 {
            let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
            assert!(report.is_clean(), "{report:?}");
            model.check(&harbor, &format!("opened {round}"));
        }
        drop(home);
    }
}

#[test]
fn sources_that_a_crash_left_are_removed() {
    let (machine, model) = aged(7);
    let copy = TempDir::new().unwrap();
    let sources = copy.path().join("sources");
    crash_image(&machine.dir(), &sources);
    let done = compact(&machine.harbor);
    assert!(!done.is_empty());
    let after = copy.path().join("after");
    crash_image(&machine.dir(), &after);
    let left = names(&sources, ".seg");
    for name in left.iter().take(left.len() - 1).step_by(2) {
        fs::copy(
            sources.join("journal").join(name),
            after.join("journal").join(name),
        )
        .unwrap();
    }
    fs::write(
        after.join("journal/000000000001-000000000009.cold.part"),
        b"unfinished",
    )
    .unwrap();
    let (harbor, report) = Harbor::open(&after, Options::default()).unwrap();
    assert!(report.damage.is_empty(), "{report:?}");
    assert!(report.removed.len() > 3, "{report:?}");
    assert!(names(&after, ".part").is_empty());
    model.check(&harbor, "with what a crash left");
}

#[test]
fn sources_are_gone_for_good_when_it_is_done() {
    let storage = SimulatedStorage::new(5);
    let options = || Options {
        storage: Arc::new(storage.clone()),
        ..small_segments()
    };
    let dir = Path::new("/harbor");
    let harbor = Harbor::create(dir, &description(&SIZES), options()).unwrap();
    let recorder = harbor.record().unwrap();
    let mut model = Model::new(&SIZES);
    let seed = |content: &[u8], number: usize| {
        let mut seed = harbor.seed(VolumeId(number as u16)).unwrap();
        seed.data(0, content).unwrap();
        seed.finish(recorder.sync().unwrap()).unwrap();
    };
    let empty = model.volumes.clone();
    empty
        .iter()
        .enumerate()
        .for_each(|(number, content)| seed(content, number));
    let mut chance = Chance::new(5);
    for _ in 0..300 {
        model.step(&recorder, &mut chance);
    }
    let all = model.volumes.iter().enumerate();
    all.for_each(|(number, content)| seed(content, number));
    recorder.close().unwrap();
    drop(recorder);
    assert!(!compact(&harbor).is_empty());
    drop(harbor);
    storage.cut_power();
    storage.power_up(Left::Nothing);
    // Or some of them would come back without what stands for them, once that is needless and goes.
    let (_, report) = Harbor::open(dir, options()).unwrap();
    let of_the_journal = |name: &&String| name.starts_with("journal/");
    assert_eq!(report.removed.iter().find(of_the_journal), None);
}

#[test]
fn an_unreadable_cold_segment_does_not_cost_its_sources() {
    let (machine, model) = aged(8);
    let copy = TempDir::new().unwrap();
    let sources = copy.path().join("sources");
    crash_image(&machine.dir(), &sources);
    compact(&machine.harbor);
    for name in names(&machine.dir(), ".cold") {
        let mut bytes = fs::read(machine.dir().join("journal").join(&name)).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(sources.join("journal").join(&name), bytes).unwrap();
    }
    let (harbor, report) = Harbor::open(&sources, Options::default()).unwrap();
    assert!(!report.damage.is_empty(), "it is told");
    model.check(&harbor, "from the sources");
}

#[test]
fn a_flipped_bit_is_an_error_and_never_another_byte() {
    let (machine, model) = aged(9);
    compact(&machine.harbor);
    let copy = TempDir::new().unwrap();
    let mut chance = Chance::new(99);
    let (mut refused, mut shown) = (0, 0);
    for round in 0..40 {
        let dir = copy.path().join(round.to_string());
        crash_image(&machine.dir(), &dir);
        let cold = names(&dir, ".cold");
        let path = dir
            .join("journal")
            .join(&cold[chance.below(cold.len() as u64) as usize]);
        let mut bytes = fs::read(&path).unwrap();
        let at = chance.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << chance.below(8);
        fs::write(&path, bytes).unwrap();
        let (harbor, _) = Harbor::open(&dir, Options::default()).unwrap();
        for point in harbor.points() {
            let (_, volumes) = &model.points[&point.id.0];
            let Ok(view) = harbor.view(point.id) else {
                refused += 1;
                continue;
            };
            for (number, expected) in volumes.iter().enumerate() {
                let mut found = vec![0; expected.len()];
                match view.read_at(VolumeId(number as u16), &mut found, 0) {
                    Ok(()) => assert!(found == *expected, "round {round}, byte {at}"),
                    Err(_) => refused += 1,
                }
                shown += 1;
            }
        }
        fs::remove_dir_all(&dir).unwrap();
    }
    assert!(refused > 20 && shown > refused, "{refused} of {shown}");
}

#[test]
fn a_damaged_source_stays_as_it_is() {
    let (machine, _) = aged(10);
    let dir = machine.dir();
    let Machine {
        home,
        harbor,
        recorder,
    } = machine;
    recorder.close().unwrap();
    drop((harbor, recorder));
    let path = dir.join("journal/000000000002.seg");
    let mut bytes = fs::read(&path).unwrap();
    // In the payloads: behind the header and the first frame's table.
    let at = bytes.len() / 2;
    bytes[at..at + 1024].fill(0x5a);
    fs::write(&path, &bytes).unwrap();
    let (harbor, _) = Harbor::open(&dir, Options::default()).unwrap();
    let refused = harbor.compact(&mut |_| ControlFlow::Continue(()));
    assert!(
        matches!(refused, Err(HarborError::Damaged { .. })),
        "{refused:?}"
    );
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(names(&dir, ".cold").is_empty() && names(&dir, ".part").is_empty());
    drop(home);
}

#[test]
fn it_can_be_ended_and_leaves_nothing() {
    let (machine, model) = aged(11);
    let before = names(&machine.dir(), ".seg");
    let ended = machine.harbor.compact(&mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(HarborError::Cancelled)), "{ended:?}");
    let after = names(&machine.dir(), "");
    assert!(before.iter().all(|name| after.contains(name)), "{after:?}");
    assert!(
        after.iter().all(|name| !name.contains(".cold")),
        "{after:?}"
    );
    model.check(&machine.harbor, "after it was ended");
}
