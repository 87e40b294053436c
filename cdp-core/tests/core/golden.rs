//! Harbors of every format version are read for ever.
//!
//! `golden/v1` was written by `examples/make_golden.rs` and must never be written again.

use std::path::Path;

use cdp_core::{
    Gap, GapReason, Grade, Harbor, Options, PointId, Seq, Timestamp, VolumeId, XmlVersion,
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
