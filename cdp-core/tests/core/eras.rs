//! Volumes that grow, shrink, go and come: every point shows them as they were then.

use cdp_core::machine::Era;
use cdp_core::{Grade, Harbor, Options, Point, Seq, VolumeDescription, VolumeId};

use crate::harness::{KIB, Machine, machine, write};

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

fn point(machine: &Machine) -> Point {
    machine.recorder.point(Grade::Crash, None).unwrap()
}

/// The bytes of a volume at a point; none if it is not there.
fn content(harbor: &Harbor, point: &Point, volume: VolumeId) -> Option<Vec<u8>> {
    let view = harbor.view(point.id).unwrap();
    let size = view.size(volume).ok()?;
    let mut bytes = vec![0xee; size as usize];
    view.read_at(volume, &mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn a_volume_that_grew_keeps_its_old_size_at_old_points() {
    let mut machine = machine(&[64 * KIB], Options::default());
    machine.write(0, 60 * KIB, &[1; 4096]);
    let small = point(&machine);
    change(&mut machine, V0, Some(128 * KIB));
    machine.write(0, 100 * KIB, &[2; 4096]);
    let large = point(&machine);
    machine.recorder.close().unwrap();

    let check = |harbor: &Harbor| {
        let old = content(harbor, &small, V0).unwrap();
        assert_eq!(old.len() as u64, 64 * KIB);
        assert_eq!(old[60 * 1024], 1);
        let new = content(harbor, &large, V0).unwrap();
        assert_eq!(new.len() as u64, 128 * KIB);
        assert_eq!((new[60 * 1024], new[64 * 1024], new[100 * 1024]), (1, 0, 2));
        assert_eq!(harbor.latest_image(V0).unwrap().size(), 128 * KIB);
    };
    check(&machine.harbor);
    let dir = machine.dir();
    let home = machine.home;
    drop((machine.harbor, machine.recorder));
    let text = std::fs::read_to_string(dir.join("machine.toml")).unwrap();
    assert!(text.contains("format_version = 3"), "{text}");
    check(&Harbor::open(&dir, Options::default()).unwrap().0);
    drop(home);
}

#[test]
fn a_volume_that_shrank_is_cut_off_and_old_points_are_whole() {
    let mut machine = machine(&[128 * KIB], Options::default());
    machine.write(0, 62 * KIB, &[1; 4096]);
    let large = point(&machine);
    change(&mut machine, V0, Some(64 * KIB));
    let refused = machine.recorder.volume(V0).unwrap();
    assert!(refused.zero(64 * KIB, 512).is_err(), "outside of it now");
    let small = point(&machine);
    let old = content(&machine.harbor, &large, V0).unwrap();
    assert_eq!((old.len() as u64, old[65 * 1024]), (128 * KIB, 1));
    let new = content(&machine.harbor, &small, V0).unwrap();
    assert_eq!((new.len() as u64, new[63 * 1024]), (64 * KIB, 1));
}

#[test]
fn an_unplugged_volume_is_at_old_points_and_comes_back_when_plugged_in() {
    let mut machine = machine(&[64 * KIB, 64 * KIB], Options::default());
    machine.write(1, 0, b"before");
    let both = point(&machine);
    change(&mut machine, V1, None);
    machine.write(0, 0, b"alone");
    let alone = point(&machine);
    change(&mut machine, V1, Some(64 * KIB));
    machine.write(1, 512, b"again");
    let again = point(&machine);
    assert_eq!(
        content(&machine.harbor, &both, V1).unwrap()[..6],
        *b"before"
    );
    assert_eq!(content(&machine.harbor, &alone, V1), None);
    assert_eq!(
        content(&machine.harbor, &alone, V0).unwrap()[..5],
        *b"alone"
    );
    let back = content(&machine.harbor, &again, V1).unwrap();
    assert_eq!(
        (&back[..6], &back[512..517]),
        (&b"before"[..], &b"again"[..])
    );
    assert_eq!(machine.harbor.points().len(), 3);
}

#[test]
fn a_volume_that_comes_later_takes_no_older_point_away() {
    let machine = machine(&[64 * KIB], Options::default());
    machine.write(0, 0, b"first");
    let before = point(&machine);
    machine.recorder.close().unwrap();
    let mut description = machine.harbor.description();
    let mut late = VolumeDescription::new(V1, "vd1", 64 * KIB);
    late.before.push(Era {
        up_to: machine.harbor.head(),
        size: 0,
    });
    description.volumes.push(late);
    machine.harbor.set_description(description).unwrap();
    assert!(machine.harbor.is_seeded(), "the points are still there");
    assert!(!machine.harbor.has_base(V1));
    let recorder = machine.harbor.record().unwrap();
    let mut seed = machine.harbor.seed(V1).unwrap();
    seed.data(0, b"read").unwrap();
    write(&recorder, 1, 512, b"stream");
    seed.finish(recorder.sync().unwrap()).unwrap();
    let after = recorder.point(Grade::Crash, None).unwrap();
    assert_eq!(content(&machine.harbor, &before, V1), None);
    assert_eq!(
        content(&machine.harbor, &before, V0).unwrap()[..5],
        *b"first"
    );
    let shown = content(&machine.harbor, &after, V1).unwrap();
    assert_eq!(
        (&shown[..4], &shown[512..518]),
        (&b"read"[..], &b"stream"[..])
    );
}

#[test]
fn eras_are_found_by_record_and_follow_the_changes() {
    let mut volume = VolumeDescription::new(V0, "vda", 10);
    volume.change(Seq(3), Some(10));
    assert!(volume.before.is_empty(), "nothing changed");
    volume.change(Seq(5), Some(20));
    volume.change(Seq(5), Some(30));
    volume.change(Seq(8), None);
    volume.change(Seq(9), None);
    volume.change(Seq(12), Some(40));
    let table = [
        (1, Some(10)),
        (5, Some(10)),
        (6, Some(30)),
        (8, Some(30)),
        (9, None),
        (12, None),
        (13, Some(40)),
    ];
    for (seq, size) in table {
        assert_eq!(volume.size_at(Seq(seq)), size, "at {seq}");
    }
    assert!(volume.is_original());
    let mut twice = VolumeDescription::new(V0, "vda", 10);
    twice.change(Seq(5), None);
    twice.change(Seq(5), Some(10));
    assert_eq!(twice.size_at(Seq(6)), Some(10));
}
