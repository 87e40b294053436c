//! Gaps are kept like points, with their reason, over restarts.

use std::sync::Arc;

use cdp_core::clock::HandClock;
use cdp_core::{Clock, GapReason, Grade, Harbor, Options, Timestamp};

use crate::harness::{KIB, crash_image, machine};

#[test]
fn a_gap_survives_restarts_until_it_is_closed() {
    let machine = machine(&[64 * KIB], Options::default());
    machine.write(0, 0, &[1; 512]);
    machine
        .recorder
        .open_gap(GapReason::TapLost, Timestamp(77))
        .unwrap();
    machine
        .recorder
        .open_gap(GapReason::Overload, Timestamp(99))
        .unwrap();
    let open = machine.harbor.gaps()[0];
    assert_eq!(machine.harbor.gaps().len(), 1);
    assert_eq!(
        (open.reason, open.end),
        (GapReason::TapLost, None),
        "the first reason stands"
    );
    assert!(
        open.start > Timestamp(77),
        "it cannot begin before what is valid"
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
        .open_gap_since(GapReason::TapLost, before.time, before.seq)
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

#[test]
fn a_clock_that_stepped_back_takes_no_points_away() {
    let clock = Arc::new(HandClock::new(Timestamp(5_000_000_000_000)));
    let options = Options {
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    let kept = machine.recorder.point(Grade::Crash, None).unwrap();
    clock.set(Timestamp(1_000_000_000_000));
    for reason in [GapReason::Suspended, GapReason::DaemonStopped] {
        machine.recorder.open_gap(reason, clock.now()).unwrap();
        machine.recorder.close_gap().unwrap();
    }
    machine
        .recorder
        .open_gap_since(GapReason::TapLost, clock.now(), machine.recorder.head())
        .unwrap();
    assert!(machine.harbor.points().contains(&kept));
}
