//! Disks of every kind: which are protected, which are left out or refused, and that it is said.

use std::time::Duration;

use virt_cdp_tests::{daemon::Daemon, guest::Guest, must, needs_libvirt, unique};

/// A loop device over a new file; gone when dropped.
struct Loop(String, std::path::PathBuf);

impl Loop {
    fn new(bytes: u64) -> Self {
        let file = std::path::PathBuf::from("/var/tmp").join(unique("loop"));
        must(
            "truncate",
            &["-s", &bytes.to_string(), file.to_str().expect("plain")],
        );
        let device = must("losetup", &["-f", "--show", file.to_str().expect("plain")]);
        Self(device.trim().to_owned(), file)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        virt_cdp_tests::run("losetup", &["-d", &self.0]);
        let _ = std::fs::remove_file(&self.1);
    }
}

#[test]
fn block_devices_are_protected_and_the_others_named() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("kinds");
    let block = Loop::new(16 << 20);
    let guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    let extra = guest
        .image(0)
        .with_file_name("readonly.raw")
        .display()
        .to_string();
    let shared = guest
        .image(0)
        .with_file_name("shared.raw")
        .display()
        .to_string();
    for image in [&extra, &shared] {
        must("qemu-img", &["create", "-q", "-f", "raw", image, "8M"]);
    }
    guest.virsh(&[
        "attach-disk",
        &name,
        &block.0,
        "vdb",
        "--sourcetype",
        "block",
        "--subdriver",
        "raw",
        "--live",
    ]);
    guest.virsh(&[
        "attach-disk",
        &name,
        &extra,
        "vdc",
        "--subdriver",
        "raw",
        "--mode",
        "readonly",
        "--live",
    ]);

    let daemon = Daemon::start();
    let info = daemon.json(&["protect", &name]);
    let targets: Vec<_> = info["volumes"]
        .as_array()
        .expect("volumes")
        .iter()
        .map(|v| v["target"].clone())
        .collect();
    assert_eq!(targets, ["vda", "vdb"], "{info}");
    let left_out = info["left_out"].to_string();
    assert!(
        left_out.contains("vdc") && left_out.contains("read-only"),
        "{left_out}"
    );

    guest.sh("dd if=/dev/urandom of=/dev/vdb bs=64k count=20 oflag=direct conv=fsync,notrunc");
    let point = daemon.json(&["point-create", &name]);
    let view = daemon.json(&["view-open", &name, "--at", &point["id"].to_string()]);
    let uri = view["volumes"][1]["uri"].as_str().expect("a URI");
    must(
        "qemu-img",
        &["compare", "-U", "-f", "raw", "-F", "raw", &block.0, uri],
    );
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    daemon.ok(&["unprotect", &name, "--delete"]);

    guest.virsh(&[
        "attach-disk",
        &name,
        &shared,
        "vdd",
        "--subdriver",
        "raw",
        "--mode",
        "shareable",
        "--live",
    ]);
    let ran = daemon.refused(&["protect", &name], "vdd");
    assert!(
        ran.err.contains("shar") && ran.err.contains("hint: "),
        "{}",
        ran.err
    );
    daemon.refused(&["protect", &name, "--disk", "vdc"], "vdc");
    daemon.ok(&["protect", &name, "--disk", "vda", "--disk", "vdb"]);
}

#[test]
fn the_bitmaps_are_kept_and_rotated() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("maps");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20), ("raw", 16 << 20)]);
    let daemon = Daemon::start_with("[capture]\nbitmap_interval = '1s'");
    daemon.ok(&["protect", &name]);
    let bitmaps = || {
        let nodes = guest.virsh(&[
            "qemu-monitor-command",
            &name,
            "{\"execute\":\"query-named-block-nodes\",\"arguments\":{\"flat\":true}}",
        ]);
        let nodes: serde_json::Value = serde_json::from_str(&nodes).expect("JSON");
        let nodes = nodes["return"].as_array().expect("nodes").clone();
        let of_ours =
            |n: serde_json::Value| n["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        let mut all: Vec<_> = nodes.into_iter().flat_map(of_ours).collect();
        all.retain(|b| {
            b["name"]
                .as_str()
                .is_some_and(|n| n.starts_with("virt-cdp-"))
        });
        // What marks the disks' ends is not what is in doubt.
        let (ends, marks): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|b| b["name"].as_str().is_some_and(|n| n.ends_with("-end")));
        assert!(ends.iter().all(|b| b["count"] == 65536), "{ends:?}");
        marks
    };
    guest.sh("dd if=/dev/zero of=/dev/vda bs=64k count=20 oflag=direct; dd if=/dev/zero of=/dev/vdb bs=64k count=20 oflag=direct");
    virt_cdp_tests::wait_for(
        "what is kept is marked no more",
        Duration::from_secs(10),
        || {
            let all = bitmaps();
            let fine = all.len() == 2
                && all
                    .iter()
                    .all(|b| b["count"] == 0 && b["recording"] == true);
            if fine {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        },
    );
    let all = bitmaps();
    assert!(all.iter().all(|b| b["granularity"] == 65536), "{all:?}");
    assert_eq!(
        all.iter().filter(|b| b["persistent"] == true).count(),
        1,
        "qcow2 keeps its own, raw cannot: {all:?}"
    );
}
