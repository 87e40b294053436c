//! Layers: each shows what its point shows, to us and to QEMU; a chain stays short, and loses no point.

use std::fs;
use std::ops::ControlFlow;

use cdp_core::bounds::{CLUSTER, LAYERS_MAX};
use cdp_core::{
    BasePoint, Clusters, HarborError, Options, Point, PointId, Progress, Seq, View, VolumeId,
};

use crate::harness::{
    Chance, KIB, Machine, Model, check_volume, crash_image, machine, open_again, small_segments,
};
use crate::layers_check::{
    check_has_hashes, check_is_lean, check_layer, content, go_on, hashed, layers, point,
};

const V0: VolumeId = VolumeId(0);
const SIZES: [u64; 3] = [3 * 1024 * KIB + 512, 64 * KIB, 4096];

/// Does some steps, makes a point and builds its layers.
fn build(machine: &Machine, model: &mut Model, chance: &mut Chance, steps: u64) -> Point {
    for _ in 0..steps {
        model.step(&machine.recorder, chance);
    }
    let point = point(machine);
    let volumes = model.volumes.clone();
    model.points.insert(point.id.0, (point.clone(), volumes));
    let built = machine.harbor.build_base(point.id, &mut go_on).unwrap();
    assert_eq!(built.len(), model.volumes.len());
    assert!(built.iter().all(|base: &BasePoint| base.seq == point.seq));
    point
}

#[test]
fn each_layer_shows_what_its_point_shows_and_holds_only_what_differs() {
    for seed in 0..3 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(&SIZES);
        let machine = machine(&SIZES, small_segments());
        for round in 0..5 {
            build(&machine, &mut model, &mut chance, 40);
            for (number, expected) in model.volumes.iter().enumerate() {
                let layers = layers(&machine.harbor, VolumeId(number as u16));
                assert_eq!(layers.len(), round + 2);
                check_layer(layers.last().unwrap(), expected);
                check_is_lean(&layers[round], &layers[round + 1]);
            }
        }
        model.check(&machine.harbor, "with layers");
        machine.recorder.close().unwrap();
        let dir = machine.dir();
        let home = machine.home;
        drop((machine.harbor, machine.recorder));
        let (harbor, report) = open_again(&dir, small_segments());
        assert!(report.is_clean(), "{report:?}");
        model.check(&harbor, "opened again");
        drop(home);
    }
}

#[test]
fn zeros_hide_what_lies_below_and_what_did_not_change_takes_no_room() {
    let machine = machine(&[1024 * KIB, 1024 * KIB], Options::default());
    machine.write(0, 0, &vec![7; 512 * KIB as usize]);
    machine.write(1, 0, &vec![7; 512 * KIB as usize]);
    let first = point(&machine);
    machine.harbor.build_base(first.id, &mut go_on).unwrap();
    let volume = machine.recorder.volume(V0).unwrap();
    volume.zero(64 * KIB, 100 * KIB).unwrap();
    volume.zero(600 * KIB, 300 * KIB).unwrap();
    machine.write(0, 256 * KIB, &vec![0; 64 * KIB as usize]);
    machine.write(0, 320 * KIB, &vec![7; 64 * KIB as usize]);
    let second = point(&machine);
    machine.harbor.build_base(second.id, &mut go_on).unwrap();
    let mut expected = vec![0; 1024 * 1024];
    expected[..512 * 1024].fill(7);
    let unchanged = layers(&machine.harbor, VolumeId(1)).pop().unwrap();
    check_layer(&unchanged, &expected);
    assert_eq!(hashed(&unchanged), [0; 0]);
    assert!(fs::metadata(&unchanged).unwrap().len() <= 4 * CLUSTER as u64);
    expected[64 * 1024..164 * 1024].fill(0);
    expected[256 * 1024..320 * 1024].fill(0);
    let changed = layers(&machine.harbor, V0).pop().unwrap();
    check_layer(&changed, &expected);
    // One is zeros now, one in part, one was written with zeros; what was written with the same is not there.
    assert_eq!(hashed(&changed), [1, 2, 4]);
    assert!(fs::metadata(&changed).unwrap().len() <= 6 * CLUSTER as u64);
}

#[test]
fn what_cannot_be_built_is_refused_and_what_is_called_off_leaves_nothing() {
    let machine = machine(&[1024 * KIB], Options::default());
    let harbor = &machine.harbor;
    let mut points = Vec::new();
    for byte in 1..4 {
        machine.write(0, 0, &vec![byte; 600 * KIB as usize]);
        points.push(point(&machine));
    }
    let none = harbor.build_base(PointId(99), &mut go_on);
    assert!(matches!(none, Err(HarborError::NoSuchPoint(PointId(99)))));
    let mut told = 0;
    let cancelled = harbor.build_base(points[1].id, &mut |_| {
        told += 1;
        let busy = harbor.build_base(points[1].id, &mut go_on);
        assert!(matches!(busy, Err(HarborError::Busy(_))));
        ControlFlow::Break(())
    });
    assert!(matches!(cancelled, Err(HarborError::Cancelled)) && told == 1);
    let names = |suffix: &str| {
        let dir = machine.dir().join("base/vol-00000");
        let names = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let names = names.filter(|name| name.to_string_lossy().ends_with(suffix));
        names.count()
    };
    assert_eq!(
        (names(".qcow2"), names("")),
        (1, 2),
        "the full and its hashes"
    );
    let (mut read, mut written, mut last) = (0, 0, None);
    let built = harbor.build_base(points[1].id, &mut |progress: Progress| {
        assert!(progress.read <= 2 << 20 && progress.written <= 1 << 20);
        read += progress.read;
        written += progress.written;
        last = Some((progress.done, progress.total));
        ControlFlow::Continue(())
    });
    assert_eq!(built.unwrap().len(), 1);
    assert_eq!((read, written), (640 * KIB, 640 * KIB));
    assert_eq!(last, Some((1024 * KIB, 1024 * KIB)));
    assert_eq!(harbor.build_base(points[1].id, &mut go_on).unwrap(), []);
    let behind = harbor.build_base(points[0].id, &mut go_on).unwrap_err();
    assert!(matches!(behind, HarborError::BehindBase { .. }));
    assert!(
        behind.to_string().contains("lies before record"),
        "{behind}"
    );
    harbor.build_base(points[2].id, &mut go_on).unwrap();
}

/// Reads views that were opened before, and must show the same for ever.
fn check_views(views: &[(View, Vec<Vec<u8>>)], context: &str) {
    for (view, volumes) in views {
        for (number, expected) in volumes.iter().enumerate() {
            check_volume(view, VolumeId(number as u16), expected, context);
        }
    }
}

#[test]
fn a_chain_of_thirty_stays_short_and_every_point_exact() {
    let ways = [
        (Clusters::Plain, None),
        (Clusters::Compressed, None),
        (Clusters::Plain, Some(3)),
        (Clusters::Compressed, Some(12)),
    ];
    for (seed, (clusters, kept)) in ways.into_iter().enumerate() {
        let context = format!("{clusters:?}, {kept:?}");
        let mut chance = Chance::new(seed as u64 + 40);
        let sizes = [700 * KIB + 512, 64 * KIB];
        let mut model = Model::new(&sizes);
        let machine = machine(&sizes, small_segments());
        let harbor = &machine.harbor;
        let mut views: Vec<(View, Vec<Vec<u8>>)> = Vec::new();
        let mut seen = 0;
        for round in 0..30 {
            build(&machine, &mut model, &mut chance, 8);
            let first_kept = match kept {
                Some(kept) => {
                    let points: Vec<Seq> = harbor.points().iter().map(|p| p.seq).collect();
                    points[points.len().saturating_sub(kept)]
                }
                None => Seq(0),
            };
            views.retain(|(view, _)| view.point().seq >= first_kept);
            let merged = harbor
                .merge_bases(first_kept, clusters, &mut go_on)
                .unwrap();
            seen += merged.len();
            for number in 0..sizes.len() {
                let layers = layers(harbor, VolumeId(number as u16));
                assert!(layers.len() <= LAYERS_MAX, "{context}: {}", layers.len());
            }
            let oldest = harbor.points().first().unwrap().seq;
            assert!(oldest <= first_kept || kept.is_none(), "{context}");
            model.points.retain(|_, (point, _)| point.seq >= oldest);
            if round % 4 == 0 {
                let at = harbor.point_at(harbor.points()[0].time).unwrap();
                let newest = harbor.newest_point().unwrap();
                for point in [at, newest].into_iter().filter(|p| p.seq >= first_kept) {
                    let expected = model.points[&point.id.0].1.clone();
                    views.push((harbor.view(point.id).unwrap(), expected));
                }
            }
            check_views(&views, &context);
        }
        assert!(seen >= 2 * 20, "{context}: {seen}");
        assert_eq!(kept.is_none(), model.points.len() > 40, "{context}");
        model.check(harbor, &context);
        for number in 0..sizes.len() {
            let all = layers(harbor, VolumeId(number as u16));
            check_has_hashes(None, &all[0]);
            for pair in all.windows(2) {
                check_has_hashes(Some(&pair[0]), &pair[1]);
            }
            for layer in harbor.base_points(VolumeId(number as u16)) {
                let shown = model
                    .points
                    .values()
                    .find(|(point, _)| point.seq == layer.seq);
                match shown {
                    Some((_, volumes)) => check_layer(&layer.path, &volumes[number]),
                    None => check_layer(&layer.path, &content(&layer.path)),
                }
            }
        }
        machine.recorder.close().unwrap();
        let dir = machine.dir();
        let home = machine.home;
        drop((views, machine.harbor, machine.recorder));
        let (harbor, report) = open_again(&dir, small_segments());
        assert!(report.is_clean(), "{context}: {report:?}");
        assert_eq!(harbor.unfinished_merges(), []);
        model.check(&harbor, &format!("{context}, opened again"));
        let files = fs::read_dir(dir.join("base/vol-00000")).unwrap().count();
        assert_eq!(
            files,
            2 * layers(&harbor, V0).len(),
            "{context}: nothing is left over"
        );
        drop(home);
    }
}

#[test]
fn a_layer_that_is_compressed_is_smaller_and_reads_the_same() {
    let machine = machine(&[4096 * KIB], Options::default());
    let text: Vec<u8> = (0..2048 * KIB).map(|at| (at / 300 % 250) as u8).collect();
    let mut expected = vec![0; 4096 * 1024];
    let mut by_chance = vec![0; 64 * KIB as usize];
    cdp_core::chance::Chance::new(1).fill(&mut by_chance);
    for round in 0..9 {
        let from = round * 200 * 1024;
        machine.write(0, from, &text);
        expected[from as usize..from as usize + text.len()].copy_from_slice(&text);
        let from = (round + 30) * 64 * KIB;
        machine.write(0, from, &by_chance);
        expected[from as usize..from as usize + by_chance.len()].copy_from_slice(&by_chance);
        machine
            .harbor
            .build_base(point(&machine).id, &mut go_on)
            .unwrap();
    }
    let before = machine.harbor.usage().unwrap().base_bytes;
    let merged = machine
        .harbor
        .merge_bases(Seq(0), Clusters::Compressed, &mut go_on)
        .unwrap();
    assert_eq!(merged.len(), 2);
    let after = machine.harbor.usage().unwrap().base_bytes;
    assert!(after + (6 << 20) < before, "{after} of {before}");
    for path in layers(&machine.harbor, V0) {
        check_layer(&path, &content(&path));
    }
    check_layer(&layers(&machine.harbor, V0).pop().unwrap(), &expected);
    let at_end = machine.harbor.newest_point().unwrap();
    let view = machine.harbor.view(at_end.id).unwrap();
    check_volume(&view, V0, &expected, "compressed");
    // It goes into the full like any other.
    let newest = at_end.seq;
    drop(view);
    for _ in 0..2 {
        machine.write(0, 0, &[9; 512]);
        expected[..512].fill(9);
        machine
            .harbor
            .build_base(point(&machine).id, &mut go_on)
            .unwrap();
        machine
            .harbor
            .merge_bases(newest, Clusters::Plain, &mut go_on)
            .unwrap();
    }
    for path in layers(&machine.harbor, V0) {
        check_layer(&path, &content(&path));
    }
    check_layer(&layers(&machine.harbor, V0).pop().unwrap(), &expected);
}

#[test]
fn a_chain_can_be_moved_to_another_directory() {
    let mut chance = Chance::new(77);
    let mut model = Model::new(&SIZES);
    let machine = machine(&SIZES, small_segments());
    for _ in 0..4 {
        build(&machine, &mut model, &mut chance, 30);
    }
    let elsewhere = machine.home.path().join("elsewhere");
    crash_image(&machine.dir().join("base/vol-00000"), &elsewhere);
    let newest = layers(&machine.harbor, V0).pop().unwrap();
    let moved = elsewhere.join(newest.file_name().unwrap());
    let (dir, home) = (machine.dir(), machine.home);
    machine.recorder.close().unwrap();
    drop((machine.harbor, machine.recorder));
    let renamed = home.path().join("renamed");
    fs::rename(&dir, &renamed).unwrap();
    check_layer(&moved, &model.volumes[0]);
    let (harbor, report) = open_again(&renamed, small_segments());
    assert!(report.is_clean(), "{report:?}");
    model.check(&harbor, "renamed");
}

#[test]
fn a_full_is_not_changed_under_a_view_that_reads_it() {
    let machine = machine(&[256 * KIB], Options::default());
    machine.write(0, 0, &[1; 4096]);
    let old = point(&machine);
    let view = machine.harbor.view(old.id).unwrap();
    for byte in 2..11 {
        machine.write(0, 0, &[byte; 4096]);
        machine
            .harbor
            .build_base(point(&machine).id, &mut go_on)
            .unwrap();
    }
    // Whoever says so has forgotten the view.
    let merged = machine
        .harbor
        .merge_bases(Seq(u64::MAX), Clusters::Plain, &mut go_on)
        .unwrap();
    assert_eq!(merged.len(), 2);
    let mut expected = vec![0; 256 * 1024];
    expected[..4096].fill(1);
    check_volume(&view, V0, &expected, "under the merge");
    check_volume(
        &machine.harbor.view(old.id).unwrap(),
        V0,
        &expected,
        "opened anew",
    );
    drop(view);
    machine.write(0, 0, &[11; 4096]);
    machine
        .harbor
        .build_base(point(&machine).id, &mut go_on)
        .unwrap();
    machine
        .harbor
        .merge_bases(Seq(u64::MAX), Clusters::Plain, &mut go_on)
        .unwrap();
    let gone = machine.harbor.view(old.id);
    assert!(matches!(gone, Err(HarborError::NoSuchPoint(_))));
}

#[test]
fn a_full_from_before_there_were_hashes_is_merged_like_any_other() {
    let machine = machine(&[512 * KIB], Options::default());
    machine.write(0, 128 * KIB, &vec![3; 256 * KIB as usize]);
    machine
        .harbor
        .build_base(point(&machine).id, &mut go_on)
        .unwrap();
    for byte in 1..9 {
        machine.write(0, 64 * KIB, &[byte; 4096]);
        machine
            .harbor
            .build_base(point(&machine).id, &mut go_on)
            .unwrap();
    }
    let all = layers(&machine.harbor, V0);
    fs::remove_file(all[0].with_extension("hashes")).unwrap();
    let newest = machine.harbor.newest_point().unwrap().seq;
    let merged = machine
        .harbor
        .merge_bases(newest, Clusters::Plain, &mut go_on)
        .unwrap();
    assert_eq!(merged.len(), 2);
    for path in layers(&machine.harbor, V0) {
        check_layer(&path, &content(&path));
    }
    assert_eq!(
        hashed(&all[2]),
        [1, 2, 3, 4, 5],
        "of the increments that went in"
    );
}
