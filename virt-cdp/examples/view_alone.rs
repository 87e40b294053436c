//! The view of a harbor's newest point, served as by the daemon, without a daemon. For measurements.
//!
//! Usage:
//! `view_alone make DIRECTORY BEFORE SINCE [SIZE_GIB]` makes a harbor of one volume with so many records before its base
//! point, of 512 bytes, and so many since, of 4 KiB, in an order that jumps about, no place twice while there are others;
//! `view_alone serve DIRECTORY SOCKET` opens the view and serves it until standard input ends;
//! `view_alone export DIRECTORY FILE` writes the view to a standalone qcow2 image.
//!
//! Each prints one line of JSON about what it took: `serve` once when the view is open, and once at the end.

use std::error::Error;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cdp_core::chance::Chance;
use cdp_core::machine::{FORMAT_VERSION, Mode};
use cdp_core::{
    Grade, Harbor, MachineDescription, MachineSource, Options, Timestamp, View, VolumeDescription,
    VolumeId,
};
use qemu_hook::nbd::{Export, Exports, Extent, ExtentKind, NbdServer};
use serde_json::json;

const VOLUME: VolumeId = VolumeId(0);
const MIB: usize = 1 << 20;
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
        ["serve", dir, socket] => serve(dir, socket),
        ["export", dir, file] => export(dir, file),
        _ => Err("make, serve or export, and a directory".into()),
    }
}

fn make(dir: &str, before: u64, since: u64, gib: u64) -> Done {
    let size = gib << 30;
    let begin = Instant::now();
    let harbor = Harbor::create(Path::new(dir), &description(size), Options::default())?;
    let recorder = harbor.record()?;
    // A first base point, so that the segments before the next one are kept.
    harbor.seed(VOLUME)?.finish(recorder.sync()?)?;
    let volume = recorder.volume(VOLUME)?;
    let mut chance = Chance::new(7);
    let mut payload = vec![0; 4096];
    let mut write = |count: u64, len: u64| -> Done {
        for number in 0..count {
            let bytes = payload.get_mut(..len as usize).unwrap_or_default();
            if number % 64 == 0 {
                chance.fill(bytes);
            }
            for (to, from) in bytes.iter_mut().zip(number.to_le_bytes()) {
                *to = from;
            }
            volume.write_copy(number * STRIDE % (size / len) * len, bytes)?;
        }
        Ok(())
    };
    write(before, 512)?;
    recorder.point(Grade::Crash, None)?;
    let mut seed = harbor.seed(VOLUME)?;
    let mut piece = vec![0; MIB];
    for number in 0..size / MIB as u64 {
        Chance::new(number).fill(&mut piece);
        seed.data(number * MIB as u64, &piece)?;
    }
    seed.finish(recorder.sync()?)?;
    write(since, 4096)?;
    recorder.point(Grade::Crash, None)?;
    recorder.close()?;
    println!("{}", json!({ "seconds": begin.elapsed().as_secs_f64() }));
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
