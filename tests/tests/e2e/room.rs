//! A harbor's file system that becomes full: protection ends in good order before, and returns when there is room.

use std::{fs, thread, time::Duration};

use qemu_hook::monitor::Monitor;
use serde_json::{Value, json};
use virt_cdp_tests::{
    Tmpfs,
    daemon::Daemon,
    guest::Guest,
    must, needs, needs_libvirt,
    proof::{closed_gaps, hashes, newest_equals},
    storage_daemon::StorageDaemon,
    unique, wait_for,
};

const SOON: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// A load that is slow enough for the reserve of a small file system; its end says whether a write failed.
const SLOW_LOAD: &str = "(i=0; while test ! -e /tmp/enough; do \
    dd if=/dev/urandom of=/dev/vda bs=256k count=1 seek=$((i%120)) oflag=direct || { touch /tmp/failed; break; }; \
    i=$((i+1)); done; touch /tmp/ended) >/dev/null 2>&1 &";

/// Bytes that are free where the harbors are.
fn free(daemon: &Daemon) -> u64 {
    let harbors = daemon.harbors().display().to_string();
    let text = must("df", &["--output=avail", "-B1", &harbors]);
    let number = text.lines().nth(1).expect("a number").trim();
    number.parse().expect("a number")
}

fn problems(daemon: &Daemon) -> String {
    daemon.json(&["status"])["problems"].to_string()
}

/// The state stays as it is for a while.
fn stays(daemon: &Daemon, machine: &str, state: &str) {
    for _ in 0..25 {
        assert_eq!(daemon.json(&["info", machine])["state"], state);
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn protection_ends_before_the_disk_is_full_and_returns_when_there_is_room() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("room");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    // No point but those that are asked for, and the last one.
    let mut daemon = Daemon::start_with("[capture]\npoint_interval = '1h'");
    let small = Tmpfs::mount(&daemon.harbors(), "size=400m");
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct");
    let old = daemon.json(&["point-create", &name]);
    let kept = hashes(&daemon, &name, &old);
    guest.sh(SLOW_LOAD);

    let info = daemon.wait_state(&name, "failed", SOON);
    let left = free(&daemon);
    eprintln!("{} MiB were left of the 40 that are kept free", left / MIB);
    let detail = info["state_detail"].to_string();
    let told = ["space", " free", "reserve is 40 MiB", "make room", "60 MiB"];
    assert!(told.iter().all(|word| detail.contains(word)), "{detail}");
    assert!(problems(&daemon).contains("reserve is 40 MiB"));
    let listed = daemon.json(&["list"])["machines"][0].clone();
    assert_eq!(listed["state"], "failed");

    // In good order: a last point, the mirrors ended, nothing failed, and the guest goes on.
    let newest = info["newest_point"].clone();
    assert_eq!(newest["id"].as_u64(), old["id"].as_u64().map(|id| id + 1));
    let gap = info["gaps"].as_array().expect("gaps").last().cloned();
    let gap = gap.expect("a gap");
    assert_eq!(
        (&gap["reason"], &gap["end"]),
        (&json!("disk-full"), &Value::Null)
    );
    let jobs = guest.qmp("{\"execute\":\"query-block-jobs\"}");
    assert!(jobs.contains("\"return\":[]"), "{jobs}");
    let log = || fs::read_to_string(daemon.log_path()).expect("a log");
    assert!(!log().contains("the journal has failed"), "ENOSPC was met");
    assert!(left > 4 * MIB, "it was near to full: {left}");
    guest.sh("test ! -e /tmp/ended");

    // What is kept can be used, and nothing flaps.
    assert_eq!(hashes(&daemon, &name, &old), kept);
    let last = hashes(&daemon, &name, &newest);
    assert_ne!(last, kept, "the last point shows what came after");
    let export = daemon.dir.join("export").display().to_string();
    daemon.ok(&["export", &name, "--at", &newest["id"].to_string(), &export]);
    stays(&daemon, &name, "failed");
    assert_eq!(gaps(&daemon, &name), 1);

    small.remount("size=800m");
    daemon.wait_state(&name, "protected", SOON);
    assert_eq!(problems(&daemon), "[]");
    guest.sh("touch /tmp/enough; for i in $(seq 50); do test -e /tmp/ended && break; sleep 0.1; done; test -e /tmp/ended -a ! -e /tmp/failed; ! dmesg | grep -i 'I/O error'");
    newest_equals(&daemon, &guest, &name);
    let info = daemon.json(&["info", &name]);
    let reasons: Vec<&Value> = info["gaps"]
        .as_array()
        .expect("gaps")
        .iter()
        .map(|g| &g["reason"])
        .collect();
    assert_eq!(reasons, [&json!("disk-full"), &json!("resync")]);
    assert_eq!(closed_gaps(&info), 2);
    assert_eq!(hashes(&daemon, &name, &old), kept);
    assert_eq!(hashes(&daemon, &name, &newest), last);
    daemon.stop();
}

/// The nodes in a storage daemon.
fn nodes(storage: &StorageDaemon) -> String {
    let asked = storage
        .control()
        .execute("query-named-block-nodes", json!({"flat": true}));
    asked.expect("an answer").to_string()
}

/// How many gaps a machine has, an open one among them.
fn gaps(daemon: &Daemon, name: &str) -> usize {
    let info = daemon.json(&["info", name]);
    info["gaps"].as_array().expect("gaps").len()
}

#[test]
fn where_room_is_low_nothing_is_begun_and_a_harbor_can_go() {
    if !needs(&["qemu-storage-daemon", "mount"]) {
        return;
    }
    let storages = [(); 2].map(|()| StorageDaemon::start(&[("raw", 16 << 20)]));
    let qmp = storages.each_ref().map(|s| s.qmp().display().to_string());
    let daemon = Daemon::start();
    let _small = Tmpfs::mount(&daemon.harbors(), "size=40m");
    let [one, two] = [("one", &qmp[0]), ("two", &qmp[1])]
        .map(|(name, qmp)| ["protect", name, "--qmp", qmp, "--node", "disk0"]);
    daemon.ok(&one);

    // Others use the file system, too: less than the tenth that is kept free.
    let filler = daemon.harbors().join("filler");
    let path = filler.display().to_string();
    let fill = |to: u64| {
        let held = fs::metadata(&filler).map_or(0, |m| m.len());
        let len = (held + free(&daemon) - to).to_string();
        // Never smaller on the way: that would be room.
        must(
            "truncate",
            &["--no-create", "-s", &format!("<{len}"), &path],
        );
        must("fallocate", &["-l", &len, &path]);
    };
    wait_for("protection ends", SOON, || {
        // What its segment had reserved is free after the end.
        if free(&daemon) > 2 * MIB {
            fill(MIB);
        }
        let info = daemon.json(&["info", "one"]);
        if info["state"] == "failed" && free(&daemon) < 2 * MIB {
            Ok(())
        } else {
            Err(info.to_string())
        }
    });
    let refused = daemon.refused(&two, "capture.reserve");
    assert!(
        refused.err.contains("hint: make room") && refused.err.contains("6 MiB"),
        "{refused:?}"
    );
    let machines = daemon.json(&["list"])["machines"].clone();
    assert_eq!(machines.as_array().map(Vec::len), Some(1), "{machines}");
    assert!(!nodes(&storages[1]).contains("vcdp-"), "nothing was begun");
    assert!(!nodes(&storages[0]).contains("vcdp-"), "nothing stays");
    daemon.ok(&["protect", "one", "--ack", "durable"]);

    // More than the reserve, but not enough to begin again.
    fill(5 * MIB);
    stays(&daemon, "one", "failed");
    fs::remove_file(&filler).expect("the filler");
    daemon.wait_state("one", "protected", SOON);

    // A harbor that was let go is not taken up again, and can be removed.
    daemon.ok(&["unprotect", "one"]);
    fill(MIB);
    wait_for("it is seen", SOON, || match problems(&daemon) {
        said if said.contains("capture.reserve") => Ok(()),
        said => Err(said),
    });
    daemon.refused(&one, "capture.reserve");
    assert_eq!(daemon.json(&["info", "one"])["state"], "unprotected");
    daemon.ok(&["unprotect", "one", "--delete"]);
    fs::remove_file(&filler).expect("the filler");
    daemon.ok(&two);
}
