//! The bitmaps in QEMU: ours lose no mark and are trusted by their epoch only; those of others are left alone.

use std::{thread, time::Duration};

use qemu_hook::{
    bitmap::{self, BitmapNames, Distrust, Renewal},
    monitor::Monitor,
};
use serde_json::{Value, json};
use virt_cdp_tests::{
    daemon::Daemon, guest::Guest, must, needs, needs_libvirt, run, storage_daemon::StorageDaemon,
    unique,
};

const SOON: Duration = Duration::from_secs(60);
const GRANULE: u64 = 64 << 10;

/// The bitmaps of a node of QEMU that mark what is in doubt: all but end marks.
pub(crate) fn bitmaps(monitor: &dyn Monitor, node: &str) -> Vec<Value> {
    let nodes = monitor
        .execute("query-named-block-nodes", json!({"flat": true}))
        .expect("the nodes");
    let found = nodes
        .as_array()
        .expect("a list")
        .iter()
        .find(|n| n["node-name"] == node);
    let found = found.and_then(|n| n["dirty-bitmaps"].as_array());
    let mut found = found.cloned().unwrap_or_default();
    found.retain(|b| {
        !b["name"]
            .as_str()
            .is_some_and(|name| name.ends_with("-end"))
    });
    found
}

#[test]
fn bitmaps_and_checkpoints_of_the_user_are_left_alone() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("theirs");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    let mut daemon = Daemon::start_with("[capture]\nbitmap_interval = '1s'");
    let qmp = |command: &str, arguments: Value| -> Value {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        let answer = guest.virsh(&["qemu-monitor-command", &name, &text]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["return"].clone()
    };
    let nodes = qmp("query-named-block-nodes", json!({"flat": true}));
    let node = nodes
        .as_array()
        .expect("nodes")
        .iter()
        .find(|n| n["drv"] == "qcow2");
    let node = node.expect("the disk")["node-name"]
        .as_str()
        .expect("a name")
        .to_owned();
    guest.virsh(&["checkpoint-create-as", &name, "before"]);
    qmp(
        "block-dirty-bitmap-add",
        json!({"node": node, "name": "virt-cdp-of-the-user", "persistent": true}),
    );
    let count = |bitmap: &str| {
        let nodes = qmp("query-named-block-nodes", json!({"flat": true}));
        let nodes = nodes.as_array().expect("nodes").iter();
        let all = nodes.flat_map(|n| n["dirty-bitmaps"].as_array().cloned().unwrap_or_default());
        all.into_iter()
            .find(|b| b["name"] == bitmap)
            .map(|b| b["count"].clone())
    };
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=10 oflag=direct");
    let before = (count("before"), count("virt-cdp-of-the-user"));
    assert_ne!(before, (Some(json!(0)), Some(json!(0))), "both mark");
    daemon.ok(&["protect", &name]);
    thread::sleep(Duration::from_secs(3));
    daemon.kill();
    daemon.start_again();
    daemon.wait_state(&name, "protected", SOON);
    daemon.ok(&["suspend", &name]);
    daemon.ok(&["resume", &name]);
    daemon.wait_state(&name, "protected", SOON);
    daemon.ok(&["unprotect", &name]);
    assert_eq!((count("before"), count("virt-cdp-of-the-user")), before);
    assert_eq!(
        guest.virsh(&["checkpoint-list", &name, "--name"]).trim(),
        "before"
    );
    let image = guest.image(0).display().to_string();
    guest.virsh(&["shutdown", &name, "--mode", "acpi"]);
    guest.wait_off();
    let info = run("qemu-img", &["info", "--output=json", &image]).out;
    assert!(
        info.contains("virt-cdp-of-the-user") && info.contains("before"),
        "{info}"
    );
    must("qemu-img", &["check", &image]);
}

#[test]
fn a_renewal_loses_no_mark_and_what_is_not_known_is_not_trusted() {
    if !needs(&["qemu-storage-daemon", "qemu-io"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("qcow2", 16 << 20), ("raw", 16 << 20)]);
    let monitor = storage.control();
    let names = BitmapNames::new("01234567");
    let known =
        |epochs: &[&str]| -> Vec<String> { epochs.iter().map(|e| (*e).to_owned()).collect() };
    let judge = |epochs: &[&str]| {
        bitmap::judge(monitor, "disk0", &names, &known(epochs)).expect("an answer")
    };
    let renew = |from: Option<&str>, to: &str| {
        let renewals: Vec<Renewal> = (0..2)
            .map(|n| Renewal {
                node: format!("disk{n}"),
                persistent: n == 0,
                from: from.map(str::to_owned),
            })
            .collect();
        bitmap::renew(monitor, &renewals, &names, to).expect("a renewal");
    };
    let socket = storage.serve(2).display().to_string();
    let write = |at: u64| {
        for disk in ["disk0", "disk1"] {
            let uri = format!("nbd+unix:///{disk}?socket={socket}");
            must(
                "qemu-io",
                &["-f", "raw", "-c", &format!("write {at}k 4k"), &uri],
            );
        }
    };
    let doubtful =
        |epoch: &str| bitmap::doubtful(monitor, "disk0", &names, epoch).expect("a count");
    let marked = |epoch: &str| bitmap::marked(monitor, "disk1", &names, epoch).expect("a count");

    assert_eq!(judge(&["a"]), Err(Distrust::Missing));
    renew(None, "a");
    assert_eq!(judge(&["a"]), Ok("a".into()));
    assert_eq!(judge(&["z"]), Err(Distrust::OtherEpoch));
    write(0);
    write(128);
    renew(Some("a"), "b");
    assert_eq!((doubtful("b"), marked("b")), (2 * GRANULE, 0));
    write(1024);
    renew(Some("b"), "c");
    assert_eq!((doubtful("c"), marked("c")), (3 * GRANULE, 0));
    assert_eq!(
        judge(&["b", "c"]),
        Ok("c".into()),
        "cut short before or after, one of the two is found"
    );
    assert_eq!(judge(&["c", "d"]), Ok("c".into()));
    let all = bitmaps(monitor, "disk0");
    assert_eq!(all.len(), 2, "no old ones stay: {all:?}");
    assert!(
        all.iter().all(|b| b["persistent"] == true),
        "B_prev outlives QEMU as B does: {all:?}"
    );
    write(4096);
    bitmap::drop_previous(monitor, "disk0", &names, "c").expect("dropped");
    assert_eq!((doubtful("c"), marked("c")), (0, GRANULE));
    let disable = json!({"node": "disk0", "name": names.current("c")});
    monitor
        .execute("block-dirty-bitmap-disable", disable)
        .expect("disabled");
    assert_eq!(judge(&["c"]), Err(Distrust::NotRecording));
    bitmap::remove(monitor, "disk0", &names).expect("removed");
    let coarse = json!({"node": "disk0", "name": names.current("e"), "granularity": 1 << 20});
    monitor
        .execute("block-dirty-bitmap-add", coarse)
        .expect("added");
    assert_eq!(judge(&["e"]), Err(Distrust::Granularity));
    bitmap::remove(monitor, "disk0", &names).expect("removed");
    assert_eq!(bitmaps(monitor, "disk0"), [] as [Value; 0]);
}
