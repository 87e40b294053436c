//! What is told of a harbor while it is recorded to: how far behind stable storage is, how many points, what room is used.

use std::time::Duration;

use cdp_core::{Grade, Options};

use crate::harness::{KIB, machine};

#[test]
fn the_oldest_write_not_on_stable_storage_has_an_age_until_it_is() {
    let options = Options {
        flush_interval: Duration::from_secs(10),
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    machine.recorder.sync().unwrap();
    assert_eq!(machine.recorder.stats().unsynced_age, Duration::ZERO);
    machine.write(0, 0, &[1; 512]);
    let pause = Duration::from_millis(300);
    std::thread::sleep(pause);
    // A younger one, and a frame that is written, do not make it young.
    machine.write(0, 512, &[2; 512]);
    let age = machine.recorder.stats().unsynced_age;
    assert!(age >= pause && age < pause * 10, "{age:?}");
    machine.recorder.sync().unwrap();
    assert_eq!(machine.recorder.stats().unsynced_age, Duration::ZERO);
}

#[test]
fn points_are_counted_and_a_base_point_is_as_old_as_the_first_it_serves() {
    let machine = machine(&[64 * KIB, 64 * KIB], Options::default());
    let harbor = &machine.harbor;
    assert_eq!((harbor.point_count(), harbor.base_time()), (0, None));
    let first = machine.recorder.point(Grade::Crash, None).unwrap();
    assert_eq!(harbor.base_time(), Some(first.time));
    machine.write(1, 0, &[1; 512]);
    machine.recorder.point(Grade::Crash, None).unwrap();
    assert_eq!(harbor.point_count(), harbor.points().len());
    assert_eq!(harbor.point_count(), 2);
    assert_eq!(harbor.base_time(), Some(first.time));
}

#[test]
fn room_for_what_comes_next_is_told_from_what_is_kept() {
    const SEGMENT: u64 = 4096 * KIB;
    let options = Options {
        segment_bytes: SEGMENT,
        ..Options::default()
    };
    let machine = machine(&[1024 * KIB], options);
    let kept = || {
        let all = machine.harbor.usage().unwrap().journal_bytes;
        let unwritten = machine.harbor.unwritten_bytes().unwrap();
        assert!(unwritten <= all);
        (all, all - unwritten)
    };
    machine.recorder.sync().unwrap();
    let (all, before) = kept();
    assert_eq!(all, SEGMENT, "the room is reserved");
    assert!(before < 64 * KIB, "{before}");
    for at in 0..8 {
        machine.write(0, at * 128 * KIB, &vec![1; 128 << 10]);
    }
    machine.recorder.sync().unwrap();
    let (all, after) = kept();
    assert_eq!(all, SEGMENT);
    let grown = after - before;
    let written = 1024 * KIB;
    assert!((written..written + 128 * KIB).contains(&grown), "{grown}");
    machine.recorder.close().unwrap();
    assert_eq!(machine.harbor.unwritten_bytes().unwrap(), 0);
}
