//! What happens to a protection when a guest is reset, crashes, is saved, renamed, undefined, or its host crashes.

use std::time::Duration;

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    guest::Guest,
    must, needs_libvirt,
    proof::{closed_gaps, hashes, newest_equals, newest_kept_equals},
    unique, wait_for,
};

const SOON: Duration = Duration::from_secs(60);

/// Waits until a machine is off and says why in these words.
fn wait_off(daemon: &Daemon, name: &str, why: &str) -> Value {
    wait_for("it is off, and said why", SOON, || {
        let info = daemon.json(&["info", name]);
        let detail = info["state_detail"].as_str().unwrap_or_default();
        if info["state"] == "off" && detail.contains(why) {
            Ok(info)
        } else {
            Err(info.to_string())
        }
    })
}

#[test]
fn a_reset_is_no_gap_and_a_crashed_or_saved_guest_is_protected_again_when_it_starts() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("ends");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20), ("raw", 16 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vdb bs=64k count=50 oflag=direct");
    let old = daemon.json(&["point-create", &name]);
    let kept = hashes(&daemon, &name, &old);

    // Reset under load: QEMU is the same process, and so is the capture.
    guest.begin_load("/dev/vda", 8);
    std::thread::sleep(Duration::from_secs(2));
    guest.virsh(&["reset", &name]);
    guest.wait_ready();
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=10 oflag=direct");
    newest_equals(&daemon, &guest, &name);
    let info = daemon.json(&["info", &name]);
    assert_eq!(
        (&info["state"], closed_gaps(&info)),
        (&"protected".into(), 0),
        "{info}"
    );

    // QEMU crashes under load.
    guest.begin_load("/dev/vda", 8);
    std::thread::sleep(Duration::from_secs(1));
    must("kill", &["-KILL", &guest.qemu_pid()]);
    wait_off(&daemon, &name, "crashed");
    assert_eq!(hashes(&daemon, &name, &old), kept);
    guest.boot();
    daemon.wait_state(&name, "protected", SOON);
    newest_equals(&daemon, &guest, &name);

    // Saved and restored: the guest goes on where it was, under another QEMU.
    guest.sh(
        "touch /tmp/before; dd if=/dev/urandom of=/dev/vdb bs=64k count=9 seek=99 oflag=direct",
    );
    guest.virsh(&["managedsave", &name]);
    wait_off(&daemon, &name, "saved");
    newest_kept_equals(&daemon, &guest, &name);
    guest.virsh(&["start", &name]);
    guest.wait_ready();
    guest.sh("test -e /tmp/before");
    daemon.wait_state(&name, "protected", SOON);
    guest.begin_load("/dev/vda", 8);
    std::thread::sleep(Duration::from_secs(2));
    guest.end_load();
    newest_equals(&daemon, &guest, &name);
    assert_eq!(hashes(&daemon, &name, &old), kept);
    closed_gaps(&daemon.json(&["info", &name]));
}

#[test]
fn after_a_crash_of_the_host_old_points_are_right_and_protection_returns() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("host");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=50 seek=200 oflag=direct");
    let old = daemon.json(&["point-create", &name]);
    let kept = hashes(&daemon, &name, &old);
    guest.begin_load("/dev/vda", 8);
    std::thread::sleep(Duration::from_secs(3));
    let pids = [guest.qemu_pid(), daemon.pid().to_string()];
    must("kill", &["-KILL", &pids[0], &pids[1]]);
    daemon.kill();
    guest.wait_off();
    daemon.start_again();
    wait_off(&daemon, &name, "");
    let newest = daemon.json(&["info", &name])["newest_point"].clone();
    assert!(
        newest["id"].as_u64() > old["id"].as_u64(),
        "the load's points are there"
    );
    let kept_newest = hashes(&daemon, &name, &newest);
    assert_eq!(hashes(&daemon, &name, &old), kept);
    guest.boot();
    daemon.wait_state(&name, "protected", SOON);
    guest.begin_load("/dev/vda", 8);
    std::thread::sleep(Duration::from_secs(1));
    guest.end_load();
    newest_equals(&daemon, &guest, &name);
    assert_eq!(hashes(&daemon, &name, &old), kept);
    assert_eq!(hashes(&daemon, &name, &newest), kept_newest);
    closed_gaps(&daemon.json(&["info", &name]));
}

#[test]
fn a_domain_is_followed_over_its_renaming_and_its_history_outlives_its_definition() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("name");
    let mut guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=50 oflag=direct");
    let old = daemon.json(&["point-create", &name]);
    let kept = hashes(&daemon, &name, &old);

    // libvirt renames what is off.
    guest.virsh(&["destroy", &name]);
    wait_off(&daemon, &name, "destroyed");
    let new = format!("{name}-new");
    guest.virsh(&["domrename", &name, &new]);
    guest.name.clone_from(&new);
    wait_off(&daemon, &name, &format!("named '{new}'"));
    assert_eq!(
        daemon.json(&["info", &new])["name"],
        name.as_str(),
        "found by either"
    );
    daemon.refused(&["protect", &new], "already protected");
    guest.boot();
    daemon.wait_state(&new, "protected", SOON);
    newest_equals(&daemon, &guest, &name);

    // Undefined while it runs: it is transient from then on, and protected.
    guest.virsh(&["undefine", &new]);
    guest.begin_load("/dev/vda", 8);
    std::thread::sleep(Duration::from_secs(3));
    guest.end_load();
    newest_equals(&daemon, &guest, &name);
    assert_eq!(daemon.json(&["info", &name])["state"], "protected");
    guest.virsh(&["destroy", &new]);
    let info = wait_off(&daemon, &name, "no longer defined");

    // What was kept is enough to bring it back.
    assert_eq!(hashes(&daemon, &name, &old), kept);
    let takeover = format!("{name}-again");
    let newest = info["newest_point"]["id"].to_string();
    daemon.ok(&["takeover", &name, "--at", &newest, "--name", &takeover]);
    let again = Guest::adopted(&takeover);
    again.wait_ready();
    again.sh("test $(blockdev --getsize64 /dev/vda) = 33554432");
    daemon.ok(&["takeover-discard", &takeover]);
}
