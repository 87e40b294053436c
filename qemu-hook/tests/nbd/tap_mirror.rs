//! The tap behind QEMU's own mirror: what the guest wrote is what the sink took, in an order that
//! leads to the same image, and nothing we do harms the guest.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use qemu_hook::tap::{TapConfig, TapEnd, TapHandle, spawn_tap};
use serde_json::json;
use tempfile::TempDir;

use crate::device::Device;
use crate::peers::{requires, run, wait_until};
use crate::storage_daemon::StorageDaemon;
use crate::tap_sink::{Kept, Taken};

const SIZE: usize = 64 << 20;
const TOOLS: &[&str] = &["qemu-storage-daemon", "qemu-io"];

/// A disk whose writes are mirrored to a tap.
struct Scene {
    file: PathBuf,
    before: Vec<u8>,
    daemon: StorageDaemon,
    kept: Kept,
    tap: TapHandle,
    _dir: TempDir,
}

impl Scene {
    fn set(kept: Kept) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.img");
        let before = Device::sparse(SIZE, 51).bytes;
        fs::write(&file, &before).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let config = TapConfig::new("vm/vda", SIZE as u64);
        let tap = spawn_tap(ours, config, kept.clone()).unwrap();
        let mut daemon = StorageDaemon::tapped(dir.path(), &file, theirs, "vm/vda");
        daemon.mirror();
        assert!(tap.stats().is_connected());
        Self {
            file,
            before,
            daemon,
            kept,
            tap,
            _dir: dir,
        }
    }

    /// Lets qemu-io act as the guest.
    fn guest(&self, commands: &[&str]) {
        let uri = self.daemon.uri("disk");
        let mut args = vec!["-f", "raw"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(&uri);
        let text = run("qemu-io", &args);
        assert!(!text.contains("failed"), "{text}");
    }

    fn check_replay(&mut self) {
        self.daemon.barrier();
        let mut replayed = self.before.clone();
        self.kept.replay(&mut replayed);
        assert!(replayed == fs::read(&self.file).unwrap());
    }
}

#[test]
fn writes_of_every_kind_arrive_as_they_were() {
    if !requires(TOOLS) {
        return;
    }
    let mut scene = Scene::set(Kept::default());
    scene.guest(&[
        "write -P 0xa1 0 512",
        "write -P 0xa2 1536 512",
        "write -P 0xa3 1M 4k",
        "write -z 2M 64k",
        "write -z -u 3M 1M",
        "write -f -P 0xa4 5M 33M",
        "flush",
        "discard 40M 1M",
    ]);
    scene.daemon.barrier();
    let mut taken = scene.kept.taken();
    let split = taken.split_off(5);
    let data = |byte: u8, offset: u64, len: usize| Taken::Data(offset, vec![byte; len]);
    assert_eq!(
        taken[..3],
        [
            data(0xa1, 0, 512),
            data(0xa2, 1536, 512),
            data(0xa3, 1 << 20, 4096)
        ]
    );
    assert_eq!(
        taken[3..],
        [Taken::Zero(2 << 20, 65_536), Taken::Zero(3 << 20, 1 << 20)]
    );
    // The client of the client splits a large write; every part stays within our bound.
    let mut at = 5 << 20;
    for part in &split {
        let Taken::Data(offset, bytes) = part else {
            panic!("not data");
        };
        assert_eq!(*offset, at);
        assert!(bytes.len() <= 32 << 20 && bytes.iter().all(|byte| *byte == 0xa4));
        at += bytes.len() as u64;
    }
    assert_eq!(at, 38 << 20);

    let stats = scene.tap.stats();
    assert_eq!(stats.writes(), 3 + split.len() as u64);
    assert_eq!(stats.bytes(), 512 + 512 + 4096 + (33 << 20));
    assert_eq!(
        (stats.zeroes(), stats.zero_bytes()),
        (2, 65_536 + (1 << 20))
    );
    assert!(!stats.owes());
    // The discard is swallowed by the mirror, so the image is the same without it.
    scene.check_replay();
}

#[test]
fn overlapping_writes_in_flight_replay_to_the_same_image() {
    if !requires(&["qemu-storage-daemon", "qemu-io", "fio"]) {
        return;
    }
    let mut scene = Scene::set(Kept::default());
    let uri = format!("--uri={}", scene.daemon.uri("disk"));
    // A small area, so that writes of different sizes meet each other all the time.
    let jobs = ["--name=a", "--name=b", "--name=c"].map(|job| {
        let seed = format!("--randseed={}", job.len() + job.as_bytes()[7] as usize);
        vec![job.to_owned(), seed]
    });
    let common = [
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-65536",
        "--bs_unaligned=0",
        "--blockalign=512",
        "--size=4M",
        "--io_size=40M",
        "--iodepth=16",
        "--norandommap",
        "--randrepeat=1",
        "--refill_buffers",
        "--thread",
    ];
    let mut args: Vec<&str> = common.to_vec();
    args.extend(jobs.iter().flatten().map(String::as_str));
    run("fio", &args);
    assert!(scene.tap.stats().writes() > 3000);
    scene.check_replay();
}

#[test]
fn a_tap_that_is_closed_costs_the_guest_nothing() {
    if !requires(TOOLS) {
        return;
    }
    let mut scene = Scene::set(Kept::default());
    scene.guest(&["write -P 1 0 64k"]);
    scene.tap.close();
    scene.guest(&["write -P 2 64k 64k", "write -P 3 128k 64k"]);
    let ended = scene.daemon.event("BLOCK_JOB_COMPLETED");
    assert!(ended["data"].get("error").is_some());
    assert!(matches!(scene.tap.join(), TapEnd::Disconnected));
    assert_eq!(scene.kept.taken().len(), 1);
    assert_eq!(fs::read(&scene.file).unwrap()[128 << 10], 3);
}

#[test]
fn a_tap_is_closed_in_the_middle_of_a_write_that_the_sink_holds() {
    if !requires(TOOLS) {
        return;
    }
    let scene = Scene::set(Kept::default());
    scene.kept.hold(true);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| scene.guest(&["write -P 2 64k 64k"]));
        wait_until("a reply that is owed", || scene.tap.stats().owes());
        assert!(!writer.is_finished());
        scene.tap.close();
        // The guest goes on although the sink still holds.
        writer.join().unwrap();
    });
    assert!(!scene.tap.is_ended());
    scene.kept.hold(false);
    assert!(matches!(scene.tap.join(), TapEnd::Disconnected));
}

#[test]
fn a_sink_that_closes_ends_the_mirror_and_not_the_guest() {
    if !requires(TOOLS) {
        return;
    }
    let mut scene = Scene::set(Kept::closing_after(2));
    scene.guest(&[
        "write 0 4k",
        "write 8k 4k",
        "write -P 9 16k 4k",
        "write 24k 4k",
    ]);
    scene.daemon.event("BLOCK_JOB_COMPLETED");
    assert!(matches!(scene.tap.join(), TapEnd::SinkClosed(_)));
    assert_eq!(scene.kept.taken().len(), 2);
    assert_eq!(fs::read(&scene.file).unwrap()[16 << 10], 9);
}

#[test]
fn the_end_of_qemu_is_the_end_of_the_tap() {
    if !requires(TOOLS) {
        return;
    }
    let scene = Scene::set(Kept::default());
    scene.guest(&["write 0 4k"]);
    drop(scene.daemon);
    assert!(matches!(scene.tap.join(), TapEnd::Disconnected));

    let mut scene = Scene::set(Kept::default());
    scene.guest(&["write 0 4k"]);
    let cancel = json!({"device": "mirror"});
    scene.daemon.command("block-job-cancel", cancel);
    scene.daemon.event("BLOCK_JOB_COMPLETED");
    scene
        .daemon
        .command("blockdev-del", json!({"node-name": "tap"}));
    assert!(matches!(scene.tap.join(), TapEnd::Disconnected));
    // QEMU flushes its target when a mirror completes.
    assert_eq!(scene.kept.taken().len(), 1);
}
