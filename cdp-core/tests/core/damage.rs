//! Damage is found, named, and costs no more than what it hits.

use std::fs;
use std::path::{Path, PathBuf};

use cdp_core::{Grade, Harbor, HarborError, Options, Point, VolumeId};
use tempfile::TempDir;

use crate::harness::{KIB, crash_image, machine, segments, small_segments, write};

const SIZE: u64 = 64 * KIB;

struct Kept {
    home: TempDir,
    dir: PathBuf,
    points: Vec<Point>,
}

/// A harbor of several segments: point n has all bytes of the first 60 KiB set to n + 1.
fn kept() -> Kept {
    let machine = machine(&[SIZE], small_segments());
    let mut points = Vec::new();
    for number in 1..=12 {
        machine.write(0, 0, &vec![number; 60 * KIB as usize]);
        points.push(
            machine
                .recorder
                .point(Grade::Crash, Some("a label"))
                .unwrap(),
        );
    }
    machine.recorder.close().unwrap();
    let dir = machine.dir();
    let home = machine.home;
    assert!(segments(&dir).len() >= 3);
    Kept { home, dir, points }
}

/// Returns the place of the first 4 KiB of one value in a file.
fn place_of(path: &Path, value: u8) -> Option<usize> {
    fs::read(path)
        .unwrap()
        .windows(4096)
        .step_by(512)
        .position(|w| w.iter().all(|b| *b == value))
        .map(|p| p * 512)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn read(harbor: &Harbor, point: &Point) -> Result<u8, HarborError> {
    let mut byte = [0; 700];
    harbor
        .view(point.id)?
        .read_at(VolumeId(0), &mut byte, 1000)?;
    Ok(byte[0])
}

#[test]
fn a_flipped_bit_in_a_payload_is_named_and_costs_only_its_points() {
    let Kept { home, dir, points } = kept();
    let paths = segments(&dir);
    let hit = paths
        .iter()
        .find_map(|path| Some((path, place_of(path, 3)?)))
        .unwrap();
    flip(hit.0, hit.1 + 2000);
    let (harbor, _) = Harbor::open(&dir, small_segments()).unwrap();
    for (number, point) in points.iter().enumerate() {
        let answer = read(&harbor, point);
        if number == 2 {
            let words = answer.unwrap_err().to_string();
            let name = hit.0.file_name().unwrap().to_str().unwrap();
            for part in [name, "record 5", "61440 bytes at 0 of volume 0"] {
                assert!(words.contains(part), "{words}");
            }
            let view = harbor.view(point.id).unwrap();
            let mut whole = vec![0; 60 * KIB as usize];
            assert!(
                view.read_at(VolumeId(0), &mut whole, 0).is_err(),
                "also when read at once"
            );
            let io: std::io::Error = view.read_at(VolumeId(0), &mut whole, 0).unwrap_err().into();
            assert_eq!(io.kind(), std::io::ErrorKind::InvalidData);
        } else {
            assert_eq!(answer.unwrap(), number as u8 + 1, "point {number}");
        }
    }
    drop(home);
}

#[test]
fn a_missing_segment_is_reported_and_costs_the_points_behind_it() {
    let Kept { home, dir, points } = kept();
    fs::remove_file(&segments(&dir)[1]).unwrap();
    let (harbor, report) = Harbor::open(&dir, small_segments()).unwrap();
    assert!(
        report
            .damage
            .iter()
            .any(|what| what.contains("are missing")),
        "{report:?}"
    );
    assert_eq!(read(&harbor, &points[0]).unwrap(), 1);
    let refused = read(&harbor, &points[11]);
    assert!(
        matches!(refused, Err(HarborError::MissingRecords { .. })),
        "{refused:?}"
    );
    let recorder = harbor.record().unwrap();
    write(&recorder, 0, 0, b"goes on");
    let next = recorder.point(Grade::Crash, None).unwrap();
    assert!(next.id > points[11].id && next.seq > points[11].seq);
    drop(home);
}

#[test]
fn a_damaged_end_of_a_sealed_segment_costs_nothing_but_a_report() {
    // The header, the footer, a record of the index: all of it can be found out again.
    let Kept { home, dir, points } = kept();
    for (number, from_end) in [(0, false), (1, true), (2, true)] {
        let footer_and_index = [100, 4096 + 4096 - 70];
        for back in if from_end {
            &footer_and_index[..]
        } else {
            &footer_and_index[..1]
        } {
            let back = *back;
            let copy = home.path().join(format!("copy-{number}-{from_end}-{back}"));
            crash_image(&dir, &copy);
            let path = &segments(&copy)[number];
            let len = fs::metadata(path).unwrap().len() as usize;
            flip(path, if from_end { len - back } else { back });
            let (harbor, report) = Harbor::open(&copy, small_segments()).unwrap();
            if back == 100 {
                assert!(!report.damage.is_empty(), "{number}, {back} from the end");
            }
            for (number, point) in points.iter().enumerate() {
                assert_eq!(
                    read(&harbor, point).unwrap(),
                    number as u8 + 1,
                    "{report:?}"
                );
            }
            assert_eq!(harbor.points(), points);
        }
    }
}

#[test]
fn an_index_that_is_damaged_while_the_harbor_is_open_costs_nothing() {
    let Kept { home, dir, points } = kept();
    let (harbor, _) = Harbor::open(&dir, small_segments()).unwrap();
    // From here on it is known where in the indexes to look.
    assert_eq!(read(&harbor, &points[11]).unwrap(), 12);
    let opened = harbor.view(points[9].id).unwrap();
    for path in segments(&dir) {
        let index = fs::metadata(&path).unwrap().len() as usize - 8192;
        // The first byte in the volume of its first record.
        flip(&path, index + 18);
    }
    for (number, point) in points.iter().enumerate() {
        assert_eq!(read(&harbor, point).unwrap(), number as u8 + 1);
    }
    let mut byte = [0; 1];
    opened.read_at(VolumeId(0), &mut byte, 50_000).unwrap();
    assert_eq!(byte, [10], "a view that was open");
    drop(home);
}

#[test]
fn an_index_and_frames_that_are_damaged_fail_reads_by_name_and_give_no_wrong_bytes() {
    for late in [false, true] {
        let Kept { home, dir, points } = kept();
        let paths = segments(&dir);
        let hit = &paths[1];
        let damage = || {
            let index = fs::metadata(hit).unwrap().len() as usize - 8192;
            flip(hit, index + 18);
            // The same in the table of its first frame.
            flip(hit, 4096 + 64 + 18);
        };
        if !late {
            damage();
        }
        let (harbor, _) = Harbor::open(&dir, small_segments()).unwrap();
        if late {
            assert_eq!(read(&harbor, &points[11]).unwrap(), 12);
            damage();
        }
        let name = hit.file_name().unwrap().to_str().unwrap();
        let mut failed = 0;
        for (number, point) in points.iter().enumerate() {
            match read(&harbor, point) {
                Ok(value) => assert_eq!(value, number as u8 + 1),
                Err(error @ HarborError::Damaged { .. }) => {
                    assert!(error.to_string().contains(name), "{error}");
                    // Opening a view does not look at records; whoever asks what it consists of is told too.
                    let view = harbor.view(point.id).unwrap();
                    assert!(view.extents(VolumeId(0), 0, SIZE).is_err());
                    failed += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!((1..12).contains(&failed), "late: {late}, {failed} of 12");
        drop(home);
    }
}

#[test]
fn an_exchanged_segment_breaks_the_chain() {
    let Kept { home, dir, .. } = kept();
    let other = home.path().join("other");
    crash_image(&dir, &other);
    for (dir, value) in [(&dir, 1), (&other, 2)] {
        let (harbor, _) = Harbor::open(dir, Options::default()).unwrap();
        for _ in 0..2 {
            let recorder = harbor.record().unwrap();
            write(&recorder, 0, 0, &[value; 512]);
            recorder.close().unwrap();
        }
    }
    let number = segments(&dir).len() - 2;
    fs::copy(&segments(&other)[number], &segments(&dir)[number]).unwrap();
    let (_, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!(report.damage[0].contains("hash"), "{report:?}");
}
