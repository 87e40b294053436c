//! Bad input gets a clear error that names the thing and the cure, and changes nothing.

use std::{fs, io::Write, os::unix::net::UnixStream, path::Path, time::Duration};

use virt_cdp_tests::{
    Tmpfs, daemon::Daemon, guest::Guest, must, needs, needs_libvirt, run,
    storage_daemon::StorageDaemon, unique,
};

/// Names and sizes of everything kept, but for the journal, which a busy machine adds to.
fn kept(daemon: &Daemon) -> String {
    must(
        "find",
        &[
            daemon.dir.join("state").to_str().expect("plain"),
            "-not",
            "-path",
            "*/journal/*",
            "-printf",
            "%p %y\\n",
        ],
    )
}

#[test]
fn domains_that_cannot_be_protected() {
    if !needs_libvirt() {
        return;
    }
    let daemon = Daemon::start();
    let before = kept(&daemon);
    let hint = |ran: virt_cdp_tests::Ran| assert!(ran.err.contains("hint: "), "{}", ran.err);
    hint(daemon.refused(&["protect", "no-such-domain"], "no-such-domain"));
    for name in ["", " lead", "a/b", "tab\there", &"x".repeat(200)] {
        daemon.refused(&["protect", name], "name");
        daemon.refused(&["protect", name, "--qmp", "/run/none.sock"], "name");
    }
    hint(daemon.refused(
        &["protect", "x", "--qmp", "/run/no-such.sock"],
        "/run/no-such.sock",
    ));
    hint(daemon.refused(&["info", "nobody"], "nobody"));
    hint(daemon.refused(&["unprotect", "nobody"], "nobody"));
    hint(daemon.refused(&["view-close", "17"], "17"));

    let name = unique("bad");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20), ("raw", 16 << 20)]);
    hint(daemon.refused(&["protect", &name, "--disk", "vdz"], "vdz"));
    guest.virsh(&["destroy", &name]);
    hint(daemon.refused(&["protect", &name], "off"));
    assert_eq!(kept(&daemon), before, "nothing was made");

    guest.boot();
    let info = daemon.json(&["protect", &name, "--disk", "vda"]);
    assert_eq!(info["volumes"].as_array().map(Vec::len), Some(1));
    assert!(
        info["left_out"].to_string().contains("vdb"),
        "the disk that is left out is named: {info}"
    );
    hint(daemon.refused(&["protect", &name], "already protected"));
    // Another daemon cannot tap the same disk, and says why.
    let other = Daemon::start();
    hint(other.refused(&["protect", &name, "--disk", "vda"], "block job"));
    assert_eq!(
        fs::read_dir(other.harbors())
            .expect("the directory")
            .count(),
        0,
        "no harbor is left"
    );
    daemon.wait_state(&name, "protected", Duration::from_secs(5));
}

#[test]
fn moments_that_are_not_there() {
    if !needs(&["qemu-storage-daemon"]) {
        return;
    }
    let daemon = Daemon::start();
    let storage = StorageDaemon::start(&[("raw", 8 << 20)]);
    let name = "naïve näme: $(rm -rf) %s";
    daemon.ok(&[
        "protect",
        name,
        "--qmp",
        &storage.qmp().display().to_string(),
        "--node",
        "disk0",
    ]);
    for (at, error) in [
        ("99999", "99999"),
        ("2099-01-01 00:00:00", "future"),
        ("2001-01-01T00:00:00Z", "before"),
        ("10d", "before"),
    ] {
        daemon.refused(&["view-open", name, "--at", at], error);
    }
    for at in ["yesterday", "-5", "12:00", ""] {
        let ran = daemon.cli(&["view-open", name, &format!("--at={at}")]);
        assert!(!ran.ok && ran.err.contains("error: "), "{at:?}: {ran:?}");
    }
    assert_eq!(
        daemon.json(&["view-list"])["views"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    let export = daemon.dir.join("x").display().to_string();
    daemon.refused(
        &["export", name, "--at", "latest", "--disk", "vdz", &export],
        "vdz",
    );
    daemon.refused(
        &["export", name, "--at", "latest", "/proc/nowhere"],
        "/proc/nowhere",
    );
    assert!(!Path::new(&export).exists());
    // It has no domain XML to start from.
    daemon.refused(&["takeover", name, "--at", "latest"], "QMP");
    let nodes = daemon.refused(
        &[
            "protect",
            "other",
            "--qmp",
            &storage.qmp().display().to_string(),
        ],
        "",
    );
    assert!(nodes.err.contains("hint: "), "{}", nodes.err);
}

#[test]
fn a_harbor_that_cannot_be_written() {
    if !needs(&["qemu-storage-daemon", "mount"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 64 << 20)]);
    let socket = storage.serve(1);
    let uri = format!("nbd+unix:///disk0?socket={}", socket.display());
    must("qemu-io", &["-f", "raw", "-c", "write -P 7 0 48M", &uri]);
    storage.stop_serving();
    let daemon = Daemon::start();
    let qmp = storage.qmp().display().to_string();

    // Full: 16 MiB for a seed of 48.
    let small = Tmpfs::mount(&daemon.harbors(), "size=16m");
    let ran = daemon.cli(&["protect", "full", "--qmp", &qmp, "--node", "disk0"]);
    let fine = !ran.ok && ran.err.contains("space");
    let node = must_query(&storage);
    daemon.cli(&["unprotect", "full", "--delete"]);
    drop(small);
    assert!(fine, "it says that there is no space: {ran:?}");
    assert!(
        !node.contains("vcdp-"),
        "the guest's disk is let go: {node}"
    );

    // Not writable: a read-only file system stops even root.
    let small = Tmpfs::mount(&daemon.harbors(), "size=256m,ro");
    let ran = daemon.cli(&["protect", "readonly", "--qmp", &qmp, "--node", "disk0"]);
    drop(small);
    assert!(
        ran.code == Some(1) && ran.err.contains("not writable") && ran.err.contains("hint: "),
        "{ran:?}"
    );
    assert_eq!(
        daemon.json(&["list"])["machines"].as_array().map(Vec::len),
        Some(0)
    );

    daemon.ok(&["protect", "room", "--qmp", &qmp, "--node", "disk0"]);
}

#[test]
fn a_harbor_that_fills_up_lets_the_guest_go_on_and_comes_back() {
    if !needs(&["qemu-storage-daemon", "mount"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 64 << 20)]);
    let daemon = Daemon::start();
    let small = Tmpfs::mount(&daemon.harbors(), "size=40m");
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&["protect", "fills", "--qmp", &qmp, "--node", "disk0"]);
    let socket = storage.serve(1);
    let uri = format!("nbd+unix:///disk0?socket={}", socket.display());
    must("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4M", &uri]);
    let old = daemon.json(&["point-create", "fills"])["id"].to_string();
    // More than fits, large and many at once, so that some are under way when the tap is closed: the guest's
    // writes succeed all the same, and none is held up.
    let began = std::time::Instant::now();
    let mut writes: Vec<String> = (0..32)
        .map(|at| format!("aio_write -q -P 2 {}M 1M", at))
        .collect();
    writes.push("aio_flush".into());
    writes.extend((4..8).map(|at| format!("aio_write -q -P 3 {}M 8M", at * 8)));
    writes.push("aio_flush".into());
    let mut all = vec!["20", "qemu-io", "-f", "raw"];
    writes.iter().for_each(|w| all.extend(["-c", w]));
    all.push(&uri);
    let wrote = run("timeout", &all);
    assert!(
        wrote.ok && !wrote.out.contains("error"),
        "{}{}",
        wrote.out,
        wrote.err
    );
    eprintln!(
        "64 MiB over the failure of the journal: {:?}",
        began.elapsed()
    );
    let info = daemon.wait_state("fills", "failed", Duration::from_secs(20));
    assert!(info["state_detail"].to_string().contains("space"), "{info}");
    must("qemu-io", &["-f", "raw", "-c", "write -P 4 8M 1M", &uri]);
    storage.stop_serving();

    small.remount("size=300m");
    daemon.wait_state("fills", "protected", Duration::from_secs(90));
    let check = |at: &str, reads: &[&str]| {
        let view = daemon.json(&["view-open", "fills", "--at", at]);
        let uri = view["volumes"][0]["uri"]
            .as_str()
            .expect("a URI")
            .to_owned();
        let mut all = vec!["-r", "-f", "raw"];
        reads.iter().for_each(|r| all.extend(["-c", r]));
        all.push(&uri);
        let ran = run("qemu-io", &all);
        assert!(
            ran.ok && !ran.out.contains("verification failed"),
            "{at}: {}{}",
            ran.out,
            ran.err
        );
        daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    };
    check(&old, &["read -P 1 0 4M", "read -P 0 4M 60M"]);
    check(
        "latest",
        &[
            "read -P 2 0 8M",
            "read -P 4 8M 1M",
            "read -P 2 9M 23M",
            "read -P 3 32M 32M",
        ],
    );
}

#[test]
fn a_guest_goes_on_when_its_harbor_is_full() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("full");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    let mut daemon = Daemon::start();
    let small = Tmpfs::mount(&daemon.harbors(), "size=60m");
    daemon.ok(&["protect", &name]);
    // Three times as much as fits; dd fails if a write does.
    let began = std::time::Instant::now();
    guest.sh("for i in 1 2 3; do dd if=/dev/urandom of=/dev/vda bs=1M count=28 conv=fsync || exit 1; done");
    eprintln!("84 MiB in {:?}", began.elapsed());
    let info = daemon.wait_state(&name, "failed", Duration::from_secs(30));
    assert!(info["state_detail"].to_string().contains("space"), "{info}");
    guest.virsh(&[
        "qemu-monitor-command",
        &name,
        "{\"execute\":\"query-status\"}",
    ]);
    small.remount("size=300m");
    daemon.wait_state(&name, "protected", Duration::from_secs(60));
    daemon.stop();
}

fn must_query(storage: &StorageDaemon) -> String {
    use qemu_hook::monitor::Monitor;
    let nodes = storage
        .control()
        .execute("query-named-block-nodes", serde_json::json!({"flat": true}));
    nodes.expect("an answer").to_string()
}

#[test]
fn garbage_on_the_sockets() {
    if !needs(&["qemu-storage-daemon", "nbdinfo"]) {
        return;
    }
    let daemon = Daemon::start();
    let storage = StorageDaemon::start(&[("raw", 8 << 20)]);
    daemon.ok(&[
        "protect",
        "g",
        "--qmp",
        &storage.qmp().display().to_string(),
        "--node",
        "disk0",
    ]);
    let view = daemon.json(&["view-open", "g", "--at", "latest"]);
    let uri = view["volumes"][0]["uri"]
        .as_str()
        .expect("a URI")
        .to_owned();
    let nbd = uri.split("socket=").nth(1).expect("a socket").to_owned();
    let api = daemon.socket().display().to_string();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200 {
        for socket in [&api, &nbd] {
            let Ok(mut stream) = UnixStream::connect(socket) else {
                panic!("{socket} does not answer in round {round}")
            };
            let garbage: Vec<u8> = (0..1 + round * 37 % 5000)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            let _ = stream.write_all(&garbage);
        }
    }
    assert_eq!(
        must("nbdinfo", &["--size", &uri]).trim(),
        (8 << 20).to_string()
    );
    assert_eq!(daemon.json(&["info", "g"])["state"], "protected");
    daemon.ok(&["status"]);
}
