//! Gaps are kept like points, with their reason, over restarts.

use cdp_core::{Gap, GapReason, Grade, Harbor, Options, Timestamp};

use crate::harness::{KIB, crash_image, machine};

#[test]
fn a_gap_survives_restarts_until_it_is_closed() {
    let machine = machine(&[64 * KIB], Options::default());
    machine
        .recorder
        .open_gap(GapReason::TapLost, Timestamp(77))
        .unwrap();
    machine
        .recorder
        .open_gap(GapReason::Overload, Timestamp(99))
        .unwrap();
    let open = Gap {
        start: Timestamp(77),
        end: None,
        reason: GapReason::TapLost,
    };
    assert_eq!(
        machine.harbor.gaps(),
        [open],
        "the first start and reason stand"
    );

    let crashed = machine.home.path().join("crashed");
    crash_image(&machine.dir(), &crashed);
    let (harbor, _) = Harbor::open(&crashed, Options::default()).unwrap();
    assert_eq!(harbor.gaps(), [open]);
    let recorder = harbor.record().unwrap();
    recorder.close_gap().unwrap();
    recorder.close_gap().unwrap();
    recorder
        .open_gap(GapReason::DaemonStopped, Timestamp(500))
        .unwrap();
    let gaps = harbor.gaps();
    assert!(gaps.len() == 2 && gaps[0].end > Some(open.start) && gaps[1].end.is_none());
    drop((harbor, recorder));
    let (harbor, report) = Harbor::open(&crashed, Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(harbor.gaps(), gaps);
}

#[test]
fn a_gap_takes_back_the_points_made_since_it_began() {
    let machine = machine(&[64 * KIB], Options::default());
    let point = |label| machine.recorder.point(Grade::Crash, Some(label)).unwrap();
    let (before, during) = (point("before"), point("during"));
    machine
        .recorder
        .open_gap(GapReason::TapLost, before.time)
        .unwrap();
    let offered = |harbor: &Harbor| -> Vec<_> { harbor.points().iter().map(|p| p.id).collect() };
    assert!(offered(&machine.harbor).contains(&before.id));
    assert!(!offered(&machine.harbor).contains(&during.id));
    let unasked = point("inside");
    machine.recorder.close_gap().unwrap();
    let after = point("after");
    assert!(after.id > unasked.id, "numbers are never used again");
    let now = offered(&machine.harbor);
    assert!(now.ends_with(&[before.id, after.id]), "{now:?}");

    let crashed = machine.home.path().join("crashed");
    crash_image(&machine.dir(), &crashed);
    let (harbor, _) = Harbor::open(&crashed, Options::default()).unwrap();
    assert_eq!(offered(&harbor), now);
    assert!(harbor.view(during.id).is_err(), "nor can it be viewed");
}
