//! Ack rule and flush interval of a machine's own, switched while it is protected.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use virt_cdp_tests::{
    daemon::Daemon,
    must,
    nbd::{Writer, Written},
    needs, now_ns,
    proof::closed_gaps,
    storage_daemon::StorageDaemon,
    wait_for,
};

const SOON: Duration = Duration::from_secs(60);
const MACHINE: &str = "paced";
/// So that nothing but the ack rule brings a write to the journal's file soon.
const SLOW: &str = "[capture]\npoint_interval = '1h'\nflush_interval = '10s'";

/// Ack rule and flush interval in force, and whether they are the machine's own.
fn pace(info: &Value) -> Value {
    json!([
        info["ack"],
        info["ack_own"],
        info["flush_interval_ms"],
        info["flush_interval_own"]
    ])
}

/// Writes blocks with a mark each, one after the other; returns the marks, and when each was acknowledged.
fn write_marks(socket: &std::path::Path, what: &str, count: u64) -> Vec<(String, i64)> {
    let mark = |id: u64| format!("{what} mark {id:05} ");
    let mut writer = Writer::connect(socket, "disk0", 1, 0);
    for at in 0..count {
        writer.write(at * 4096, 4096, |id| {
            let mut block = mark(id).into_bytes();
            block.resize(4096, b'.');
            block
        });
    }
    let written = writer.finish();
    let marked = |(id, write): &(u64, Written)| (mark(*id), write.acknowledged);
    written.iter().map(marked).collect()
}

/// Marks that are not in the files of the journal.
fn missing(daemon: &Daemon, marks: &[String]) -> Vec<String> {
    let journal = daemon.harbors().join(MACHINE).join("journal");
    let segments = fs::read_dir(journal).expect("a journal");
    let read = |entry: std::io::Result<fs::DirEntry>| fs::read(entry.expect("an entry").path());
    let all: Vec<Vec<u8>> = segments.map(|e| read(e).expect("a segment")).collect();
    let is_there = |mark: &&String| {
        let mut sectors = all.iter().flat_map(|segment| segment.chunks(512));
        sectors.any(|sector| sector.starts_with(mark.as_bytes()))
    };
    marks.iter().filter(|m| !is_there(m)).cloned().collect()
}

#[test]
fn a_machine_that_became_durable_keeps_what_was_acknowledged_and_has_no_gap() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 16 << 20)]);
    let mut daemon = Daemon::start_with(SLOW);
    let qmp = storage.qmp().display().to_string();
    let protect = ["protect", MACHINE, "--qmp", &qmp, "--node", "disk0"];
    daemon.ok(&protect);
    let first = daemon.json(&["info", MACHINE]);
    let configured = json!(["buffered", false, 10_000, false]);
    assert_eq!(pace(&first), configured);
    let socket = storage.serve(1);

    // There and back while something is written all the time: the capture goes on as it is.
    let load = {
        let socket = socket.clone();
        thread::spawn(move || write_marks(&socket, "early", 3000).len())
    };
    for _ in 0..5 {
        daemon.ok(&["protect", MACHINE, "--ack", "durable"]);
        daemon.ok(&["protect", MACHINE, "--ack", "buffered"]);
    }
    let durable = ["--ack", "durable", "--flush-interval", "50ms"];
    daemon.ok(&[&["protect", MACHINE], &durable[..]].concat());
    assert_eq!(load.join().expect("every write was answered"), 3000);
    let now = wait_for("all writes of one attach are counted", SOON, || {
        let info = daemon.json(&["info", MACHINE]);
        match info["writes"].as_u64() {
            Some(3000..) => Ok(info),
            _ => Err(info.to_string()),
        }
    });
    let own = json!(["durable", true, 50, true]);
    assert_eq!(pace(&now), own);
    assert_eq!(
        (&now["state"], &now["state_since"]),
        (&json!("protected"), &first["state_since"])
    );
    assert_eq!(closed_gaps(&now), 0);
    let refused = daemon.cli(&["protect", MACHINE, "--qmp", &qmp, "--node", "disk0"]);
    assert!(!refused.ok, "without a wish it is protected already");

    // What was acknowledged is in the file when the daemon is killed amidst it.
    let load = thread::spawn(move || write_marks(&socket, "kept", 3000));
    thread::sleep(Duration::from_millis(300));
    let before = now_ns();
    daemon.kill();
    let mut marks = load.join().expect("every write was answered");
    marks.retain(|(_, acknowledged)| *acknowledged < before);
    assert!((20..3000).contains(&marks.len()), "{}", marks.len());
    eprintln!("killed after {} writes", marks.len());
    let marks: Vec<String> = marks.into_iter().map(|(mark, _)| mark).collect();
    assert_eq!(missing(&daemon, &marks), [""; 0]);
    storage.stop_serving();

    // It outlives the daemon's end and its upgrade.
    daemon.start_again();
    daemon.wait_state(MACHINE, "protected", SOON);
    assert_eq!(pace(&daemon.json(&["info", MACHINE])), own);
    let gaps = closed_gaps(&daemon.json(&["info", MACHINE]));
    must("kill", &["-HUP", &daemon.pid().to_string()]);
    wait_for("the daemon is another program", SOON, || {
        let log = fs::read_to_string(daemon.log_path()).expect("a log");
        if log.contains("taps taken over from the daemon before") {
            Ok(())
        } else {
            Err("not yet".into())
        }
    });
    let info = daemon.wait_state(MACHINE, "protected", SOON);
    assert_eq!((pace(&info), closed_gaps(&info)), (own, gaps));

    // Back to what is configured; a machine that is suspended is told so, too.
    let default = ["--ack", "default", "--flush-interval", "default"];
    daemon.ok(&[&["protect", MACHINE], &default[..]].concat());
    assert_eq!(pace(&daemon.json(&["info", MACHINE])), configured);
    daemon.ok(&["suspend", MACHINE]);
    daemon.ok(&["protect", MACHINE, "--flush-interval", "1s"]);
    let info = daemon.json(&["info", MACHINE]);
    assert_eq!(pace(&info), json!(["buffered", false, 1000, true]));
    assert_eq!(info["state"], "suspended");
    daemon.refused(&["protect", "unheard-of", "--ack", "durable"], "unheard-of");
}

#[test]
fn what_is_chosen_when_a_machine_is_first_protected_counts_from_its_first_write() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 16 << 20)]);
    let mut daemon = Daemon::start_with(SLOW);
    let qmp = storage.qmp().display().to_string();
    let protect = ["protect", MACHINE, "--qmp", &qmp, "--node", "disk0"];
    daemon.ok(&[&protect[..], &["--flush-interval", "100ms"]].concat());
    let info = daemon.json(&["info", MACHINE]);
    assert_eq!(pace(&info), json!(["buffered", false, 100, true]));
    let socket = storage.serve(1);
    let marks = write_marks(&socket, "first", 50);
    let marks: Vec<String> = marks.into_iter().map(|(mark, _)| mark).collect();
    // Neither a point nor the configured interval is near.
    let began = Instant::now();
    wait_for(
        "the last one is in the file",
        Duration::from_secs(3),
        || match missing(&daemon, &marks).as_slice() {
            [] => Ok(()),
            marks => Err(format!("{marks:?}")),
        },
    );
    eprintln!("in the file after {:?}", began.elapsed());

    // A history that is taken up again may be given another pace with that.
    storage.stop_serving();
    daemon.ok(&["unprotect", MACHINE]);
    daemon.ok(&[&protect[..], &["--ack", "durable"]].concat());
    let info = daemon.json(&["info", MACHINE]);
    assert_eq!(pace(&info), json!(["durable", true, 100, true]));
    daemon.stop();
}
