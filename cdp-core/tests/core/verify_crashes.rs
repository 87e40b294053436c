//! What a power cut, a storage that fails and a damaged file leave of what verifications found.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdp_core::bounds::{DAMAGE_MAX, SCRUB_MAX};
use cdp_core::clock::HandClock;
use cdp_core::storage::{Left, Operation, SimulatedStorage, Storage, Trouble};
use cdp_core::{
    Clock, Grade, Harbor, HarborError, Options, PointId, RecoveryReport, Scope, Timestamp,
    VerifyReport, VolumeId,
};

use crate::harness::{KIB, description, machine, open_again, write};
use crate::keeping::{HOUR, MIDNIGHT, point, with_points};
use crate::layers_check::go_on;

const DIR: &str = "/harbor";
const LEFT: [Left; 3] = [Left::ByChance, Left::Nothing, Left::Everything];
/// More than the changes with which one verification is noted.
const CHANGES: u64 = 14;

/// A harbor in memory, with a clock that is set by hand.
struct Kept {
    storage: SimulatedStorage,
    clock: Arc<HandClock>,
    /// Where in each segment its second point has what it shows.
    places: Vec<u64>,
}

impl Kept {
    /// Three segments with two points each, of which each shows its own writing and nothing of the one before.
    fn new() -> Kept {
        let storage = SimulatedStorage::new(1);
        let clock = Arc::new(HandClock::new(MIDNIGHT));
        let places = Vec::new();
        let mut kept = Kept {
            storage,
            clock,
            places,
        };
        let desc = description(&[64 * KIB]);
        let harbor = Harbor::create(Path::new(DIR), &desc, kept.options()).unwrap();
        for first in [1, 3, 5] {
            let recorder = harbor.record().unwrap();
            if first == 1 {
                let seed = harbor.seed(VolumeId(0)).unwrap();
                seed.finish(recorder.sync().unwrap()).unwrap();
            }
            point(&recorder, first, None);
            point(&recorder, first + 1, None);
            recorder.close().unwrap();
        }
        kept.places = (1..=3).map(|segment| kept.place(segment)).collect();
        kept
    }

    fn place(&self, segment: u64) -> u64 {
        let bytes = self.storage.content(&self.segment(segment)).unwrap();
        let shown = [segment as u8 * 2; 4 * KIB as usize];
        let place = bytes.windows(shown.len()).position(|one| one == shown);
        place.unwrap() as u64
    }

    /// The same once more, in a storage of its own.
    fn fork(&self, seed: u64) -> Kept {
        Kept {
            storage: self.storage.fork(seed),
            clock: Arc::new(HandClock::new(MIDNIGHT)),
            places: self.places.clone(),
        }
    }

    fn later(&self) {
        self.clock.set(self.clock.now().saturating_add(HOUR));
    }

    fn options(&self) -> Options {
        Options {
            storage: Arc::new(self.storage.clone()),
            clock: self.clock.clone(),
            segment_bytes: 512 * KIB,
            ..Options::default()
        }
    }

    fn open(&self) -> (Harbor, RecoveryReport) {
        Harbor::open(Path::new(DIR), self.options()).unwrap()
    }

    fn segment(&self, number: u64) -> PathBuf {
        Path::new(DIR).join(format!("journal/{number:012}.seg"))
    }

    /// Flips a bit of what the second point of a segment shows, or flips it back.
    fn flip(&self, segment: u64) {
        let place = self.places[segment as usize - 1];
        self.storage.rot(&self.segment(segment), place * 8);
    }

    /// Cuts the power, and opens what is left.
    fn after_the_cut(&self, left: Left) -> (Harbor, RecoveryReport) {
        self.storage.cut_power();
        self.storage.power_up(left);
        self.open()
    }
}

fn verify(harbor: &Harbor, scope: Scope) -> Result<VerifyReport, HarborError> {
    harbor.verify(scope, &mut |_| ControlFlow::Continue(()))
}

/// What is still due that was not verified since then.
fn since(time: Timestamp) -> Scope {
    Scope {
        suspects: false,
        not_since: Some(time),
        bytes: None,
    }
}

/// The points that are marked.
fn marked(harbor: &Harbor) -> BTreeSet<u64> {
    let points = harbor.points().into_iter().filter(|point| point.damaged);
    points.map(|point| point.id.0).collect()
}

/// What is flipped, or flipped back, before each of some verifications, and the points that are damaged then.
const STEPS: [(u64, &[u64]); 5] = [
    (2, &[4]),
    (3, &[4, 6]),
    (1, &[2, 4, 6]),
    (2, &[2, 6]),
    (3, &[2]),
];

#[test]
fn a_power_cut_at_any_moment_of_a_verification_leaves_what_was_known_before_or_what_is_known_now() {
    let states: Vec<BTreeSet<u64>> = std::iter::once(&[][..])
        .chain(STEPS.map(|(_, damaged)| damaged))
        .map(|damaged| damaged.iter().copied().collect())
        .collect();
    let kept = Kept::new();
    let mut cuts = 0;
    for (seed, left) in (0..4).flat_map(|seed| LEFT.map(|left| (seed, left))) {
        for after in 0..STEPS.len() as u64 * CHANGES {
            let context = format!("seed {seed}, {left:?}, cut after {after}");
            let kept = kept.fork(seed);
            let (harbor, _) = kept.open();
            kept.storage.ask_for(Trouble::PowerCut { after });
            let mut done = 0;
            for (segment, _) in STEPS {
                kept.flip(segment);
                kept.later();
                let before = harbor.verified_since();
                if verify(&harbor, Scope::default()).is_err() {
                    assert_eq!(harbor.verified_since(), before, "{context}: not noted");
                    break;
                }
                done += 1;
            }
            let is_cut = kept.storage.is_cut();
            let now = done + usize::from(done < STEPS.len());
            drop(harbor);
            let (harbor, report) = kept.after_the_cut(left);
            assert!(report.damage.is_empty(), "{context}: {report:?}");
            let found = marked(&harbor);
            let may_be = &states[done..=if is_cut { now } else { done }];
            assert!(may_be.contains(&found), "{context}: {done} done, {found:?}");
            // What was not noted is done again: then all is known that there is.
            verify(&harbor, since(kept.clock.now())).unwrap();
            assert_eq!(marked(&harbor), states[now], "{context}");
            cuts += usize::from(now > done);
        }
    }
    assert!(cuts > 500, "{cuts} cuts amidst verifications");
}

#[test]
fn a_verification_that_cannot_be_noted_is_made_up_for_by_the_next_one() {
    const ENOSPC: i32 = 28;
    let kept = Kept::new();
    let operations = [Operation::Write, Operation::Name, Operation::Sync];
    let mut failed = 0;
    for (operation, left) in operations
        .into_iter()
        .flat_map(|operation| LEFT.map(|left| (operation, left)))
    {
        for after in 0..CHANGES {
            let context = format!("{operation:?} after {after}, {left:?}");
            let kept = kept.fork(after);
            let (harbor, _) = kept.open();
            kept.flip(2);
            verify(&harbor, Scope::default()).unwrap();
            // Found whole, which is not noted, or nobody knows whether it is; then damaged again.
            kept.flip(2);
            kept.later();
            let errno = ENOSPC;
            kept.storage.ask_for(Trouble::Error {
                operation,
                after,
                errno,
            });
            let noted = verify(&harbor, Scope::default());
            kept.storage.forget_troubles();
            if noted.is_err() {
                assert_eq!(harbor.verified_since(), Some(MIDNIGHT), "{context}");
                failed += 1;
            }
            kept.flip(2);
            verify(&harbor, Scope::default()).unwrap();
            assert_eq!(marked(&harbor), [4].into(), "{context}");
            drop(harbor);
            let (harbor, report) = kept.after_the_cut(left);
            assert!(report.damage.is_empty(), "{context}: {report:?}");
            assert_eq!(marked(&harbor), [4].into(), "{context}: opened again");
            assert_eq!(harbor.verified_since(), Some(kept.clock.now()), "{context}");
        }
    }
    assert!(failed > 20, "{failed} verifications were not noted");
}

/// Puts another byte into a file of the harbor.
fn spoil(kept: &Kept, name: &str) {
    kept.storage.rot(&Path::new(DIR).join(name), 8 * 20);
}

#[test]
fn what_stood_in_a_file_that_is_damaged_itself_is_found_again_whenever_the_power_is_cut() {
    let kept = Kept::new();
    let (harbor, _) = kept.open();
    kept.flip(3);
    verify(&harbor, Scope::default()).unwrap();
    drop(harbor);
    spoil(&kept, "damage.toml");
    let (mut cuts, mut parts) = (0, 0);
    for left in LEFT {
        for after in 0..2 * CHANGES {
            let context = format!("cut after {after}, {left:?}");
            let kept = kept.fork(after);
            kept.flip(1);
            kept.later();
            kept.storage.ask_for(Trouble::PowerCut { after });
            if let Ok((harbor, report)) = Harbor::open(Path::new(DIR), kept.options()) {
                assert!(report.damage[0].starts_with("damage.toml: its checksum is wrong"));
                assert_eq!(harbor.verified_since(), None, "{context}");
                // It is called off when it has found the first of them, and not yet the second.
                let segment = kept.storage.content(&kept.segment(1)).unwrap().len() as u64;
                let enough = Scope {
                    suspects: false,
                    not_since: None,
                    bytes: Some(segment),
                };
                let found = verify(&harbor, enough);
                parts += u32::from(found.is_ok_and(|found| found.left > 0));
                assert!(!marked(&harbor).contains(&6), "{context}");
            }
            cuts += u32::from(kept.storage.is_cut());
            let (harbor, _) = kept.after_the_cut(left);
            // Whoever verifies once a week is content with what was verified an hour ago, if that is known.
            verify(&harbor, since(MIDNIGHT)).unwrap();
            assert_eq!(marked(&harbor), [2, 6].into(), "{context}");
        }
    }
    assert!(cuts > 40 && parts > 5, "{cuts} cuts, {parts} parts");
}

#[test]
fn a_list_of_damage_that_cannot_be_taken_is_replaced_by_a_verification_that_finds_nothing() {
    let kept = Kept::new();
    // Its checksum is right: a newer version may have written it.
    let text = "judged = \"all\"\n";
    let text = format!("# crc32c {:08x}\n{text}", crc32c::crc32c(text.as_bytes()));
    let path = Path::new(DIR).join("damage.toml");
    kept.storage.put(&path, text.as_bytes());
    let (harbor, report) = kept.open();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert_eq!(verify(&harbor, Scope::default()).unwrap().findings, []);
    drop(harbor);
    let (_, report) = kept.open();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_list_that_is_too_long_is_told_or_forgotten_and_the_harbor_opens_all_the_same() {
    let machine = with_points(2, Options::default());
    verify(&machine.harbor, Scope::default()).unwrap();
    let dir = machine.dir();
    machine.recorder.close().unwrap();
    drop((machine.recorder, machine.harbor));
    let lengthen = |name: &str, len| {
        let file = File::options()
            .create(true)
            .append(true)
            .open(dir.join(name));
        file.unwrap().set_len(len).unwrap();
    };
    lengthen("scrub.toml", SCRUB_MAX + 1);
    let (harbor, report) = open_again(&dir, Options::default());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((harbor.verified_since(), harbor.points().len()), (None, 2));
    drop(harbor);
    lengthen("damage.toml", DAMAGE_MAX + 1);
    let (harbor, report) = open_again(&dir, Options::default());
    assert!(report.damage[0].starts_with("damage.toml: it is too long"));
    assert_eq!(harbor.points().len(), 2);
    verify(&harbor, Scope::default()).unwrap();
    drop(harbor);
    let (_, report) = open_again(&dir, Options::default());
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn what_was_found_of_points_that_the_journal_has_lost_is_not_said_of_their_successors() {
    for is_reopened in [true, false] {
        let kept = Kept::new();
        let (mut harbor, _) = kept.open();
        kept.flip(2);
        kept.flip(3);
        verify(&harbor, Scope::default()).unwrap();
        assert_eq!(marked(&harbor), [4, 6].into());
        Storage::remove(&kept.storage, &kept.segment(3)).unwrap();
        if is_reopened {
            drop(harbor);
            harbor = kept.open().0;
        } else {
            harbor.recover().unwrap();
        }
        assert_eq!(marked(&harbor), [4].into());
        let recorder = harbor.record().unwrap();
        // The fifth shows what the fourth does; the sixth covers all that, also what has the number of a lost record.
        let id = recorder.point(Grade::Crash, None).unwrap().id;
        assert_eq!(id, PointId(5));
        for _ in 0..2 {
            write(&recorder, 0, 0, &[6; 4 * KIB as usize]);
        }
        point(&recorder, 6, None);
        recorder.close().unwrap();
        assert_eq!(marked(&harbor), [4, 5].into());
        drop((recorder, harbor));
        assert_eq!(marked(&kept.open().0), [4, 5].into(), "opened again");
    }
}

#[test]
fn what_is_lost_below_a_layer_that_is_damaged_too_is_judged_at_once() {
    const SIZE: u64 = 1024 * 1024 * KIB;
    let machine = machine(&[SIZE], Options::default());
    let shown = point(&machine.recorder, 1, None);
    let built = machine.harbor.build_base(shown.id, &mut go_on).unwrap();
    machine.recorder.close().unwrap();
    let dir = machine.dir();
    drop((machine.recorder, machine.harbor));
    // Both its tables of clusters lie outside the file.
    let mut layer = fs::read(&built[0].path).unwrap();
    let tables = u64::from_be_bytes(*layer[40..].first_chunk().unwrap()) as usize;
    for place in [tables, tables + 8] {
        layer[place..place + 8].copy_from_slice(&(1_u64 << 63 | 1 << 40).to_be_bytes());
    }
    fs::write(&built[0].path, layer).unwrap();
    let found = format!(
        "judged = 0\n[[findings]]\nfile = \"f\"\nwhat = \"w\"\nfrom = 0\nbytes = 0\nlost = \"area\"\n\
         volume = 0\nlayer = 0\noffset = 0\nlength = {SIZE}\n"
    );
    let check = crc32c::crc32c(found.as_bytes());
    fs::write(
        dir.join("damage.toml"),
        format!("# crc32c {check:08x}\n{found}"),
    )
    .unwrap();
    let begin = Instant::now();
    let (harbor, _) = open_again(&dir, Options::default());
    assert_eq!(
        marked(&harbor),
        [].into(),
        "what the layer shows is not known"
    );
    assert!(begin.elapsed() < Duration::from_secs(30), "byte by byte");
}
