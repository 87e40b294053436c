//! What a crash, a storage that fails and a damaged file leave of what was said of points.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use cdp_core::storage::{Fault, FaultyStorage, Left, SimulatedStorage, Trouble};
use cdp_core::{Harbor, HarborError, Options, PointId, Policy, VolumeId};

use crate::harness::{KIB, check_volume, description, segments, small_segments};
use crate::keeping::{HOUR, MIDNIGHT, content, ids, point, reopened, with_points};

#[test]
fn a_file_that_is_not_as_it_was_written_is_told_and_nothing_is_deleted_by_it() {
    let machine = with_points(5, Options::default());
    machine.harbor.delete_points(&[PointId(1)]).unwrap();
    machine.harbor.lock_point(PointId(2)).unwrap();
    let path = machine.dir().join("points.toml");
    let (harbor, home) = reopened(machine);
    let dir = harbor.dir().to_path_buf();
    drop(harbor);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("locked = [2]", "locked = [3]")).unwrap();
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!(
        report.damage[0].starts_with("points.toml: its checksum is wrong"),
        "{report:?}"
    );
    assert_eq!(harbor.points().len(), 5);
    let damaged = [
        harbor.delete_points(&[PointId(3)]),
        harbor.lock_point(PointId(3)),
        harbor
            .apply_policy(&Policy::default(), MIDNIGHT.saturating_add(HOUR * 9999))
            .map(drop),
    ];
    for outcome in damaged {
        assert!(
            matches!(outcome, Err(HarborError::Damaged { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(harbor.points().len(), 5);
    drop(harbor);
    // Put back from a copy, all is well again.
    fs::write(&path, text).unwrap();
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(ids(&harbor.points()), [2, 3, 4, 5]);
    assert!(harbor.point(PointId(2)).unwrap().locked);
    drop(home);
}

#[test]
fn a_change_that_fails_is_not_seen_and_works_when_the_storage_does() {
    const ENOSPC: i32 = 28;
    let faults = [
        Fault::Write {
            after: 0,
            torn: 10,
            errno: ENOSPC,
        },
        Fault::Sync {
            after: 0,
            errno: ENOSPC,
        },
    ];
    for fault in faults {
        let storage = FaultyStorage::new();
        let options = Options {
            storage: Arc::new(storage.clone()),
            ..Options::default()
        };
        let machine = with_points(3, options);
        let harbor = &machine.harbor;
        machine.recorder.close().unwrap();
        let before = harbor.points();
        let tries: [Change; 3] = [
            |harbor| harbor.delete_points(&[PointId(1)]),
            |harbor| harbor.lock_point(PointId(1)),
            |harbor| harbor.label_point(PointId(1), Some("x")),
        ];
        for change in tries {
            storage.inject(fault);
            let outcome = change(harbor);
            assert!(
                matches!(outcome, Err(HarborError::NoSpace { .. })),
                "{outcome:?}"
            );
            assert_eq!(harbor.points(), before);
            assert_eq!(content(harbor, 1).unwrap(), 1, "it can be opened again");
        }
        // The next change does not bring along what has failed.
        harbor.label_point(PointId(2), Some("y")).unwrap();
        let (harbor, _home) = reopened(machine);
        let point = |id| harbor.point(PointId(id)).unwrap();
        assert_eq!(point(1), before[0]);
        assert_eq!(point(2).label.as_deref(), Some("y"));
        tries[1](&harbor).unwrap();
        tries[2](&harbor).unwrap();
        let first = harbor.point(PointId(1)).unwrap();
        assert_eq!((first.locked, first.label.as_deref()), (true, Some("x")));
    }
}

#[test]
fn a_journal_that_is_put_right_in_place_has_the_same_points() {
    const EIO: i32 = 5;
    let storage = FaultyStorage::new();
    let options = Options {
        storage: Arc::new(storage.clone()),
        ..Options::default()
    };
    let machine = with_points(5, options);
    let harbor = &machine.harbor;
    harbor.delete_points(&[PointId(1), PointId(3)]).unwrap();
    harbor.lock_point(PointId(2)).unwrap();
    harbor.label_point(PointId(4), Some("later")).unwrap();
    let before = harbor.points();
    storage.inject(Fault::Sync {
        after: 0,
        errno: EIO,
    });
    assert!(machine.recorder.sync().is_err() || machine.recorder.close().is_err());
    let report = harbor.recover().unwrap();
    assert_eq!((harbor.points(), report.points), (before, 3));
    assert_eq!(ids(&harbor.points()), [2, 4, 5]);
}

/// A change of what is said of points.
type Change = fn(&Harbor) -> Result<(), HarborError>;

const DIR: &str = "/harbor";

fn simulated(storage: &SimulatedStorage) -> Options {
    Options {
        storage: Arc::new(storage.clone()),
        segment_bytes: 512 * KIB,
        ..Options::default()
    }
}

/// What can be told of a point: its label, and whether it is locked.
type Told = BTreeMap<u64, (Option<String>, bool)>;

fn told(harbor: &Harbor) -> Told {
    let points = harbor.points().into_iter();
    points.map(|p| (p.id.0, (p.label, p.locked))).collect()
}

#[test]
fn a_power_cut_at_any_moment_leaves_the_points_as_before_a_change_or_as_after_it() {
    let changes: [Change; 5] = [
        |harbor| harbor.lock_point(PointId(2)),
        |harbor| harbor.label_point(PointId(3), Some("later")),
        |harbor| harbor.delete_points(&[PointId(1), PointId(4)]),
        |harbor| harbor.unlock_point(PointId(2)),
        |harbor| {
            harbor
                .apply_policy(&Policy::default(), MIDNIGHT.saturating_add(HOUR * 99_999))
                .map(drop)
        },
    ];
    let states = states();
    let mut cuts = 0;
    for (seed, left) in (0..12)
        .flat_map(|seed| [Left::ByChance, Left::Nothing, Left::Everything].map(|left| (seed, left)))
    {
        for after in 0..40 {
            let context = format!("seed {seed}, {left:?}, cut after {after}");
            let storage = SimulatedStorage::new(seed);
            let dir = Path::new(DIR);
            let harbor =
                Harbor::create(dir, &description(&[64 * KIB]), simulated(&storage)).unwrap();
            let recorder = harbor.record().unwrap();
            harbor
                .seed(VolumeId(0))
                .unwrap()
                .finish(recorder.sync().unwrap())
                .unwrap();
            for number in 1..=6 {
                point(&recorder, number, None);
            }
            recorder.close().unwrap();
            drop(recorder);
            storage.ask_for(Trouble::PowerCut { after });
            let done = changes
                .iter()
                .take_while(|change| change(&harbor).is_ok())
                .count();
            assert_eq!(
                told(&harbor),
                states[done],
                "{context}: what failed is not seen"
            );
            let is_cut = storage.is_cut();
            drop(harbor);
            storage.cut_power();
            storage.power_up(left);
            let (harbor, report) = Harbor::open(dir, simulated(&storage)).unwrap();
            assert!(report.damage.is_empty(), "{context}: {report:?}");
            let found = told(&harbor);
            // The one that was cut has happened or it has not; those before it have.
            let may_be = states
                .get(done..=done + usize::from(is_cut))
                .unwrap_or(&states[done..]);
            assert!(may_be.contains(&found), "{context}: {done} done, {found:?}");
            for id in found.keys() {
                let view = harbor.view(PointId(*id)).unwrap();
                let mut expected = vec![0; 64 * KIB as usize];
                expected[..4 * KIB as usize].fill(*id as u8);
                check_volume(&view, VolumeId(0), &expected, &context);
            }
            cuts += usize::from(is_cut && done < changes.len());
        }
    }
    assert!(cuts > 500, "{cuts} cuts amidst the changes");
}

/// The states between the changes of the test above.
fn states() -> [Told; 6] {
    let state = |ids: &[u64], locked: bool, label: bool| -> Told {
        let tell = |id: &u64| {
            let text = (label && *id == 3).then(|| "later".to_owned());
            (*id, (text, locked && *id == 2))
        };
        ids.iter().map(tell).collect()
    };
    let all = [1, 2, 3, 4, 5, 6];
    [
        state(&all, false, false),
        state(&all, true, false),
        state(&all, true, true),
        state(&[2, 3, 5, 6], true, true),
        state(&[2, 3, 5, 6], false, true),
        state(&[6], false, false),
    ]
}

#[test]
fn what_was_said_of_points_that_the_journal_has_lost_is_not_said_of_their_successors() {
    let machine = with_points(6, small_segments());
    let harbor = &machine.harbor;
    harbor.lock_point(PointId(3)).unwrap();
    harbor.label_point(PointId(4), Some("lost")).unwrap();
    harbor.delete_points(&[PointId(5)]).unwrap();
    machine.recorder.close().unwrap();
    let (dir, home) = (machine.dir(), machine.home);
    drop((machine.recorder, machine.harbor));
    // The journal is gone but for its beginning, as after the loss of a disk.
    for segment in segments(&dir) {
        fs::remove_file(segment).unwrap();
    }
    let (harbor, _) = Harbor::open(&dir, Options::default()).unwrap();
    assert_eq!(harbor.points(), []);
    let recorder = harbor.record().unwrap();
    for number in 1..=6 {
        point(&recorder, number, None);
    }
    recorder.close().unwrap();
    drop((recorder, harbor));
    let (harbor, _) = Harbor::open(&dir, Options::default()).unwrap();
    let plain: Told = (1..=6).map(|id| (id, (None, false))).collect();
    assert_eq!(told(&harbor), plain);
    drop(home);
}
