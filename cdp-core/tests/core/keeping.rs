//! Points are labelled, locked and deleted, by hand and by a policy; and that survives a restart.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use cdp_core::clock::HandClock;
use cdp_core::{
    GapReason, Grade, Harbor, HarborError, Held, Options, Point, PointId, Policy, Recorder, Seq,
    Timestamp, VolumeId,
};

use crate::harness::{KIB, Machine, machine, small_segments, write};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// 2026-11-26 00:00:00 UTC.
pub(crate) const MIDNIGHT: Timestamp = Timestamp(1_795_651_200_000_000_000);

pub(crate) fn ids(points: &[Point]) -> Vec<u64> {
    points.iter().map(|point| point.id.0).collect()
}

/// A point of whose content every byte is its number.
pub(crate) fn point(recorder: &Recorder, number: u8, label: Option<&str>) -> Point {
    write(recorder, 0, 0, &[number; 4 * KIB as usize]);
    recorder.point(Grade::Crash, label).unwrap()
}

pub(crate) fn content(harbor: &Harbor, id: u64) -> Result<u8, HarborError> {
    let view = harbor.view(PointId(id))?;
    let mut bytes = [0; 1];
    view.read_at(VolumeId(0), &mut bytes, 4 * KIB - 1)?;
    Ok(bytes[0])
}

/// A machine with points 1 to `count`.
pub(crate) fn with_points(count: u8, options: Options) -> Machine {
    let machine = machine(&[64 * KIB], options);
    for number in 1..=count {
        let label = format!("made {number}");
        point(&machine.recorder, number, Some(&label));
    }
    machine
}

pub(crate) fn reopened(machine: Machine) -> (Harbor, tempfile::TempDir) {
    let (dir, home) = (machine.dir(), machine.home);
    machine.recorder.close().unwrap();
    drop((machine.recorder, machine.harbor));
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.points, harbor.points().len() as u64);
    (harbor, home)
}

#[test]
fn deleted_points_are_offered_nowhere_also_after_a_restart() {
    let machine = with_points(8, small_segments());
    let before = machine.harbor.points();
    let delete = [1, 2, 5].map(PointId);
    machine.harbor.delete_points(&delete).unwrap();
    let check = |harbor: &Harbor| {
        assert_eq!(ids(&harbor.points()), [3, 4, 6, 7, 8]);
        assert_eq!(harbor.first_kept(), Some(before[2].seq));
        let kept: Vec<(PointId, Seq)> = harbor.points().iter().map(|p| (p.id, p.seq)).collect();
        assert_eq!(harbor.kept_points(), kept);
        for id in delete {
            assert_eq!(harbor.point(id), None);
            assert!(matches!(harbor.view(id), Err(HarborError::NoSuchPoint(no)) if no == id));
            assert!(matches!(harbor.pin(id), Err(HarborError::NoSuchPoint(_))));
            assert!(matches!(
                harbor.lock_point(id),
                Err(HarborError::NoSuchPoint(_))
            ));
        }
        // The newest not later than point 5 is point 4 now, and there is none at point 2.
        assert_eq!(harbor.point_at(before[4].time).map(|p| p.id.0), Some(4));
        assert_eq!(harbor.point_at(before[1].time), None);
        let between = harbor.points_between(Some(before[1].time), Some(before[5].time), 9);
        assert_eq!(ids(&between), [3, 4, 6]);
        for id in [3, 4, 6, 7, 8] {
            assert_eq!(content(harbor, id).unwrap(), id as u8);
        }
    };
    check(&machine.harbor);
    let (harbor, _home) = reopened(machine);
    check(&harbor);
    // Numbers are not given again.
    let recorder = harbor.record().unwrap();
    let next = point(&recorder, 9, None);
    assert_eq!(next.id, PointId(9));
    assert_eq!(ids(&harbor.points()), [3, 4, 6, 7, 8, 9]);
}

#[test]
fn labels_and_locks_are_kept_and_a_later_label_goes_before_the_journals() {
    let machine = with_points(4, Options::default());
    let harbor = &machine.harbor;
    harbor
        .label_point(PointId(1), Some("before the upgrade"))
        .unwrap();
    harbor.label_point(PointId(2), None).unwrap();
    harbor.lock_point(PointId(1)).unwrap();
    harbor.lock_point(PointId(3)).unwrap();
    harbor.unlock_point(PointId(3)).unwrap();
    harbor.lock_point(PointId(1)).unwrap();
    let told = |harbor: &Harbor| -> Vec<(Option<String>, bool)> {
        let points = harbor.points();
        points.into_iter().map(|p| (p.label, p.locked)).collect()
    };
    let expected = [
        (Some("before the upgrade".into()), true),
        (None, false),
        (Some("made 3".into()), false),
        (Some("made 4".into()), false),
    ];
    assert_eq!(told(harbor), expected);
    let long = "x".repeat(1025);
    let refused = harbor.label_point(PointId(1), Some(&long));
    assert!(matches!(
        refused,
        Err(HarborError::TooLong { max: 1024, .. })
    ));
    let (harbor, _home) = reopened(machine);
    assert_eq!(told(&harbor), expected);
}

#[test]
fn what_is_locked_in_use_or_the_newest_is_refused_by_name_and_nothing_goes() {
    let machine = with_points(6, Options::default());
    let harbor = &machine.harbor;
    harbor.lock_point(PointId(2)).unwrap();
    let view = harbor.view(PointId(3)).unwrap();
    let again = harbor.view(PointId(3)).unwrap();
    let pin = harbor.pin(PointId(4)).unwrap();
    let refused = |delete: &[u64]| {
        let delete: Vec<PointId> = delete.iter().map(|id| PointId(*id)).collect();
        let error = harbor.delete_points(&delete).unwrap_err();
        assert_eq!(harbor.points().len(), 6, "{delete:?}: {error}");
        error
    };
    type Row<'a> = (&'a [u64], u64, Held, &'a str);
    let table: [Row<'_>; 4] = [
        (&[1, 2], 2, Held::Locked, "recovery point 2 is locked"),
        (
            &[1, 3],
            3,
            Held::InUse,
            "recovery point 3 is in use by a view, an export or a takeover",
        ),
        (
            &[4, 5],
            4,
            Held::InUse,
            "recovery point 4 is in use by a view, an export or a takeover",
        ),
        (&[5, 6], 6, Held::Newest, "recovery point 6 is the newest"),
    ];
    for (delete, by, held, words) in table {
        let error = refused(delete);
        assert_eq!(error.to_string(), words);
        assert!(
            matches!(error, HarborError::PointHeld { point, why } if (point.0, why) == (by, held)),
            "{error:?}"
        );
    }
    assert!(matches!(
        refused(&[1, 77]),
        HarborError::NoSuchPoint(PointId(77))
    ));
    // A pin lasts as long as any of those that hold it.
    drop(view);
    assert!(harbor.delete_points(&[PointId(3)]).is_err());
    drop((again, pin));
    harbor.unlock_point(PointId(2)).unwrap();
    harbor.delete_points(&[2, 3, 4].map(PointId)).unwrap();
    assert_eq!(ids(&harbor.points()), [1, 5, 6]);
}

#[test]
fn a_policy_removes_what_it_does_not_want_and_nothing_that_is_held() {
    let clock = Arc::new(HandClock::new(MIDNIGHT));
    let options = Options {
        clock: clock.clone(),
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    let harbor = &machine.harbor;
    // Four points an hour, for five hours: 1 to 20.
    for number in 0..20 {
        let time = MIDNIGHT.saturating_add(HOUR / 4 * number);
        clock.set(time);
        point(&machine.recorder, number as u8 + 1, None);
    }
    let policy = Policy {
        all: HOUR,
        hourly: 3 * HOUR,
        ..Policy::default()
    };
    // 04:50: 20 is of 04:45.
    let now = MIDNIGHT.saturating_add(HOUR * 4 + HOUR * 5 / 6);
    harbor.lock_point(PointId(1)).unwrap();
    let view = harbor.view(PointId(2)).unwrap();
    let would_go = harbor.preview_policy(&policy, now);
    assert_eq!(harbor.points().len(), 20, "a look changes nothing");
    let went = harbor.apply_policy(&policy, now).unwrap();
    assert_eq!(went, would_go);
    // By hour 12 of 02:45 and 16 of 03:45; 8 of 01:45 is older than three hours.
    assert_eq!(ids(&harbor.points()), [1, 2, 12, 16, 17, 18, 19, 20]);
    assert_eq!(went.len(), 12);
    assert_eq!(harbor.apply_policy(&policy, now).unwrap(), []);
    drop(view);
    assert_eq!(ids(&harbor.apply_policy(&policy, now).unwrap()), [2]);
    harbor.unlock_point(PointId(1)).unwrap();
    let none = Policy::default();
    assert_eq!(
        ids(&harbor.apply_policy(&none, now).unwrap()),
        [1, 12, 16, 17, 18, 19]
    );
    for id in harbor.points() {
        assert_eq!(content(harbor, id.id.0).unwrap(), id.id.0 as u8);
    }
    let (harbor, _home) = reopened(machine);
    assert_eq!(ids(&harbor.points()), [20]);
}

#[test]
fn gaps_are_as_they_were_after_points_were_deleted() {
    let machine = with_points(3, Options::default());
    let recorder = &machine.recorder;
    machine.harbor.delete_points(&[PointId(2)]).unwrap();
    recorder
        .open_gap(GapReason::TapLost, Timestamp(77))
        .unwrap();
    recorder.close_gap().unwrap();
    point(recorder, 4, None);
    let (points, gaps) = (machine.harbor.points(), machine.harbor.gaps());
    assert_eq!(ids(&points), [1, 3, 4]);
    let (harbor, _home) = reopened(machine);
    assert_eq!((harbor.points(), harbor.gaps()), (points, gaps));
}

#[test]
fn an_older_program_and_a_new_one_read_each_others_description() {
    let machine = machine(&[64 * KIB], Options::default());
    let toml = machine.dir().join("machine.toml");
    assert!(!fs::read_to_string(&toml).unwrap().contains("policy"));
    let named = |policy: Option<&str>| {
        let policy = policy.map(str::to_owned);
        machine
            .harbor
            .update_description(|d| d.policy = policy)
            .unwrap();
        fs::read_to_string(&toml).unwrap()
    };
    let text = named(Some("long"));
    assert!(text.contains("policy = \"long\""), "{text}");
    assert_eq!(
        Harbor::peek(&machine.dir()).unwrap().policy.as_deref(),
        Some("long")
    );
    assert!(!named(None).contains("policy"));
}

#[test]
fn what_is_opened_while_points_are_deleted_stays_or_is_refused() {
    let machine = with_points(60, Options::default());
    let harbor = &machine.harbor;
    let opened = std::thread::scope(|scope| {
        let viewer = scope.spawn(|| {
            let open = |id: u64| harbor.view(PointId(id)).ok();
            (1..60).rev().filter_map(open).collect::<Vec<_>>()
        });
        for id in 1..60 {
            let outcome = harbor.delete_points(&[PointId(id)]);
            let held = |error| {
                matches!(
                    error,
                    HarborError::PointHeld {
                        why: Held::InUse,
                        ..
                    }
                )
            };
            assert!(outcome.is_ok() || outcome.is_err_and(held));
        }
        viewer.join().unwrap()
    });
    for view in &opened {
        assert_eq!(harbor.point(view.point().id).as_ref(), Some(view.point()));
    }
    assert_eq!(harbor.points().len(), opened.len() + 1);
}
