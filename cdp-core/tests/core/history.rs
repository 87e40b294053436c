//! A random history: every point's view equals a replay in memory, now, after opening again, and
//! after a crash at any byte.

use std::fs;

use cdp_core::{AckRule, Harbor, Options};
use tempfile::TempDir;

use crate::harness::{Chance, KIB, Model, crash_image, machine, segments, small_segments, written};

const SIZES: [u64; 2] = [300 * KIB, 777 * 512];

fn options(seed: u64) -> Options {
    let ack_rule = if seed.is_multiple_of(2) {
        AckRule::Buffered
    } else {
        AckRule::Durable
    };
    Options {
        ack_rule,
        ..small_segments()
    }
}

#[test]
fn every_point_is_viewed_as_it_was() {
    for seed in 1..=6 {
        let mut chance = Chance::new(seed);
        let mut model = Model::new(&SIZES);
        let machine = machine(&SIZES, options(seed));
        for _ in 0..250 {
            model.step(&machine.recorder, &mut chance);
        }
        model.check(&machine.harbor, &format!("seed {seed}, while recording"));
        machine.recorder.close().unwrap();
        let dir = machine.dir();
        let home = machine.home;
        drop((machine.harbor, machine.recorder));

        for round in ["first", "second"] {
            let (harbor, report) = Harbor::open(&dir, options(seed)).unwrap();
            assert!(report.is_clean(), "seed {seed}: {report:?}");
            assert!(
                report.segments > 2,
                "seed {seed}: the history is to span segments"
            );
            model.check(&harbor, &format!("seed {seed}, opened {round}"));
            let recorder = harbor.record().unwrap();
            for _ in 0..40 {
                model.step(&recorder, &mut chance);
            }
            model.check(&harbor, &format!("seed {seed}, recorded on, {round}"));
        }
        drop(home);
    }
}

#[test]
fn a_crash_at_any_byte_leaves_a_prefix() {
    let mut chance = Chance::new(77);
    let mut model = Model::new(&SIZES);
    let machine = machine(&SIZES, Options::default());
    while model.points.len() < 6 {
        model.step(&machine.recorder, &mut chance);
    }
    machine.recorder.sync().unwrap();
    let home = TempDir::new().unwrap();
    let crashed = home.path().join("crashed");
    crash_image(&machine.dir(), &crashed);
    let last = segments(&crashed).pop().unwrap();
    let whole = written(&last);

    // Every block boundary near the end with its neighbours, and many bytes by chance.
    let blocks = whole.len() / 4096;
    let mut cuts: Vec<usize> = (blocks - 40..=blocks).map(|block| block * 4096).collect();
    cuts.extend(
        (blocks - 20..blocks).flat_map(|block| [1, 64, 512, 700].map(|at| block * 4096 + at)),
    );
    cuts.extend((0..120).map(|_| 4096 + chance.below(whole.len() as u64 - 4096) as usize));
    let mut kept_before = Vec::new();
    cuts.sort_unstable();
    for cut in cuts.into_iter().filter(|cut| *cut <= whole.len()) {
        fs::write(&last, &whole[..cut]).unwrap();
        let (harbor, report) = Harbor::open(&crashed, Options::default()).unwrap();
        assert!(
            report.cut.is_some() && report.damage.is_empty(),
            "cut at {cut}: {report:?}"
        );
        let mut kept = model.clone();
        kept.points.retain(|_, (point, _)| point.seq <= report.head);
        kept.check(&harbor, &format!("cut at {cut}"));
        let points = harbor.points();
        assert!(
            points.starts_with(&kept_before),
            "cut at {cut}: more bytes, fewer points"
        );
        kept_before = points;
        drop(harbor);

        let sealed = fs::read(&last).unwrap();
        let (_, again) = Harbor::open(&crashed, Options::default()).unwrap();
        assert!(
            again.is_clean() && again.head == report.head,
            "cut at {cut}: {again:?}"
        );
        assert!(
            fs::read(&last).unwrap() == sealed,
            "cut at {cut}: a second opening changes it"
        );
    }
    assert_eq!(
        kept_before.len(),
        model.points.len(),
        "nothing is lost of the whole file"
    );
}

#[test]
fn a_tail_with_holes_is_cut_at_the_first() {
    let mut chance = Chance::new(31);
    let mut model = Model::new(&SIZES);
    let machine = machine(&SIZES, Options::default());
    while model.points.len() < 8 {
        model.step(&machine.recorder, &mut chance);
    }
    machine.recorder.sync().unwrap();
    let home = TempDir::new().unwrap();
    let crashed = home.path().join("crashed");
    crash_image(&machine.dir(), &crashed);
    let last = segments(&crashed).pop().unwrap();
    let whole = written(&last);
    let blocks = whole.len() as u64 / 512;
    let mut cuts = 0;
    for round in 0..60 {
        // The storage wrote what lies behind, but not this sector.
        let sector = (8 + chance.below(blocks - 8)) as usize * 512;
        let mut torn = whole.clone();
        torn[sector..sector + 512].fill(0);
        fs::write(&last, &torn).unwrap();
        let (harbor, report) = Harbor::open(&crashed, Options::default()).unwrap();
        let mut kept = model.clone();
        kept.points.retain(|_, (point, _)| point.seq <= report.head);
        kept.check(&harbor, &format!("round {round}, sector at {sector}"));
        let cut = report.cut.unwrap();
        // Zeros at the end of the file are room that was never written, and nothing that is cut.
        let last = torn.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let behind = last.next_multiple_of(4096).saturating_sub(sector) as u64;
        assert!(cut.bytes == 0 || cut.bytes >= behind, "{cut:?}");
        assert!(
            cut.bytes > 0 || torn == whole || last <= sector,
            "round {round}: {cut:?}"
        );
        cuts += u64::from(cut.bytes > 0);
    }
    assert!(cuts > 30, "{cuts} of 60 holes were cut");
}
