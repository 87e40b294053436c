//! What is damaged, and is had again from the live disk; and what the live disk has otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cdp_core::{
    Clusters, Finding, Grade, Harbor, HarborError, Lost, Point, PointId, Scope, VolumeId,
};

use crate::verify::{Kept, SIZES, kept, open, verify};

const CLUSTER: u64 = 65536;
const VOLUME: VolumeId = VolumeId(0);

/// The file of the oldest layer of the first volume.
fn full(dir: &Path) -> PathBuf {
    let layers = fs::read_dir(dir.join("base/vol-00000")).unwrap();
    let mut layers = layers.map(|entry| entry.unwrap().path());
    layers
        .find(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("full-") && name.ends_with(".qcow2")
        })
        .unwrap()
}

fn marked(harbor: &Harbor) -> BTreeSet<u64> {
    let points = harbor.points().into_iter();
    points.filter(|p| p.damaged).map(|p| p.id.0).collect()
}

fn suspects() -> Scope {
    Scope {
        suspects: true,
        ..Scope::default()
    }
}

/// Flips a byte of a layer's file, in a cluster that points show; returns the cluster's first byte in the volume, and its
/// place in the file. Nothing of it is known to the harbor then.
fn rot(dir: &Path, path: &Path) -> (u64, u64) {
    let whole = fs::read(path).unwrap();
    for place in (0..whole.len() as u64).step_by(CLUSTER as usize) {
        let mut bytes = whole.clone();
        bytes[place as usize + 77] ^= 0x20;
        fs::write(path, &bytes).unwrap();
        let (harbor, _) = open(dir);
        let found = verify(&harbor, Scope::default()).findings;
        let is_shown = !marked(&harbor).is_empty();
        fs::write(path, &whole).unwrap();
        assert_eq!(verify(&harbor, Scope::default()).findings, []);
        if let [only] = &found[..]
            && let Lost::Area { offset, .. } = only.lost
            && is_shown
        {
            fs::write(path, &bytes).unwrap();
            return (offset, place);
        }
    }
    panic!("no point shows anything of {path:?}");
}

#[test]
fn a_rotten_cluster_is_put_back_and_every_point_is_whole_again() {
    let Kept { dir, model, .. } = &kept(21, Clusters::Plain);
    let path = full(dir);
    let whole = fs::read(&path).unwrap();
    let (offset, place) = rot(dir, &path);
    let rotten = fs::read(&path).unwrap();
    let (harbor, _) = open(dir);
    verify(&harbor, Scope::default());
    assert!(!marked(&harbor).is_empty());
    let rotten_cluster = offset..offset + CLUSTER;
    assert_eq!(
        harbor.curable(VOLUME),
        std::slice::from_ref(&rotten_cluster)
    );
    assert_eq!(harbor.curable(VolumeId(1)), []);
    let len = CLUSTER.min(SIZES[0] - offset);
    let content = whole[place as usize..(place + len) as usize].to_vec();
    let mut other = content.clone();
    other[9] ^= 1;
    let put = harbor.put_back(VOLUME, &[(offset, other)]).unwrap();
    assert_eq!(put, [false], "it is not what its hash says");
    assert_eq!(fs::read(&path).unwrap(), rotten);
    assert!(!harbor.has_suspects());
    let elsewhere = (offset + CLUSTER, vec![0; CLUSTER as usize]);
    let clusters = [elsewhere, (offset, content)];
    assert_eq!(harbor.put_back(VOLUME, &clusters).unwrap(), [false, true]);
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert!(harbor.has_suspects());
    let again = verify(&harbor, suspects());
    assert_eq!((again.files, again.findings), (1, vec![]));
    assert_eq!(marked(&harbor), BTreeSet::new());
    assert_eq!(harbor.curable(VOLUME), []);
    model.check(&harbor, "mended");
}

#[test]
fn nothing_is_put_back_where_the_tables_are_broken() {
    let Kept { dir, .. } = &kept(22, Clusters::Plain);
    let path = full(dir);
    let whole = fs::read(&path).unwrap();
    let (offset, place) = rot(dir, &path);
    let mut bytes = fs::read(&path).unwrap();
    let table = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    // The first refcount, of the header.
    let block = table(table(48));
    bytes[block + 1] ^= 2;
    fs::write(&path, &bytes).unwrap();
    let (harbor, _) = open(dir);
    verify(&harbor, Scope::default());
    let len = CLUSTER.min(SIZES[0] - offset);
    let content = whole[place as usize..(place + len) as usize].to_vec();
    let put = harbor.put_back(VOLUME, &[(offset, content)]).unwrap();
    assert_eq!(put, [false]);
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_view_that_comes_upon_damage_has_its_file_verified_next() {
    let Kept { dir, .. } = &kept(23, Clusters::Plain);
    rot(dir, &full(dir));
    let (harbor, _) = open(dir);
    assert_eq!(verify(&harbor, suspects()).files, 0);
    let read = |id: PointId| {
        let mut all = vec![0; SIZES[0] as usize];
        harbor.view_damaged(id)?.read_at(VOLUME, &mut all, 0)
    };
    let points = harbor.points();
    let met = points.iter().filter(|p| read(p.id).is_err()).count();
    assert!(met > 0 && harbor.has_suspects());
    assert_eq!(marked(&harbor), BTreeSet::new());
    let report = verify(&harbor, suspects());
    assert_eq!((report.files, report.findings.len()), (1, 1), "{report:?}");
    assert!(marked(&harbor).len() >= met, "as they are not read with it");
    assert!(!harbor.has_suspects());
    let damaged = *marked(&harbor).first().unwrap();
    let refused = harbor.view(PointId(damaged)).unwrap_err();
    assert!(matches!(refused, HarborError::PointDamaged(_)), "{refused}");
}

#[test]
fn what_the_live_disk_has_otherwise_costs_the_points_that_show_it() {
    let Kept { dir, model, .. } = &kept(24, Clusters::Plain);
    let (harbor, _) = open(dir);
    let newest = &model.volumes[0];
    let mut of_layers = 0;
    // Pieces that are not zeros, from all over the volume.
    for start in (0..SIZES[0] - 1024).step_by(97 * 512) {
        let range = start..start + 512;
        let piece = |content: &[u8]| content[range.start as usize..range.end as usize].to_vec();
        let shown = piece(newest);
        if shown.iter().filter(|byte| **byte == 0).count() > 100 {
            continue;
        }
        let before = marked(&harbor);
        let image = harbor.latest_image(VOLUME).unwrap();
        let ranges = std::slice::from_ref(&range);
        let found = harbor.note_differences(VOLUME, &image, ranges).unwrap();
        let is_of_layer = |one: &&Finding| matches!(one.lost, Lost::Area { .. });
        of_layers += found.iter().filter(is_of_layer).count();
        let shows = |(_, (_, v)): &(&u64, &(Point, Vec<Vec<u8>>))| piece(&v[0]) == shown;
        let same: BTreeSet<u64> = model
            .points
            .iter()
            .filter(shows)
            .map(|(id, _)| *id)
            .collect();
        let now = marked(&harbor);
        assert!(now.is_superset(&same), "{now:?}, {same:?} show {range:?}");
        for id in now.difference(&before) {
            // A part of it is enough.
            let other = piece(&model.points[id].1[0]);
            assert!(
                other.iter().zip(&shown).any(|(a, b)| a == b),
                "{id} at {range:?}"
            );
        }
    }
    assert!(of_layers > 0);
    let known = marked(&harbor);
    assert!(!known.is_empty());
    verify(&harbor, Scope::default());
    assert_eq!(marked(&harbor), known, "nothing kept can tell otherwise");
    drop(harbor);
    let (harbor, _) = open(dir);
    assert_eq!(marked(&harbor), known);
    let recorder = harbor.record().unwrap();
    let writes = recorder.volume(VOLUME).unwrap();
    writes.zero(0, SIZES[0]).unwrap();
    recorder.point(Grade::Crash, None).unwrap();
    recorder.close().unwrap();
    assert_eq!(marked(&harbor), known, "it is written over at the last");
    for id in &known {
        harbor.unlock_point(PointId(*id)).unwrap();
    }
    let ids: Vec<PointId> = known.into_iter().map(PointId).collect();
    harbor.delete_points(&ids).unwrap();
    verify(&harbor, Scope::default());
    assert_eq!(harbor.damage(), [], "no point shows it any more");
}

#[test]
fn differences_in_many_places_cost_the_points_there_are_and_none_that_are_made_later() {
    let Kept { dir, model, .. } = &kept(25, Clusters::Plain);
    let (harbor, _) = open(dir);
    let recorder = harbor.record().unwrap();
    let image = harbor.latest_image(VOLUME).unwrap();
    let volume = recorder.volume(VOLUME).unwrap();
    volume.announce(0..SIZES[0]);
    let ranges: Vec<_> = (0..SIZES[0] / 1024)
        .map(|n| n * 1024..n * 1024 + 512)
        .collect();
    let note = || harbor.note_differences(VOLUME, &image, &ranges).unwrap();
    assert!(note().len() > 200, "they are told apart for whoever asks");
    // One more that still shows what is wrong, before the disk's content is journaled.
    let between = recorder.point(Grade::Crash, None).unwrap();
    for range in &ranges {
        let taken = volume.resync_data(range.start, &[7; 512]).unwrap();
        assert_eq!(taken, 512);
    }
    note();
    let later = recorder.point(Grade::Crash, None).unwrap();
    recorder.close().unwrap();
    assert_eq!(harbor.damage().len(), 1, "kept as one");
    let known = marked(&harbor);
    assert!(known.contains(&between.id.0) && !known.contains(&later.id.0));
    let newest = model.points.keys().last().unwrap();
    assert!(known.contains(newest), "{known:?}");
    drop(volume);
    drop((recorder, image, harbor));
    let (harbor, _) = open(dir);
    assert_eq!(marked(&harbor), known);
    harbor.view(later.id).unwrap();
}
