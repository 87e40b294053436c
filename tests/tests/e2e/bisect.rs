//! The newest good point is found with few probes, also by a search that was broken off.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    drill::{self, Actor, Network, has_address, traces},
    nbd::Writer,
    needs, needs_libvirt, program, run,
    storage_daemon::StorageDaemon,
    wait_for,
};

const MACHINE: &str = "counted";
/// How many points there are; the first number of them is good.
const POINTS: u8 = 60;
const GOOD: u8 = 37;

/// A program that finds a point good up to [`GOOD`], and notes what it looked at; it takes half a second where `slow` is.
struct Script {
    path: String,
    log: PathBuf,
    slow: PathBuf,
}

impl Script {
    fn write(daemon: &Daemon) -> Self {
        let (log, slow) = (daemon.dir.join("probes"), daemon.dir.join("slow"));
        let path = daemon.dir.join("script");
        let text = format!(
            "#!/bin/sh\nset -e\n[ ! -e {slow} ] || sleep 0.5\n\
            n=$(nbdcopy \"$VIRT_CDP_VIEW_disk0\" - | head -c 1 | od -An -tu1 | tr -d ' ')\n\
            echo \"$n\" >>{log}\n[ \"$n\" -le {GOOD} ]\n",
            slow = slow.display(),
            log = log.display()
        );
        fs::write(&path, text).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        Self {
            path: path.display().to_string(),
            log,
            slow,
        }
    }

    /// The numbers that were looked at since it was asked last.
    fn looked_at(&self) -> Vec<u8> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let _ = fs::remove_file(&self.log);
        // The disk goes while it is read where the daemon is killed.
        let read = text.lines().filter(|line| !line.is_empty());
        read.map(|line| line.parse().expect("a number")).collect()
    }

    fn wait_looked(&self, times: usize) {
        wait_for("some probes", Duration::from_secs(20), || {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            (text.lines().count() >= times).then_some(()).ok_or(text)
        });
    }
}

/// Begins a search in the background.
fn begin(daemon: &Daemon, arguments: &[&str]) -> Child {
    let child = Command::new(program())
        .arg("-c")
        .arg(daemon.socket())
        .arg("bisect")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.expect("virt-cdp starts")
}

fn remembered(found: &Value) -> usize {
    let probes = found["probes"].as_array().expect("probes").iter();
    probes.filter(|probe| probe["remembered"] == true).count()
}

#[test]
fn a_script_on_views_finds_the_newest_good_point_and_a_broken_search_goes_on() {
    if !needs(&["qemu-storage-daemon", "qemu-img", "nbdcopy"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 1 << 20)]);
    let mut daemon = Daemon::start_with("[capture]\npoint_interval = '1h'");
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&["protect", MACHINE, "--qmp", &qmp, "--node", "disk0"]);
    let socket = storage.serve(1);
    let mut ids = Vec::new();
    for number in 1..=POINTS {
        let mut writer = Writer::connect(&socket, "disk0", 1, u64::from(number));
        writer.write(0, 4096, |_| vec![number; 4096]);
        writer.finish();
        ids.push(drill::point(&daemon, MACHINE));
    }
    let script = Script::write(&daemon);
    let (first, last) = (ids[0].as_str(), ids[ids.len() - 1].as_str());
    let of_all = [
        MACHINE,
        "--from",
        first,
        "--to",
        last,
        "--script",
        &script.path,
    ];
    let search = |more: &[&str]| {
        let found = daemon.json(&[&["bisect"], of_all.as_slice(), more].concat());
        assert_eq!(found["points"], u64::from(POINTS), "{found}");
        assert_eq!(
            found["newest_good"]["id"].to_string(),
            ids[usize::from(GOOD) - 1],
            "{found}"
        );
        assert_eq!(
            found["oldest_bad"]["id"].to_string(),
            ids[usize::from(GOOD)],
            "{found}"
        );
        found
    };
    let found = search(&[]);
    let looked = script.looked_at();
    assert!(looked.len() <= 6, "{looked:?}");
    assert_eq!(found["probes"].as_array().map(Vec::len), Some(looked.len()));
    assert_eq!(remembered(&found), 0);
    search(&["--parallel", "2"]);
    assert!(script.looked_at().len() <= 8, "two at once divide by three");

    // Nothing is good, or everything.
    let good = &ids[usize::from(GOOD) - 1];
    let bad = &ids[usize::from(GOOD)];
    let ran = daemon.cli(&[
        "bisect",
        MACHINE,
        "--from",
        bad,
        "--to",
        last,
        "--script",
        &script.path,
    ]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let all = daemon.json(&[
        "bisect",
        MACHINE,
        "--from",
        first,
        "--to",
        good,
        "--script",
        &script.path,
    ]);
    assert_eq!(
        (&all["newest_good"]["id"].to_string(), &all["oldest_bad"]),
        (good, &Value::Null)
    );
    script.looked_at();

    // A program that does not run says nothing of any point.
    let mute = daemon.dir.join("mute").display().to_string();
    fs::write(&mute, "#!/bin/sh\n").expect("a file");
    let mut of_mute = of_all;
    of_mute[6] = &mute;
    let ran = daemon.cli(&[&["bisect"], of_mute.as_slice()].concat());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.err.contains("8 points in a row could not be looked at"),
        "{ran:?}"
    );

    // Ctrl-C, and then a crash of the daemon: what was found is remembered.
    fs::write(&script.slow, "").expect("a mark");
    let mut child = begin(&daemon, &of_all);
    script.wait_looked(2);
    run("kill", &["-INT", &child.id().to_string()]);
    assert_eq!(child.wait().expect("its status").code(), Some(1));
    let before = script.looked_at();
    let mut child = begin(&daemon, &of_all);
    script.wait_looked(1);
    // Noted a moment after it was looked at.
    std::thread::sleep(Duration::from_millis(300));
    daemon.kill();
    child.wait().expect("its status");
    let between = script.looked_at();
    storage.stop_serving();
    daemon.start_again();
    fs::remove_file(&script.slow).expect("the mark");
    let found = {
        let found = daemon.json(&[&["bisect"], of_all.as_slice()].concat());
        assert_eq!(
            found["newest_good"]["id"].to_string(),
            ids[usize::from(GOOD) - 1],
            "{found}"
        );
        found
    };
    let after = script.looked_at();
    assert!(remembered(&found) >= 2, "{found}");
    assert!(after.len() <= 4, "{before:?}, {between:?}, {after:?}");
    let views = daemon.json(&["view-list"]);
    assert_eq!(views["views"].as_array().map(Vec::len), Some(0), "{views}");
    daemon.stop();
}

#[test]
fn drills_find_the_newest_point_that_answers() {
    if !needs_libvirt() {
        return;
    }
    let daemon = Daemon::start_with("[capture]\npoint_interval = '1h'");
    // Its address can only be learnt from what it asks for: nobody knows its network, and it has no agent.
    let network = Network::without_host();
    let actor = Actor::start(&daemon, "bisected", &["--network", &network.name]);
    let up = |more: &str| {
        format!(
            "{}; {more}; ping -c 1 -W 1 {}",
            has_address(&network.address(95)),
            network.address(1)
        )
    };
    let first = actor.point(&daemon, &up("true"));
    let second = actor.point(&daemon, &up("echo second"));
    let third = actor.point(&daemon, "sleep 1; poweroff -f");
    let before = traces(&daemon, &[actor.name()]);
    let found = daemon.json(&[
        "bisect",
        actor.name(),
        "--from",
        &first,
        "--to",
        &third,
        "--check",
        "ping",
        "--parallel",
        "2",
    ]);
    assert_eq!(found["newest_good"]["id"].to_string(), second, "{found}");
    assert_eq!(found["oldest_bad"]["id"].to_string(), third, "{found}");
    let drills = daemon.json(&["drill-list"]);
    assert!(
        drills["drills"]
            .as_array()
            .expect("drills")
            .iter()
            .all(|one| one["reason"] == "bisect"),
        "{drills}"
    );
    drill::wait_nothing_left(&daemon, &[actor.name()], &before);
}
