//! A tap on a real journal with `ack = durable`: parked, left and failed while writes wait for the journal's sync.
//!
//! A client sends numbered writes, each to a place of its own, and notes what was answered. Held against what a crash at
//! that moment leaves: everything that was answered is in the journal, and every answer comes once, in order.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cdp_core::storage::{Fault, FaultyStorage};
use cdp_core::{
    AckRule, Grade, Harbor, MachineDescription, MachineSource, Mode, Options, Recorder, Timestamp,
    VolumeDescription, VolumeId, machine::FORMAT_VERSION,
};
use qemu_hook::tap::{TapConfig, TapEnd, TapHandle, resume_tap};
use tempfile::TempDir;
use virt_cdp::engine::RecorderSink;

const LEN: u64 = 8192;
const SIZE: u64 = 256 << 20;
/// Writes in flight.
const DEPTH: u64 = 32;
const EIO: i32 = 5;

/// A client on one end of a tap's socket, past the handshake; it goes on until its socket ends or it is told to stop.
struct Client {
    socket: UnixStream,
    shared: Arc<Shared>,
    threads: [JoinHandle<()>; 2],
}

#[derive(Default)]
struct Shared {
    sent: AtomicU64,
    answered: AtomicU64,
    /// No write of this number or above is sent.
    stop_at: AtomicU64,
}

/// What write `number` consists of.
fn payload(number: u64) -> Vec<u8> {
    (number + 1).to_le_bytes().repeat(LEN as usize / 8)
}

impl Client {
    fn start(socket: UnixStream) -> Client {
        let shared = Arc::<Shared>::default();
        shared.stop_at.store(u64::MAX, Ordering::SeqCst);
        let (theirs, mut replies) = (Arc::clone(&shared), socket.try_clone().unwrap());
        let reader = thread::spawn(move || {
            let mut head = [0; 16];
            while replies.read_exact(&mut head).is_ok() {
                assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "no error");
                let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
                let expected = theirs.answered.fetch_add(1, Ordering::SeqCst);
                assert_eq!(cookie, expected, "answered once each, in order");
            }
        });
        let (theirs, mut requests) = (Arc::clone(&shared), socket.try_clone().unwrap());
        let writer = thread::spawn(move || {
            for number in 0..SIZE / LEN {
                while number >= theirs.answered.load(Ordering::SeqCst) + DEPTH
                    || number >= theirs.stop_at.load(Ordering::SeqCst)
                {
                    if theirs.stop_at.load(Ordering::SeqCst) == 0 {
                        return;
                    }
                    thread::yield_now();
                }
                let mut message = 0x2560_9513_0000_0001_u64.to_be_bytes().to_vec();
                message.extend(number.to_be_bytes());
                message.extend((number * LEN).to_be_bytes());
                message.extend((LEN as u32).to_be_bytes());
                message.extend(payload(number));
                if requests.write_all(&message).is_err() {
                    return;
                }
                theirs.sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        Client {
            socket,
            shared,
            threads: [reader, writer],
        }
    }

    fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Hangs up, whatever is under way; returns how many were answered.
    fn leave(self) -> u64 {
        self.shared.stop_at.store(0, Ordering::SeqCst);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.shared.answered.load(Ordering::SeqCst)
    }
}

struct Machine {
    home: TempDir,
    harbor: Harbor,
    recorder: Recorder,
}

fn machine(options: Options) -> Machine {
    let home = TempDir::new().unwrap();
    let described = MachineDescription {
        format_version: FORMAT_VERSION,
        name: "taps".into(),
        machine_id: "taps".into(),
        point_interval_ms: 1000,
        created: Timestamp(0),
        mode: Mode::Active,
        source: MachineSource::Qmp {
            socket: "/nowhere".into(),
        },
        ack: None,
        flush_interval_ms: None,
        policy: None,
        volumes: vec![VolumeDescription::new(VolumeId(0), "vda", SIZE)],
    };
    let harbor = Harbor::create(&home.path().join("h"), &described, options).unwrap();
    let recorder = harbor.record().unwrap();
    let seed = harbor.seed(VolumeId(0)).unwrap();
    seed.finish(recorder.sync().unwrap()).unwrap();
    Machine {
        home,
        harbor,
        recorder,
    }
}

fn options() -> Options {
    Options {
        ack_rule: AckRule::Durable,
        // So that segments turn meanwhile.
        segment_bytes: 1 << 20,
        ..Options::default()
    }
}

impl Machine {
    fn tap(&self, socket: &UnixStream) -> TapHandle {
        let sink = RecorderSink::new(self.recorder.volume(VolumeId(0)).unwrap());
        let config = TapConfig::new("vda", SIZE);
        resume_tap(socket.try_clone().unwrap(), config, sink).unwrap()
    }

    /// A copy of the harbor as a crash at this moment would leave it.
    fn crash_image(&self) -> TempDir {
        let image = TempDir::new().unwrap();
        copy(&self.home.path().join("h"), image.path());
        image
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else if let Err(error) = fs::copy(entry.path(), target) {
            // A segment in the making gets its name just now.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

/// Opens a harbor and counts the writes that it has: all below some number, whole, and none above it.
fn kept_in(dir: &Path) -> u64 {
    let (harbor, report) = Harbor::open(dir, Options::default()).unwrap();
    assert!(report.damage.is_empty(), "{report:?}");
    kept(&harbor)
}

fn kept(harbor: &Harbor) -> u64 {
    let recorder = harbor.record().unwrap();
    let point = recorder.point(Grade::Crash, None).unwrap();
    let view = harbor.view(point.id).unwrap();
    let mut found = vec![0; LEN as usize];
    let mut count = 0;
    for number in 0..SIZE / LEN {
        view.read_at(VolumeId(0), &mut found, number * LEN).unwrap();
        if found.iter().all(|byte| *byte == 0) {
            break;
        }
        assert!(found == payload(number), "write {number} is not whole");
        count = number + 1;
    }
    let behind = view.extents(VolumeId(0), count * LEN, SIZE - count * LEN);
    assert!(
        behind.unwrap().iter().all(|extent| extent.zero),
        "a write behind {count} is there, and {count} is not"
    );
    count
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < give_up, "{what} has not come to pass");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn parked_taps_have_answered_all_they_took_and_a_crash_then_loses_none_of_it() {
    let machine = machine(options());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = Client::start(theirs);
    let mut outstanding = 0;
    for round in 0..16 {
        let tap = machine.tap(&ours);
        let before = client.answered();
        wait_until("some are answered", || client.answered() > before + 40);
        thread::sleep(Duration::from_micros(317 * round));
        let stats = Arc::clone(tap.stats());
        tap.park();
        outstanding += u64::from(stats.owes());
        let end = tap.join();
        assert!(matches!(end, TapEnd::Parked), "{end:?}");
        let taken = machine.recorder.stats().writes;
        // All replies left before the tap was parked; they may yet have to be read.
        wait_until("what was taken is answered", || client.answered() == taken);
        let kept = kept_in(machine.crash_image().path());
        assert_eq!(kept, taken, "round {round}: taken, and not kept");
    }
    assert!(outstanding > 0, "no park met a reply that was owed");
    let tap = machine.tap(&ours);
    let sent = client.shared.sent.load(Ordering::SeqCst);
    client.shared.stop_at.store(sent, Ordering::SeqCst);
    wait_until("all are answered", || {
        client.answered() == client.shared.sent.load(Ordering::SeqCst)
    });
    tap.park();
    assert!(matches!(tap.join(), TapEnd::Parked));
    let answered = client.leave();
    assert_eq!(machine.recorder.stats().writes, answered, "each taken once");
}

#[test]
fn what_was_answered_is_kept_at_any_moment_and_when_the_client_leaves_in_midstream() {
    for round in 0..8 {
        let machine = machine(options());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let tap = machine.tap(&ours);
        drop(ours);
        let client = Client::start(theirs);
        wait_until("some are answered", || client.answered() > 60);
        // What is answered when the copy begins is in it.
        let answered = client.answered();
        let image = machine.crash_image();
        assert!(kept_in(image.path()) >= answered, "round {round}");
        let answered = client.leave();
        wait_until("the tap has ended", || tap.is_ended());
        let end = tap.join();
        assert!(matches!(end, TapEnd::Disconnected), "{end:?}");
        assert!(kept_in(machine.crash_image().path()) >= answered);
        // The journal goes on without the one who left.
        machine.recorder.point(Grade::Crash, None).unwrap();
    }
}

#[test]
fn a_journal_that_fails_answers_nothing_that_is_not_in_it() {
    for after in 0..24 {
        let storage = Arc::new(FaultyStorage::new());
        let machine = machine(Options {
            storage: Arc::clone(&storage) as _,
            ..options()
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        let tap = machine.tap(&ours);
        let client = Client::start(theirs);
        wait_until("some are answered", || client.answered() > 20);
        // Of all syncs and writes, those of a turn among them.
        storage.inject(match after % 2 {
            0 => Fault::Sync { after, errno: EIO },
            _ => Fault::Write {
                after: after * 3,
                torn: 4096,
                errno: EIO,
            },
        });
        wait_until("the journal fails", || machine.recorder.failure().is_some());
        wait_until("the tap has ended", || tap.is_ended());
        let end = tap.join();
        assert!(
            matches!(end, TapEnd::Disconnected | TapEnd::SinkClosed(_)),
            "{end:?}"
        );
        let answered = client.leave();
        let taken = machine.recorder.stats().writes;
        assert!(answered <= taken);
        // By a process that knows nothing of it, and in place.
        let kept_after_crash = kept_in(machine.crash_image().path());
        assert!(
            kept_after_crash >= answered,
            "{after}: {kept_after_crash} kept, {answered} answered"
        );
        machine.harbor.recover().unwrap();
        assert!(kept(&machine.harbor) >= answered, "{after}");
    }
}
