//! Quiesced points with a real guest agent: what they hold, and that no guest is left frozen.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use virt_cdp_tests::{daemon::Daemon, guest::Guest, must, needs, needs_libvirt, unique, wait_for};

/// A guest with ext4 on its disk, mounted at `/a`, that writes to it all the time, and an agent that is not started.
fn guest(name: &str) -> Guest {
    let guest = Guest::start_with(name, &[("qcow2", 96 << 20)], &["--agent", "qemu-ga"]);
    guest.sh("mkfs.ext4 -q /dev/vda && mkdir -p /a && mount /dev/vda /a && sync");
    guest.sh("(while :; do echo row >>/a/rows; mkdir -p /a/d; rmdir /a/d; usleep 20000; done) >/dev/null 2>&1 </dev/null &");
    guest
}

/// Starts the agent, with a script that it runs at each freeze and thaw where one is given.
fn start_agent(guest: &Guest, hook: Option<&str>) {
    if let Some(hook) = hook {
        guest.sh(&format!(
            "printf '%s\\n' '#!/bin/sh' '{hook}' >/run/hook; chmod 755 /run/hook; \
             sed -i 's|-m virtio-serial|-F/run/hook -m virtio-serial|' /bin/start-qemu-ga"
        ));
    }
    guest.sh("start-qemu-ga");
    wait_for("the agent answers", Duration::from_secs(30), || {
        let ping = [
            "qemu-agent-command",
            &guest.name,
            r#"{"execute":"guest-ping"}"#,
        ];
        let mut all = vec!["-c", "qemu:///system"];
        all.extend(ping);
        let ran = virt_cdp_tests::run("virsh", &all);
        if ran.ok { Ok(()) } else { Err(ran.err) }
    });
}

/// The disk as it was at a point, as a raw file.
fn disk_at(daemon: &Daemon, name: &str, point: &Value) -> PathBuf {
    let view = daemon.json(&["view-open", name, "--at", &point["id"].to_string()]);
    let uri = view["volumes"][0]["uri"].as_str().expect("a URI");
    let raw = daemon.dir.join(format!("{}.raw", point["id"]));
    must(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "raw",
            uri,
            raw.to_str().expect("plain"),
        ],
    );
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    raw
}

/// Whether the file system has a journal that is to be replayed.
fn needs_recovery(raw: &Path) -> bool {
    let told = must("dumpe2fs", &["-h", raw.to_str().expect("plain")]);
    told.lines()
        .find(|line| line.starts_with("Filesystem features:"))
        .expect("features")
        .contains("needs_recovery")
}

/// Writes to the file system and has it on the disk; hangs while it is frozen.
fn write_through(guest: &Guest, deadline: Duration) -> Result<(), String> {
    match guest.try_run("echo written >/a/probe && sync", deadline)? {
        (0, _) => Ok(()),
        (code, out) => Err(format!("{code}: {out}")),
    }
}

fn no_gaps(daemon: &Daemon, name: &str) {
    let info = daemon.json(&["info", name]);
    assert_eq!(info["state"], "protected");
    assert_eq!(info["gaps"].as_array().map(Vec::len), Some(0), "{info}");
    let coverage = info["coverage"].as_array().expect("spans");
    assert_eq!(coverage.len(), 1, "{info}");
    assert_eq!(coverage[0]["kind"], "points", "{info}");
    assert_eq!(coverage[0]["points"], info["points"], "{info}");
}

#[test]
fn a_quiesced_point_needs_no_repair_and_a_crash_point_does() {
    if !needs_libvirt() || !needs(&["dumpe2fs", "e2fsck"]) {
        return;
    }
    let name = unique("quiet");
    let guest = guest(&name);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);

    // No agent runs in the guest yet.
    let began = Instant::now();
    let without = daemon.json(&["point-create", &name, "--quiesce"]);
    assert_eq!(without["grade"], "crash", "{without}");
    assert_eq!(without["frozen_ms"], 0, "{without}");
    assert!(
        without["note"]
            .as_str()
            .is_some_and(|n| n.contains("agent")),
        "{without}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );

    start_agent(&guest, None);
    let quiesced = daemon.json(&["point-create", &name, "--quiesce", "--label", "still"]);
    assert_eq!(quiesced["grade"], "quiesced", "{quiesced}");
    assert_eq!(quiesced["note"], "", "{quiesced}");
    let frozen_ms = quiesced["frozen_ms"].as_u64().expect("a number");
    eprintln!("file systems frozen for {frozen_ms} ms");
    assert!((1..5000).contains(&frozen_ms), "{quiesced}");
    write_through(&guest, Duration::from_secs(10)).expect("thawed again");
    let crash = daemon.json(&["point-create", &name]);
    assert_eq!(
        (&crash["grade"], &crash["note"]),
        (&"crash".into(), &"".into())
    );

    let still = disk_at(&daemon, &name, &quiesced);
    assert!(!needs_recovery(&still), "the file system is whole as it is");
    must("e2fsck", &["-fn", still.to_str().expect("plain")]);
    assert!(
        needs_recovery(&disk_at(&daemon, &name, &crash)),
        "the guest was writing: the test tells the two apart"
    );
    let listed = daemon.json(&["point-list", &name])["points"].clone();
    let kept = listed.as_array().expect("points").iter();
    assert_eq!(
        kept.filter(|p| p["grade"] == "quiesced").count(),
        1,
        "the grade is kept"
    );
    no_gaps(&daemon, &name);

    // An agent that hangs.
    guest.sh("kill -STOP $(pidof qemu-ga)");
    let began = Instant::now();
    let hung = daemon.json(&["point-create", &name, "--quiesce"]);
    eprintln!(
        "with an agent that hangs: {:?}: {}",
        began.elapsed(),
        hung["note"]
    );
    assert_eq!(
        (&hung["grade"], &hung["frozen_ms"]),
        (&"crash".into(), &0.into())
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    write_through(&guest, Duration::from_secs(10)).expect("nothing was frozen");
    guest.sh("kill -CONT $(pidof qemu-ga)");
    write_through(&guest, Duration::from_secs(10)).expect("and nothing is later");
    no_gaps(&daemon, &name);
}

#[test]
fn a_freeze_that_comes_too_late_is_thawed_and_so_is_one_whose_daemon_was_killed() {
    if !needs_libvirt() || !needs(&["pgrep"]) {
        return;
    }
    let name = unique("late");
    let guest = guest(&name);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    // The agent runs the hook before it freezes, and answers nobody meanwhile.
    start_agent(&guest, Some("[ $1 = freeze ] && sleep 6; exit 0"));

    let began = Instant::now();
    let late = daemon.json(&["point-create", &name, "--quiesce"]);
    eprintln!("a slow freeze: {:?}: {}", began.elapsed(), late["note"]);
    assert_eq!(late["grade"], "crash", "{late}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    let refused = daemon.json(&["point-create", &name, "--quiesce"]);
    assert_eq!(
        refused["grade"], "crash",
        "no second freeze on top: {refused}"
    );
    let marker = daemon.dir.join("state/frozen");
    let owed = || std::fs::read_dir(&marker).expect("a directory").count();
    wait_for(
        "the late freeze is thawed",
        Duration::from_secs(60),
        || match owed() {
            0 => Ok(()),
            n => Err(format!("{n} owed")),
        },
    );
    write_through(&guest, Duration::from_secs(10)).expect("thawed");
    no_gaps(&daemon, &name);

    // The daemon is killed while the agent is about to freeze: the watch that was started beside sees it.
    let of_ours = format!("thaw-watch {}", marker.display());
    // A freeze that is with the agent, and the watch over it: an agent that is busy with the one before refuses.
    let try_freeze = |daemon: &Daemon| {
        let call = {
            let (socket, name) = (daemon.socket(), name.clone());
            thread::spawn(move || {
                let program = virt_cdp_tests::program();
                let socket = socket.display().to_string();
                virt_cdp_tests::run(
                    program.to_str().expect("plain"),
                    &["-c", &socket, "point-create", &name, "--quiesce"],
                )
            })
        };
        let give_up = Instant::now() + Duration::from_secs(10);
        while owed() == 0 && !call.is_finished() && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(700));
        let found = virt_cdp_tests::run("pgrep", &["-f", &of_ours]).out;
        let watch = found.trim().to_owned();
        let open = virt_cdp_tests::run("ls", &["-l", &format!("/proc/{watch}/fd")]);
        if owed() == 1 && !watch.is_empty() && open.ok && !call.is_finished() {
            return Ok((call, watch, open.out));
        }
        let ran = call.join().expect("it ends");
        Err(format!("{}{}", ran.out, ran.err))
    };
    let frozen_by = |daemon: &mut Daemon, watch_too: bool| {
        let (call, watch, open) = wait_for("a freeze", Duration::from_secs(60), || {
            try_freeze(daemon).inspect_err(|why| eprintln!("no freeze yet: {why}"))
        });
        let watch = watch.as_str();
        assert!(
            open.lines().filter(|line| line.contains("socket:")).count() == 0,
            "the watch holds no tap: {open}"
        );
        if watch_too {
            must("kill", &["-KILL", watch]);
        }
        daemon.kill();
        assert!(!call.join().expect("it ends").ok, "the call was cut off");
    };
    let thawed = || match owed() {
        0 => Ok(()),
        n => Err(format!("{n} owed")),
    };
    frozen_by(&mut daemon, false);
    wait_for("the watch thaws", Duration::from_secs(40), thawed);
    write_through(&guest, Duration::from_secs(10)).expect("thawed without a daemon");
    daemon.start_again();
    daemon.wait_state(&name, "protected", Duration::from_secs(60));

    // And the watch with it, as when the host's memory is full: nobody is there to thaw.
    frozen_by(&mut daemon, true);
    let frozen = || match write_through(&guest, Duration::from_secs(1)) {
        Ok(()) => Err("it writes".into()),
        Err(_) => Ok(()),
    };
    wait_for("the guest is frozen", Duration::from_secs(30), frozen);
    assert_eq!(owed(), 1);
    daemon.start_again();
    write_through(&guest, Duration::from_secs(30)).expect("the next start thaws");
    wait_for("the marker goes", Duration::from_secs(20), thawed);
    daemon.wait_state(&name, "protected", Duration::from_secs(60));
}
