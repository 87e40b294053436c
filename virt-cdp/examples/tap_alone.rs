//! A tap without QEMU: writes that come over NBD go to a new harbor, as in the daemon. For measurements.
//!
//! Usage: `tap_alone SOCKET DIRECTORY [--ack buffered|durable] [--buffer MIB] [--size GIB]`
//!
//! Clients are served one after the other; after the first that wrote something has left, the recording is closed
//! and one line of JSON is printed: what was written, and what it cost this process.

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use cdp_core::machine::{FORMAT_VERSION, Mode};
use cdp_core::{
    AckRule, Harbor, MachineDescription, MachineSource, Options, Timestamp, VolumeDescription,
    VolumeId,
};
use qemu_hook::tap::{TapConfig, spawn_tap};
use serde_json::json;
use virt_cdp::engine::RecorderSink;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let socket = words.next().ok_or("a socket's path is missing")?;
    let dir = words.next().ok_or("a directory is missing")?;
    let mut options = Options::default();
    let mut size = 64_u64 << 30;
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        match name.as_str() {
            "--ack" if value == "durable" => options.ack_rule = AckRule::Durable,
            "--ack" if value == "buffered" => options.ack_rule = AckRule::Buffered,
            "--buffer" => options.buffer_bytes = value.parse::<usize>()? << 20,
            "--size" => size = value.parse::<u64>()? << 30,
            _ => return Err(format!("unknown: {name} {value}").into()),
        }
    }
    let harbor = Harbor::create(Path::new(&dir), &description(size), options)?;
    let recorder = harbor.record()?;
    harbor.seed(VolumeId(0))?.finish(recorder.sync()?)?;
    let listener = UnixListener::bind(&socket)?;
    let (begin, cpu) = loop {
        let (stream, _) = listener.accept()?;
        let (begin, cpu) = (Instant::now(), cpu_seconds());
        let sink = RecorderSink::new(recorder.volume(VolumeId(0))?);
        let tap = spawn_tap(stream, TapConfig::new("", size), sink)?;
        while !tap.is_ended() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let writes = tap.stats().writes();
        tracing::debug!(end = ?tap.join(), "a client has left");
        if writes > 0 {
            break (begin, cpu);
        }
    };
    recorder.sync()?;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let stats = recorder.stats();
    recorder.close()?;
    println!(
        "{}",
        json!({
            "seconds": seconds, "cpu_seconds": cpu, "writes": stats.writes, "bytes": stats.write_bytes,
            "cpu_us_per_write": cpu * 1e6 / stats.writes as f64, "peak_rss_mib": peak_rss_mib()?,
            "journal_bytes": stats.journal_bytes, "syncs": stats.syncs,
            "sync_max_ms": stats.sync_max.as_secs_f64() * 1e3,
            "unsynced_age_p99_ms": stats.unsynced_age_p99.as_secs_f64() * 1e3,
            "unsynced_age_max_ms": stats.unsynced_age_max.as_secs_f64() * 1e3,
        })
    );
    Ok(())
}

/// CPU time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

fn peak_rss_mib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no VmHWM")?.parse::<u64>()? >> 10)
}

fn description(size: u64) -> MachineDescription {
    MachineDescription {
        format_version: FORMAT_VERSION,
        name: "tap-alone".into(),
        machine_id: "tap-alone".into(),
        point_interval_ms: 1000,
        created: Timestamp(0),
        mode: Mode::Active,
        ack: None,
        flush_interval_ms: None,
        policy: None,
        source: MachineSource::Qmp {
            socket: "/nowhere".into(),
        },
        volumes: vec![VolumeDescription {
            id: VolumeId(0),
            target: "vda".into(),
            size,
            node: None,
            original_format: None,
            original_path: None,
            before: Vec::new(),
            plug: Default::default(),
        }],
    }
}
