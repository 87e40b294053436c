//! Whoever asks: programs of a drill run as the user who asked for it; and a plan takes its machines over as a group.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    drill::{self, Actor, traces},
    epoch_ns,
    guest::Guest,
    must, needs_libvirt, program, run, unique, wait_for,
};

/// A user without any rights, and the group that may use this daemon.
const USER: &str = "nobody";
const GROUP: &str = "nogroup";

/// A daemon whose socket belongs to that group.
fn daemon_for_others() -> Daemon {
    let mut daemon = Daemon::start();
    daemon.reconfigure(|text| format!("socket_group = '{GROUP}'\n{text}"));
    daemon
}

/// A directory of that user.
fn dir_of_user(daemon: &Daemon) -> String {
    let dir = daemon.dir.join("theirs");
    fs::create_dir(&dir).expect("a directory");
    let dir = dir.display().to_string();
    must("chown", &[&format!("{USER}:{GROUP}"), &dir]);
    dir
}

#[test]
fn programs_of_a_drill_run_as_the_user_who_asks_for_it() {
    if !needs_libvirt() {
        return;
    }
    let daemon = daemon_for_others();
    let actor = Actor::start(&daemon, "asked", &[]);
    let name = actor.name();
    let point = actor.point(&daemon, "true");
    let theirs = dir_of_user(&daemon);
    // What only root can read, and a program of theirs that tells who it is and looks at the disk.
    let secret = daemon.dir.join("secret");
    fs::write(&secret, "secret").expect("a secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("its mode");
    let script = format!("{theirs}/script");
    let text = format!(
        "#!/bin/sh\necho \"as $(id -un) in $(id -Gn), home $(pwd)\"\ncat {} && exit 9\n\
         ls /proc/self/fd | wc -l\nnbdinfo --size \"$VIRT_CDP_VIEW_vda\" || exit 8\n\
         nbdcopy \"$VIRT_CDP_VIEW_vda\" - | dd bs=1 skip=1080 count=2 status=none | od -An -tx1 | grep '53 ef'\n",
        secret.display()
    );
    fs::write(&script, text).expect("a program");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    // The program may lie where they cannot look.
    let copy = daemon.dir.join("virt-cdp");
    fs::copy(program(), &copy).expect("a copy of the program");
    let before = traces(&daemon, &[name]);
    let as_user = |arguments: &[&str]| {
        let (copy, socket) = (
            copy.display().to_string(),
            daemon.socket().display().to_string(),
        );
        let who = [
            "--reuid",
            USER,
            "--regid",
            GROUP,
            "--clear-groups",
            "--",
            &copy,
            "-c",
            &socket,
        ];
        run("setpriv", &[&who, arguments].concat())
    };
    let check = format!("script:{script}");
    let ran = as_user(&[
        "--json",
        "drill-run",
        name,
        "--at",
        &point,
        "--ready",
        "running",
        "--check",
        &check,
    ]);
    assert!(ran.ok, "{ran:?}");
    let told: Value = serde_json::from_str(&ran.out).expect("JSON");
    let report = drill::report(&daemon, &told["drills"][0]);
    assert_eq!(report["asked_by"], USER, "{report}");
    let output = report["machines"][0]["checks"][0]["attempts"][0]["output"].to_string();
    assert!(
        output.contains(&format!("as {USER} in {GROUP}, home /")),
        "{output}"
    );
    assert!(output.contains("Permission denied"), "{output}");

    // The same for a search; and a plan of theirs cannot have root's files read for them.
    let ran = as_user(&[
        "--json", "bisect", name, "--from", &point, "--to", &point, "--script", &script,
    ]);
    assert!(ran.ok, "{ran:?}");
    let told: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(told["newest_good"]["id"].to_string(), point, "{told}");
    let closed = daemon.dir.join("closed");
    fs::write(&closed, "#!/bin/sh\n").expect("a program");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("its mode");
    let check = format!("script:{}", closed.display());
    let ran = as_user(&[
        "drill-run",
        name,
        "--at",
        &point,
        "--ready",
        "running",
        "--check",
        &check,
    ]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("permission denied"), "{ran:?}");
    drill::wait_nothing_left(&daemon, &[name], &before);
}

#[test]
fn a_plan_takes_its_machines_over_at_one_moment_all_of_them_or_none() {
    if !needs_libvirt() {
        return;
    }
    let daemon = Daemon::start();
    let (store, shop) = (
        Actor::start(&daemon, "store", &[]),
        Actor::start(&daemon, "shop", &[]),
    );
    let names = [store.name(), shop.name()];
    store.point(&daemon, "echo old");
    let of_moment = shop.point(&daemon, "echo old");
    let all = daemon.json(&["point-list", names[1]]);
    let made = all["points"].as_array().expect("points").iter();
    let made = made
        .clone()
        .find(|one| one["id"].as_u64() == of_moment.parse().ok());
    let moment = made.expect("the point")["time"]
        .as_str()
        .expect("a time")
        .to_owned();
    store.point(&daemon, "echo new");
    shop.point(&daemon, "echo new");
    let file = daemon.dir.join("group.toml");
    let plan = format!(
        "[[machine]]\nname = '{}'\nafter = ['{}']\nmemory = '192MiB'\n[[machine]]\nname = '{}'\n",
        names[1], names[0], names[0]
    );
    fs::write(&file, plan).expect("a plan");
    let file = file.display().to_string();
    let prefix = unique("group");
    let before = traces(&daemon, &[names[0], names[1], &prefix]);

    // Nobody can have the second name: then there is no first one either.
    let taken = format!("{prefix}-{}", names[1]);
    let other = Guest::start(&taken, &[("qcow2", 16 << 20)]);
    daemon.refused(
        &["takeover", &file, "--at", &moment, "--name", &prefix],
        "already",
    );
    assert_eq!(
        daemon.json(&["takeover-list"])["takeovers"],
        serde_json::json!([])
    );
    drop(other);
    drill::wait_nothing_left(&daemon, &[names[0], names[1], &prefix], &before);
    let ran = daemon.cli(&["takeover", &file, "--at", &moment, "--memory", "1GiB"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("the plan says"), "{ran:?}");

    let reply = daemon.json(&[
        "takeover",
        &file,
        "--at",
        &moment,
        "--name",
        &prefix,
        "--network",
        "none",
    ]);
    let all = reply["takeovers"].as_array().expect("takeovers").iter();
    let made: Vec<&Value> = all.map(|one| &one["takeover"]).collect();
    let text = |at: usize, key: &str| made[at][key].as_str().expect("a text").to_owned();
    assert_eq!(made.len(), 2, "{reply}");
    assert_eq!(
        [text(0, "machine"), text(1, "machine")],
        names.map(str::to_owned),
        "in order"
    );
    let until = epoch_ns(&moment).expect("a time");
    for (at, name) in names.iter().enumerate() {
        assert_eq!(text(at, "name"), format!("{prefix}-{name}"));
        let time = made[at]["point"]["time"]
            .as_str()
            .and_then(epoch_ns)
            .expect("a time");
        assert!(time <= until && until - time < 5_000_000_000, "{reply}");
        let copy = Guest::adopted(&text(at, "name"));
        copy.wait_ready();
        let said = copy.sh("mount /dev/vda /mnt; cat /mnt/boot.sh");
        assert_eq!(said.trim(), "echo old");
        let kib = if at == 1 { "196608" } else { "" };
        let info = copy.virsh(&["dominfo", &copy.name]);
        let line = info
            .lines()
            .find(|line| line.starts_with("Max memory"))
            .expect("its memory");
        assert!(line.contains(kib), "{info}");
        daemon.ok(&["takeover-discard", &copy.name]);
    }
    drill::wait_nothing_left(&daemon, &[names[0], names[1], &prefix], &before);

    // Ctrl-C while the second waits for its turn: there is no first one either.
    let plan = format!(
        "[[machine]]\nname = '{}'\nafter = ['{}']\ndelay = '10m'\n[[machine]]\nname = '{}'\n",
        names[1], names[0], names[0]
    );
    fs::write(&file, plan).expect("a plan");
    let mut child = std::process::Command::new(program())
        .arg("-c")
        .arg(daemon.socket())
        .args(["takeover", &file, "--at", &moment, "--name", &prefix])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("virt-cdp starts");
    let made = || daemon.json(&["takeover-list"])["takeovers"].clone();
    wait_for("the first is there", Duration::from_secs(30), || {
        let made = made();
        let is_there = made[0]["state"] == "running";
        is_there.then_some(()).ok_or_else(|| made.to_string())
    });
    must("kill", &["-INT", &child.id().to_string()]);
    assert_eq!(child.wait().expect("its status").code(), Some(1));
    assert_eq!(made(), serde_json::json!([]));
    drill::wait_nothing_left(&daemon, &[names[0], names[1], &prefix], &before);
}
