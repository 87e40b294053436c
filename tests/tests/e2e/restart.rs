//! The daemon is killed: the guest goes on, what was kept is right, protection returns by itself.

use std::{
    thread,
    time::{Duration, Instant},
};

use virt_cdp_tests::{
    daemon::Daemon, guest::Guest, must, needs_libvirt, proof::newest_equals, run, unique, wait_for,
};

const SOON: Duration = Duration::from_secs(60);

/// The longest single write of a guest's load, in ms, as `wload` prints it.
pub(crate) fn longest_ms(out: &str) -> u64 {
    let word = out
        .split_whitespace()
        .find_map(|w| w.strip_prefix("max_us="))
        .unwrap_or_else(|| panic!("{out}"));
    word.parse::<u64>().expect("a number") / 1000
}

#[test]
fn killed_during_the_seed_it_seeds_again() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("seed");
    let guest = Guest::start(&name, &[("qcow2", 512 << 20)]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=256 oflag=direct");
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name, "--no-wait"]);
    // A load all the while: the stream has to win over what is read.
    let load = {
        let name = name.clone();
        thread::spawn(move || {
            Guest::existing(&name).sh("wload /dev/vda --seconds 8 --size-mib 128")
        })
    };
    daemon.kill();
    thread::sleep(Duration::from_secs(1));
    daemon.start_again();
    let out = load.join().expect("the guest's load went well");
    eprintln!(
        "longest write over the crash during the seed: {} ms",
        longest_ms(&out)
    );
    daemon.wait_state(&name, "protected", SOON);
    newest_equals(&daemon, &guest, &name);
    assert_eq!(
        daemon.json(&["status"])["problems"]
            .as_array()
            .map(Vec::len),
        Some(0)
    );
}

#[test]
fn killed_during_writes_old_points_stay_right_and_protection_returns() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("kill");
    let guest = Guest::start(&name, &[("qcow2", 64 << 20)]);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/zero bs=1M count=8 | tr '\\0' 'A' | dd of=/dev/vda bs=1M oflag=direct iflag=fullblock");
    let old = daemon.json(&["point-create", &name, "--label", "all A"]);
    let load = {
        let name = name.clone();
        thread::spawn(move || {
            Guest::existing(&name).sh("wload /dev/vda --seconds 12 --size-mib 32")
        })
    };
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(1500));
        daemon.kill();
        thread::sleep(Duration::from_millis(300));
        daemon.start_again();
        daemon.wait_state(&name, "protected", SOON);
    }
    let out = load.join().expect("the guest's load went well");
    eprintln!("longest write over three crashes: {} ms", longest_ms(&out));
    newest_equals(&daemon, &guest, &name);

    // The old point: eight MiB of A, nothing else.
    let dir = daemon.dir.join("export");
    let path = dir.display().to_string();
    daemon.ok(&["export", &name, "--at", &old["id"].to_string(), &path]);
    let image = dir.join("vda.qcow2").display().to_string();
    let same = run(
        "qemu-io",
        &[
            "-r",
            "-f",
            "qcow2",
            "-c",
            "read -P 0x41 0 8M",
            "-c",
            "read -P 0 8M 56M",
            &image,
        ],
    );
    assert!(
        same.ok && !same.out.contains("verification failed"),
        "{}",
        same.out
    );
    let gaps = daemon.json(&["info", &name])["gaps"].clone();
    assert_eq!(
        gaps.as_array().map(Vec::len),
        Some(6),
        "every crash is a gap, and every resync: {gaps}"
    );
    assert!(
        gaps.as_array()
            .expect("gaps")
            .iter()
            .all(|g| !g["end"].is_null()),
        "and all are closed: {gaps}"
    );
}

#[test]
fn killed_during_an_export_nothing_half_is_left_and_it_works_again() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("exp");
    let guest = Guest::start(&name, &[("qcow2", 512 << 20)]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=256 oflag=direct");
    guest.flush();
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let dir = daemon.dir.join("export");
    let path = dir.display().to_string();
    let point = daemon.json(&["info", &name])["newest_point"]["id"].to_string();
    let mut export = std::process::Command::new(virt_cdp_tests::program())
        .args([
            "-c",
            daemon.socket().to_str().expect("plain"),
            "export",
            &name,
            "--at",
            &point,
            &path,
        ])
        .spawn()
        .expect("virt-cdp");
    wait_for("the export is under way", SOON, || {
        let half = std::fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .any(|e| e.metadata().is_ok_and(|m| m.len() > 0));
        if half {
            Ok(())
        } else {
            Err("nothing there".into())
        }
    });
    daemon.kill();
    assert!(
        !export.wait().expect("it ends").success(),
        "the client says that it failed"
    );
    assert!(!dir.join("vda.qcow2").exists(), "nothing that looks whole");
    guest.sh("true");
    daemon.start_again();
    daemon.wait_state(&name, "protected", SOON);
    daemon.ok(&["export", &name, "--at", &point, &path]);
    let image = dir.join("vda.qcow2").display().to_string();
    must("qemu-img", &["check", &image]);
    must(
        "qemu-img",
        &[
            "compare",
            "-U",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            guest.image(0).to_str().expect("plain"),
            &image,
        ],
    );
}

#[test]
fn a_clean_stop_detaches_and_a_second_daemon_is_refused() {
    if !needs_libvirt() {
        return;
    }
    let name = unique("stop");
    let guest = Guest::start(&name, &[("qcow2", 32 << 20)]);
    let mut daemon = Daemon::start();
    daemon.ok(&["protect", &name]);
    let second = run(
        virt_cdp_tests::program().to_str().expect("plain"),
        &[
            "daemon",
            "--config",
            daemon.dir.join("virtcdpd.toml").to_str().expect("plain"),
        ],
    );
    assert!(
        !second.ok && second.err.contains(&daemon.pid().to_string()),
        "it names the first: {}",
        second.err
    );
    let began = Instant::now();
    daemon.stop();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    let jobs = guest.virsh(&[
        "qemu-monitor-command",
        &name,
        "{\"execute\":\"query-block-jobs\"}",
    ]);
    assert!(
        jobs.contains("\"return\":[]"),
        "nothing of ours is left in QEMU: {jobs}"
    );
    let nodes = guest.virsh(&[
        "qemu-monitor-command",
        &name,
        "{\"execute\":\"query-named-block-nodes\"}",
    ]);
    assert!(!nodes.contains("vcdp-"), "no node either");
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=4k count=10 oflag=direct");
    daemon.start_again();
    daemon.wait_state(&name, "protected", SOON);
    newest_equals(&daemon, &guest, &name);
}
