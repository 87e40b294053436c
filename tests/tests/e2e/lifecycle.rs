//! What happens to a protection when its guest reboots, stops, starts, or the user suspends.

use std::time::Duration;

use qemu_hook::qmp::QmpSocket;
use virt_cdp_tests::{
    daemon::Daemon,
    guest::Guest,
    must, needs, needs_libvirt,
    proof::{newest_equals, newest_kept_equals},
    run,
    storage_daemon::StorageDaemon,
    unique, wait_for,
};

const SOON: Duration = Duration::from_secs(30);

/// A point that was made by itself shows the disk as it is. The guest must not write.
fn last_equals(daemon: &Daemon, guest: &Guest, name: &str) {
    if guest.state() == "running" {
        guest.flush();
    }
    newest_kept_equals(daemon, guest, name);
}

fn points(daemon: &Daemon, name: &str) -> u64 {
    daemon.json(&["info", name])["points"]
        .as_u64()
        .expect("a number")
}

#[test]
fn reboot_keeps_the_tap_and_shutdown_and_start_bring_protection_back() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("life");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20), ("raw", 32 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=100 oflag=direct; dd if=/dev/urandom of=/dev/vdb bs=4k count=100 oflag=direct");

    let writes = daemon.json(&["info", &name])["writes"]
        .as_u64()
        .expect("a number");
    let _ = guest.try_run("reboot -f", Duration::from_secs(2));
    guest.wait_ready();
    let info = daemon.json(&["info", &name]);
    assert_eq!(info["state"], "protected");
    assert!(
        info["writes"].as_u64() >= Some(writes),
        "the same capture went on: {info}"
    );
    assert_eq!(
        info["gaps"].as_array().map(Vec::len),
        Some(0),
        "a reboot is no gap"
    );

    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=50 seek=300 oflag=direct");
    let before = points(&daemon, &name);
    guest.virsh(&["shutdown", &name, "--mode", "acpi"]);
    guest.wait_off();
    daemon.wait_state(&name, "off", SOON);
    assert!(points(&daemon, &name) >= before);
    last_equals(&daemon, &guest, &name);

    // Written to while it is off: nobody could see that, the resync has to find it.
    let image = guest.image(1).display().to_string();
    must(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 0x5a 1M 64k", &image],
    );
    guest.boot();
    daemon.wait_state(&name, "protected", SOON);
    last_equals(&daemon, &guest, &name);
    let info = daemon.json(&["info", &name]);
    let gaps = info["gaps"].as_array().expect("gaps");
    assert!(
        gaps.len() == 2 && gaps.iter().all(|gap| !gap["end"].is_null()),
        "the time it was off and the resync are closed gaps: {info}"
    );
    assert_eq!(gaps[0]["reason"], "guest-off");
    assert_eq!(gaps[1]["reason"], "resync");
    assert_eq!(
        gaps[0]["end"], gaps[1]["start"],
        "one right after the other"
    );
    let inside = gaps[0]["start"].as_str().expect("a time");
    let offered = daemon.json(&[
        "point-list",
        &name,
        "--from",
        inside,
        "--to",
        gaps[1]["end"].as_str().expect("a time"),
    ]);
    assert_eq!(
        offered["points"].as_array().map(Vec::len),
        Some(0),
        "no point inside the gaps"
    );

    // QEMU dies under the guest.
    guest.virsh(&["destroy", &name]);
    daemon.wait_state(&name, "off", SOON);
    last_equals(&daemon, &guest, &name);
}

#[test]
fn suspend_resume_unprotect_and_protect_again_keep_the_history() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("life");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("echo first | dd of=/dev/vda bs=512 conv=sync oflag=direct");
    let first = daemon.json(&["point-create", &name, "--label", "first"]);

    daemon.ok(&["suspend", &name]);
    daemon.refused(&["suspend", &name], "suspended");
    daemon.refused(&["point-create", &name], "suspended");
    let jobs = guest.virsh(&[
        "qemu-monitor-command",
        &name,
        "{\"execute\":\"query-block-jobs\"}",
    ]);
    assert!(
        jobs.contains("\"return\":[]"),
        "nothing of ours is left in QEMU: {jobs}"
    );
    // What libvirt refuses during a capture works now.
    guest.virsh(&["blockresize", &name, "vda", "65537K"]);
    guest.virsh(&["blockresize", &name, "vda", "65536K"]);
    guest.sh("echo second | dd of=/dev/vda bs=512 conv=sync oflag=direct");
    daemon.ok(&["resume", &name]);
    daemon.wait_state(&name, "protected", SOON);
    last_equals(&daemon, &guest, &name);

    daemon.ok(&["unprotect", &name]);
    assert_eq!(daemon.json(&["info", &name])["state"], "unprotected");
    let bitmaps = must(
        "qemu-img",
        &[
            "info",
            "-U",
            "--output=json",
            guest.image(0).to_str().expect("plain"),
        ],
    );
    assert!(
        !bitmaps.contains("virt-cdp"),
        "no bitmap of ours stays in the image: {bitmaps}"
    );
    guest.sh("echo third | dd of=/dev/vda bs=512 conv=sync oflag=direct");
    daemon.ok(&["protect", &name]);
    last_equals(&daemon, &guest, &name);

    let view = daemon.json(&["view-open", &name, "--at", &first["id"].to_string()]);
    let uri = view["volumes"][0]["uri"].as_str().expect("a URI");
    let sector = run("qemu-io", &["-r", "-f", "raw", "-c", "read -v 0 16", uri]);
    assert!(
        sector.out.contains("first"),
        "the old point is as it was: {}",
        sector.out
    );
    daemon.refused(&["unprotect", &name, "--delete"], "view");
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    daemon.ok(&["unprotect", &name, "--delete"]);
    daemon.refused(&["info", &name], "not protected");
    let left = std::fs::read_dir(daemon.harbors())
        .expect("the directory")
        .count();
    assert_eq!(left, 0, "the harbor is gone");
}

/// The block jobs of a guest.
fn jobs(guest: &Guest, name: &str) -> Vec<String> {
    let jobs = guest.virsh(&[
        "qemu-monitor-command",
        name,
        "{\"execute\":\"query-block-jobs\"}",
    ]);
    let jobs: serde_json::Value = serde_json::from_str(&jobs).expect("JSON");
    let jobs = jobs["return"].as_array().expect("jobs").iter();
    jobs.map(|job| job["device"].as_str().expect("a job").to_owned())
        .collect()
}

/// Has QEMU end one of a guest's mirrors, whose tap stays connected; returns the times in between which it went, in ns.
fn cancel_a_mirror(guest: &Guest, name: &str) -> (i64, i64) {
    let job = jobs(guest, name).swap_remove(0);
    let before = virt_cdp_tests::now_ns();
    // A paused job is not cancelled in order.
    for verb in ["resume", "cancel"] {
        let command =
            format!("{{\"execute\":\"block-job-{verb}\",\"arguments\":{{\"device\":\"{job}\"}}}}");
        guest.virsh(&["qemu-monitor-command", name, &command]);
    }
    // It is drained first, which takes its time while the guest writes.
    wait_for("the mirror is gone", SOON, || {
        let left = jobs(guest, name);
        if left.contains(&job) {
            Err(job.clone())
        } else {
            Ok(())
        }
    });
    (before, virt_cdp_tests::now_ns())
}

#[test]
fn a_suspension_after_a_mirror_was_lost_unnoticed_offers_nothing_of_what_was_missed() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("late");
    let guest = Guest::start(&name, &[("raw", 16 << 20), ("raw", 16 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh(
        "for disk in vda vdb; do wload /dev/$disk --seconds 60 --size-mib 8 >/dev/null 2>&1 & done",
    );
    for pause in [100, 400, 700] {
        std::thread::sleep(Duration::from_millis(1500));
        let (_, gone) = cancel_a_mirror(&guest, &name);
        std::thread::sleep(Duration::from_millis(pause));
        daemon.ok(&["suspend", &name]);
        let points = daemon.json(&["point-list", &name]);
        let newest = points["points"].as_array().and_then(|points| points.last());
        let newest = newest.expect("a point")["time"].as_str().expect("a time");
        let newest = must("date", &["-d", newest, "+%s%N"]);
        let newest: i64 = newest.trim().parse().expect("ns");
        assert!(newest <= gone, "{pause} ms: {newest} after {gone}");
        daemon.ok(&["resume", &name]);
        daemon.wait_state(&name, "protected", SOON);
    }
}

#[test]
fn a_mirror_that_somebody_cancels_is_noticed_and_replaced() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("cancel");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20), ("raw", 16 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    // Both disks are written to all the while: points come every second, also after one mirror is gone.
    guest.sh("(wload /dev/vda --seconds 8 --size-mib 8; wload /dev/vdb --seconds 1 --size-mib 8) >/dev/null 2>&1 &");
    std::thread::sleep(Duration::from_millis(2500));
    let (cancelled, _) = cancel_a_mirror(&guest, &name);
    wait_for("the loss is noticed", SOON, || {
        let info = daemon.json(&["info", &name]);
        if info["gaps"].as_array().is_some_and(|g| !g.is_empty()) {
            Ok(())
        } else {
            Err(info["state"].to_string())
        }
    });
    let info = daemon.wait_state(&name, "protected", SOON);
    let gap = &info["gaps"][0];
    assert_eq!(gap["reason"], "tap-lost");
    assert_eq!(info["gaps"][1]["reason"], "resync");
    let nearly = |time: &serde_json::Value| {
        let text = time.as_str().expect("a time");
        let seconds: i64 = must("date", &["-d", text, "+%s"])
            .trim()
            .parse()
            .expect("seconds");
        seconds - cancelled / 1_000_000_000
    };
    assert!(
        nearly(&gap["start"]) <= 0,
        "the gap begins before the mirror went: {gap}"
    );
    let offered = daemon.json(&[
        "point-list",
        &name,
        "--from",
        gap["start"].as_str().expect("a time"),
        "--to",
        gap["end"].as_str().expect("a time"),
    ]);
    let inside = offered["points"]
        .as_array()
        .expect("points")
        .iter()
        .filter(|p| p["time"].as_str() > gap["start"].as_str())
        .count();
    assert_eq!(inside, 0, "no point of the gap is offered: {offered}");
    std::thread::sleep(Duration::from_secs(6));
    newest_equals(&daemon, &guest, &name);
}

#[test]
fn idle_machines_make_no_points_and_busy_ones_one_a_second() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("beat");
    let guest = Guest::start(&name, &[("raw", 32 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    // Nothing is mounted: nothing writes.
    std::thread::sleep(Duration::from_secs(2));
    let idle = points(&daemon, &name);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(
        points(&daemon, &name),
        idle,
        "no point while nothing is written"
    );
    guest.sh("wload /dev/vda --seconds 6 --size-mib 16");
    let busy = points(&daemon, &name) - idle;
    assert!((5..=8).contains(&busy), "{busy} points in 6 s");
    wait_for("journal bytes are counted", SOON, || {
        let info = daemon.json(&["info", &name]);
        if info["journal_bytes"].as_u64() > Some(0) {
            Ok(())
        } else {
            Err(info.to_string())
        }
    });
}

#[test]
fn a_suspended_machine_leaves_its_qmp_socket_to_others() {
    if !needs(&["qemu-storage-daemon"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 8 << 20)]);
    let daemon = Daemon::start();
    let qmp = storage.qmp();
    daemon.ok(&[
        "protect",
        "q",
        "--qmp",
        &qmp.display().to_string(),
        "--node",
        "disk0",
    ]);
    assert!(QmpSocket::connect(&qmp).is_err(), "the capture holds it");
    daemon.ok(&["suspend", "q"]);
    drop(QmpSocket::connect(&qmp).expect("it is free"));
    daemon.ok(&["resume", "q"]);
    daemon.wait_state("q", "protected", SOON);
}
