//! Every byte of a view arrives, whoever reads it and however.

use std::fs;
use std::process::Command;
use std::sync::atomic::Ordering;

use serde_json::Value;

use qemu_hook::nbd::bounds;

use crate::device::{Device, Numbers, serve, uri};
use crate::peers::{attempt, python_with_libnbd, requires, run};
use crate::raw::{self, Raw, go_data};

const SIZE: usize = (48 << 20) + 12_345;

#[test]
fn nbdcopy_gets_every_byte_and_reads_no_hole() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (server, device) = serve(dir.path(), "vda", Device::sparse(SIZE, 11));
    let copy = dir.path().join("copy.img");
    run("nbdcopy", &[&uri(&server, "vda"), copy.to_str().unwrap()]);
    assert!(fs::read(&copy).unwrap() == device.bytes);
    assert!(device.bytes_read.load(Ordering::Relaxed) < SIZE as u64);

    // Without block status the holes come as chunks.
    let copy = dir.path().join("again.img");
    let args = ["--no-extents", &uri(&server, "vda"), copy.to_str().unwrap()];
    run("nbdcopy", &args);
    assert!(fs::read(&copy).unwrap() == device.bytes);
}

#[test]
fn qemu_img_compares_and_maps_a_view() {
    if !requires(&["qemu-img", "nbdinfo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // A multiple of 512: qemu-img rounds a file's size up, but not a device's.
    let (server, device) = serve(dir.path(), "vda", Device::sparse(SIZE / 512 * 512, 12));
    let file = dir.path().join("same.img");
    fs::write(&file, &device.bytes).unwrap();
    let (uri, file) = (uri(&server, "vda"), file.to_str().unwrap());
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, file],
    );

    let map: Value = serde_json::from_str(&run("nbdinfo", &["--map", "--json", &uri])).unwrap();
    let mut told = Vec::new();
    for extent in map.as_array().unwrap() {
        let len = extent["length"].as_u64().unwrap();
        let is_zero = extent["type"].as_u64().unwrap() == 3;
        told.push((len, is_zero));
    }
    // Told in sectors: zeroes may count as data, never the other way round.
    assert_eq!(
        told.iter().map(|(len, _)| len).sum::<u64>(),
        device.bytes.len() as u64
    );
    let mut at = 0;
    for (len, is_zero) in &told {
        let run = &device.bytes[at..at + *len as usize];
        assert!(!is_zero || run.iter().all(|byte| *byte == 0));
        at += run.len();
    }
    assert!(told.iter().any(|(_, is_zero)| *is_zero));

    let qcow2 = dir.path().join("converted.qcow2");
    let qcow2 = qcow2.to_str().unwrap();
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, qcow2],
    );
    run("qemu-img", &["compare", "-F", "raw", qcow2, file]);
}

#[test]
fn qemu_io_reads_but_cannot_write() {
    if !requires(&["qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::sparse(1 << 20, 13);
    device.bytes[4096..8192].fill(0xa5);
    device.extents = vec![qemu_hook::nbd::Extent {
        len: 1 << 20,
        kind: qemu_hook::nbd::ExtentKind::Data,
    }];
    let (server, _) = serve(dir.path(), "vda", device);
    let uri = uri(&server, "vda");
    let text = run(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 0xa5 4096 4096", &uri],
    );
    assert!(!text.contains("Pattern verification failed"), "{text}");
    let (success, text) = attempt("qemu-io", &["-f", "raw", "-c", "write 0 4096", &uri]);
    assert!(!success, "{text}");
}

#[test]
fn fio_verifies_random_reads_over_several_connections() {
    if !requires(&["fio", "nbdcopy"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // fio lays out a file with headers it can check; the device then holds that file's bytes.
    let file = dir.path().join("fio.img");
    let base = [
        "--name=t",
        "--size=16M",
        "--bs=4k",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--output-format=terse",
    ];
    let filename = format!("--filename={}", file.display());
    let lay_out = [&base[..], &["--rw=write", "--do_verify=0", &filename]].concat();
    run("fio", &lay_out);
    let mut device = Device::sparse(1, 14);
    device.bytes = fs::read(&file).unwrap();
    device.extents = vec![qemu_hook::nbd::Extent {
        len: 16 << 20,
        kind: qemu_hook::nbd::ExtentKind::Data,
    }];
    let (server, _) = serve(dir.path(), "vda", device);
    let target = format!("--uri={}", uri(&server, "vda"));
    let check = [
        &base[..],
        &[
            "--rw=randread",
            "--verify_only=0",
            "--iodepth=16",
            "--ioengine=nbd",
            &target,
        ],
        &["--numjobs=4", "--thread"],
    ]
    .concat();
    let (success, text) = attempt("fio", &check);
    assert!(success, "{text}");
}

#[test]
fn libnbd_reads_in_every_mode() {
    let Some(python) = python_with_libnbd() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (server, device) = serve(dir.path(), "vda", Device::sparse(SIZE, 15));
    let file = dir.path().join("same.img");
    fs::write(&file, &device.bytes).unwrap();
    let output = Command::new(python)
        .args(["-c", LIBNBD, &uri(&server, "vda"), file.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

/// Reads with structured and simple replies, with and without DF, at all sizes, and out of range.
const LIBNBD: &str = r#"
import sys, random, errno, nbd
uri, path = sys.argv[1:]
want = open(path, "rb").read()
random.seed(7)
for structured in (True, False):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_strict_mode(0)
    if structured:
        h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    assert h.get_structured_replies_negotiated() == structured
    assert h.get_size() == len(want) and h.is_read_only()
    for size in (1, 511, 4096, 65537, 1 << 20, (1 << 20) + 1, 9 << 20, 32 << 20):
        for _ in range(6):
            at = random.randrange(len(want) - size)
            assert h.pread(size, at) == want[at:at + size]
            if structured:
                flag = nbd.CMD_FLAG_DF
                assert h.pread(size, at, flag) == want[at:at + size]
    h.cache(4096, 0)
    h.flush()
    def refused(wanted, call):
        try:
            call()
        except nbd.Error as e:
            assert e.errnum == wanted, (e.errnum, wanted)
            return
        raise AssertionError("not refused")
    refused(errno.EINVAL, lambda: h.pread(2, len(want) - 1))
    refused(errno.EINVAL, lambda: h.pread(1, len(want)))
    refused(errno.EINVAL, lambda: h.pread(512, (1 << 63) - 512))
    refused(errno.EPERM, lambda: h.pwrite(b"x" * 4096, 0))
    refused(errno.EPERM, lambda: h.zero(4096, 0))
    refused(errno.EPERM, lambda: h.trim(4096, 0))
    assert h.pread(1, len(want) - 1) == want[-1:]
    if structured:
        seen = []
        def extents(context, offset, entries, err):
            seen.append(entries)
        h.block_status(len(want), 0, extents, nbd.CMD_FLAG_REQ_ONE)
        assert len(seen[0]) == 2
    h.shutdown()
"#;

#[test]
fn a_sector_that_cannot_be_read_fails_its_request_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::sparse(4 << 20, 16);
    device.extents = vec![qemu_hook::nbd::Extent {
        len: 4 << 20,
        kind: qemu_hook::nbd::ExtentKind::Data,
    }];
    device.broken = Some((2 << 20)..(2 << 20) + 512);
    let (server, device) = serve(dir.path(), "vda", device);
    let stream = std::os::unix::net::UnixStream::connect(server.path()).unwrap();
    let mut simple = Raw::open(stream, "vda");
    simple.request(raw::READ, 0, 1, 1 << 20, 2 << 20);
    assert_eq!(simple.simple(1), 5);
    simple.request(raw::READ, 0, 2, 0, 512);
    assert_eq!(simple.simple(2), 0);
    assert_eq!(simple.take(512), device.bytes[..512]);

    let mut structured = Raw::connect(server.path());
    structured.greet();
    structured.option(8, &[]);
    structured.reply(8);
    structured.option(raw::GO, &go_data("vda"));
    while structured.reply(raw::GO).0 != 1 {}
    structured.request(raw::READ, 0, 3, 1 << 20, 2 << 20);
    let piece = bounds::READ_PIECE;
    for _ in 0..(1 << 20) / piece {
        let (is_last, kind, payload) = structured.chunk(3);
        assert_eq!((is_last, kind, payload.len()), (false, 1, piece + 8));
    }
    let (is_last, kind, payload) = structured.chunk(3);
    assert_eq!((is_last, kind, payload[3]), (true, 0x8001, 5));
    structured.request(raw::READ, 0, 4, 0, 512);
    assert!(structured.chunk(4).0);
}

#[test]
fn reads_at_random_places_come_back_right_without_structure() {
    let dir = tempfile::tempdir().unwrap();
    let (server, device) = serve(dir.path(), "vda", Device::sparse(SIZE, 17));
    let stream = std::os::unix::net::UnixStream::connect(server.path()).unwrap();
    let mut raw = Raw::open(stream, "");
    let mut numbers = Numbers(18);
    for cookie in 0..300 {
        let len = 1 + numbers.below(200_000) as usize;
        let at = numbers.below((SIZE - len) as u64) as usize;
        raw.request(raw::READ, 0, cookie, at as u64, len as u32);
        assert_eq!(raw.simple(cookie), 0);
        assert!(raw.take(len) == device.bytes[at..at + len]);
    }
    raw.request(raw::DISC, 0, 0, 0, 0);
    raw.expect_end();
}
