//! Times never run backwards and numbers never repeat, whatever the clock does.

use std::sync::Arc;

use cdp_core::clock::HandClock;
use cdp_core::{Grade, Harbor, Options, PointId, Timestamp};

use crate::harness::{KIB, machine, write};

#[test]
fn points_go_forwards_with_a_clock_that_steps_back() {
    let clock = Arc::new(HandClock::new(Timestamp(5_000)));
    let options = Options {
        clock: Arc::clone(&clock) as _,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options.clone());
    let first = machine.recorder.point(Grade::Crash, None).unwrap();
    clock.set(Timestamp(1_000));
    machine.write(0, 0, b"a");
    let second = machine
        .recorder
        .point(Grade::Quiesced, Some("after the step"))
        .unwrap();
    assert!(second.time > first.time && second.id == PointId(first.id.0 + 1));

    let dir = machine.dir();
    let home = machine.home;
    drop((machine.harbor, machine.recorder));
    clock.set(Timestamp(10));
    let (harbor, _) = Harbor::open(&dir, options).unwrap();
    let recorder = harbor.record().unwrap();
    write(&recorder, 0, 0, b"b");
    let third = recorder.point(Grade::Crash, None).unwrap();
    assert!(third.time > second.time && third.id == PointId(second.id.0 + 1));
    assert_eq!(
        harbor.points(),
        [first.clone(), second.clone(), third.clone()]
    );

    assert_eq!(harbor.point_at(Timestamp(first.time.0 - 1)), None);
    assert_eq!(harbor.point_at(second.time), Some(second.clone()));
    assert_eq!(harbor.point_at(Timestamp(u64::MAX)), Some(third.clone()));
    assert_eq!(
        harbor.points_between(Some(second.time), None, 1),
        std::slice::from_ref(&third)
    );
    assert_eq!(
        harbor.points_between(None, Some(second.time), 9),
        [first, second]
    );
    assert_eq!(harbor.newest_point(), Some(third));
    drop(home);
}

#[test]
fn no_point_is_made_when_nothing_was_written() {
    let machine = machine(&[64 * KIB], Options::default());
    machine.write(0, 0, b"x");
    let point = machine.recorder.point_if_written().unwrap().unwrap();
    assert_eq!(machine.recorder.point_if_written().unwrap(), None);
    assert_eq!(machine.harbor.newest_point(), Some(point));
    machine.write(0, 0, b"x");
    assert!(machine.recorder.point_if_written().unwrap().is_some());
}

#[test]
fn a_point_is_quiesced_only_if_nothing_was_written_since_the_freeze() {
    let machine = machine(&[64 * KIB], Options::default());
    machine.write(0, 0, b"before the freeze");
    let frozen = machine.recorder.stats().writes;
    // Points in between are no writes.
    machine.recorder.point_if_written().unwrap().unwrap();
    let still = machine.recorder.point_if_still(frozen, Some("still"));
    assert_eq!(still.unwrap().grade, Grade::Quiesced);
    machine.write(0, 0, b"thawed");
    let late = machine.recorder.point_if_still(frozen, None).unwrap();
    assert_eq!(late.grade, Grade::Crash);
    let kept: Vec<Grade> = machine.harbor.points().iter().map(|p| p.grade).collect();
    assert_eq!(kept, [Grade::Crash, Grade::Quiesced, Grade::Crash]);
}
