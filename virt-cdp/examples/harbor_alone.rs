//! A harbor and its views, as the daemon has them, without a daemon. For measurements.
//!
//! Usage:
//! `harbor_alone make DIRECTORY BEFORE SINCE [SIZE_GIB]` makes a harbor of one volume with so many records before its base
//! point, of 512 bytes, and so many since, of 4 KiB, in an order that jumps about, no place twice while there are others;
//! `harbor_alone layers DIRECTORY LAYERS SINCE SIZE_GIB` makes one with so many layers, of which each but the first holds a
//! sixteenth of the volume, here and there, and then so many records of 4 KiB;
//! `harbor_alone changed DIRECTORY MIB SIZE_GIB` makes one with a base point, and so many MiB of whole clusters since;
//! `harbor_alone day DIRECTORY HOURS` lets a machine work for so many hours by a clock that is set by hand, of which the
//! point at the end of each hour is kept, and says what else would have been kept of it;
//! `harbor_alone points DIRECTORY COUNT` makes one with so many points, a second apart up to now; at each the number of the
//! point, from 1, stands in the first eight bytes;
//! `harbor_alone build DIRECTORY` builds a base point of the newest point;
//! `harbor_alone verify DIRECTORY` verifies everything;
//! `harbor_alone serve DIRECTORY SOCKET` opens the newest point's view and serves it until standard input ends;
//! `harbor_alone export DIRECTORY FILE` writes that view to a standalone qcow2 image.
//!
//! Each prints one line of JSON about what it took: `serve` once when the view is open, and once at the end.

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdp_core::chance::Chance;
use cdp_core::clock::HandClock;
use cdp_core::machine::{FORMAT_VERSION, Mode};
use cdp_core::{
    Clock, Clusters, Grade, Harbor, MachineDescription, MachineSource, Options, Policy, Recorder,
    Scope, Timestamp, View, VolumeDescription, VolumeId, VolumeRecorder,
};
use qemu_hook::nbd::{Export, Exports, Extent, ExtentKind, NbdServer};
use serde_json::json;

const VOLUME: VolumeId = VolumeId(0);
const MIB: usize = 1 << 20;
const CLUSTER: u64 = 64 << 10;
/// A prime: what is written follows each other at this distance, in pieces.
const STRIDE: u64 = 7_368_787;

type Done = Result<(), Box<dyn Error>>;

fn main() -> Done {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["make", dir, before, since] => make(dir, before.parse()?, since.parse()?, 5),
        ["make", dir, before, since, gib] => {
            make(dir, before.parse()?, since.parse()?, gib.parse()?)
        }
        ["layers", dir, layers, since, gib] => {
            make_layers(dir, layers.parse()?, since.parse()?, gib.parse()?)
        }
        ["changed", dir, mib, gib] => make_changed(dir, mib.parse()?, gib.parse()?),
        ["day", dir, hours] => day(dir, hours.parse()?),
        ["points", dir, count] => points(dir, count.parse()?),
        ["build", dir] => build(dir),
        ["verify", dir] => verify(dir),
        ["serve", dir, socket] => serve(dir, socket),
        ["export", dir, file] => export(dir, file),
        _ => Err("what is to be done, and a directory: see the beginning of this file".into()),
    }
}

fn make(dir: &str, before: u64, since: u64, gib: u64) -> Done {
    let size = gib << 30;
    let begin = Instant::now();
    let harbor = Harbor::create(Path::new(dir), &description(size), Options::default())?;
    let recorder = harbor.record()?;
    // A first base point, so that the segments before the next one are kept.
    harbor.seed(VOLUME)?.finish(recorder.sync()?)?;
    write(&recorder, size, before, 512)?;
    recorder.point(Grade::Crash, None)?;
    seed_random(&harbor, &recorder, size)?;
    write(&recorder, size, since, 4096)?;
    recorder.point(Grade::Crash, None)?;
    recorder.close()?;
    println!("{}", json!({ "seconds": begin.elapsed().as_secs_f64() }));
    Ok(())
}

fn points(dir: &str, count: u64) -> Done {
    const SECOND: u64 = 1_000_000_000;
    let begin = Instant::now();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let first = u64::try_from(now.as_nanos())? - count * SECOND;
    let clock = Arc::new(HandClock::new(Timestamp(first)));
    let options = Options {
        clock: Arc::clone(&clock) as _,
        ..Options::default()
    };
    let harbor = Harbor::create(Path::new(dir), &description(MIB as u64), options)?;
    let recorder = harbor.record()?;
    harbor.seed(VOLUME)?.finish(recorder.sync()?)?;
    let volume = recorder.volume(VOLUME)?;
    let mut block = vec![0; 4096];
    for number in 1..=count {
        for (to, from) in block.iter_mut().zip(number.to_le_bytes()) {
            *to = from;
        }
        clock.set(Timestamp(first + number * SECOND));
        volume.write_copy(0, &block)?;
        recorder.begin_point_if_written()?;
    }
    recorder.close()?;
    println!(
        "{}",
        json!({ "seconds": begin.elapsed().as_secs_f64(), "points": harbor.points().len() })
    );
    Ok(())
}

/// Writes so many records, each of `len` bytes and unlike the others.
fn write(recorder: &Recorder, size: u64, count: u64, len: u64) -> Done {
    let volume = recorder.volume(VOLUME)?;
    let mut chance = Chance::new(7);
    let mut payload = vec![0; len as usize];
    for number in 0..count {
        if number % 64 == 0 {
            chance.fill(&mut payload);
        }
        for (to, from) in payload.iter_mut().zip(number.to_le_bytes()) {
            *to = from;
        }
        volume.write_copy(number * STRIDE % (size / len) * len, &payload)?;
    }
    Ok(())
}

/// Seeds a full base point in which no two clusters are alike.
fn seed_random(harbor: &Harbor, recorder: &Recorder, size: u64) -> Done {
    let mut seed = harbor.seed(VOLUME)?;
    let mut piece = vec![0; MIB];
    for number in 0..size / MIB as u64 {
        Chance::new(number).fill(&mut piece);
        seed.data(number * MIB as u64, &piece)?;
    }
    seed.finish(recorder.sync()?)?;
    Ok(())
}

/// A harbor with a full base point of random content, and its recording.
fn seeded(dir: &str, size: u64) -> Result<(Harbor, Recorder), Box<dyn Error>> {
    let harbor = Harbor::create(Path::new(dir), &description(size), Options::default())?;
    let recorder = harbor.record()?;
    seed_random(&harbor, &recorder, size)?;
    Ok((harbor, recorder))
}

fn make_layers(dir: &str, layers: u64, since: u64, gib: u64) -> Done {
    let size = gib << 30;
    let begin = Instant::now();
    let (harbor, recorder) = seeded(dir, size)?;
    let clusters = size / CLUSTER;
    for layer in 1..layers {
        let volume = recorder.volume(VOLUME)?;
        let mut payload = vec![0; CLUSTER as usize];
        for number in 0..clusters / 16 {
            let place = (layer * 31 + number * STRIDE) % clusters;
            Chance::new(layer << 32 | number).fill(&mut payload);
            volume.write_copy(place * CLUSTER, &payload)?;
        }
        let point = recorder.point(Grade::Crash, None)?;
        harbor.build_base(point.id, &mut |_| ControlFlow::Continue(()))?;
    }
    write(&recorder, size, since, 4096)?;
    recorder.point(Grade::Crash, None)?;
    recorder.close()?;
    println!(
        "{}",
        json!({ "seconds": begin.elapsed().as_secs_f64(), "layers": harbor.base_points(VOLUME).len() })
    );
    Ok(())
}

fn make_changed(dir: &str, mib: u64, gib: u64) -> Done {
    let size = gib << 30;
    let begin = Instant::now();
    let (_harbor, recorder) = seeded(dir, size)?;
    let volume = recorder.volume(VOLUME)?;
    let mut payload = vec![0; CLUSTER as usize];
    for number in 0..(mib << 20) / CLUSTER {
        Chance::new(1 << 40 | number).fill(&mut payload);
        volume.write_copy(number * STRIDE % (size / CLUSTER) * CLUSTER, &payload)?;
    }
    recorder.point(Grade::Crash, None)?;
    recorder.close()?;
    println!("{}", json!({ "seconds": begin.elapsed().as_secs_f64() }));
    Ok(())
}

fn build(dir: &str) -> Done {
    let (harbor, _) = Harbor::open(Path::new(dir), Options::default())?;
    let point = harbor.newest_point().ok_or("no point")?;
    let (cpu, begin) = (cpu_seconds(), Instant::now());
    let built = harbor.build_base(point.id, &mut |_| ControlFlow::Continue(()))?;
    let seconds = begin.elapsed().as_secs_f64();
    let layer = built.first().ok_or("nothing was built")?;
    println!(
        "{}",
        json!({ "seconds": seconds, "cpu_seconds": cpu_seconds() - cpu, "layer": layer.path })
    );
    Ok(())
}

fn verify(dir: &str) -> Done {
    let (harbor, _) = Harbor::open(Path::new(dir), Options::default())?;
    let (cpu, begin) = (cpu_seconds(), Instant::now());
    let report = harbor.verify(Scope::default(), &mut |_| ControlFlow::Continue(()))?;
    println!(
        "{}",
        json!({
            "seconds": begin.elapsed().as_secs_f64(), "cpu_seconds": cpu_seconds() - cpu,
            "bytes": report.bytes, "findings": report.findings.len(),
        })
    );
    Ok(())
}

/// Bytes of which something like a third is left when they are compressed.
fn fill_like_text(chance: &mut Chance, bytes: &mut [u8]) {
    for line in bytes.chunks_mut(64) {
        line.fill(b' ');
        if let Some(word) = line.get_mut(..20) {
            chance.fill(word);
        }
    }
}

/// What a backup by changed blocks has of a time: each cluster that was written, once.
#[derive(Default)]
struct Touched(BTreeSet<u64>);

impl Touched {
    fn write(&mut self, volume: &VolumeRecorder, offset: u64, bytes: &[u8]) -> Done {
        let end = offset + bytes.len() as u64;
        self.0.extend(offset / CLUSTER..end.div_ceil(CLUSTER));
        volume.write_copy(offset, bytes)?;
        Ok(())
    }
}

/// A database of 256 MiB whose pages are written over, most of them a few times an hour, with a log of 256 MiB that goes
/// round; and files of up to 2 MiB that come and go in a GiB. A point every minute; that at the end of each hour is kept.
fn day(dir: &str, hours: u64) -> Done {
    const SIZE: u64 = 2 << 30;
    const PAGE: u64 = 8192;
    let (database, log, files) = (0, 256 << 20, 1 << 30);
    let clock = Arc::new(HandClock::new(Timestamp(1_767_571_200_000_000_000)));
    let options = Options {
        clock: Arc::clone(&clock) as _,
        ..Options::default()
    };
    let begin = Instant::now();
    let harbor = Harbor::create(Path::new(dir), &description(SIZE), options)?;
    let recorder = harbor.record()?;
    let volume = recorder.volume(VOLUME)?;
    let mut chance = Chance::new(11);
    let (mut piece, mut page, mut entry) = (vec![0; MIB], vec![0; PAGE as usize], vec![0; 4096]);
    let mut full = Touched::default();
    // The stream wins over a seed that gives nothing.
    let seed = harbor.seed(VOLUME)?;
    for number in (0..512).chain(1024..1536) {
        fill_like_text(&mut chance, &mut piece);
        full.write(&volume, number * MIB as u64, &piece)?;
    }
    seed.finish(recorder.sync()?)?;
    recorder.point(Grade::Crash, None)?;
    let policy = Policy {
        all: Duration::ZERO,
        hourly: Duration::from_secs(3600 * (hours + 2)),
        daily: Duration::ZERO,
        weekly: Duration::ZERO,
        monthly: Duration::ZERO,
    };
    let mut log_at = 0;
    let (mut written, mut changed) = (0, 0);
    for _ in 0..hours {
        let mut touched = Touched::default();
        for _ in 0..60 {
            for _ in 0..200 {
                // Four fifths go to a fifth of the pages.
                let pages = (256 << 20) / PAGE;
                let number = match chance.below(5) {
                    0 => chance.below(pages),
                    _ => chance.below(pages / 5),
                };
                fill_like_text(&mut chance, &mut page);
                touched.write(&volume, database + number * PAGE, &page)?;
                fill_like_text(&mut chance, &mut entry);
                touched.write(&volume, log + log_at, &entry)?;
                log_at = (log_at + 4096) % (256 << 20);
                written += PAGE + 4096;
            }
            let len = (1 + chance.below(128)) * 16384;
            let place = files + chance.below(((1 << 30) - len) / 4096) * 4096;
            for at in (0..len).step_by(MIB) {
                piece.resize((len - at).min(MIB as u64) as usize, 0);
                fill_like_text(&mut chance, &mut piece);
                touched.write(&volume, place + at, &piece)?;
            }
            written += len;
            clock.set(Timestamp(clock.now().0 + 60_000_000_000));
            recorder.point_if_written()?;
        }
        changed += touched.0.len() as u64 * CLUSTER;
        let newest = harbor.newest_point().ok_or("no point")?;
        harbor.apply_policy(&policy, clock.now())?;
        harbor.build_base(newest.id, &mut |_| ControlFlow::Continue(()))?;
        let kept = harbor.first_kept().ok_or("no point")?;
        harbor.merge_bases(kept, Clusters::Compressed, &mut |_| {
            ControlFlow::Continue(())
        })?;
        harbor.remove_needless_segments();
        while harbor
            .compact(&mut |_| ControlFlow::Continue(()))?
            .is_some()
        {}
    }
    recorder.close()?;
    let usage = harbor.usage()?;
    println!(
        "{}",
        json!({
            "seconds": begin.elapsed().as_secs_f64(), "points": harbor.points().len(),
            "layers": harbor.base_points(VOLUME).len(), "written_bytes": written,
            "journal_bytes": usage.journal_bytes, "base_bytes": usage.base_bytes,
            "harbor_bytes": usage.journal_bytes + usage.base_bytes,
            "incrementals_bytes": full.0.len() as u64 * CLUSTER + changed,
        })
    );
    Ok(())
}

fn open(dir: &str) -> Result<(Harbor, View), Box<dyn Error>> {
    let begin = Instant::now();
    let (harbor, report) = Harbor::open(Path::new(dir), Options::default())?;
    let harbor_ms = begin.elapsed().as_secs_f64() * 1e3;
    let point = harbor.newest_point().ok_or("no point")?;
    let before = peak_rss_kib()?;
    let begin = Instant::now();
    let view = harbor.view(point.id)?;
    let open_ms = begin.elapsed().as_secs_f64() * 1e3;
    let begin_read = Instant::now();
    view.read_at(VOLUME, &mut [0; 4096], 0)?;
    println!(
        "{}",
        json!({
            "segments": report.segments, "records": harbor.last_record().0, "harbor_open_ms": harbor_ms,
            "view_open_ms": open_ms, "first_read_ms": begin_read.elapsed().as_secs_f64() * 1e3,
            "peak_rss_before_kib": before, "peak_rss_kib": peak_rss_kib()?,
        })
    );
    Ok((harbor, view))
}

fn serve(dir: &str, socket: &str) -> Done {
    let (_harbor, view) = open(dir)?;
    let mut exports = Exports::new();
    exports.insert("vda", "a view", Arc::new(Volume(view)))?;
    let server = NbdServer::listen_unix(socket, 0o600, None, exports)?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    server.stop();
    println!(
        "{}",
        json!({ "cpu_seconds": cpu_seconds(), "peak_rss_kib": peak_rss_kib()? })
    );
    Ok(())
}

fn export(dir: &str, file: &str) -> Done {
    let (_harbor, view) = open(dir)?;
    view.export(VOLUME, Path::new(file), &mut |_| ControlFlow::Continue(()))?;
    Ok(())
}

struct Volume(View);

impl Export for Volume {
    fn size(&self) -> u64 {
        self.0.size(VOLUME).unwrap_or_default()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        Ok(self.0.read_at(VOLUME, buf, offset)?)
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>> {
        let mut merged = Vec::new();
        for extent in self.0.first_extents(VOLUME, offset, len, most)? {
            let kind = if extent.zero {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            };
            Extent::push_merged(&mut merged, extent.len, kind);
        }
        Ok(merged)
    }
}

/// CPU time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

fn peak_rss_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no VmHWM")?.parse()?)
}

fn description(size: u64) -> MachineDescription {
    MachineDescription {
        format_version: FORMAT_VERSION,
        name: "view-alone".into(),
        machine_id: "view-alone".into(),
        point_interval_ms: 1000,
        created: Timestamp(0),
        mode: Mode::Active,
        ack: None,
        flush_interval_ms: None,
        policy: None,
        source: MachineSource::Qmp {
            socket: "/nowhere".into(),
        },
        volumes: vec![VolumeDescription::new(VOLUME, "vda", size)],
    }
}
