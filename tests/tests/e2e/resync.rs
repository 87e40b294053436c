//! A resync reads what is in doubt and no more, and is exact; a bitmap that cannot be trusted is not.

use std::{collections::BTreeSet, fs, os::unix::fs::FileExt, thread, time::Duration};

use qemu_hook::monitor::Monitor;
use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    guest::Guest,
    must,
    nbd::Writer,
    needs, needs_libvirt,
    proof::{newest_equals, same_content},
    random::Random,
    run,
    storage_daemon::StorageDaemon,
    unique, wait_for,
};

use crate::bitmaps::bitmaps;

const SOON: Duration = Duration::from_secs(60);
const GRANULE: u64 = 64 << 10;

/// The images of a storage daemon that is ended for it are what the newest point shows.
pub(crate) fn exact_at_the_end(daemon: &Daemon, storage: &mut StorageDaemon, name: &str) {
    storage.quit();
    daemon.wait_state(name, "off", SOON);
    let view = daemon.json(&["view-open", name, "--at", "latest"]);
    for (at, volume) in view["volumes"]
        .as_array()
        .expect("volumes")
        .iter()
        .enumerate()
    {
        let uri = volume["uri"].as_str().expect("a URI");
        same_content(storage.image(at).to_str().expect("a plain path"), uri);
    }
}

/// Waits until the resync is over; returns what it read of its volumes.
fn resynced(daemon: &Daemon, name: &str) -> Vec<Value> {
    let info = daemon.wait_state(name, "protected", SOON);
    eprintln!("{}", info["last_resync"]);
    info["last_resync"]["volumes"]
        .as_array()
        .expect("a resync")
        .clone()
}

fn protect_nodes(daemon: &Daemon, storage: &StorageDaemon, name: &str, nodes: usize) {
    let qmp = storage.qmp().display().to_string();
    let mut words = vec!["protect", name, "--qmp", &qmp];
    let nodes: Vec<String> = (0..nodes).map(|n| format!("disk{n}")).collect();
    nodes.iter().for_each(|node| words.extend(["--node", node]));
    daemon.ok(&words);
}

#[test]
fn after_a_kill_only_what_changed_is_read() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let mut random = Random::from_env();
    let sizes = [256 << 20, 64 << 20];
    let mut storage = StorageDaemon::start(&[("qcow2", sizes[0]), ("raw", sizes[1])]);
    let mut daemon = Daemon::start_with("[capture]\nbitmap_interval = '1s'");
    let name = unique("doubt");
    protect_nodes(&daemon, &storage, &name, 2);
    let mut write = |storage: &StorageDaemon, first: u64| -> Vec<u64> {
        let socket = storage.serve(2);
        let changed = (0..2).map(|disk| {
            let mut writer = Writer::connect(&socket, &format!("disk{disk}"), 16, first);
            let mut granules = BTreeSet::new();
            for _ in 0..300 - 200 * disk {
                let at = random.below(sizes[disk] / GRANULE) * GRANULE;
                let len = [512, 4096, GRANULE][random.below(3) as usize];
                let within = random.below((GRANULE - len) / 512 + 1) * 512;
                writer.write(at + within, len, |id| vec![id as u8; len as usize]);
                granules.insert(at);
            }
            writer.finish();
            granules.len() as u64 * GRANULE
        });
        let changed = changed.collect();
        storage.stop_serving();
        changed
    };
    write(&storage, 1);
    wait_for("what is kept is in doubt no more", SOON, || {
        let all: Vec<Value> = (0..2)
            .flat_map(|n| bitmaps(storage.control(), &format!("disk{n}")))
            .collect();
        match all.len() == 2 && all.iter().all(|b| b["count"] == 0) {
            true => Ok(()),
            false => Err(format!("{all:?}")),
        }
    });
    daemon.kill();
    let changed = write(&storage, 1000);
    daemon.start_again();
    for (volume, changed) in resynced(&daemon, &name).iter().zip(changed) {
        assert_eq!(volume["how"], "bitmap", "{volume}");
        let read = volume["read_bytes"].as_u64().expect("a number");
        eprintln!(
            "read {read} for {changed} changed: {:.3}",
            read as f64 / changed as f64
        );
        assert!(read * 10 <= changed * 11, "{volume} for {changed} changed");
        assert!(volume["differing_bytes"].as_u64() > Some(0), "{volume}");
    }
    exact_at_the_end(&daemon, &mut storage, &name);
}

#[test]
fn what_is_damaged_in_the_harbor_is_taken_from_the_disk_again() {
    if !needs(&["qemu-storage-daemon", "qemu-img", "qemu-io"]) {
        return;
    }
    let mut storage = StorageDaemon::start(&[("raw", 16 << 20)]);
    let write = |storage: &StorageDaemon, first: u64, len: u64| {
        let socket = storage.serve(1);
        let mut writer = Writer::connect(&socket, "disk0", 8, first);
        for granule in 0..64 {
            writer.write(granule * GRANULE, len, |id| {
                vec![id as u8 | 1; len as usize]
            });
        }
        writer.finish();
        storage.stop_serving();
    };
    write(&storage, 1, GRANULE);
    let mut daemon = Daemon::start();
    let name = unique("rot");
    protect_nodes(&daemon, &storage, &name, 1);
    let old = daemon.json(&["point-create", &name])["id"].to_string();
    daemon.kill();
    let harbor = fs::read_dir(daemon.harbors()).expect("harbors").next();
    let dir = harbor
        .expect("one")
        .expect("one")
        .path()
        .join("base/vol-00000");
    let layers = fs::read_dir(dir).expect("layers").flatten();
    let full = layers.map(|entry| entry.path()).find(|path| {
        path.extension()
            .is_some_and(|extension| extension == "qcow2")
    });
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(full.expect("a full"))
        .expect("a full");
    // Behind the header and the L1 table is what was read.
    for cluster in 4..8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, cluster * GRANULE + 9999)
            .expect("read");
        file.write_all_at(&[byte[0] ^ 4], cluster * GRANULE + 9999)
            .expect("written");
    }
    // Of each cluster some bytes are in doubt.
    write(&storage, 1000, 512);
    daemon.start_again();
    let volumes = resynced(&daemon, &name);
    assert!(
        volumes[0]["differing_bytes"].as_u64() > Some(0),
        "{volumes:?}"
    );
    let view = daemon.json(&["view-open", &name, "--at", &old]);
    let uri = view["volumes"][0]["uri"].as_str().expect("a URI");
    let read = run("qemu-io", &["-r", "-f", "raw", "-c", "read 0 4M", uri]);
    assert!(
        !read.ok || read.out.contains("error") || read.err.contains("error"),
        "wrong bytes are shown: {read:?}"
    );
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    exact_at_the_end(&daemon, &mut storage, &name);
}

#[test]
fn a_resync_that_is_cut_short_is_made_again() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let mut random = Random::from_env();
    let mut storage = StorageDaemon::start(&[("qcow2", 512 << 20)]);
    let mut daemon = Daemon::start();
    let name = unique("cut");
    protect_nodes(&daemon, &storage, &name, 1);
    for round in 0..4 {
        daemon.kill();
        // The server through which the disk was read, where it was.
        let _ = storage.control().execute("nbd-server-stop", Value::Null);
        let socket = storage.serve(1);
        let mut writer = Writer::connect(&socket, "disk0", 8, 1 + round * 1000);
        for at in 0..80 {
            let at = (at * 6 + round) << 20;
            writer.write(at, 1 << 20, |id| vec![id as u8; 1 << 20]);
        }
        writer.finish();
        storage.stop_serving();
        daemon.start_again();
        thread::sleep(Duration::from_millis(random.below(400)));
        eprintln!("killed while {}", daemon.json(&["info", &name])["state"]);
    }
    daemon.kill();
    daemon.start_again();
    let volumes = resynced(&daemon, &name);
    assert_eq!(volumes[0]["how"], "bitmap", "{volumes:?}");
    exact_at_the_end(&daemon, &mut storage, &name);
}

#[test]
fn killed_at_random_moments_no_mark_is_lost() {
    if !needs_libvirt() {
        return;
    }
    let mut random = Random::from_env();
    let name = unique("marks");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20), ("raw", 64 << 20)]);
    // A rotation each second: what one takes aside is dropped when the next begins.
    let mut daemon = Daemon::start_with("[capture]\nbitmap_interval = '1s'");
    daemon.ok(&["protect", &name]);
    let load = "(wload /dev/vda --seconds 24 --size-mib 48 >/dev/null 2>&1 & \
                wload /dev/vdb --seconds 24 --size-mib 48 >/dev/null 2>&1 &)";
    guest.sh(load);
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(random.below(2500)));
        daemon.kill();
        thread::sleep(Duration::from_millis(random.below(700)));
        daemon.start_again();
        for volume in resynced(&daemon, &name) {
            assert_eq!(volume["how"], "bitmap", "{volume}");
        }
    }
    guest.sh("while pidof wload >/dev/null; do sleep 0.2; done");
    newest_equals(&daemon, &guest, &name);
}

#[test]
fn a_guest_that_was_off_is_not_read_again() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("off");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20), ("raw", 64 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let off = || {
        guest.virsh(&["shutdown", &name, "--mode", "acpi"]);
        guest.wait_off();
        daemon.wait_state(&name, "off", SOON);
    };
    guest.sh(
        "for d in vda vdb; do dd if=/dev/urandom of=/dev/$d bs=64k count=300 oflag=direct; done",
    );
    // Until what was written is marked no more.
    thread::sleep(Duration::from_secs(5));
    off();
    guest.boot();
    let volumes = resynced(&daemon, &name);
    assert_eq!(volumes[0]["how"], "bitmap", "qcow2: {volumes:?}");
    assert_eq!(volumes[1]["how"], "nothing", "raw: {volumes:?}");
    for volume in &volumes {
        assert!(volume["read_bytes"].as_u64() <= Some(1 << 20), "{volume}");
    }
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=9 oflag=direct; dd if=/dev/urandom of=/dev/vdb bs=64k count=9 oflag=direct");
    newest_equals(&daemon, &guest, &name);

    off();
    let raw = guest.image(1).display().to_string();
    must(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 0x5a 1M 64k", &raw],
    );
    let qcow2 = guest.image(0).display().to_string();
    must(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 0x5a 1M 64k", &qcow2],
    );
    guest.boot();
    let volumes = resynced(&daemon, &name);
    assert_eq!(
        volumes[0]["how"], "bitmap",
        "qemu-io marks what it writes: {volumes:?}"
    );
    assert_eq!(volumes[1]["how"], "whole", "{volumes:?}");
    newest_equals(&daemon, &guest, &name);
}

#[test]
fn an_old_copy_put_back_is_found_out_and_compared_whole() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("back");
    let guest = Guest::start(&name, &[("qcow2", 48 << 20), ("raw", 48 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let write = |at: u64| {
        let dd = |disk: &str| {
            format!("dd if=/dev/urandom of=/dev/{disk} bs=64k count=50 seek={at} oflag=direct")
        };
        guest.sh(&format!("{}; {}", dd("vda"), dd("vdb")));
    };
    let copy = |number: usize, back: bool| {
        let image = guest.image(number).display().to_string();
        let other = format!("{image}.copy");
        let (from, to) = if back { (other, image) } else { (image, other) };
        must("cp", &["--preserve=all", &from, &to]);
    };
    let off = || {
        guest.virsh(&["shutdown", &name, "--mode", "acpi"]);
        guest.wait_off();
        daemon.wait_state(&name, "off", SOON);
    };
    write(0);
    off();
    (0..2).for_each(|n| copy(n, false));
    guest.boot();
    daemon.wait_state(&name, "protected", SOON);
    write(20);
    thread::sleep(Duration::from_secs(5));
    off();
    (0..2).for_each(|n| copy(n, true));
    guest.boot();
    let volumes = resynced(&daemon, &name);
    for volume in &volumes {
        assert_eq!(volume["how"], "whole", "{volumes:?}");
        assert!(volume["differing_bytes"].as_u64() > Some(0), "{volumes:?}");
    }
    let reason = volumes[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("older copy"), "{reason}");
    newest_equals(&daemon, &guest, &name);
}

#[test]
fn an_inconsistent_bitmap_is_replaced_and_never_trusted() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("incons");
    let guest = Guest::start(&name, &[("qcow2", 48 << 20)]);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=50 oflag=direct");
    daemon.stop();
    guest.virsh(&["shutdown", &name, "--mode", "acpi"]);
    guest.wait_off();
    // Opened by a QEMU that dies, the stored bitmap is in use for ever.
    guest.boot();
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=50 seek=100 oflag=direct conv=fsync");
    let pid = fs::read_to_string(format!("/run/libvirt/qemu/{name}.pid")).expect("QEMU's pid");
    must("kill", &["-KILL", pid.trim()]);
    guest.wait_off();
    guest.boot();
    daemon.start_again();
    let volumes = resynced(&daemon, &name);
    assert_eq!(volumes[0]["how"], "whole", "{volumes:?}");
    let reason = volumes[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("inconsistent"), "{reason}");
    newest_equals(&daemon, &guest, &name);

    daemon.kill();
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=5 seek=300 oflag=direct");
    daemon.start_again();
    let volumes = resynced(&daemon, &name);
    assert_eq!(
        volumes[0]["how"], "bitmap",
        "the one in its place is good: {volumes:?}"
    );
    newest_equals(&daemon, &guest, &name);
}
