//! What happens to a protection when disks are snapshot, copied, backed up, resized, plugged in and out.

use std::time::Duration;

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    guest::Guest,
    must, needs_libvirt,
    proof::{closed_gaps, hashes, newest_equals},
    unique, wait_for,
};

const SOON: Duration = Duration::from_secs(60);

fn size_of(info: &Value, target: &str) -> u64 {
    let volumes = info["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|v| v["target"] == target);
    volume.expect("the volume")["size_bytes"]
        .as_u64()
        .expect("bytes")
}

/// Waits until a machine is protected with exactly these disks.
fn wait_attached(daemon: &Daemon, name: &str, targets: &[&str]) -> Value {
    wait_for("the disks are captured", SOON, || {
        let info = daemon.json(&["info", name]);
        let volumes = info["volumes"].as_array().expect("volumes");
        let attached: Vec<_> = volumes
            .iter()
            .filter(|v| v["attached"] == true)
            .filter_map(|v| v["target"].as_str())
            .collect();
        if info["state"] == "protected" && attached == targets {
            Ok(info)
        } else {
            Err(info.to_string())
        }
    })
}

#[test]
fn what_libvirt_refuses_of_a_protected_machine_works_between_suspend_and_resume() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("ops");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20), ("raw", 16 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=100 oflag=direct; dd if=/dev/urandom of=/dev/vdb bs=64k count=100 oflag=direct");
    let old = daemon.json(&["point-create", &name]);
    let kept = hashes(&daemon, &name, &old);
    guest.begin_load("/dev/vda", 8);

    let dir = guest
        .image(0)
        .parent()
        .expect("its directory")
        .to_path_buf();
    let at = |file: &str| dir.join(file).display().to_string();
    let overlay = format!("vda,file={}", at("overlay.qcow2"));
    let backup = format!(
        "<domainbackup mode='push'><disks><disk name='vda' type='file'><target file='{}'/>\
         <driver type='qcow2'/></disk><disk name='vdb' backup='no'/></disks></domainbackup>",
        at("backup.qcow2")
    );
    std::fs::write(dir.join("backup.xml"), backup).expect("the backup's XML");
    let (copy, backup) = (at("copy.raw"), at("backup.xml"));
    let snapshot = [
        "snapshot-create-as",
        &name,
        "s1",
        "--disk-only",
        "--no-metadata",
    ];
    let snapshot = [
        &snapshot[..],
        &["--diskspec", &overlay, "--diskspec", "vdb,snapshot=no"],
    ]
    .concat();
    let copy = [
        "blockcopy",
        &name,
        "vdb",
        &copy,
        "--wait",
        "--pivot",
        "--transient-job",
        "--format",
        "raw",
    ];
    let operations: [&[&str]; 4] = [
        &snapshot,
        &["blockresize", &name, "vda", "48M"],
        &copy,
        &["backup-begin", &name, &backup],
    ];
    for operation in operations {
        let ran = guest.try_virsh(operation);
        assert!(!ran.ok, "{operation:?} is refused");
        assert!(
            ["busy", "block job", "root block node"]
                .iter()
                .any(|word| ran.err.contains(word)),
            "in QEMU's words: {}",
            ran.err
        );
    }
    assert_eq!(daemon.json(&["info", &name])["state"], "protected");
    assert_eq!(closed_gaps(&daemon.json(&["info", &name])), 0);

    daemon.ok(&["suspend", &name]);
    for operation in operations {
        guest.virsh(operation);
    }
    guest.virsh(&["blockresize", &name, "vdb", "24M"]);
    let images = guest.disks();
    assert!(
        images[0].1.ends_with("overlay.qcow2") && images[1].1.ends_with("copy.raw"),
        "both disks have other images now: {images:?}"
    );
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=16 seek=600 oflag=direct; dd if=/dev/urandom of=/dev/vdb bs=64k count=16 seek=300 oflag=direct");
    wait_for("the backup is done", SOON, || {
        match guest.virsh(&["domjobinfo", &name]) {
            job if job.contains("None") => Ok(()),
            job => Err(job),
        }
    });
    daemon.ok(&["resume", &name]);
    let info = daemon.wait_state(&name, "protected", SOON);
    assert_eq!(
        (size_of(&info, "vda"), size_of(&info, "vdb")),
        (48 << 20, 24 << 20)
    );
    guest.sh("dd if=/dev/urandom of=/dev/vdb bs=64k count=16 seek=340 oflag=direct");
    guest.end_load();
    newest_equals(&daemon, &guest, &name);
    let grown = daemon.json(&["info", &name])["newest_point"].clone();
    let kept_grown = hashes(&daemon, &name, &grown);
    assert_eq!(
        hashes(&daemon, &name, &old),
        kept,
        "old points keep size and content"
    );

    // Back into the first image, and a smaller disk.
    daemon.ok(&["suspend", &name]);
    guest.virsh(&["blockcommit", &name, "vda", "--active", "--pivot", "--wait"]);
    guest.virsh(&["blockresize", &name, "vdb", "8M"]);
    daemon.ok(&["resume", &name]);
    let info = daemon.wait_state(&name, "protected", SOON);
    assert_eq!(size_of(&info, "vdb"), 8 << 20);
    newest_equals(&daemon, &guest, &name);
    assert_eq!(hashes(&daemon, &name, &grown), kept_grown);
    assert_eq!(hashes(&daemon, &name, &old), kept);
}

#[test]
fn disks_are_unplugged_and_plugged_in_and_the_others_stay_protected() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("plug");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20), ("qcow2", 16 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vdb bs=64k count=50 oflag=direct");
    let old = daemon.json(&["point-create", &name]);
    let kept = hashes(&daemon, &name, &old);
    guest.begin_load("/dev/vda", 8);
    let second = guest.disks()[1].1.clone();
    let plug = |image: &str, target: &str, format: &str| {
        guest.virsh(&[
            "attach-disk",
            &name,
            image,
            target,
            "--subdriver",
            format,
            "--live",
        ]);
    };

    // Unplugged: the others go on without a gap, and nothing of it stays in QEMU.
    guest.virsh(&["detach-disk", &name, "vdb", "--live"]);
    let info = wait_attached(&daemon, &name, &["vda"]);
    assert_eq!(
        closed_gaps(&info),
        0,
        "the others were captured all the while"
    );
    wait_for("it is told", SOON, || {
        match daemon.json(&["info", &name])["left_out"].to_string() {
            said if said.contains("vdb: unplugged") => Ok(()),
            said => Err(said),
        }
    });
    let nodes =
        guest.qmp("{\"execute\":\"query-named-block-nodes\",\"arguments\":{\"flat\":true}}");
    assert!(
        !nodes.contains(&second),
        "QEMU lets go of the image: {nodes}"
    );
    let points = daemon.json(&["info", &name])["points"].clone();
    std::thread::sleep(Duration::from_secs(3));
    assert!(daemon.json(&["info", &name])["points"].as_u64() > points.as_u64());
    guest.sh("killall -STOP wload; sleep 0.5");
    newest_equals(&daemon, &guest, &name);
    guest.sh("killall -CONT wload");
    assert_eq!(hashes(&daemon, &name, &old), kept, "the old point has both");

    // Back: protected again by itself.
    plug(&second, "vdb", "qcow2");
    wait_attached(&daemon, &name, &["vda", "vdb"]);
    // A third: named with the cure, and taken in when asked for.
    let third = guest
        .image(0)
        .with_file_name("third.raw")
        .display()
        .to_string();
    must("qemu-img", &["create", "-q", "-f", "raw", &third, "8M"]);
    plug(&third, "vdc", "raw");
    let cure = format!("virt-cdp protect {name} --disk vdc");
    wait_for("it is told", SOON, || {
        match daemon.json(&["info", &name])["left_out"].to_string() {
            said if said.contains(&cure) => Ok(()),
            said => Err(said),
        }
    });
    assert_eq!(daemon.json(&["info", &name])["state"], "protected");
    guest.sh("dd if=/dev/urandom of=/dev/vdc bs=64k count=20 oflag=direct");
    daemon.refused(&["protect", &name, "--disk", "vdz"], "vdz");
    daemon.ok(&["protect", &name, "--disk", "vdc"]);
    wait_attached(&daemon, &name, &["vda", "vdb", "vdc"]);

    guest.end_load();

    // Out and in while the daemon does not see it: what was written is found, and no point claims otherwise.
    let signal = |signal: &str| must("kill", &[signal, &daemon.pid().to_string()]);
    signal("-STOP");
    guest.virsh(&["detach-disk", &name, "vdc", "--live"]);
    plug(&third, "vdc", "raw");
    signal("-CONT");
    guest.sh("for i in $(seq 50); do test -b /dev/vdc && break; sleep 0.1; done; dd if=/dev/urandom of=/dev/vdc bs=64k count=10 seek=30 oflag=direct");
    wait_for("it is captured anew", SOON, || {
        let info = daemon.json(&["info", &name]);
        let lost = |gap: &Value| gap["reason"] == "tap-lost";
        if info["gaps"].as_array().expect("gaps").iter().any(lost) {
            Ok(())
        } else {
            Err(info.to_string())
        }
    });
    wait_attached(&daemon, &name, &["vda", "vdb", "vdc"]);
    newest_equals(&daemon, &guest, &name);
    assert_eq!(
        hashes(&daemon, &name, &old),
        kept,
        "the history of the others stays"
    );
    let info = daemon.json(&["info", &name]);
    closed_gaps(&info);
}

#[test]
fn a_disk_that_was_cut_and_grown_again_within_one_suspension_is_found_out() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("cut");
    const DISK: u64 = 64 << 20;
    let guest = Guest::start(&name, &[("qcow2", DISK), ("raw", DISK)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let fill = "for d in vda vdb; do dd if=/dev/urandom of=/dev/$d bs=1M count=64 oflag=direct || exit 1; done";
    guest.sh(fill);
    // By how much: half of it; so little that a bit of the bitmaps stands for more.
    for cut in [DISK / 2, 4096] {
        newest_equals(&daemon, &guest, &name);
        daemon.ok(&["suspend", &name]);
        for disk in ["vda", "vdb"] {
            for size in [DISK - cut, DISK] {
                guest.virsh(&["blockresize", &name, disk, &format!("{size}B")]);
            }
        }
        daemon.ok(&["resume", &name]);
        daemon.wait_state(&name, "protected", SOON);
        newest_equals(&daemon, &guest, &name);
        let info = daemon.json(&["info", &name]);
        for volume in info["last_resync"]["volumes"].as_array().expect("volumes") {
            let whole = volume["reason"] == "it was made smaller and larger again";
            assert_eq!(whole, cut > 64 << 10, "{info}");
        }
    }
    // Whole once and no longer: what marks the end is in force again.
    daemon.ok(&["suspend", &name]);
    daemon.ok(&["resume", &name]);
    let info = daemon.wait_state(&name, "protected", SOON);
    assert!(!info["last_resync"].to_string().contains("whole"), "{info}");
}
