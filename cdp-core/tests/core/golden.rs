//! Harbors of every format version are read for ever.
//!
//! They were written by `examples/make_golden.rs` as it was then, and must never be written again.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use cdp_core::{
    Gap, GapReason, Grade, Harbor, Options, PointId, Scope, Seq, Timestamp, VolumeId, XmlVersion,
};
use tempfile::TempDir;

use crate::harness::{check_volume, crash_image};

#[test]
fn version_1_is_read() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("v1");
    crash_image(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1"),
        &dir,
    );
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(
        (report.segments, report.points, report.head),
        (1, 2, Seq(9))
    );

    let mut first = vec![0; 128 * 1024];
    first[512..1024].fill(0x11);
    first[70_000..70_003].copy_from_slice(b"cdp");
    let mut second = first.clone();
    second[600..700].fill(0);
    second[65_536..66_048].fill(0x22);
    second[66_048..66_560].fill(0);

    let points = harbor.points();
    let (one, two) = (&points[0], &points[1]);
    assert_eq!(
        (one.id, one.seq, one.grade),
        (PointId(1), Seq(3), Grade::Crash)
    );
    assert_eq!((one.label.as_deref(), one.xml), (Some("seeded"), None));
    assert_eq!(
        (two.id, two.seq, two.grade),
        (PointId(2), Seq(9), Grade::Quiesced)
    );
    assert_eq!((two.label.as_deref(), two.xml), (None, Some(XmlVersion(1))));
    assert_eq!(two.time, Timestamp(1_700_000_000_000_000_009));
    assert_eq!(harbor.xml(XmlVersion(1)).unwrap(), "<domain/>\n");
    let (start, end) = (
        Timestamp(1_700_000_000_000_000_003),
        Timestamp(1_700_000_000_000_000_008),
    );
    assert_eq!(
        harbor.gaps(),
        [Gap {
            start,
            end: Some(end),
            reason: GapReason::TapLost
        }]
    );
    check_volume(
        &harbor.view(one.id).unwrap(),
        VolumeId(7),
        &first,
        "point 1",
    );
    check_volume(
        &harbor.view(two.id).unwrap(),
        VolumeId(7),
        &second,
        "point 2",
    );
}

#[test]
fn version_3_is_read() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("v3");
    crash_image(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v3"),
        &dir,
    );
    let has = |place: &str, extension: &str| {
        let files = fs::read_dir(dir.join(place)).unwrap();
        let mut names = files.map(|file| file.unwrap().path());
        names.any(|path| path.extension().is_some_and(|known| known == extension))
    };
    assert!(has("journal", "cold") && has("base/vol-00007", "hashes"));
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(harbor.base_points(VolumeId(7)).len(), 3);
    let points = harbor.points();
    let told: Vec<_> = points.iter().map(|one| (one.id.0, one.locked)).collect();
    assert_eq!(told, [(2, true), (3, false), (4, false)]);

    let mut expected = vec![0; 128 * 1024];
    expected[512..1024].fill(0x11);
    expected[70_000..70_003].copy_from_slice(b"cdp");
    expected[600..700].fill(0);
    expected[65_536..66_048].fill(0x22);
    expected[66_048..66_560].fill(0);
    for (point, byte) in points.iter().zip([0, 0x44, 0x55]) {
        if byte != 0 {
            let at = 4096 * usize::from(byte % 16);
            expected[at..at + 4096].fill(byte);
        }
        let view = harbor.view(point.id).unwrap();
        check_volume(&view, VolumeId(7), &expected, "version 3");
    }
    let verified = harbor
        .verify(Scope::default(), &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!((verified.findings, verified.unchecked), (vec![], vec![]));
}
