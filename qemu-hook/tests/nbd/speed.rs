//! Measurements, not checks: `cargo test -p qemu-hook --test nbd speed -- --ignored --nocapture
//! --test-threads=1`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use qemu_hook::nbd::{Extent, ExtentKind, NbdClient, NbdError, Piece};
use qemu_hook::sink::{Ack, SinkClosed, WriteSink};
use qemu_hook::tap::{TapConfig, spawn_tap};
use serde_json::Value;

use crate::device::{Device, Numbers, serve, uri};
use crate::peers::{requires, run};
use crate::storage_daemon::StorageDaemon;

/// Takes everything and keeps nothing: what is left is the tap's own cost.
struct Nothing;

impl WriteSink for Nothing {
    type Buffer = Vec<u8>;

    fn buffer(&self, len: usize) -> Result<Vec<u8>, SinkClosed> {
        Ok(vec![0; len])
    }

    fn write(&self, _offset: u64, _data: Vec<u8>) -> Result<Ack, SinkClosed> {
        Ok(Ack::Now)
    }

    fn zero(&self, _offset: u64, _len: u64) -> Result<Ack, SinkClosed> {
        Ok(Ack::Now)
    }
}

/// Runs fio against an export; returns IOPS, MiB/s and the mean and 99th percentile latency in us.
fn fio(uri: &str, rw: &str, block: &str, depth: u32) -> String {
    let output = run(
        "fio",
        &[
            "--name=t",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            &format!("--rw={rw}"),
            &format!("--bs={block}"),
            &format!("--iodepth={depth}"),
            "--size=1G",
            "--time_based",
            "--runtime=5",
            "--output-format=json",
        ],
    );
    let start = output.find('{').unwrap();
    let told: Value = serde_json::from_str(&output[start..]).unwrap();
    let side = if rw.ends_with("read") {
        "read"
    } else {
        "write"
    };
    let job = &told["jobs"][0][side];
    let us = |value: &Value| value.as_f64().unwrap_or_default() / 1000.0;
    format!(
        "{:.0} IOPS, {:.0} MiB/s, mean {:.0} us, p99 {:.0} us",
        job["iops"].as_f64().unwrap(),
        job["bw_bytes"].as_f64().unwrap() / 1048576.0,
        us(&job["clat_ns"]["mean"]),
        us(&job["clat_ns"]["percentile"]["99.000000"]),
    )
}

#[test]
#[ignore = "a measurement"]
fn tap_behind_a_mirror() {
    if !requires(&["qemu-storage-daemon", "fio"]) {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("disk.img");
    fs::write(&file, vec![1; 1 << 30]).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let tap = spawn_tap(ours, TapConfig::new("vda", 1 << 30), Nothing).unwrap();
    let mut daemon = StorageDaemon::tapped(dir.path(), &file, theirs, "vda");
    let jobs = [("4k", 16), ("4k", 1), ("64k", 16), ("1M", 4)];
    for (block, depth) in jobs {
        let told = fio(&daemon.uri("disk"), "randwrite", block, depth);
        println!("no mirror, {block} depth {depth}: {told}");
    }
    daemon.mirror();
    for (block, depth) in jobs {
        let told = fio(&daemon.uri("disk"), "randwrite", block, depth);
        println!("tap,       {block} depth {depth}: {told}");
    }
    assert!(tap.stats().writes() > 0);
}

#[test]
#[ignore = "a measurement"]
fn tap_alone() {
    if !requires(&["fio"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("tap.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let accept = std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            spawn_tap(stream, TapConfig::new("vda", 1 << 30), Nothing).unwrap();
        }
    });
    let uri = format!("nbd+unix:///vda?socket={}", socket.display());
    for (block, depth) in [("4k", 16), ("4k", 1), ("64k", 16), ("1M", 4)] {
        let told = fio(&uri, "randwrite", block, depth);
        println!("tap alone, {block} depth {depth}: {told}");
    }
    drop(accept);
}

#[test]
#[ignore = "a measurement"]
fn view_reads() {
    if !requires(&["nbdcopy", "fio"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::sparse(1, 1);
    device.bytes = vec![0; 1 << 30];
    Numbers(9).fill(&mut device.bytes);
    device.extents = vec![Extent {
        len: 1 << 30,
        kind: ExtentKind::Data,
    }];
    let (server, device) = serve(dir.path(), "vda", device);
    let uri = uri(&server, "vda");
    for args in [
        &["--connections=1"][..],
        &["--connections=4"],
        &["--request-size=4194304"],
    ] {
        let started = Instant::now();
        run("nbdcopy", &[args, &[&uri, "null:"]].concat());
        let rate = 1024.0 / started.elapsed().as_secs_f64();
        println!("nbdcopy {args:?}: {rate:.0} MiB/s");
    }
    for (block, depth) in [("4k", 1), ("4k", 16), ("64k", 16), ("1M", 4)] {
        println!(
            "view, {block} depth {depth}: {}",
            fio(&uri, "randread", block, depth)
        );
    }

    let stream = UnixStream::connect(server.path()).unwrap();
    let mut client = NbdClient::connect(stream, "vda").unwrap();
    let whole = [0..device.bytes.len() as u64];
    let mut bytes = 0;
    let started = Instant::now();
    client
        .read_ranges::<NbdError>(&whole, 256 << 10, 8, &mut |_, piece| {
            if let Piece::Data(data) = piece {
                bytes += data.len();
            }
            Ok(())
        })
        .unwrap();
    let rate = 1024.0 / started.elapsed().as_secs_f64();
    println!(
        "our client, 256k depth 8: {rate:.0} MiB/s of {} MiB",
        bytes >> 20
    );
}
