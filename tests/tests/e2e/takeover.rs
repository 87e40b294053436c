//! A VM from a point: its file systems are whole, its rows end where the point was, the source goes on.

use std::time::{Duration, Instant};

use serde_json::Value;
use virt_cdp_tests::{daemon::Daemon, guest::Guest, must, needs_libvirt, run, unique, wait_for};

const DISKS: [(&str, u64); 2] = [("qcow2", 96 << 20), ("raw", 64 << 20)];
const TAKEOVERS: usize = 10;

/// Makes file systems on both disks and writes rows to both, ten times a second.
fn start_rows(guest: &Guest) {
    guest.sh("mkdir -p /a /b; mkfs.ext4 -q /dev/vda && mkfs.ext4 -q /dev/vdb && mount /dev/vda /a && mount /dev/vdb /b && sync");
    guest.sh("mkdir -p /a/db /b/db; rows /a/db,/b/db --interval-ms 100 >/tmp/rows.out 2>&1 &");
    wait_for("rows are written", Duration::from_secs(20), || {
        let (code, out) = guest.try_run(
            "test -s /b/db/rows.log || cat /tmp/rows.out",
            Duration::from_secs(5),
        )?;
        if code == 0 && out.is_empty() {
            Ok(())
        } else {
            Err(out)
        }
    });
}

/// The value of `field=` in the first line of what `rows --check` printed.
fn field(out: &str, line: usize, name: &str) -> i64 {
    let line = out
        .lines()
        .filter(|l| l.contains("rows="))
        .nth(line)
        .unwrap_or_else(|| panic!("no line {line}: {out}"));
    let word = line
        .split(' ')
        .find_map(|w| w.strip_prefix(&format!("{name}=")))
        .unwrap_or_else(|| panic!("{name}: {out}"));
    word.parse().expect("a number")
}

fn ns(time: &Value) -> i64 {
    let text = time.as_str().expect("a time");
    let seconds = must("date", &["-u", "-d", &format!("{}Z", &text[..19]), "+%s"]);
    seconds.trim().parse::<i64>().expect("seconds") * 1_000_000_000
        + text[20..29].parse::<i64>().expect("nanoseconds")
}

/// The guest's clock minus the host's, in ns, to a few ms.
pub(crate) fn clock_offset(guest: &Guest) -> i64 {
    let before = virt_cdp_tests::now_ns();
    let out = guest.sh(
        "mkdir -p /tmp/c; rows /tmp/c --count 1 --interval-ms 1; rows --check /tmp/c; rm -r /tmp/c",
    );
    let after = virt_cdp_tests::now_ns();
    field(&out, 0, "last_ns") - (before + after) / 2
}

#[test]
fn ten_points_of_a_running_guest_each_become_a_sound_vm() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("src");
    let guest = Guest::start(&name, &DISKS);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    start_rows(&guest);
    let offset = clock_offset(&guest);
    std::thread::sleep(Duration::from_secs(15));

    let points = daemon.json(&["point-list", &name]);
    let points: Vec<Value> = points["points"].as_array().expect("points").clone();
    // Only points of the time in which rows were written.
    let rows_began = field(&guest.sh("rows --check /a/db,/b/db || true"), 0, "first_ns") - offset;
    let points: Vec<&Value> = points
        .iter()
        .filter(|p| ns(&p["time"]) > rows_began + 1_500_000_000)
        .collect();
    assert!(points.len() >= TAKEOVERS, "{} points in 15 s", points.len());

    for number in 0..TAKEOVERS {
        let point = points[number * (points.len() - 1) / (TAKEOVERS - 1)];
        let takeover = unique("to");
        let began = Instant::now();
        let made = daemon.json(&[
            "takeover",
            &name,
            "--at",
            &point["id"].to_string(),
            "--name",
            &takeover,
            "--network",
            "none",
        ]);
        let ready = began.elapsed();
        assert_eq!(made["takeover"]["state"], "running");
        assert!(ready < Duration::from_secs(10), "{ready:?} until it ran");
        let copy = Guest::adopted(&takeover);
        copy.wait_ready();
        // The journal of ext4 is replayed by the mount; then the file system has to be clean.
        copy.sh("mkdir -p /a /b; mount /dev/vda /a && mount /dev/vdb /b");
        let (code, out) = copy
            .try_run("rows --check /a/db,/b/db", Duration::from_secs(60))
            .expect("an answer");
        assert_eq!(code, 0, "point {}: {out}", point["id"]);
        let last = field(&out, 0, "last_ns") - offset;
        let asked = ns(&point["time"]);
        assert!(
            last <= asked + 100_000_000,
            "rows from after the point: {} ms",
            (last - asked) / 1_000_000
        );
        assert!(
            asked - last <= 1_000_000_000,
            "rows end {} ms before the point",
            (asked - last) / 1_000_000
        );
        copy.sh("umount /a /b && e2fsck -fn /dev/vda && e2fsck -fn /dev/vdb");
        daemon.ok(&["takeover-discard", &takeover]);
        assert!(copy.state().is_empty(), "the domain is gone");
    }
    assert_eq!(
        daemon.json(&["takeover-list"])["takeovers"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    assert_eq!(
        daemon.json(&["view-list"])["views"]
            .as_array()
            .map(Vec::len),
        Some(0),
        "no view is left open"
    );
    let left: Vec<_> = std::fs::read_dir(daemon.dir.join("overlays"))
        .into_iter()
        .flatten()
        .collect();
    assert!(left.is_empty(), "no overlay is left");

    // All the while the source went on.
    assert_eq!(guest.state(), "running");
    guest.sh("rows --check /a/db,/b/db || { sleep 1; rows --check /a/db,/b/db; }");
    daemon.wait_state(&name, "protected", Duration::from_secs(1));
}

#[test]
fn a_takeover_is_shaped_and_committed_and_stands_on_its_own() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("src");
    let guest = Guest::start(&name, &DISKS);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh(
        "mkfs.ext4 -q /dev/vda && mkdir -p /a && mount /dev/vda /a && echo kept >/a/file && sync",
    );
    guest.virsh(&["desc", &name, "--live", "--title", "then"]);
    std::thread::sleep(Duration::from_millis(2500));
    let point = daemon.json(&["point-create", &name, "--label", "before the disaster"]);
    guest.virsh(&["desc", &name, "--live", "--title", "now"]);
    guest.sh("rm /a/file; sync");
    std::thread::sleep(Duration::from_millis(2500));

    let takeover = unique("shaped");
    let made = daemon.json(&[
        "takeover",
        &name,
        "--at",
        &point["id"].to_string(),
        "--name",
        &takeover,
        "--network",
        "none",
        "--vcpus",
        "2",
        "--memory",
        "160M",
        "--disk-bus",
        "scsi",
    ]);
    assert!(
        made["dropped"].is_array(),
        "what could not come along is named, were there anything: {made}"
    );
    let copy = Guest::adopted(&takeover);
    copy.wait_ready();
    assert_eq!(
        guest.virsh(&["desc", &takeover, "--title"]).trim(),
        "then",
        "the domain is as it was at the point"
    );
    assert_eq!(copy.sh("nproc").trim(), "2");
    let kib: u64 = copy
        .sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
        .trim()
        .parse()
        .expect("KiB");
    assert!((110_000..=163_840).contains(&kib), "{kib} KiB of memory");
    assert_eq!(copy.sh("ls /sys/class/net").trim(), "lo", "no network");
    // Linux names SCSI disks in the order in which it happens to find them: the first disk is the one at LUN 0.
    let first = copy
        .sh("ls /sys/class/scsi_disk/*:0:0:0/device/block")
        .trim()
        .to_owned();
    let mount = format!("mkdir -p /a; mount /dev/{first} /a && cat /a/file");
    assert_eq!(copy.sh(&mount).trim(), "kept");

    // The daemon restarts under a running takeover: its disks are there again, and nothing failed meanwhile.
    daemon.kill();
    daemon.start_again();
    copy.sh(&format!(
        "umount /a; echo 3 >/proc/sys/vm/drop_caches; {mount} && echo new >/a/new && sync"
    ));
    daemon.refused(&["unprotect", &name, "--delete"], "in use");

    daemon.ok(&["takeover-commit", &takeover]);
    assert_eq!(
        daemon.json(&["takeover-list"])["takeovers"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    assert_eq!(
        daemon.json(&["view-list"])["views"]
            .as_array()
            .map(Vec::len),
        Some(0),
        "the view is let go"
    );
    let overlays = daemon.dir.join("overlays").join(&takeover);
    for target in ["vda", "vdb"] {
        let image = overlays
            .join(format!("{target}.qcow2"))
            .display()
            .to_string();
        let info: Value =
            serde_json::from_str(&must("qemu-img", &["info", "-U", "--output=json", &image]))
                .expect("JSON");
        assert!(
            info.get("backing-filename").is_none(),
            "{target} stands on its own: {info}"
        );
    }
    assert_eq!(
        copy.sh(&format!(
            "umount /a; echo 3 >/proc/sys/vm/drop_caches; {mount} /a/new"
        ))
        .trim(),
        "kept\nnew"
    );
    run(
        "virsh",
        &["-q", "-c", "qemu:///system", "destroy", &takeover],
    );
    run(
        "virsh",
        &["-q", "-c", "qemu:///system", "undefine", &takeover],
    );
}

#[test]
fn a_takeover_that_cannot_be_leaves_nothing() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("src");
    let _guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    daemon.refused(
        &["takeover", &name, "--at", "latest", "--name", &name],
        "already",
    );
    daemon.refused(
        &[
            "takeover",
            &name,
            "--at",
            "latest",
            "--network",
            "no-such-net",
        ],
        "no-such-net",
    );
    daemon.refused(
        &["takeover", &name, "--at", "latest", "--name", "a/b"],
        "'/'",
    );
    daemon.refused(
        &["takeover", &name, "--at", "latest", "--disk-bus", "floppy"],
        "floppy",
    );
    daemon.refused(&["takeover", &name, "--at", "999999"], "999999");
    daemon.refused(&["takeover-discard", "nobody"], "nobody");
    daemon.refused(&["takeover-commit", "nobody"], "nobody");
    // More memory than the host has: QEMU itself fails to start.
    daemon.refused(
        &["takeover", &name, "--at", "latest", "--memory", "900T"],
        "",
    );
    assert_eq!(
        daemon.json(&["takeover-list"])["takeovers"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    assert_eq!(
        daemon.json(&["view-list"])["views"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    let domains = run(
        "virsh",
        &["-c", "qemu:///system", "list", "--all", "--name"],
    )
    .out;
    assert_eq!(
        domains.lines().filter(|l| l.starts_with(&name)).count(),
        1,
        "only the source: {domains}"
    );
}
