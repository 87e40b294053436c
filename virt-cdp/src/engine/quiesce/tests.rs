//! The order of a quiesced point and its ways out, with an agent and a machine that fail on purpose.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use cdp_core::{Grade, MachineSource, PointId, Seq, Timestamp};

use super::*;
use crate::engine::{
    guard,
    source::{Found, Look, Presence},
};
use qemu_hook::monitor::Monitor;

/// What the fake agent does at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Answers(u64),
    Refuses,
    Hangs,
}
use Does::{Answers, Hangs, Refuses};

/// An agent that notes what it is told, and a machine that notes when its point is made.
struct Fake {
    ping: Does,
    freeze: Does,
    /// The first thaw; later ones are answered.
    thaw: Does,
    thaws: AtomicU32,
    told: Mutex<Vec<&'static str>>,
    run: &'static str,
}

impl Fake {
    fn step(&self, what: &'static str, does: Does) -> Result<u64, String> {
        guard(&self.told).push(what);
        match does {
            Answers(count) => Ok(count),
            Refuses => Err(format!("no {what} today")),
            Hangs => {
                thread::sleep(Duration::from_secs(30));
                Err("too late".into())
            }
        }
    }

    fn told(&self) -> String {
        guard(&self.told).join(" ")
    }
}

impl GuestAgent for Fake {
    fn ping(&self, _: Duration) -> Result<(), String> {
        self.step("ping", self.ping).map(drop)
    }

    fn freeze(&self, _: Duration) -> Result<u64, String> {
        self.step("freeze", self.freeze)
    }

    fn thaw(&self, _: Duration) -> Result<u64, String> {
        let first = self.thaws.fetch_add(1, Ordering::SeqCst) == 0;
        self.step("thaw", if first { self.thaw } else { Answers(1) })
    }
}

struct FakeSource(Arc<Fake>);

impl Source for FakeSource {
    fn presence(&self) -> Presence {
        Presence::Running(self.0.run.into())
    }
    fn disks(&self) -> ApiResult<Vec<Found>> {
        Ok(Vec::new())
    }
    fn monitor(&self) -> ApiResult<Arc<dyn Monitor>> {
        Err(ApiError::new(ApiErrorKind::Unavailable, "no monitor"))
    }
    fn look(&self) -> ApiResult<Look> {
        Ok(Look::default())
    }
    fn agent(&self) -> ApiResult<Option<Arc<dyn GuestAgent>>> {
        Ok(Some(Arc::clone(&self.0) as _))
    }
}

/// A machine whose point is made in a grade, or not.
struct FakeStand<'a> {
    fake: &'a Fake,
    makes: Result<Grade, &'static str>,
}

impl Stand for FakeStand<'_> {
    fn point(&self, _: Instant) -> Result<Point, String> {
        guard(&self.fake.told).push("point");
        let grade = self.makes?;
        Ok(Point {
            id: PointId(1),
            time: Timestamp(1),
            seq: Seq(1),
            grade,
            label: None,
            xml: None,
            locked: false,
            damaged: false,
        })
    }
}

fn owed() -> Owed {
    Owed {
        name: "web1".into(),
        source: MachineSource::Libvirt {
            uri: "test:///default".into(),
            uuid: "0b7a".into(),
        },
        run: "7".into(),
        since: Timestamp(1),
    }
}

fn marker(dir: &Path, fake: &Arc<Fake>) -> Marker {
    let (markers, _) = Markers::open(dir.to_path_buf(), |_, _| Ok(None)).unwrap();
    markers.of("id", owed(), Arc::new(FakeSource(Arc::clone(fake))))
}

fn fake(ping: Does, freeze: Does, thaw: Does) -> Arc<Fake> {
    Arc::new(Fake {
        ping,
        freeze,
        thaw,
        thaws: AtomicU32::new(0),
        told: Mutex::default(),
        run: "7",
    })
}

/// The agent's ping, freeze and first thaw; the machine's point; what was done in order; a piece of the note.
type Case = (
    (Does, Does, Does),
    Result<Grade, &'static str>,
    &'static str,
    &'static str,
);

#[test]
fn every_step_may_fail_and_a_thaw_is_sent_after_every_freeze() {
    let good = Ok(Grade::Quiesced);
    let table: &[Case] = &[
        (
            (Answers(0), Answers(2), Answers(2)),
            good,
            "ping freeze point thaw",
            "",
        ),
        (
            (Hangs, Answers(2), Answers(2)),
            good,
            "ping",
            "did not come within 2.0 s",
        ),
        (
            (Refuses, Answers(2), Answers(2)),
            good,
            "ping",
            "no ping today",
        ),
        (
            (Answers(0), Refuses, Answers(0)),
            good,
            "ping freeze thaw",
            "no freeze today",
        ),
        (
            (Answers(0), Hangs, Answers(2)),
            good,
            "ping freeze thaw",
            "the freeze did not come within 0.6 s",
        ),
        (
            (Answers(0), Answers(0), Answers(0)),
            good,
            "ping freeze thaw",
            "no file system to freeze",
        ),
        (
            (Answers(0), Answers(2), Answers(2)),
            Err("QEMU's drain did not come"),
            "ping freeze point thaw",
            "QEMU's drain did not come",
        ),
        (
            (Answers(0), Answers(2), Answers(2)),
            Ok(Grade::Crash),
            "ping freeze point thaw",
            "the guest wrote to its disks although",
        ),
        (
            (Answers(0), Answers(2), Answers(0)),
            good,
            "ping freeze point thaw",
            "thawed its file systems by itself",
        ),
    ];
    for (does, makes, expected, note) in table {
        let dir = tempfile::tempdir().unwrap();
        let fake = fake(does.0, does.1, does.2);
        let marker = marker(dir.path(), &fake);
        let agent: Arc<dyn GuestAgent> = Arc::clone(&fake) as _;
        let stand = FakeStand {
            fake: &fake,
            makes: *makes,
        };
        let tried = attempt(&agent, &marker, Duration::from_secs(1), &stand);
        assert_eq!(&fake.told(), expected, "{does:?}");
        assert!(tried.note.contains(note), "{does:?}: {:?}", tried.note);
        assert_eq!(tried.note.is_empty(), note.is_empty(), "{:?}", tried.note);
        assert_eq!(
            tried.point.is_some(),
            expected.contains("point") && makes.is_ok(),
            "{does:?}"
        );
        assert!(tried.frozen < Duration::from_secs(2), "{does:?}: {tried:?}");
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "{does:?}: nothing is owed"
        );
    }
}

#[test]
fn a_thaw_that_is_not_answered_is_owed_until_it_is() {
    for thaw in [Refuses, Hangs] {
        let dir = tempfile::tempdir().unwrap();
        let fake = fake(Answers(0), Answers(1), thaw);
        let marker = marker(dir.path(), &fake);
        let agent: Arc<dyn GuestAgent> = Arc::clone(&fake) as _;
        let stand = FakeStand {
            fake: &fake,
            makes: Ok(Grade::Quiesced),
        };
        let tried = attempt(&agent, &marker, Duration::from_secs(1), &stand);
        assert_eq!(tried.point.map(|p| p.grade), Some(Grade::Quiesced));
        assert!(
            tried.note.contains("the thaw is not answered"),
            "{}",
            tried.note
        );
        for _ in 0..200 {
            if std::fs::read_dir(dir.path()).unwrap().count() == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(fake.told(), "ping freeze point thaw thaw", "{thaw:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_a_killed_daemon_left_frozen_is_thawed_and_another_run_is_not() {
    for (run, expected) in [("7", "thaw"), ("8", "")] {
        let dir = tempfile::tempdir().unwrap();
        let text = serde_json::to_vec(&owed()).unwrap();
        std::fs::write(dir.path().join("id.json"), text).unwrap();
        std::fs::write(dir.path().join("x.part"), "half").unwrap();
        std::fs::write(dir.path().join("bad.json"), "{").unwrap();
        let fake = Arc::new(Fake {
            run,
            ..Arc::into_inner(fake(Answers(0), Answers(1), Answers(1))).unwrap()
        });
        let (markers, found) = Markers::open(dir.path().to_path_buf(), |_, _| Ok(None)).unwrap();
        assert_eq!(found.len(), 1);
        for (path, owed) in found {
            let source = Arc::new(FakeSource(Arc::clone(&fake)));
            markers.at(path, owed, source).settle();
        }
        for _ in 0..200 {
            if !dir.path().join("id.json").exists() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(fake.told(), expected);
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["bad.json"], "what is no marker is left alone");
    }
}

#[test]
fn nothing_is_frozen_without_a_marker_or_while_a_thaw_is_owed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = fake(Answers(0), Answers(1), Answers(1));
    let stand = FakeStand {
        fake: &agent,
        makes: Ok(Grade::Quiesced),
    };
    let owed = marker(dir.path(), &agent);
    std::fs::write(dir.path().join("id.json"), "{}").unwrap();
    let theirs: Arc<dyn GuestAgent> = Arc::clone(&agent) as _;
    let tried = attempt(&theirs, &owed, Duration::from_secs(1), &stand);
    assert!(
        tried.note.contains("not known to be thawed yet"),
        "{}",
        tried.note
    );
    drop(dir);
    let tried = attempt(&theirs, &owed, Duration::from_secs(1), &stand);
    assert!(
        tried.note.contains("nothing is frozen without"),
        "{}",
        tried.note
    );
    assert_eq!(agent.told(), "ping ping");
}
