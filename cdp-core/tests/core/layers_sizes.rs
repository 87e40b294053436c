//! Layers of volumes that grow, shrink, go and come, and of such as are larger than a table stands for.

use std::collections::BTreeMap;

use cdp_core::machine::Era;
use cdp_core::{Clusters, Grade, Harbor, Options, Point, Seq, VolumeDescription, VolumeId};

use crate::harness::{Chance, KIB, Machine, check_volume, machine, qemu_img_check, write};
use crate::layers_check::{check_layer, content, go_on, layers, point};

const V0: VolumeId = VolumeId(0);
const V1: VolumeId = VolumeId(1);

/// Ends the recording, changes a volume, and goes on, as an engine does at an attach.
fn change(machine: &mut Machine, volume: VolumeId, size: Option<u64>) {
    machine.recorder.close().unwrap();
    let mut description = machine.harbor.description();
    let head = machine.harbor.head();
    let found = description.volumes.iter_mut().find(|v| v.id == volume);
    found.unwrap().change(head, size);
    machine.harbor.set_description(description).unwrap();
    machine.recorder = machine.harbor.record().unwrap();
}

/// What every point shows of a volume.
type Shown = BTreeMap<u64, Vec<u8>>;

fn shown(harbor: &Harbor, volume: VolumeId) -> Shown {
    let show = |point: Point| {
        let view = harbor.view(point.id).unwrap();
        let mut bytes = vec![0xee; view.size(volume).ok()? as usize];
        view.read_at(volume, &mut bytes, 0).unwrap();
        Some((point.seq.0, bytes))
    };
    harbor.points().into_iter().filter_map(show).collect()
}

/// Checks that layers show what their points have shown all along.
fn check(harbor: &Harbor, expected: &Shown, context: &str) {
    let now = shown(harbor, V0);
    for (seq, bytes) in &now {
        assert!(*bytes == expected[seq], "{context}: record {seq}");
    }
    for layer in harbor.base_points(V0) {
        match expected.get(&layer.seq.0) {
            Some(bytes) => check_layer(&layer.path, bytes),
            None => check_layer(&layer.path, &content(&layer.path)),
        }
    }
}

#[test]
fn whatever_size_a_volume_had_its_layers_and_points_show_what_they_did() {
    for seed in 0..6 {
        let mut chance = Chance::new(seed + 5);
        let mut machine = machine(&[600 * KIB + 512], Options::default());
        let mut points = Vec::new();
        let mut size = 600 * KIB + 512;
        for _ in 0..14 {
            if chance.below(2) == 0 {
                size = (1 + chance.below(2000)) * 512;
                change(&mut machine, V0, Some(size));
            }
            // Points with more records than the layer below and without, in either size.
            for _ in 0..1 + chance.below(3) {
                for _ in 0..chance.below(5) {
                    let offset = chance.below(size / 512) * 512;
                    let len = (512 * (1 + chance.below(300))).min(size - offset);
                    let data = vec![chance.below(3) as u8; len as usize];
                    machine.write(0, offset, &data);
                }
                points.push(point(&machine));
            }
        }
        // As the journal alone shows them.
        let expected = shown(&machine.harbor, V0);
        for (number, point) in points.iter().enumerate() {
            if chance.below(2) == 0 {
                machine.harbor.build_base(point.id, &mut go_on).unwrap();
            }
            if chance.below(3) == 0 {
                let first_kept = match seed % 2 {
                    0 => Seq(0),
                    _ => points[number.saturating_sub(6)].seq,
                };
                let merged = machine
                    .harbor
                    .merge_bases(first_kept, Clusters::Plain, &mut go_on);
                merged.unwrap();
                let first = machine.harbor.points()[0].seq;
                assert!(first <= first_kept.max(points[0].seq));
            }
        }
        check(&machine.harbor, &expected, &format!("seed {seed}"));
        assert!(layers(&machine.harbor, V0).len() > 1);
    }
}

#[test]
fn what_lay_behind_the_end_shows_again_where_a_volume_was_cut_and_grew() {
    for kept in [Seq(0), Seq(u64::MAX)] {
        let mut machine = machine(&[256 * KIB], Options::default());
        machine.write(0, 200 * KIB, &[5; 4096]);
        point(&machine);
        change(&mut machine, V0, Some(64 * KIB + 512));
        let cut = point(&machine);
        change(&mut machine, V0, Some(256 * KIB));
        machine.write(0, 0, &[6; 512]);
        let grown = point(&machine);
        let expected = shown(&machine.harbor, V0);
        assert_eq!(expected[&grown.seq.0][200 * 1024], 5, "as the format says");
        machine.harbor.build_base(cut.id, &mut go_on).unwrap();
        check(&machine.harbor, &expected, "over a layer that lacks it");
        for byte in 10..18 {
            machine.write(0, 512, &[byte; 512]);
            machine
                .harbor
                .build_base(point(&machine).id, &mut go_on)
                .unwrap();
        }
        let expected = shown(&machine.harbor, V0);
        let kept = kept.min(cut.seq);
        machine
            .harbor
            .merge_bases(kept, Clusters::Plain, &mut go_on)
            .unwrap();
        check(&machine.harbor, &expected, "merged");
        let found = shown(&machine.harbor, V0);
        assert!(found.contains_key(&grown.seq.0));
    }
}

#[test]
fn volumes_that_go_come_and_are_late_have_layers_of_the_points_they_are_in() {
    let mut machine = machine(&[128 * KIB, 64 * KIB], Options::default());
    machine.write(1, 0, b"before");
    machine
        .harbor
        .build_base(point(&machine).id, &mut go_on)
        .unwrap();
    change(&mut machine, V1, None);
    machine.write(0, 0, b"alone");
    let alone = point(&machine);
    let built = machine.harbor.build_base(alone.id, &mut go_on).unwrap();
    assert_eq!(built.iter().map(|b| b.volume).collect::<Vec<_>>(), [V0]);
    change(&mut machine, V1, Some(64 * KIB));
    let late = VolumeId(2);
    machine.recorder.close().unwrap();
    let mut description = machine.harbor.description();
    let mut volume = VolumeDescription::new(late, "vd2", 64 * KIB);
    volume.before.push(Era {
        up_to: machine.harbor.head(),
        size: 0,
    });
    description.volumes.push(volume);
    machine.harbor.set_description(description).unwrap();
    machine.recorder = machine.harbor.record().unwrap();
    let mut seed = machine.harbor.seed(late).unwrap();
    seed.data(0, b"late").unwrap();
    seed.finish(machine.recorder.sync().unwrap()).unwrap();
    write(&machine.recorder, 1, 512, b"again");
    let all = machine.recorder.point(Grade::Crash, None).unwrap();
    let built = machine.harbor.build_base(all.id, &mut go_on).unwrap();
    assert_eq!(built.len(), 3);
    for (volume, count) in [(V0, 4), (V1, 3), (late, 2)] {
        assert_eq!(layers(&machine.harbor, volume).len(), count);
    }
    let view = machine.harbor.view(all.id).unwrap();
    let mut expected = vec![0; 64 * 1024];
    expected[..6].copy_from_slice(b"before");
    expected[512..517].copy_from_slice(b"again");
    check_volume(&view, V1, &expected, "back again");
    check_layer(&layers(&machine.harbor, V1)[2], &expected);
}

#[test]
fn a_volume_of_more_than_one_table_is_built_and_merged() {
    const GIB: u64 = 1 << 30;
    let machine = machine(&[3 * GIB], Options::default());
    let volume = machine.recorder.volume(V0).unwrap();
    let places: Vec<u64> = (0..24).map(|n| n * 131 * 1024 * KIB + n * 512).collect();
    let mut values = vec![0_u8; places.len()];
    for round in 1..12_u8 {
        for (number, place) in places.iter().enumerate() {
            if number as u8 % 12 == round {
                machine.write(0, *place, &[round; 4096]);
                values[number] = round;
            }
        }
        if round % 4 == 0 {
            // A discard of a gigabyte, over tables that are there and such as are not.
            let from = u64::from(round / 4 - 1) * GIB;
            volume.zero(from + 512, GIB - 512).unwrap();
            for (number, place) in places.iter().enumerate() {
                let is_within = (from + 512..from + GIB).contains(place);
                values[number] = if is_within { 0 } else { values[number] };
            }
        }
        let point = point(&machine);
        machine.harbor.build_base(point.id, &mut go_on).unwrap();
        machine
            .harbor
            .merge_bases(point.seq, Clusters::Plain, &mut go_on)
            .unwrap();
        let view = machine.harbor.view(point.id).unwrap();
        for (place, value) in places.iter().zip(&values) {
            let mut byte = [0xee; 1];
            view.read_at(V0, &mut byte, *place).unwrap();
            assert_eq!(byte[0], *value, "round {round}, at {place}");
        }
    }
    let all = layers(&machine.harbor, V0);
    assert_eq!(all.len(), 8);
    for path in &all {
        qemu_img_check(path);
    }
    let total = machine.harbor.usage().unwrap().base_bytes;
    assert!(total < 64 << 20, "{total}");
}
