//! Gaps are kept like points, with their reason, over restarts.

use std::sync::Arc;

use cdp_core::clock::HandClock;
use cdp_core::{Clock, Gap, GapReason, Grade, Harbor, Options, Point, Recorder, Seq, Timestamp};

use crate::harness::{Chance, KIB, crash_image, machine, write};

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

#[test]
fn a_resync_is_a_gap_of_its_own_that_follows_directly() {
    let machine = machine(&[64 * KIB], Options::default());
    let open = |reason| machine.recorder.open_gap(reason, Timestamp(0)).unwrap();
    for reason in [
        GapReason::TapLost,
        GapReason::Overload,
        GapReason::Resync,
        GapReason::Resync,
        GapReason::JournalFailed,
        GapReason::Resync,
        GapReason::DiskFull,
    ] {
        open(reason);
        machine.write(0, 0, &[1; 512]);
        assert_eq!(machine.harbor.points(), [], "{reason:?}");
    }
    machine.recorder.close_gap().unwrap();
    let gaps = machine.harbor.gaps();
    let reasons: Vec<GapReason> = gaps.iter().map(|gap| gap.reason).collect();
    let (first, resync) = (GapReason::TapLost, GapReason::Resync);
    let (failed, full) = (GapReason::JournalFailed, GapReason::DiskFull);
    assert_eq!(reasons, [first, resync, failed, resync, full]);
    for pair in gaps.windows(2) {
        assert_eq!(pair[0].end, Some(pair[1].start), "{gaps:?}");
    }
    let crashed = machine.home.path().join("crashed");
    crash_image(&machine.dir(), &crashed);
    let (harbor, _) = Harbor::open(&crashed, Options::default()).unwrap();
    assert_eq!(harbor.gaps(), gaps);
}

/// What a harbor should offer after a history of points and gaps.
#[derive(Default)]
struct Expected {
    points: Vec<Point>,
    open: bool,
}

impl Expected {
    fn step(&mut self, recorder: &Recorder, clock: &HandClock, chance: &mut Chance) {
        const REASONS: [GapReason; 6] = [
            GapReason::TapLost,
            GapReason::Overload,
            GapReason::JournalFailed,
            GapReason::Suspended,
            GapReason::GuestOff,
            GapReason::Resync,
        ];
        let reason = REASONS[chance.below(REASONS.len() as u64) as usize];
        // Mostly on, sometimes back by a lot.
        let now = clock.now().0 + chance.below(3_000_000_000);
        let back = if chance.below(12) == 0 {
            60_000_000_000
        } else {
            0
        };
        clock.set(Timestamp(now.saturating_sub(back)));
        match chance.below(10) {
            0 | 1 => {
                recorder.open_gap(reason, clock.now()).unwrap();
                self.open = true;
            }
            2 => {
                let back = chance.below(4);
                let sound = Seq(recorder.head().0 - back.min(recorder.head().0));
                let start = Timestamp(clock.now().0 - chance.below(2_000_000_000));
                recorder.open_gap_since(reason, start, sound).unwrap();
                if !self.open {
                    self.points.retain(|point| point.seq <= sound);
                }
                self.open = true;
            }
            3 | 4 => {
                recorder.close_gap().unwrap();
                self.open = false;
            }
            5 => write(recorder, 0, chance.below(100) * 512, &[7; 512]),
            _ => {
                let point = recorder.point(Grade::Crash, None).unwrap();
                if !self.open {
                    self.points.push(point);
                }
            }
        }
    }

    fn check(&self, harbor: &Harbor, context: &str) -> Vec<Gap> {
        assert_eq!(harbor.points(), self.points, "{context}");
        let gaps = harbor.gaps();
        let open = gaps.last().is_some_and(|gap| gap.end.is_none());
        assert_eq!(open, self.open, "{context}: {gaps:?}");
        for pair in gaps.windows(2) {
            assert!(
                pair[0].end.is_some_and(|end| end <= pair[1].start),
                "{context}: one after the other: {gaps:?}"
            );
        }
        for gap in &gaps {
            assert!(gap.end.is_none_or(|end| end >= gap.start), "{context}");
            let inside = |p: &&Point| p.time > gap.start && gap.end.is_none_or(|end| p.time <= end);
            let inside = self.points.iter().find(inside);
            assert_eq!(inside, None, "{context}: offered inside {gap:?}");
        }
        gaps
    }
}

#[test]
fn no_point_is_offered_inside_a_gap_whatever_the_order_of_events_and_crashes() {
    let base = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    for seed in base.map_or(1..=12, |seed| seed..=seed) {
        let mut chance = Chance::new(seed);
        let clock = Arc::new(HandClock::new(Timestamp(5_000_000_000_000)));
        let options = || Options {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            ..Options::default()
        };
        let machine = machine(&[64 * KIB], options());
        let (mut harbor, mut recorder) = (machine.harbor.clone(), machine.recorder.clone());
        let mut expected = Expected::default();
        for step in 0..90 {
            expected.step(&recorder, &clock, &mut chance);
            let context = format!("SEED={seed}, step {step}");
            let gaps = expected.check(&harbor, &context);
            if chance.below(12) == 0 {
                recorder.sync().unwrap();
                let crashed = machine.home.path().join(format!("crashed{step}"));
                crash_image(harbor.dir(), &crashed);
                harbor = Harbor::open(&crashed, options()).unwrap().0;
                recorder = harbor.record().unwrap();
                assert_eq!(expected.check(&harbor, &context), gaps, "{context}");
            }
        }
    }
}
