//! Stock tools on views and exports: what others read is what we show.

use std::fs;

use virt_cdp_tests::{daemon::Daemon, must, needs, run, storage_daemon::StorageDaemon, unique};

const SIZE: u64 = 64 << 20;

/// A machine whose disk holds a verifiable fio pattern, and two writes on top.
fn machine(daemon: &Daemon) -> (StorageDaemon, String) {
    let storage = StorageDaemon::start(&[("qcow2", SIZE)]);
    let name = unique("tools");
    daemon.ok(&[
        "protect",
        &name,
        "--qmp",
        &storage.qmp().display().to_string(),
        "--node",
        "disk0",
    ]);
    let socket = storage.serve(1);
    let uri = format!("nbd+unix:///disk0?socket={}", socket.display());
    fio(
        &uri,
        &[
            "--rw=randwrite",
            "--do_verify=0",
            "--iodepth=16",
            "--end_fsync=1",
        ],
    );
    storage.stop_serving();
    daemon.ok(&["point-create", &name]);
    (storage, name)
}

fn fio(uri: &str, more: &[&str]) -> String {
    let uri = format!("--uri={uri}");
    let mut all = vec![
        "--name=t",
        "--ioengine=nbd",
        &uri,
        "--bs=4k",
        "--size=16m",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--randseed=7",
    ];
    all.extend(more);
    must("fio", &all)
}

#[test]
fn nbd_clients_read_a_view() {
    if !needs(&[
        "nbdinfo",
        "nbdcopy",
        "fio",
        "qemu-img",
        "qemu-storage-daemon",
        "/usr/bin/python3",
    ]) {
        return;
    }
    let daemon = Daemon::start();
    let (storage, name) = machine(&daemon);
    let view = daemon.json(&["view-open", &name, "--at", "latest"]);
    let uri = view["volumes"][0]["uri"]
        .as_str()
        .expect("a URI")
        .to_owned();
    let live = storage.image(0).display().to_string();
    let copy = daemon.dir.join("copy.raw").display().to_string();

    let info: serde_json::Value =
        serde_json::from_str(&must("nbdinfo", &["--json", &uri])).expect("JSON");
    assert_eq!(info["exports"][0]["export-size"], SIZE);
    assert_eq!(info["exports"][0]["is_read_only"], true);
    assert_eq!(info["exports"][0]["can_multi_conn"], true);
    let map = must("nbdinfo", &["--map", &uri]);
    assert!(map.contains("data") && map.contains("hole,zero"), "{map}");
    assert!(must("nbdinfo", &["--list", &uri]).contains("disk0"));

    must("nbdcopy", &[&uri, &copy]);
    must(
        "qemu-img",
        &["compare", "-U", "-f", "qcow2", "-F", "raw", &live, &uri],
    );
    must(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &copy, &uri],
    );
    fio(&uri, &["--rw=randread", "--verify_only=1", "--readonly"]);

    let script = format!(
        "import nbd\nh = nbd.NBD()\nh.connect_uri('{uri}')\nassert h.is_read_only()\nassert h.get_size() == {SIZE}\n\
         d = h.pread(1 << 20, 4096)\nassert d == open('{copy}', 'rb').read()[4096:4096 + (1 << 20)]\n\
         try:\n  h.set_strict_mode(0); h.pwrite(b'x' * 512, 0)\n  raise SystemExit('it could be written to')\nexcept nbd.Error as e: print(e.errno)\n"
    );
    let ran = run("/usr/bin/python3", &["-c", &script]);
    assert!(
        ran.ok && ran.out.contains("EPERM"),
        "{}{}",
        ran.out,
        ran.err
    );

    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    assert!(
        !run("nbdinfo", &["--size", &uri]).ok,
        "a closed view is gone"
    );
}

#[test]
fn an_export_is_a_standalone_image_equal_to_the_view() {
    if !needs(&["fio", "qemu-img", "qemu-storage-daemon"]) {
        return;
    }
    let daemon = Daemon::start();
    let (_storage, name) = machine(&daemon);
    let view = daemon.json(&["view-open", &name, "--at", "latest"]);
    let uri = view["volumes"][0]["uri"].as_str().expect("a URI");
    let dir = daemon.dir.join("ex ort").display().to_string();
    let job = daemon.json(&["export", &name, "--at", "latest", &dir]);
    let image = job["files"][0].as_str().expect("a file").to_owned();
    assert_eq!(job["state"], "done");
    must("qemu-img", &["check", "-f", "qcow2", &image]);
    must(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", &image, uri],
    );
    assert!(
        !must("qemu-img", &["info", &image]).contains("backing"),
        "it stands alone"
    );
    assert!(
        fs::metadata(&image).expect("the file").len() < SIZE / 2,
        "holes stay holes"
    );
    daemon.refused(&["export", &name, "--at", "latest", &dir], "already");

    // The base point in the harbor, too, is an image that stock tools open.
    let harbor = daemon.json(&["info", &name])["harbor"]
        .as_str()
        .expect("a directory")
        .to_owned();
    let found = must("find", &[&harbor, "-name", "*.qcow2"]);
    assert_eq!(found.lines().count(), 1);
    must("qemu-img", &["check", "-f", "qcow2", found.trim()]);
}
