//! Our client against QEMU's servers: every byte, every extent, bitmaps, a server that hangs.

use std::fs;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qemu_hook::disk_read::read_areas;
use qemu_hook::nbd::{ConnectOptions, ExtentKind, NbdClient, NbdError, Piece, ReadError};
use serde_json::json;

use crate::device::{Device, serve};
use crate::peers::{requires, run};
use crate::storage_daemon::StorageDaemon;

/// A sparse qcow2 with known contents; the size is no multiple of a cluster.
fn sparse_qcow2(dir: &Path, seed: u64) -> (PathBuf, Vec<u8>) {
    let bytes = Device::sparse((40 << 20) + 512 * 77, seed).bytes;
    let (raw, qcow2) = (dir.join("disk.raw"), dir.join("disk.qcow2"));
    fs::write(&raw, &bytes).unwrap();
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", from, to],
    );
    (qcow2, bytes)
}

/// A storage daemon that exports the qcow2 as `disk`.
fn exporting(dir: &Path, qcow2: &Path) -> StorageDaemon {
    let file = format!("driver=file,node-name=f,filename={}", qcow2.display());
    let node = "driver=qcow2,node-name=disk,file=f,discard=unmap";
    let export = "type=nbd,id=e,node-name=disk,name=disk,writable=on";
    StorageDaemon::start(
        dir,
        &["--blockdev", &file, "--blockdev", node, "--export", export],
    )
}

/// Reads ranges into an image of `size` bytes that is 0xee where nothing was handed over.
fn read_all(
    client: &mut NbdClient,
    ranges: &[Range<u64>],
    chunk: usize,
    depth: usize,
) -> Result<Vec<u8>, ReadError<NbdError>> {
    let mut image = vec![0xee; client.size() as usize];
    let mut seen = 0;
    client.read_ranges(ranges, chunk, depth, &mut |offset, piece| {
        let at = offset as usize;
        match piece {
            Piece::Data(data) => {
                image[at..at + data.len()].copy_from_slice(data);
                seen += data.len() as u64;
            }
            Piece::Zero(len) => {
                image[at..at + len as usize].fill(0);
                seen += len;
            }
        }
        Ok(())
    })?;
    assert_eq!(
        seen,
        ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum::<u64>()
    );
    Ok(image)
}

#[test]
fn a_sparse_qcow2_is_read_byte_by_byte_at_every_depth() {
    if !requires(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, bytes) = sparse_qcow2(dir.path(), 41);
    let daemon = exporting(dir.path(), &qcow2);
    let size = bytes.len() as u64;
    for (chunk, depth) in [
        (1 << 20, 8),
        (65_536, 64),
        (usize::MAX, 1),
        (100_001, 3),
        (4 << 20, 0),
    ] {
        let mut client = NbdClient::connect(daemon.connect(), "disk").unwrap();
        assert_eq!(client.size(), size);
        let image = read_all(&mut client, &[0..size], chunk, depth).unwrap();
        assert!(image == bytes, "chunk {chunk} depth {depth}");
        client.disconnect();
    }
}

#[test]
fn only_what_block_status_calls_data_needs_to_be_read() {
    if !requires(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, bytes) = sparse_qcow2(dir.path(), 42);
    let daemon = exporting(dir.path(), &qcow2);
    let mut client = NbdClient::connect(daemon.connect(), "disk").unwrap();
    let extents = client.block_status(0, client.size()).unwrap();
    let mut at = 0;
    let mut to_read = Vec::new();
    for extent in &extents {
        let run = at..at + extent.len;
        at = run.end;
        match extent.kind {
            ExtentKind::Data => to_read.push(run),
            ExtentKind::Zero => {
                let run = &bytes[run.start as usize..run.end as usize];
                assert!(run.iter().all(|byte| *byte == 0));
            }
        }
    }
    assert_eq!(at, client.size());
    assert!(to_read.len() > 2 && to_read.len() < extents.len());
    let image = read_all(&mut client, &to_read, 256 << 10, 16).unwrap();
    for run in to_read {
        let run = run.start as usize..run.end as usize;
        assert!(image[run.clone()] == bytes[run]);
    }

    // A part of it, with boundaries in the middle of extents.
    let part = client.block_status(1_000_000, 3_000_001).unwrap();
    assert_eq!(part.iter().map(|extent| extent.len).sum::<u64>(), 3_000_001);
    assert!(client.block_status(0, 0).unwrap().is_empty());
}

#[test]
fn single_reads_and_reads_out_of_range() {
    if !requires(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, bytes) = sparse_qcow2(dir.path(), 43);
    let socket = dir.path().join("nbd.sock");
    let mut server = std::process::Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-x", "an export ü", "-k"])
        .args([&socket, &qcow2])
        .spawn()
        .unwrap();
    crate::peers::wait_until("a socket", || socket.exists());
    let stream = UnixStream::connect(&socket).unwrap();
    let mut client = NbdClient::connect(stream, "an export ü").unwrap();
    let size = client.size();
    for (offset, len) in [
        (0, 1),
        (777, 70_000),
        (3 << 20, 5 << 20),
        (size - 1, 1),
        (9, 0),
    ] {
        let mut buf = vec![0xee; len];
        client.read_at(&mut buf, offset).unwrap();
        assert!(buf == bytes[offset as usize..offset as usize + len]);
    }
    for (offset, len) in [(size, 1), (size - 1, 2), (u64::MAX, 1)] {
        let refused = client.read_at(&mut vec![0; len], offset);
        assert!(matches!(refused, Err(NbdError::OutOfRange { .. })));
    }
    client.read_at(&mut [0; 512], 0).unwrap();
    client.disconnect();
    let _ = server.wait();

    let daemon = exporting(dir.path(), &qcow2);
    let refused = NbdClient::connect(daemon.connect(), "no-such");
    assert!(matches!(refused, Err(NbdError::Refused { .. })));
}

#[test]
fn a_dirty_bitmap_tells_which_areas_were_written() {
    if !requires(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, _) = sparse_qcow2(dir.path(), 44);
    let mut daemon = exporting(dir.path(), &qcow2);
    let bitmap = json!({"node": "disk", "name": "b", "granularity": 65536});
    daemon.command("block-dirty-bitmap-add", bitmap);
    let uri = daemon.uri("disk");
    let writes = [
        "-c",
        "write 1M 4k",
        "-c",
        "write 1216k 64k",
        "-c",
        "write -z 8M 128k",
    ];
    run("qemu-io", &[&["-f", "raw"], &writes[..], &[&uri]].concat());
    daemon.command(
        "block-dirty-bitmap-disable",
        json!({"node": "disk", "name": "b"}),
    );
    let export = json!({"type": "nbd", "id": "r", "node-name": "disk", "name": "resync",
        "bitmaps": ["b"]});
    daemon.command("block-export-add", export);

    const CONTEXT: &str = "qemu:dirty-bitmap:b";
    let options = ConnectOptions {
        contexts: vec!["base:allocation".into(), CONTEXT.into(), "x:none".into()],
        ..ConnectOptions::default()
    };
    let mut client = NbdClient::connect_with(daemon.connect(), "resync", &options).unwrap();
    assert!(client.has_context(CONTEXT) && !client.has_context("x:none"));
    let size = client.size();
    let mut dirty = Vec::new();
    let mut at = 0;
    for extent in client.context_extents(CONTEXT, 0, size).unwrap() {
        if extent.flags & 1 != 0 {
            dirty.push(at >> 10..(at + extent.len) >> 10);
        }
        at += extent.len;
    }
    assert_eq!(at, size);
    assert_eq!(dirty, [1024..1088, 1216..1280, 8192..8320]);
    let unknown = client.context_extents("x:none", 0, size);
    assert!(matches!(unknown, Err(NbdError::NoContext { .. })));
    // The other context answers in the same replies.
    assert!(client.block_status(0, size).unwrap().len() > 2);
}

#[test]
fn a_server_that_hangs_does_not_hang_us() {
    if !requires(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, _) = sparse_qcow2(dir.path(), 45);
    let daemon = exporting(dir.path(), &qcow2);
    let options = ConnectOptions {
        timeout: Duration::from_millis(300),
        handshake_deadline: Duration::from_millis(500),
        ..ConnectOptions::default()
    };
    let mut client = NbdClient::connect_with(daemon.connect(), "disk", &options).unwrap();
    client.read_at(&mut [0; 512], 0).unwrap();
    let pid = daemon.pid().to_string();
    run("kill", &["-STOP", &pid]);
    let started = Instant::now();
    let hung = client.read_at(&mut [0; 512], 0);
    assert!(matches!(hung, Err(NbdError::TimedOut { .. })), "{hung:?}");
    let hung = NbdClient::connect_with(daemon.connect(), "disk", &options);
    assert!(matches!(hung.err(), Some(NbdError::TimedOut { .. })));
    assert!(started.elapsed() < Duration::from_secs(3));
    run("kill", &["-CONT", &pid]);
    // A late answer must not be taken for the answer to the next question.
    assert!(client.read_at(&mut [0; 512], 0).is_err());
}

#[test]
fn our_own_views_are_read_and_a_failed_read_leaves_the_connection_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::sparse(9 << 20, 46);
    device.broken = Some((5 << 20)..(5 << 20) + 4096);
    device.extents = vec![qemu_hook::nbd::Extent {
        len: 9 << 20,
        kind: ExtentKind::Data,
    }];
    let (server, device) = serve(dir.path(), "vda", device);
    let stream = UnixStream::connect(server.path()).unwrap();
    let mut client = NbdClient::connect(stream, "vda").unwrap();
    let failed = read_all(&mut client, &[0..9 << 20], 1 << 20, 8);
    let is_expected = |error: &ReadError<_>| matches!(error, ReadError::Nbd(NbdError::Failed { offset, .. }) if *offset == 5 << 20);
    assert!(failed.is_err_and(|error| is_expected(&error)));
    let image = read_all(&mut client, &[0..5 << 20, 6 << 20..9 << 20], 1 << 20, 8).unwrap();
    assert!(image[..5 << 20] == device.bytes[..5 << 20]);

    let mut calls = 0;
    let given_up = client.read_ranges(&[0..4 << 20], 1 << 20, 4, &mut |_, _| {
        calls += 1;
        if calls == 2 { Err("enough") } else { Ok(()) }
    });
    assert!(matches!(given_up, Err(ReadError::Taker("enough"))));
    assert_eq!(calls, 2);
    client.read_at(&mut [0; 512], 0).unwrap();
}

#[test]
fn qemu_can_be_drained_while_what_was_read_is_looked_at() {
    if !requires(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("full.raw");
    let bytes: Vec<u8> = (0..40_u32 << 20).map(|at| (at % 251) as u8 | 1).collect();
    fs::write(&raw, &bytes).unwrap();
    let file = format!("driver=file,node-name=disk,filename={}", raw.display());
    let export = "type=nbd,id=e,node-name=disk,name=disk,writable=on";
    let args = ["--blockdev", &file, "--export", export];
    let mut daemon = StorageDaemon::start(dir.path(), &args);
    let stream = daemon.connect();
    let areas = [0..3 << 20, 5 << 20..u64::MAX];
    let mut seen = 0;
    let outcome = read_areas(
        stream,
        "disk",
        &areas,
        |_| true,
        |_| Ok(()),
        |offset, piece| {
            // With replies that nobody reads this would wait for ever.
            daemon.barrier();
            let Piece::Data(data) = piece else {
                return Err("there are no zeros");
            };
            let from = offset as usize;
            assert!(data == &bytes[from..from + data.len()]);
            seen += data.len() as u64;
            Ok(())
        },
    );
    outcome.unwrap();
    assert_eq!(seen, 38 << 20);
}
