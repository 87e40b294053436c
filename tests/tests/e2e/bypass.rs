//! Whatever holds the daemon up, the guest goes on within the bypass deadline; an upgrade it does not see at all.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use qemu_hook::monitor::Monitor;
use serde_json::{Value, json};
use virt_cdp_tests::{
    HangingFs, daemon::Daemon, guest::Guest, must, nbd::Writer, needs, needs_libvirt,
    proof::newest_equals, random::Random, run, storage_daemon::StorageDaemon, unique, wait_for,
};

use crate::{restart::longest_ms, resync::exact_at_the_end};

const SOON: Duration = Duration::from_secs(60);
/// The bypass deadline and what is allowed on top of it, in ms.
const BOUND_MS: u64 = 1300;

/// What is said while the harbor's disk hangs.
const DISK_SILENT: &str = "the harbor's disk does not answer";

/// A guest that writes for `seconds`; the answer is its longest write in ms. It fails if a write does.
fn load(name: &str, seconds: u32) -> JoinHandle<u64> {
    let name = name.to_owned();
    thread::spawn(move || {
        let out =
            Guest::existing(&name).sh(&format!("wload /dev/vda --seconds {seconds} --size-mib 32"));
        longest_ms(&out)
    })
}

fn guards_of(daemon: &Daemon) -> Vec<String> {
    let socket = daemon.dir.join("run/private/guard.sock");
    let ran = run(
        "pgrep",
        &["-f", &format!("virtcdp-guard {}", socket.display())],
    );
    ran.out.split_whitespace().map(str::to_owned).collect()
}

/// The names of a process's threads, of which the kernel keeps 15 characters.
fn threads_of(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).collect()
}

fn gaps(daemon: &Daemon, name: &str) -> Vec<String> {
    let info = daemon.json(&["info", name]);
    let gaps = info["gaps"].as_array().expect("gaps").iter();
    gaps.map(|gap| gap["reason"].as_str().expect("a reason").to_owned())
        .collect()
}

#[test]
fn a_daemon_that_is_stopped_while_it_attaches_holds_nobody_up() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("attach");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20), ("raw", 16 << 20)]);
    let daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let signal = |signal: &str| must("kill", &[signal, &daemon.pid().to_string()]);
    for round in 0..4 {
        daemon.ok(&["suspend", &name]);
        let writing = load(&name, 4);
        thread::sleep(Duration::from_millis(400));
        thread::scope(|scope| {
            scope.spawn(|| daemon.cli(&["resume", &name]));
            // Its thread is there just before QEMU is told to open the tap, and waits for the handshake.
            while !threads_of(daemon.pid())
                .iter()
                .any(|name| name.starts_with("tap-vcdp"))
            {
                std::hint::spin_loop();
            }
            signal("-STOP");
            thread::sleep(Duration::from_millis(2000));
            signal("-CONT");
        });
        let longest = writing.join().expect("the guest's load went well");
        eprintln!("round {round}: {longest} ms");
        assert!(longest < BOUND_MS, "round {round}: {longest} ms");
        daemon.wait_state(&name, "protected", SOON);
    }
    newest_equals(&daemon, &guest, &name);
}

#[test]
fn a_stopped_daemon_holds_the_guest_up_no_longer_than_the_deadline() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("stop");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20)]);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let old = daemon.json(&["point-create", &name, "--label", "before"]);

    let writing = load(&name, 7);
    thread::sleep(Duration::from_millis(500));
    must("kill", &["-STOP", &daemon.pid().to_string()]);
    thread::sleep(Duration::from_secs(3));
    must("kill", &["-CONT", &daemon.pid().to_string()]);
    // It says so as soon as it can: why the taps are gone is found out later.
    thread::sleep(Duration::from_millis(500));
    let info = daemon.json(&["info", &name]);
    let known = info["gaps"].to_string().contains("tap-lost");
    assert!(known || info["state"] == "retrying", "{info}");
    let longest = writing.join().expect("the guest's load went well");
    eprintln!("longest write while the daemon was stopped: {longest} ms");
    assert!(longest < BOUND_MS, "{longest} ms");
    wait_for("the gap is known", SOON, || {
        let gaps = gaps(&daemon, &name);
        let known = gaps.iter().any(|gap| gap == "tap-lost");
        if known {
            Ok(())
        } else {
            Err(format!("{gaps:?}"))
        }
    });
    daemon.wait_state(&name, "protected", SOON);

    // Another guard takes the place of one that ends, and does the same.
    let first = guards_of(&daemon);
    assert_eq!(first.len(), 1, "{first:?}");
    must("kill", &["-KILL", &first[0]]);
    wait_for("another guard", Duration::from_secs(5), || {
        let now = guards_of(&daemon);
        if now.len() == 1 && now != first {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    let writing = load(&name, 4);
    thread::sleep(Duration::from_secs(1));
    must("kill", &["-STOP", &daemon.pid().to_string()]);
    let longest = writing.join().expect("the guest's load went well");
    must("kill", &["-CONT", &daemon.pid().to_string()]);
    assert!(longest < BOUND_MS, "{longest} ms");
    wait_for("the second gap is known", SOON, || {
        let gaps = gaps(&daemon, &name);
        let lost = gaps.iter().filter(|gap| *gap == "tap-lost").count();
        if lost == 2 {
            Ok(())
        } else {
            Err(format!("{gaps:?}"))
        }
    });
    daemon.wait_state(&name, "protected", SOON);
    newest_equals(&daemon, &guest, &name);
    let points = daemon.json(&["point-list", &name]);
    assert!(
        points
            .to_string()
            .contains(&format!("\"id\":{}", old["id"]))
    );
    daemon.stop();
    wait_for(
        "the guard ends with its daemon",
        Duration::from_secs(5),
        || {
            if guards_of(&daemon).is_empty() {
                Ok(())
            } else {
                Err("it is there".into())
            }
        },
    );
}

#[test]
fn an_upgrade_takes_the_taps_over_and_makes_no_gap() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("upgr");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20)]);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let gaps_before = gaps(&daemon, &name);
    let jobs = || {
        guest.virsh(&[
            "qemu-monitor-command",
            &name,
            "{\"execute\":\"query-block-jobs\"}",
        ])
    };
    assert!(jobs().contains("mirror"));

    let writing = load(&name, 8);
    for round in 1..=3 {
        thread::sleep(Duration::from_millis(1500));
        let started = daemon.json(&["status"])["started"].to_string();
        must("kill", &["-HUP", &daemon.pid().to_string()]);
        wait_for("the daemon serves anew", SOON, || {
            let ran = daemon.cli(&["--json", "status"]);
            if ran.ok && !ran.out.contains(&started) {
                Ok(())
            } else {
                Err(ran.err)
            }
        });
        // Taken over, not attached again: there would be a gap.
        daemon.wait_state(&name, "protected", Duration::from_secs(5));
        assert_eq!(gaps(&daemon, &name), gaps_before, "round {round}");
    }
    let longest = writing.join().expect("the guest's load went well");
    eprintln!("longest write over three upgrades: {longest} ms");
    assert!(longest < BOUND_MS, "{longest} ms");
    assert_eq!(gaps(&daemon, &name), gaps_before);
    assert!(jobs().contains("mirror"));
    newest_equals(&daemon, &guest, &name);

    // A configuration that is wrong keeps the daemon as it is.
    let config = daemon.dir.join("virtcdpd.toml");
    let right = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, format!("{right}\n[no-such-table]\n")).expect("written");
    must("kill", &["-HUP", &daemon.pid().to_string()]);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(daemon.json(&["info", &name])["state"], "protected");
    std::fs::write(&config, right).expect("written");
    daemon.stop();
}

#[test]
fn a_disk_that_hangs_is_an_overload_and_no_burden_to_the_guest() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("hang");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20)]);
    let mut daemon = Daemon::start();
    let disk = HangingFs::mount(&daemon.harbors(), &daemon.dir.join("harbors.img"), 700);
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct");
    let old = daemon.json(&["point-create", &name, "--label", "before"]);

    // Nobody is kept waiting for long, whatever is asked; the guest writes little meanwhile, and nothing is overdue.
    disk.hang();
    let writing = load(&name, 2);
    let asked = Instant::now();
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            daemon.refused(&["point-create", &name, "--label", "lost"], DISK_SILENT);
        });
        thread::sleep(Duration::from_millis(500));
        at_once(|| daemon.json(&["info", &name]));
        asking.join().expect("it is refused");
    });
    assert!(asked.elapsed() < Duration::from_secs(8), "{asked:?}");
    let longest = writing.join().expect("the guest's load went well");
    assert!(longest < BOUND_MS, "{longest} ms");

    // More than the IO buffer holds.
    let begun = Instant::now();
    guest.sh("for i in 1 2 3; do dd if=/dev/urandom of=/dev/vda bs=1M count=60 oflag=direct || exit 1; done");
    eprintln!(
        "180 MiB while the harbor's disk hung: {:?}",
        begun.elapsed()
    );
    let longest = load(&name, 2).join().expect("the guest's load went well");
    assert!(longest < BOUND_MS, "{longest} ms");
    let info = at_once(|| daemon.json(&["info", &name]));
    assert_eq!(info["state"], "retrying", "{info}");
    let asked = Instant::now();
    daemon.refused(&["suspend", &name], DISK_SILENT);
    assert!(asked.elapsed() < Duration::from_secs(12), "{asked:?}");
    at_once(|| daemon.refused(&["point-create", &name], "retrying"));

    // What was wanted meanwhile is followed.
    disk.answer();
    daemon.wait_state(&name, "suspended", SOON);
    daemon.ok(&["resume", &name]);
    daemon.wait_state(&name, "protected", SOON);
    let reasons = gaps(&daemon, &name);
    assert!(reasons.iter().any(|gap| gap == "overload"), "{reasons:?}");
    newest_equals(&daemon, &guest, &name);
    let points = daemon.json(&["point-list", &name]);
    assert!(
        points
            .to_string()
            .contains(&format!("\"id\":{}", old["id"]))
    );
    daemon.stop();
}

/// Asks what has to be answered without waiting for any disk.
fn at_once<T>(ask: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let answer = ask();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "answered after {took:?}");
    answer
}

#[test]
fn a_daemon_whose_disk_hangs_ends_when_it_is_told_to() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("term");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20)]);
    let mut daemon = Daemon::start();
    let disk = HangingFs::mount(&daemon.harbors(), &daemon.dir.join("harbors.img"), 700);
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct");
    disk.hang();
    let writing = load(&name, 14);
    thread::sleep(Duration::from_secs(1));
    let pid = daemon.pid().to_string();
    must("kill", &["-TERM", &pid]);
    // The kernel keeps the threads that the disk holds; the process itself has ended.
    wait_for("it has ended", Duration::from_secs(10), || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        match stat.rsplit_once(") ").map(|(_, rest)| rest) {
            Some(rest) if !rest.starts_with('Z') => Err(stat),
            _ => Ok(()),
        }
    });
    let longest = writing.join().expect("the guest's load went well");
    eprintln!("longest write while the daemon ended: {longest} ms");
    assert!(longest < BOUND_MS, "{longest} ms");
    disk.answer();
    daemon.stop();
    daemon.start_again();
    daemon.wait_state(&name, "protected", SOON);
    newest_equals(&daemon, &guest, &name);
    daemon.stop();
}

/// QEMU 10.0.2 lets go of what a mirror's writes under way still use, when it ends a mirror that failed.
#[test]
fn a_tap_lost_while_writes_wait_for_the_disk_does_not_bring_qemu_down() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    // So large that QEMU's list of chunks under way is given back to the system when it is freed.
    let mut storage = StorageDaemon::start(&[("raw", 16 << 30)]);
    let control = |command: &str, arguments: Value| {
        let done = storage.control().execute(command, arguments);
        done.expect("the storage daemon does it");
    };
    control(
        "object-add",
        json!({"qom-type": "throttle-group", "id": "pace"}),
    );
    control(
        "blockdev-add",
        json!({"driver": "throttle", "node-name": "slow", "throttle-group": "pace", "file": "disk0"}),
    );
    let mut daemon = Daemon::start();
    let name = unique("uaf");
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&["protect", &name, "--qmp", &qmp, "--node", "slow"]);
    for (seed, round) in (1..).zip(["killed", "stopped", "suspended"].repeat(2)) {
        daemon.wait_state(&name, "protected", SOON);
        let jobs = || {
            let jobs = storage.control().execute("query-block-jobs", json!(null));
            jobs.expect("the jobs")[0].clone()
        };
        assert_eq!(jobs()["status"], "standby", "{}", jobs());
        assert_eq!(jobs()["actively-synced"], true, "{}", jobs());
        let socket = storage.serve(1);
        control(
            "qom-set",
            json!({"path": "/objects/pace", "property": "limits", "value": {"iops-total": 20}}),
        );
        let writing = thread::spawn(move || {
            // No place twice: what is missed is never put right by a later write.
            let mut random = Random(seed);
            let mut writer = Writer::connect(&socket, "disk0", 64, seed << 16);
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                writer.write(random.below(4 << 20) << 12, 4096, |id| {
                    vec![id as u8 | 1; 4096]
                });
            }
            writer.finish().len()
        });
        thread::sleep(Duration::from_secs(1));
        match round {
            "killed" => daemon.kill(),
            "stopped" => drop(must("kill", &["-STOP", &daemon.pid().to_string()])),
            _ => drop(daemon.ok(&["suspend", &name])),
        }
        let writes = writing.join().expect("QEMU stays and no write fails");
        eprintln!("{round}: {writes} writes");
        assert!(writes > 64, "{writes} writes: none waited");
        if round != "suspended" {
            assert_eq!(jobs()["actively-synced"], false, "{}", jobs());
        }
        control(
            "qom-set",
            json!({"path": "/objects/pace", "property": "limits", "value": {"iops-total": 0}}),
        );
        storage.stop_serving();
        match round {
            "killed" => daemon.start_again(),
            "stopped" => drop(must("kill", &["-CONT", &daemon.pid().to_string()])),
            _ => drop(daemon.ok(&["resume", &name])),
        }
    }
    daemon.wait_state(&name, "protected", SOON);
    exact_at_the_end(&daemon, &mut storage, &name);
}
