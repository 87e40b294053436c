//! What rots in a harbor while a machine is protected is found, told, and had again from its disk.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    guest::Guest,
    must,
    nbd::Writer,
    needs, needs_libvirt,
    proof::{newest_equals, same_content},
    run,
    storage_daemon::StorageDaemon,
    unique, wait_for,
};

const SOON: Duration = Duration::from_secs(60);
const CLUSTER: u64 = 64 << 10;
const CLUSTERS: u64 = 64;

/// A machine of one raw disk that is written full, behind its full base point.
fn machine(name: &str, settings: &str) -> (StorageDaemon, Daemon) {
    let storage = StorageDaemon::start(&[("raw", CLUSTERS * CLUSTER)]);
    write(&storage, 1, 0..CLUSTERS);
    let daemon = Daemon::start_with(settings);
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&["protect", name, "--qmp", &qmp, "--node", "disk0"]);
    (storage, daemon)
}

/// Writes clusters of the disk, each with a content of its own.
fn write(storage: &StorageDaemon, first: u64, clusters: std::ops::Range<u64>) {
    let socket = storage.serve(1);
    let mut writer = Writer::connect(&socket, "disk0", 8, first);
    for cluster in clusters {
        let content = |id: u64| (0..CLUSTER).map(|at| ((at * id) >> 3) as u8 | 1).collect();
        writer.write(cluster * CLUSTER, CLUSTER, content);
    }
    writer.finish();
    storage.stop_serving();
}

/// The files below a directory of the only harbor whose names end so, in order.
fn files(daemon: &Daemon, below: &str, ending: &str) -> Vec<PathBuf> {
    let harbor = fs::read_dir(daemon.harbors()).expect("harbors").next();
    let dir = harbor.expect("one").expect("one").path().join(below);
    let files = fs::read_dir(dir).expect("a directory").flatten();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(ending));
    files.sort();
    files
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
}

/// Flips a bit of some clusters of the disk where its full base point has them.
fn rot_the_full(daemon: &Daemon, clusters: std::ops::Range<u64>) {
    let full = files(daemon, "base/vol-00000", ".qcow2").remove(0);
    let map = must(
        "qemu-img",
        &["map", "--output=json", &full.display().to_string()],
    );
    let map: Vec<Value> = serde_json::from_str(&map).expect("JSON");
    let number = |value: &Value| value.as_u64().expect("a number");
    for at in clusters.map(|cluster| cluster * CLUSTER) {
        let holds = |e: &&Value| {
            let start = number(&e["start"]);
            (start..start + number(&e["length"])).contains(&at)
        };
        let entry = map.iter().find(holds).expect("it is in the full");
        flip(
            &full,
            number(&entry["offset"]) + at - number(&entry["start"]) + 999,
        );
    }
}

fn damaged(daemon: &Daemon, name: &str) -> Vec<u64> {
    let list = daemon.json(&["point-list", name]);
    let points = list["points"].as_array().expect("points").iter();
    let damaged = points.filter(|point| point["damaged"] == true);
    damaged.map(|p| p["id"].as_u64().expect("an id")).collect()
}

/// What `verify --json` answers, whichever way it ends.
fn verify(daemon: &Daemon, words: &[&str]) -> (bool, Value) {
    let ran = daemon.cli(&[&["--json", "verify"], words].concat());
    let text = &ran.out;
    let job: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    (ran.ok, job["report"].clone())
}

fn latest_is_the_disk(daemon: &Daemon, storage: &StorageDaemon, name: &str) {
    let view = daemon.json(&["view-open", name, "--at", "latest"]);
    let uri = view["volumes"][0]["uri"].as_str().expect("a URI");
    same_content(storage.image(0).to_str().expect("a plain path"), uri);
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
}

#[test]
fn what_rots_in_a_base_point_is_put_back_as_far_as_the_disk_has_it() {
    if !needs(&["qemu-storage-daemon", "qemu-img", "nbdinfo"]) {
        return;
    }
    let name = &unique("putback");
    let (storage, daemon) = machine(name, "");
    daemon.ok(&["point-create", name, "--label", "old"]);
    // Of one of those that rot, the disk has something newer.
    write(&storage, 500, 21..22);
    let newest = daemon.json(&["point-create", name])["id"].clone();
    rot_the_full(&daemon, 20..23);
    let (is_whole, report) = verify(&daemon, &[name, "--all"]);
    let live = &report["live"][0];
    assert_eq!(live["target"], "disk0", "{report}");
    assert_eq!(live["read_bytes"], 3 * CLUSTER, "{report}");
    assert_eq!(live["put_back_bytes"], 2 * CLUSTER, "{report}");
    assert_eq!(live["journaled_bytes"], 0, "{report}");
    // What only the disk of before had is lost, and said to be; all else is as if nothing had been.
    let findings = report["findings"].as_array().expect("findings");
    assert!(!is_whole && findings.len() == 1, "{report}");
    let lost = &findings[0]["costs"][0];
    assert_eq!(lost["areas"][0]["offset"], 21 * CLUSTER, "{report}");
    assert!(lost["last"].as_u64() < newest.as_u64(), "{report}");
    assert!(!damaged(&daemon, name).contains(&newest.as_u64().expect("an id")));
    latest_is_the_disk(&daemon, &storage, name);
}

#[test]
fn what_rots_in_the_journal_is_had_again_for_the_points_from_then_on() {
    if !needs(&["qemu-storage-daemon", "qemu-img", "nbdinfo"]) {
        return;
    }
    let name = &unique("anew");
    let (storage, daemon) = machine(name, "");
    write(&storage, 900, 10..20);
    let old = daemon.json(&["point-create", name])["id"]
        .as_u64()
        .expect("an id");
    // Its segment is sealed, as only such are verified.
    daemon.ok(&["suspend", name]);
    let segment = files(&daemon, "journal", ".seg").pop().expect("a segment");
    daemon.ok(&["resume", name]);
    daemon.wait_state(name, "protected", SOON);
    let size = fs::metadata(&segment).expect("its size").len();
    (0..6).for_each(|part| flip(&segment, size * 3 / 8 + part * 4096));
    let (is_whole, report) = verify(&daemon, &[name, "--all"]);
    assert!(!is_whole, "{report}");
    assert!(
        report["live"][0]["journaled_bytes"].as_u64() >= Some(CLUSTER),
        "{report}"
    );
    assert!(
        report["findings"][0]["file"]
            .as_str()
            .expect("a file")
            .ends_with(".seg")
    );
    let newest = daemon.json(&["info", name])["newest_point"].clone();
    let lost = damaged(&daemon, name);
    assert!(
        lost.contains(&old) && newest["damaged"] == false,
        "{lost:?} {newest}"
    );
    daemon.refused(&["view-open", name, "--at", &old.to_string()], "damaged");
    latest_is_the_disk(&daemon, &storage, name);
    let info = daemon.json(&["info", name]);
    assert_eq!(info["points_damaged"], lost.len(), "{info}");
    assert!(info["files_verified"].as_u64() > Some(1), "{info}");
}

#[test]
fn damage_that_a_view_comes_upon_is_told_and_healed_without_being_asked_for() {
    if !needs(&["qemu-storage-daemon", "qemu-img", "qemu-io", "nbdinfo"]) {
        return;
    }
    let name = &unique("met");
    let (storage, daemon) = machine(name, "[tidy]\ninterval = '2s'\nscrub_interval = '0s'");
    daemon.ok(&["point-create", name]);
    rot_the_full(&daemon, 3..4);
    let view = daemon.json(&["view-open", name, "--at", "latest"]);
    let uri = view["volumes"][0]["uri"].as_str().expect("a URI");
    let read = run("qemu-io", &["-r", "-f", "raw", "-c", "read 0 4M", uri]);
    assert!(
        read.out.contains("error") || read.err.contains("error"),
        "{read:?}"
    );
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    wait_for("it is noticed and put back", SOON, || {
        let log = fs::read_to_string(daemon.log_path()).expect("the log");
        let done = log.contains("a reader came upon damage")
            && log.contains("compared with the live disk");
        match done
            && damaged(&daemon, name).is_empty()
            && daemon.json(&["info", name])["damage"] == serde_json::json!([])
        {
            true => Ok(()),
            false => Err("not yet".into()),
        }
    });
    latest_is_the_disk(&daemon, &storage, name);
}

#[test]
fn what_the_disk_has_otherwise_is_found_under_load_and_nothing_else_is() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("live");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20), ("raw", 64 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vdb bs=1M count=64 oflag=direct");
    guest.begin_load("/dev/vda", 60);
    for _ in 0..4 {
        let (is_whole, report) = verify(&daemon, &[&name, "--live"]);
        assert!(is_whole, "{report}");
        for volume in report["live"].as_array().expect("volumes") {
            assert_eq!(volume["read_bytes"], 64 << 20, "{report}");
            assert_eq!(volume["differing_bytes"], 0, "{report}");
        }
    }
    guest.end_load();
    let old = daemon.json(&["point-create", &name])["id"]
        .as_u64()
        .expect("an id");
    // Behind everybody's back.
    let image = guest.image(1);
    let of = format!("of={}", image.display());
    let overwrite = |seek: &str, count: &str| {
        let words = ["if=/dev/urandom", &of, "bs=4096", seek, count];
        must("dd", &[&words[..], &["conv=notrunc,fsync"]].concat());
    };
    overwrite("seek=1000", "count=3");
    let (is_whole, report) = verify(&daemon, &[&name, "--live"]);
    assert!(!is_whole, "{report}");
    assert_eq!(report["live"][1]["differing_bytes"], 3 * 4096, "{report}");
    assert_eq!(report["live"][1]["journaled_bytes"], 3 * 4096, "{report}");
    let lost = damaged(&daemon, &name);
    assert!(lost.contains(&old), "{lost:?}");
    newest_equals(&daemon, &guest, &name);
    let (_, again) = verify(&daemon, &[&name, "--live"]);
    assert_eq!(again["live"][1]["differing_bytes"], 0, "{again}");
    // More than is settled at a time, or told apart; the guest writes all the while.
    guest.begin_load("/dev/vda", 60);
    overwrite("seek=2000", "count=10000");
    let (_, report) = verify(&daemon, &[&name, "--live"]);
    assert_eq!(report["live"][0]["differing_bytes"], 0, "{report}");
    assert_eq!(
        report["live"][1]["differing_bytes"],
        10_000 * 4096,
        "{report}"
    );
    guest.end_load();
    newest_equals(&daemon, &guest, &name);
    daemon.ok(&["suspend", &name]);
    daemon.refused(&["verify", &name, "--live"], "suspended");
}
