//! The seed: what is read from the live disk and what the stream writes become one base point.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cdp_core::{Grade, Harbor, HarborError, Options, VolumeId};
use tempfile::TempDir;

use crate::harness::{
    Chance, KIB, check_volume, description, qemu_img_check, segments, small_segments, write,
};

const SIZE: u64 = 1000 * KIB + 512;

/// Reads a disk in random order into a seed while a guest writes to it; returns the disk.
fn seed_under_load(harbor: &Harbor, round: u64) -> Vec<u8> {
    let recorder = harbor.record().unwrap();
    let disk = Mutex::new(
        (0..SIZE)
            .map(|at| (at / 4096 % 3 * (at % 251)) as u8)
            .collect::<Vec<u8>>(),
    );
    let done = AtomicBool::new(false);
    let mut seed = harbor.seed(VolumeId(0)).unwrap();
    assert!(matches!(
        harbor.seed(VolumeId(0)),
        Err(HarborError::Busy(_))
    ));
    thread::scope(|scope| {
        let (disk, done, recorder) = (&disk, &done, &recorder);
        let guest = scope.spawn(move || {
            let mut chance = Chance::new(round + 1);
            while !done.load(Ordering::SeqCst) {
                let offset = chance.below(SIZE / 512) * 512;
                let len = (512 * (1 + chance.below(40))).min(SIZE - offset);
                let data = vec![chance.below(256) as u8; len as usize];
                // As QEMU does it: first the source, then the target.
                disk.lock().unwrap()[offset as usize..(offset + len) as usize]
                    .copy_from_slice(&data);
                write(recorder, 0, offset, &data);
            }
        });
        let mut chance = Chance::new(round + 100);
        let mut pieces: Vec<u64> = (0..SIZE.div_ceil(16 * KIB)).collect();
        while !pieces.is_empty() {
            let piece = pieces.swap_remove(chance.below(pieces.len() as u64) as usize);
            let range = (piece * 16 * KIB) as usize..((piece + 1) * 16 * KIB).min(SIZE) as usize;
            let data = disk.lock().unwrap()[range.clone()].to_vec();
            thread::yield_now();
            seed.data(range.start as u64, &data).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        guest.join().unwrap();
    });
    let point = recorder.point(Grade::Crash, Some("seeded")).unwrap();
    let base = seed.finish(point.seq).unwrap();
    qemu_img_check(&base.path);
    let disk = disk.into_inner().unwrap();
    check_volume(
        &harbor.view(point.id).unwrap(),
        VolumeId(0),
        &disk,
        "at the first point",
    );
    write(&recorder, 0, 512, b"after the seed");
    let later = recorder.point(Grade::Crash, None).unwrap();
    check_volume(
        &harbor.view(point.id).unwrap(),
        VolumeId(0),
        &disk,
        "still the first point",
    );
    let mut changed = disk.clone();
    changed[512..526].copy_from_slice(b"after the seed");
    check_volume(
        &harbor.view(later.id).unwrap(),
        VolumeId(0),
        &changed,
        "at the next point",
    );
    changed
}

#[test]
fn the_stream_wins_over_what_is_read() {
    for round in 0..4 {
        let home = TempDir::new().unwrap();
        let dir = home.path().join("h");
        let harbor = Harbor::create(&dir, &description(&[SIZE]), small_segments()).unwrap();
        assert!(!harbor.is_seeded());
        let disk = seed_under_load(&harbor, round);
        assert!(harbor.is_seeded());
        let newest = harbor.newest_point().unwrap();
        drop(harbor);
        let (harbor, report) = Harbor::open(&dir, small_segments()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        check_volume(
            &harbor.view(newest.id).unwrap(),
            VolumeId(0),
            &disk,
            "opened again",
        );
    }
}

#[test]
fn an_abandoned_seed_leaves_nothing_and_its_stale_writes_do_not_count() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("h");
    let harbor = Harbor::create(&dir, &description(&[64 * KIB]), Options::default()).unwrap();
    let recorder = harbor.record().unwrap();
    let mut seed = harbor.seed(VolumeId(0)).unwrap();
    seed.data(0, &[1; 4096]).unwrap();
    write(&recorder, 0, 0, &[2; 4096]);
    let abandoned = recorder.point(Grade::Crash, None).unwrap();
    assert_eq!(
        harbor.points(),
        [],
        "a point without base points is not offered"
    );
    assert!(matches!(
        harbor.view(abandoned.id),
        Err(HarborError::NoSuchPoint(_))
    ));
    drop(seed);
    recorder.close().unwrap();
    drop(recorder);
    let files = std::fs::read_dir(dir.join("base/vol-00000"))
        .unwrap()
        .count();
    assert_eq!(files, 0, "a dropped seed leaves nothing");

    // Meanwhile the guest wrote 3s, which nobody saw.
    let recorder = harbor.record().unwrap();
    let mut seed = harbor.seed(VolumeId(0)).unwrap();
    seed.data(0, &[3; 4096]).unwrap();
    let point = recorder.point(Grade::Crash, None).unwrap();
    seed.finish(point.seq).unwrap();
    let mut expected = vec![0; 64 * KIB as usize];
    expected[..4096].fill(3);
    check_volume(
        &harbor.view(point.id).unwrap(),
        VolumeId(0),
        &expected,
        "the second seed",
    );
    assert_eq!(harbor.points(), std::slice::from_ref(&point));
    assert_eq!(
        segments(&dir).len(),
        1,
        "the abandoned seed's segment is gone"
    );
    drop((harbor, recorder));
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(harbor.points(), [point]);
}

#[test]
fn zeros_take_no_space_and_wipe_what_was_read() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("h");
    let size = 1 << 40;
    let harbor = Harbor::create(&dir, &description(&[size]), Options::default()).unwrap();
    let recorder = harbor.record().unwrap();
    let volume = recorder.volume(VolumeId(0)).unwrap();
    let mut seed = harbor.seed(VolumeId(0)).unwrap();
    seed.data(0, &vec![7; 200_000]).unwrap();
    seed.data(size - 512, &[9; 512]).unwrap();
    seed.data(size / 2, &vec![0; 1 << 20]).unwrap();
    volume.zero(100, size / 4).unwrap();
    let point = recorder.point(Grade::Crash, None).unwrap();
    let base = seed.finish(point.seq).unwrap();
    qemu_img_check(&base.path);
    assert!(harbor.usage().unwrap().base_bytes < 2 << 20);
    let view = harbor.view(point.id).unwrap();
    let mut start = vec![1; 300_000];
    view.read_at(VolumeId(0), &mut start, 0).unwrap();
    assert!(start[..100].iter().all(|b| *b == 7) && start[100..].iter().all(|b| *b == 0));
    let mut end = vec![0; 1024];
    view.read_at(VolumeId(0), &mut end, size - 1024).unwrap();
    assert!(end[..512].iter().all(|b| *b == 0) && end[512..].iter().all(|b| *b == 9));
    let refused = seed_out_of_bounds(&harbor, size);
    assert!(matches!(refused, Err(HarborError::OutOfBounds { .. })));
}

fn seed_out_of_bounds(harbor: &Harbor, size: u64) -> Result<(), HarborError> {
    harbor.seed(VolumeId(0)).unwrap().data(size - 10, &[1; 11])
}
