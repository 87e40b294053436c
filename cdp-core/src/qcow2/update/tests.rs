//! An image that is changed in place shows what it should, and is flawless afterwards, whatever came in between.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::chance::Chance;
use crate::qcow2::{Chain, Qcow2Writer};
use crate::storage::{Left, SimulatedStorage, Trouble};

const IMAGE: &str = "/image";

/// The byte that each cluster is full of; 0 for none.
type Model = Vec<u8>;

fn image(storage: &SimulatedStorage, clusters: &[u8]) {
    let file = storage.open(Path::new(IMAGE), OpenMode::New).unwrap();
    let mut writer = Qcow2Writer::new(file, (clusters.len() * CLUSTER) as u64);
    for (number, byte) in clusters.iter().enumerate() {
        writer
            .write((number * CLUSTER) as u64, &vec![*byte; CLUSTER])
            .unwrap();
    }
    writer.finish().unwrap();
    storage.sync_dir(Path::new("/")).unwrap();
}

/// The byte that each cluster is full of; none where it is not full of one.
fn glance(storage: &SimulatedStorage) -> Vec<Option<u8>> {
    let chain = Chain::open(storage, Path::new(IMAGE)).unwrap();
    let mut all = vec![0xee; chain.size() as usize];
    chain.read_at(&mut all, 0).unwrap();
    let cluster = |bytes: &[u8]| {
        let is_full = bytes.iter().all(|byte| *byte == bytes[0]);
        is_full.then_some(bytes[0])
    };
    all.chunks(CLUSTER).map(cluster).collect()
}

fn look(storage: &SimulatedStorage) -> Model {
    glance(storage).into_iter().map(Option::unwrap).collect()
}

/// Has `qemu-img` look for errors and leaks.
fn qemu_img_check(bytes: &[u8], context: &str) {
    let found = qemu_img_finds(bytes);
    assert!(matches!(found, None | Some((0, _))), "{context}: {found:?}");
}

/// Returns the code and the words with which `qemu-img` checks an image: 2 are errors, 3 are leaks. None, said aloud,
/// where there is no `qemu-img`.
fn qemu_img_finds(bytes: &[u8]) -> Option<(i32, String)> {
    let home = tempfile::TempDir::new().unwrap();
    let path = home.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    match Command::new("qemu-img").arg("check").arg(&path).output() {
        Ok(output) => Some((output.status.code()?, format!("{output:?}"))),
        Err(error) => {
            drop(writeln!(
                std::io::stderr(),
                "SKIPPED: qemu-img check: {error}"
            ));
            None
        }
    }
}

/// Changes a model and tells what was changed.
fn plan(chance: &mut Chance, model: &mut Model) -> Vec<(u64, u8)> {
    let mut changes = Vec::new();
    for (cluster, byte) in model.iter_mut().enumerate() {
        if chance.once_in(3) {
            *byte = if chance.once_in(3) {
                0
            } else {
                chance.below(255) as u8 + 1
            };
            changes.push((cluster as u64, *byte));
        }
    }
    changes
}

fn update(
    storage: &SimulatedStorage,
    before: Before,
    size: u64,
    changes: &[(u64, u8)],
) -> Result<()> {
    let mut updater = Qcow2Updater::open(storage, Path::new(IMAGE), before)?;
    updater.resize(size)?;
    for (cluster, byte) in changes {
        match byte {
            0 => updater.zero(*cluster, 1)?,
            _ => updater.put(*cluster, &vec![*byte; CLUSTER])?,
        }
    }
    updater.finish()?;
    updater.give_back()
}

#[test]
fn what_is_written_taken_away_cut_and_grown_shows() {
    for seed in 0..30 {
        let mut chance = Chance::new(seed);
        let storage = SimulatedStorage::new(seed);
        let mut model: Model = (0..40).map(|_| chance.below(3) as u8).collect();
        image(&storage, &model);
        let mut longest = 0;
        for round in 0..6 {
            let len = 1 + chance.below(60) as usize;
            model.resize(len, 0);
            let changes = plan(&mut chance, &mut model);
            let size = (len * CLUSTER) as u64;
            update(&storage, Before::Whole, size, &changes).unwrap();
            let context = format!("seed {seed}, round {round}");
            assert_eq!(look(&storage), model, "{context}");
            let bytes = storage.content(Path::new(IMAGE)).unwrap();
            longest = longest.max(bytes.len());
            if seed % 5 == 0 {
                qemu_img_check(&bytes, &context);
            }
        }
        assert!(longest < 80 * CLUSTER, "what was free is used again");
    }
}

#[test]
fn whatever_a_crash_leaves_the_same_update_makes_whole() {
    let mut crashes = 0;
    for seed in 0..6 {
        for after in 0.. {
            let mut chance = Chance::new(seed);
            let storage = SimulatedStorage::new(seed * 1000 + after);
            let mut model: Model = (0..20).map(|_| chance.below(3) as u8).collect();
            image(&storage, &model);
            let old = model.clone();
            model.resize([20, 12, 33][seed as usize % 3], 0);
            let changes = plan(&mut chance, &mut model);
            let size = (model.len() * CLUSTER) as u64;
            storage.ask_for(Trouble::PowerCut { after });
            let done = update(&storage, Before::Whole, size, &changes);
            let is_cut = storage.is_cut();
            storage.cut_power();
            storage.power_up(if after % 2 == 0 {
                Left::ByChance
            } else {
                Left::Nothing
            });
            let context = format!("seed {seed}, cut after {after}: {done:?}");
            if is_cut {
                crashes += 1;
                // What is not changed shows as it was, also in what is left.
                let left = glance(&storage);
                for (cluster, byte) in old.iter().enumerate().take(left.len().min(model.len())) {
                    let is_changed = changes.iter().any(|(of, _)| *of == cluster as u64);
                    assert!(
                        is_changed || left[cluster] == Some(*byte),
                        "{context}: {cluster}"
                    );
                }
                let found = qemu_img_finds(&storage.content(Path::new(IMAGE)).unwrap());
                assert!(
                    matches!(found, None | Some((0 | 3, _))),
                    "{context}: {found:?}"
                );
                let again = update(&storage, Before::Unfinished, size, &changes);
                again.unwrap_or_else(|error| panic!("{context}: {error}"));
                storage.cut_power();
                storage.power_up(Left::Nothing);
            }
            assert_eq!(look(&storage), model, "{context}");
            qemu_img_check(&storage.content(Path::new(IMAGE)).unwrap(), &context);
            if !is_cut {
                break;
            }
        }
    }
    assert!(crashes > 60, "{crashes}");
}

#[test]
fn a_sync_that_failed_and_lost_something_is_made_up_for() {
    for (seed, after) in (0..10).flat_map(|seed| (0..6).map(move |after| (seed, after))) {
        let mut chance = Chance::new(seed);
        let storage = SimulatedStorage::new(seed);
        let mut model: Model = (0..20).map(|_| chance.below(3) as u8).collect();
        image(&storage, &model);
        let changes = plan(&mut chance, &mut model);
        let size = (model.len() * CLUSTER) as u64;
        storage.ask_for(Trouble::LosingSync { after, errno: 5 });
        let _ = update(&storage, Before::Whole, size, &changes);
        storage.forget_troubles();
        update(&storage, Before::Unfinished, size, &changes).unwrap();
        storage.cut_power();
        storage.power_up(Left::Nothing);
        assert_eq!(look(&storage), model, "seed {seed}, sync {after}");
    }
}

#[test]
fn an_l1_table_that_becomes_too_small_gets_another_place() {
    const TIB: u64 = 1 << 40;
    let home = tempfile::TempDir::new().unwrap();
    let path = home.path().join("image");
    let storage = crate::storage::RealStorage;
    let file = storage.open(&path, OpenMode::New).unwrap();
    let mut writer = Qcow2Writer::new(file, 3 * TIB);
    writer.write(0, &vec![1; CLUSTER]).unwrap();
    writer
        .write(3 * TIB - CLUSTER_LEN, &vec![2; CLUSTER])
        .unwrap();
    writer.finish().unwrap();
    for (size, last) in [(9 * TIB, 3), (2 * TIB, 4), (33 * TIB, 5), (64 * TIB, 6)] {
        let mut updater = Qcow2Updater::open(&storage, &path, Before::Whole).unwrap();
        updater.resize(size).unwrap();
        let cluster = size / CLUSTER_LEN - 1;
        updater.put(cluster, &vec![last; CLUSTER]).unwrap();
        updater.finish().unwrap();
        updater.give_back().unwrap();
        let chain = Chain::open(&storage, &path).unwrap();
        let at = |offset| {
            let mut byte = [0xee];
            chain.read_at(&mut byte, offset).unwrap();
            byte[0]
        };
        assert_eq!((chain.size(), at(0), at(size - 1)), (size, 1, last));
        let is_cut = size > 3 * TIB && last > 4;
        assert_eq!(
            at(3 * TIB - 1),
            if is_cut || size < 3 * TIB { 0 } else { 2 }
        );
        qemu_img_check(&std::fs::read(&path).unwrap(), "l1");
    }
    assert!(std::fs::metadata(&path).unwrap().len() < 40 * CLUSTER_LEN);
}

#[test]
fn tables_that_lie_over_each_other_are_refused() {
    let storage = SimulatedStorage::new(1);
    image(&storage, &[1, 1, 1]);
    let path = Path::new(IMAGE);
    let mut bytes = storage.content(path).unwrap();
    let (l1, l2) = (CLUSTER, 5 * CLUSTER);
    assert_eq!(bytes[l1 + 5], l2.to_be_bytes()[5], "where the table is");
    let (first, second) = bytes[l2..].split_at_mut(8);
    second[..8].copy_from_slice(first);
    storage.put(path, &bytes);
    let error = Qcow2Updater::open(&storage, path, Before::Whole).unwrap_err();
    assert!(error.to_string().contains("used twice"), "{error}");
}
