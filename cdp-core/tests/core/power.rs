//! What a power cut and a failed sync leave, on a storage that forgets what it may forget.
//!
//! Each of these was found by the simulation (`tests/sim`) first.

use std::path::Path;
use std::sync::Arc;

use cdp_core::storage::{Left, SimulatedStorage, Trouble};
use cdp_core::{Grade, Harbor, HarborError, Options, VolumeId};

use crate::harness::{KIB, check_volume, description, write};

const EIO: i32 = 5;
const DIR: &str = "/harbor";

fn options(storage: &SimulatedStorage) -> Options {
    Options {
        storage: Arc::new(storage.clone()),
        // Reserved in memory here.
        segment_bytes: 512 * KIB,
        ..Options::default()
    }
}

/// A harbor that is seeded empty.
fn seeded(storage: &SimulatedStorage) -> Harbor {
    let harbor = Harbor::create(Path::new(DIR), &description(&[64 * KIB]), options(storage));
    let harbor = harbor.unwrap();
    let recorder = harbor.record().unwrap();
    let seed = harbor.seed(VolumeId(0)).unwrap();
    seed.finish(recorder.sync().unwrap()).unwrap();
    recorder.close().unwrap();
    harbor
}

/// Opens again and looks at every point: byte n of the volume is n where point n was made.
fn check(storage: &SimulatedStorage, points: &[u8], context: &str) {
    let (harbor, report) = Harbor::open(Path::new(DIR), options(storage)).unwrap();
    assert!(report.damage.is_empty(), "{context}: {report:?}");
    let found = harbor.points();
    assert!(found.len() >= points.len(), "{context}: {report:?}");
    for point in found {
        let value: u8 = point.label.as_ref().unwrap().parse().unwrap();
        let expected = vec![value; 64 * KIB as usize];
        let view = harbor.view(point.id).unwrap();
        check_volume(&view, VolumeId(0), &expected, context);
    }
}

#[test]
fn a_power_cut_while_a_segment_is_sealed_costs_nothing_that_was_promised() {
    for (seed, after) in (0..40).flat_map(|seed| (0..8).map(move |after| (seed, after))) {
        let context = format!("seed {seed}, cut after {after} changes");
        let storage = SimulatedStorage::new(seed);
        let harbor = seeded(&storage);
        let recorder = harbor.record().unwrap();
        write(&recorder, 0, 0, &[1; 64 * KIB as usize]);
        recorder.point(Grade::Crash, Some("1")).unwrap();
        write(&recorder, 0, 0, &[2; 64 * KIB as usize]);
        storage.ask_for(Trouble::PowerCut { after });
        let _ = recorder.point(Grade::Crash, Some("2"));
        drop((recorder, harbor));
        storage.power_up(Left::ByChance);
        check(&storage, &[1], &context);
    }
}

#[test]
fn what_a_failed_sync_has_lost_is_not_taken_for_kept() {
    // Put right in place, and by a process that knows nothing of the failure.
    for (seed, in_place, after) in
        (0..40).flat_map(|seed| [(seed, true), (seed, false)].map(|(s, i)| (s, i, s % 3)))
    {
        let context = format!("seed {seed}, in place {in_place}, sync {after}");
        let storage = SimulatedStorage::new(seed);
        let harbor = seeded(&storage);
        let recorder = harbor.record().unwrap();
        write(&recorder, 0, 0, &[1; 64 * KIB as usize]);
        recorder.point(Grade::Crash, Some("1")).unwrap();
        write(&recorder, 0, 0, &[2; 64 * KIB as usize]);
        storage.ask_for(Trouble::LosingSync { after, errno: EIO });
        let _ = recorder.point(Grade::Crash, Some("2"));
        assert!(recorder.close().is_err(), "{context}");
        drop(recorder);
        let harbor = if in_place {
            harbor.recover().unwrap();
            harbor
        } else {
            drop(harbor);
            Harbor::open(Path::new(DIR), options(&storage)).unwrap().0
        };
        let offered: Vec<u8> = harbor
            .points()
            .iter()
            .map(|point| point.id.0 as u8)
            .collect();
        let recorder = harbor.record().unwrap();
        recorder.close().unwrap();
        drop((recorder, harbor));
        storage.cut_power();
        storage.power_up(Left::Nothing);
        check(&storage, &offered, &context);
    }
}

#[test]
fn a_harbor_that_was_being_made_is_none_or_a_whole_one() {
    for (seed, after) in (0..40).flat_map(|seed| (0..16).map(move |after| (seed, after))) {
        let storage = SimulatedStorage::new(seed);
        storage.ask_for(Trouble::PowerCut { after });
        let made = Harbor::create(Path::new(DIR), &description(&[64 * KIB]), options(&storage));
        drop(made);
        storage.cut_power();
        storage.power_up(Left::ByChance);
        let opened = match Harbor::open(Path::new(DIR), options(&storage)) {
            Err(HarborError::NotAHarbor { .. }) => {
                Harbor::create(Path::new(DIR), &description(&[64 * KIB]), options(&storage))
            }
            other => other.map(|(harbor, _)| harbor),
        };
        let opened = opened.map_err(|error| format!("seed {seed}, cut after {after}: {error}"));
        opened.unwrap().record().unwrap().close().unwrap();
    }
}

#[test]
fn what_was_found_once_is_found_after_the_next_power_cut() {
    // The process ends between giving a base point its name and syncing the directory.
    for after in 0..40 {
        let storage = SimulatedStorage::new(after);
        let harbor = Harbor::create(Path::new(DIR), &description(&[64 * KIB]), options(&storage));
        let harbor = harbor.unwrap();
        let recorder = harbor.record().unwrap();
        let seed = harbor.seed(VolumeId(0)).unwrap();
        let head = recorder.sync().unwrap();
        storage.ask_for(Trouble::PowerCut { after });
        let _ = seed.finish(head);
        drop((recorder, harbor));
        storage.cut_power();
        storage.power_up(Left::Everything);
        let (harbor, _) = Harbor::open(Path::new(DIR), options(&storage)).unwrap();
        let is_seeded = harbor.is_seeded();
        drop(harbor);
        storage.cut_power();
        storage.power_up(Left::Nothing);
        let (harbor, _) = Harbor::open(Path::new(DIR), options(&storage)).unwrap();
        assert_eq!(harbor.is_seeded(), is_seeded, "{after}");
    }
}
