//! The daemon's memory grows by the IO buffer and 64 MiB for a machine at the most, whatever its guest does.
//!
//! Counted is anonymous memory (`RssAnon`): what is the daemon's own, and nothing of its program or of files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use virt_cdp_tests::{
    HangingFs, daemon::Daemon, guest::Guest, nbd::Writer, needs, needs_libvirt, random::Random,
    storage_daemon::StorageDaemon, unique,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// As small as it may be.
const IO_BUFFER: u64 = 48 * MIB;
/// What a machine may take beside it.
const BESIDE: u64 = 64 * MIB;
/// Most of it sparse.
const DISK: u64 = 16 << 30;

/// Watches a process from its quiet state on.
struct Meter {
    quiet: u64,
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    fn start(pid: u32) -> Meter {
        let (peak, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (theirs, end) = (Arc::clone(&peak), Arc::clone(&stop));
        let quiet = anonymous(pid);
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                theirs.fetch_max(anonymous(pid), Ordering::Relaxed);
                thread::sleep(LOOK);
            }
        });
        Meter {
            quiet,
            peak,
            stop,
            thread: Some(thread),
        }
    }

    /// Checks how much was taken since the last check.
    fn check(&self, what: &str) {
        let grown = self
            .peak
            .swap(0, Ordering::Relaxed)
            .saturating_sub(self.quiet);
        eprintln!("{what}: {} MiB more than when quiet", grown / MIB);
        assert!(
            grown <= IO_BUFFER + BESIDE,
            "{what}: {} MiB more than when quiet, {} MiB may be",
            grown / MIB,
            (IO_BUFFER + BESIDE) / MIB
        );
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Bytes of anonymous memory of a process.
fn anonymous(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.expect("RssAnon").parse::<u64>().expect("a number") << 10
}

/// A flood of requests of one kind on all disks, two clients each, until it is told to end; returns how many there were.
struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Flood {
    fn start(socket: &Path, disks: &[usize], one: fn(&mut Writer, &mut Random)) -> Flood {
        let stop = Arc::<AtomicBool>::default();
        let flood = |client: usize, disk: usize| {
            let (socket, stop) = (PathBuf::from(socket), Arc::clone(&stop));
            thread::spawn(move || {
                let mut random = Random(client as u64 + 1);
                let mut writer = Writer::connect(&socket, &format!("disk{disk}"), 64, 1);
                while !stop.load(Ordering::Relaxed) {
                    one(&mut writer, &mut random);
                }
                writer.finish().len() as u64
            })
        };
        let clients = disks.iter().flat_map(|disk| [*disk; 2]).enumerate();
        let threads = clients.map(|(client, disk)| flood(client, disk)).collect();
        Flood { stop, threads }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(JoinHandle::join);
        ended.map(|writes| writes.expect("no write failed")).sum()
    }
}

fn large(writer: &mut Writer, random: &mut Random) {
    writer.write(random.below(512) * MIB, MIB, |id| {
        vec![id as u8 | 1; MIB as usize]
    });
}

fn tiny(writer: &mut Writer, random: &mut Random) {
    writer.write(random.below(2 * MIB) * 512, 512, |id| {
        vec![id as u8 | 1; 512]
    });
}

fn zeroes(writer: &mut Writer, random: &mut Random) {
    writer.zero(random.below(2 * MIB) * 512, 512 + random.below(16) * 512);
}

#[test]
fn memory_stays_within_the_io_buffer_and_64_mib_whatever_the_guest_does() {
    if !needs(&["qemu-storage-daemon", "qemu-img", "fsfreeze"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", DISK), ("raw", DISK)]);
    let daemon = Daemon::start_with("[capture]\nio_buffer = '48MiB'\n");
    let disk = HangingFs::mount(&daemon.harbors(), &daemon.dir.join("harbors.img"), 8000);
    let name = unique("memory");
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&[
        "protect", &name, "--qmp", &qmp, "--node", "disk0", "--node", "disk1",
    ]);
    daemon.wait_state(&name, "protected", SOON);
    let meter = Meter::start(daemon.pid());
    eprintln!("{} MiB when quiet", meter.quiet / MIB);

    let socket = storage.serve(2);
    for (what, one) in [
        ("512 bytes", tiny as fn(&mut Writer, &mut Random)),
        ("zeroes", zeroes),
    ] {
        let flood = Flood::start(&socket, &[0, 1], one);
        thread::sleep(Duration::from_secs(3));
        // Once with a journal that stands still for less than the bypass deadline.
        disk.hang();
        thread::sleep(Duration::from_millis(500));
        disk.answer();
        thread::sleep(Duration::from_secs(1));
        let writes = flood.end();
        meter.check(&format!("{writes} writes, {what}"));
    }

    let flood = Flood::start(&socket, &[0], large);
    thread::sleep(Duration::from_millis(500));
    disk.hang();
    thread::sleep(Duration::from_millis(500));
    disk.answer();
    thread::sleep(Duration::from_secs(1));
    meter.check("1 MiB writes, the journal's disk hung for less than the bypass deadline");
    disk.hang();
    thread::sleep(Duration::from_secs(3));
    disk.answer();
    let writes = flood.end();
    storage.stop_serving();
    daemon.wait_state(&name, "protected", SOON);
    meter.check(&format!(
        "{writes} writes of 1 MiB, the journal's disk hung for longer, and the resync after that"
    ));
    let info = daemon.json(&["info", &name]);
    assert!(info["gaps"].to_string().contains("overload"), "{info}");
}

#[test]
fn memory_stays_within_the_io_buffer_and_64_mib_while_a_resync_reads_a_large_disk_that_is_written_to()
 {
    if !needs_libvirt() {
        return;
    }
    let name = unique("memory");
    let guest = Guest::start(&name, &[("qcow2", DISK)]);
    let daemon = Daemon::start_with("[capture]\nio_buffer = '48MiB'\n");
    let disk = HangingFs::mount(&daemon.harbors(), &daemon.dir.join("harbors.img"), 8000);
    daemon.ok(&["protect", &name]);
    daemon.wait_state(&name, "protected", SOON);
    let meter = Meter::start(daemon.pid());
    eprintln!("{} MiB when quiet", meter.quiet / MIB);

    let writing = {
        let name = name.clone();
        let load = format!("wload /dev/vda --seconds 7 --size-mib {}", DISK / MIB);
        thread::spawn(move || Guest::existing(&name).sh(&load))
    };
    thread::sleep(Duration::from_millis(500));
    // The IO buffer does not run full of such writes within that time, but points and syncs wait.
    disk.hang();
    guest.sh("dd if=/dev/zero of=/dev/vda bs=1M count=100 oflag=direct");
    thread::sleep(Duration::from_secs(2));
    disk.answer();
    let begun = Instant::now();
    daemon.wait_state(&name, "protected", SOON);
    let took = begun.elapsed();
    let writes = writing.join().expect("no write failed");
    meter.check(&format!(
        "{}, and a resync meanwhile ({took:?})",
        writes.trim()
    ));
    let info = daemon.json(&["info", &name]);
    assert!(info["gaps"].to_string().contains("overload"), "{info}");
    let read = info["last_resync"]["read_bytes"].as_u64();
    assert!(read > Some(50 * MIB), "{info}");
}
