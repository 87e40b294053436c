//! The small files of a harbor that say what is known of its points and of its files: `points.toml`, `damage.toml` and
//! `scrub.toml`.
//!
//! Each is put beside a harbor that is whole, so what is true of that is known whatever the file says. The first byte says
//! whether the checksum is put right, so that what lies behind it is reached too.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

use cdp_core::storage::SimulatedStorage;
use cdp_core::{
    Grade, Harbor, HarborError, Point, PointId, RecoveryReport, Scope, VerifyReport, VolumeId,
};

use crate::journal::{self, DESCRIPTION, DIR, SIZE};

/// Points of the harbor.
const POINTS: u64 = 8;
/// Bytes of each write, and how far one is from the next.
const WRITE: usize = 3000;
const STEP: u64 = 1000;

/// A harbor of two segments and two layers with points 1 to 8, verified and closed; each call makes one of its own.
pub fn recorded() -> SimulatedStorage {
    static HARBOR: OnceLock<SimulatedStorage> = OnceLock::new();
    HARBOR.get_or_init(record).fork(1)
}

fn record() -> SimulatedStorage {
    let storage = journal::harbor(DESCRIPTION.as_bytes(), &[]);
    let (harbor, _) = open(&storage);
    for half in [1..=POINTS / 2, POINTS / 2 + 1..=POINTS] {
        let recorder = harbor.record().expect("a harbor at rest");
        for number in half {
            write(&recorder, number);
        }
        let newest = harbor.newest_point().expect("a point").id;
        if newest < PointId(POINTS) {
            let built = harbor.build_base(newest, &mut |_| ControlFlow::Continue(()));
            assert_eq!(built.expect("a layer").len(), 1);
        }
        recorder.close().expect("a recording that is whole");
    }
    verified(&harbor);
    storage
}

/// Makes a point, before which there is a write of its own.
fn write(recorder: &cdp_core::Recorder, number: u64) {
    let volume = recorder.volume(VolumeId(0)).expect("the volume");
    let mut buf = volume.buffer(WRITE).expect("a buffer");
    buf.as_mut().fill(number as u8);
    volume.write(number * STEP, buf).expect("a write");
    let point = recorder.point(Grade::Crash, None).expect("a point");
    assert_eq!(point.id, PointId(number));
}

/// What the volume has at a point.
fn content(point: PointId) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    for number in 1..=point.0 {
        let at = (number * STEP) as usize;
        bytes[at..at + WRITE].fill(number as u8);
    }
    bytes
}

/// Opens the harbor, which it can be, whatever its small files say.
fn open(storage: &SimulatedStorage) -> (Harbor, RecoveryReport) {
    Harbor::open(Path::new(DIR), journal::options(storage)).expect("a harbor")
}

fn verified(harbor: &Harbor) -> VerifyReport {
    let report = harbor.verify(Scope::default(), &mut |_| ControlFlow::Continue(()));
    report.expect("a storage that works")
}

/// Puts a file into a harbor; tells whether its checksum is right.
fn with(name: &str, input: &[u8]) -> Option<(SimulatedStorage, bool)> {
    let (choice, file) = input.split_first()?;
    let file = if choice % 2 == 1 {
        put_right(file)
    } else {
        file.to_vec()
    };
    let storage = recorded();
    storage.put(&Path::new(DIR).join(name), &file);
    let is_right = put_right(&file) == file;
    Some((storage, is_right))
}

/// Gives a text the checksum that it should have in its first line.
fn put_right(text: &[u8]) -> Vec<u8> {
    let line = text.iter().position(|byte| *byte == b'\n');
    let rest = match line {
        Some(end) if text.starts_with(b"# crc32c ") => &text[end + 1..],
        _ => text,
    };
    let first = format!("# crc32c {:08x}\n", crc32c::crc32c(rest));
    [first.as_bytes(), rest].concat()
}

/// Tells whether a file could not be taken.
fn is_told(report: &RecoveryReport, name: &str) -> bool {
    report.damage.iter().any(|one| one.starts_with(name))
}

/// Reads the volume at a point, however damaged it is said to be: what is refused is no other byte.
fn check_content(harbor: &Harbor, point: PointId, may_fail: bool) {
    let mut bytes = vec![0xee; SIZE as usize];
    let view = harbor.view_damaged(point);
    match view.and_then(|view| view.read_at(VolumeId(0), &mut bytes, 0)) {
        Ok(()) => assert!(bytes == content(point), "other bytes at {point}"),
        Err(error) => assert!(may_fail, "{point}: {error}"),
    }
}

/// A harbor's `points.toml`: labels, locks, deletions.
pub(crate) fn points(input: &[u8]) {
    let Some((storage, is_right)) = with("points.toml", input) else {
        return;
    };
    let (harbor, told) = open(&storage);
    let points = harbor.points();
    let is_told = is_told(&told, "points.toml: ");
    assert!(is_right || is_told, "taken with a wrong checksum");
    if is_told {
        let is_plain = |point: &Point| !point.locked && point.label.is_none();
        assert!(points.len() as u64 == POINTS && points.iter().all(is_plain));
        let refused = harbor.delete_points(&[PointId(1)]);
        assert!(
            matches!(refused, Err(HarborError::Damaged { .. })),
            "{refused:?}"
        );
    }
    for point in &points {
        check_content(&harbor, point.id, false);
    }
    drop(harbor);
    let (harbor, again) = open(&storage);
    assert!(harbor.points() == points && again.damage == told.damage);
    // What was said of others does not hold for who comes after them.
    let recorder = harbor.record().expect("a harbor at rest");
    write(&recorder, POINTS + 1);
    recorder.close().expect("a recording that is whole");
    drop(recorder);
    let newest = harbor.newest_point().expect("what was just made");
    assert!(newest.id == PointId(POINTS + 1) && !newest.locked && newest.label.is_none());
    if !is_told {
        change_points(&harbor, &points);
    }
    let changed = harbor.points();
    drop(harbor);
    assert_eq!(open(&storage).0.points(), changed);
}

/// What was taken can be changed, and says nothing else of the other points.
fn change_points(harbor: &Harbor, points: &[Point]) {
    let Some(first) = points.first() else {
        return;
    };
    harbor.unlock_point(first.id).expect("a point that is kept");
    harbor
        .label_point(first.id, Some("later"))
        .expect("a point that is kept");
    let mut left = points.to_vec();
    if let Some(last) = left
        .pop()
        .filter(|last| !last.locked && last.id != first.id)
    {
        harbor
            .delete_points(&[last.id])
            .expect("neither locked nor the newest");
        left.extend(harbor.newest_point());
        let found = harbor.points();
        assert_eq!(found.len(), left.len());
        assert_eq!(found.get(1..), left.get(1..));
    }
}

/// A harbor's `damage.toml`: what is damaged, and which points that costs.
pub(crate) fn damage(input: &[u8]) {
    let Some((storage, is_right)) = with("damage.toml", input) else {
        return;
    };
    let (harbor, told) = open(&storage);
    let (points, damage) = (harbor.points(), harbor.damage());
    assert_eq!(points.len() as u64, POINTS);
    let is_told = is_told(&told, "damage.toml: ");
    assert!(is_right || is_told, "taken with a wrong checksum");
    let is_nothing_known = damage.is_empty() && harbor.verified_since().is_none();
    assert!(is_nothing_known || !is_told, "it was not taken");
    for point in &points {
        let is_damaged = damage.iter().any(|one| one.costs_point(point.id));
        assert!(point.damaged == is_damaged, "{}", point.id);
        let refused = matches!(harbor.view(point.id), Err(HarborError::PointDamaged(_)));
        assert!(refused == is_damaged, "{}", point.id);
        check_content(&harbor, point.id, !damage.is_empty());
    }
    drop(harbor);
    let (harbor, again) = open(&storage);
    assert!(harbor.points() == points && harbor.damage() == damage && again.damage == told.damage);
    // In truth everything is whole but for the file itself.
    let found = verified(&harbor).findings;
    assert!(
        found.iter().all(|one| one.file == "damage.toml"),
        "{found:?}"
    );
    drop(harbor);
    let (harbor, again) = open(&storage);
    assert!(again.damage.is_empty(), "verified, and told still");
    assert!(harbor.points().iter().all(|point| !point.damaged));
}

/// A harbor's `scrub.toml`: which files were verified when.
pub(crate) fn scrub(input: &[u8]) {
    let Some((storage, is_right)) = with("scrub.toml", input) else {
        return;
    };
    let (harbor, told) = open(&storage);
    assert!(told.damage.is_empty(), "it costs nothing but work");
    let since = harbor.verified_since();
    assert!(is_right || since.is_none(), "taken with a wrong checksum");
    drop(harbor);
    let (harbor, _) = open(&storage);
    assert_eq!(harbor.verified_since(), since);
    let plain = harbor.points();
    assert!(plain.len() as u64 == POINTS && plain.iter().all(|point| !point.damaged));
    let found = verified(&harbor).findings;
    assert!(
        found.iter().all(|one| one.file == "scrub.toml"),
        "{found:?}"
    );
    let since = harbor.verified_since();
    assert!(since.is_some());
    drop(harbor);
    assert_eq!(open(&storage).0.verified_since(), since);
}
