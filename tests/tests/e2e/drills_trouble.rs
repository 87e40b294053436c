//! Guests that misbehave, hands from outside, and a daemon that dies: every drill ends, says why, and leaves nothing.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    drill::{self, Actor, Network, drill_one, failed_checks, has_address, traces},
    must, needs_libvirt, program,
    random::Random,
    run, wait_for,
};

/// Writes a plan of one machine from a point; returns its path.
fn plan(daemon: &Daemon, what: &str, actor: &Actor, point: &str, rest: &str) -> String {
    let file = daemon.dir.join(format!("{what}.toml"));
    let plan = format!(
        "name = '{what}'\npoint = '{point}'\n[[machine]]\nname = '{}'\n{rest}",
        actor.name()
    );
    std::fs::write(&file, plan).expect("a plan");
    file.display().to_string()
}

#[test]
fn a_guest_that_misbehaves_ends_in_a_clear_report_in_bounded_time() {
    if !needs_libvirt() {
        return;
    }
    let daemon = Daemon::start();
    let network = Network::with_host();
    let actor = Actor::start(
        &daemon,
        "odd",
        &["--network", &network.name, "--agent", "qemu-ga"],
    );
    let address = network.address(80);
    let up = format!(
        "{}; ping -c 1 -W 1 {}",
        has_address(&address),
        network.address(1)
    );
    let silent = actor.point(&daemon, "true");
    let floods = actor.point(&daemon, &format!("{up}; while true; do yes 'a line without end or sense that a guest writes' | head -c 1000000; done"));
    let late = actor.point(&daemon, &format!("sleep 6; {up}"));
    let halts = actor.point(&daemon, &format!("{up}; sleep 2; poweroff -f"));
    let panics = actor.point(&daemon, "echo c >/proc/sysrq-trigger");
    let names = [actor.name()];
    let before = traces(&daemon, &names);

    let ping = "[[machine.check]]\ntype = 'ping'\n";
    let tcp = "[[machine.check]]\ntype = 'tcp'\nport = 9\n";
    let card = format!("[[machine.card]]\ncard = '0'\naddress = '{address}/24'\n");
    // Name, point, what the machine's plan says, exit code, what its report says, seconds it may take.
    let cases = [
        (
            "silent",
            &silent,
            format!("ready = 'ping'\nboot_deadline = '6s'\n{ping}"),
            3,
            "boot did not finish",
            20,
        ),
        (
            "floods",
            &floods,
            format!("ready = 'ping'\n{card}{ping}{tcp}deadline = '12s'\n"),
            3,
            "refused",
            60,
        ),
        (
            "late",
            &late,
            format!("ready = 'running'\n{ping}deadline = '60s'\n"),
            0,
            "",
            60,
        ),
        (
            "too-late",
            &late,
            format!("ready = 'running'\n{ping}deadline = '3s'\n"),
            3,
            "ping",
            20,
        ),
        (
            "halts",
            &halts,
            format!("ready = 'ping'\n{card}{tcp}deadline = '60s'\n"),
            3,
            "shut down",
            40,
        ),
        (
            "panics",
            &panics,
            format!("ready = 'ping'\nboot_deadline = '12s'\n{ping}"),
            3,
            "boot did not finish",
            30,
        ),
        (
            "no-agent",
            &late,
            "ready = 'running'\n[[machine.check]]\ntype = 'agent'\ndeadline = '8s'\n".into(),
            3,
            "agent",
            30,
        ),
        (
            "whole-deadline",
            &silent,
            format!("ready = 'running'\n{ping}deadline = '5m'\n"),
            3,
            "within its deadline",
            20,
        ),
    ];
    let drills: Vec<(i32, Value, Duration)> = thread::scope(|scope| {
        let lanes: Vec<_> = cases
            .chunks(2)
            .map(|lane| {
                let (daemon, actor) = (&daemon, &actor);
                scope.spawn(move || {
                    let one =
                        |(what, point, rest, ..): &(&str, &String, String, i32, &str, u64)| {
                            let file = plan(daemon, what, actor, point, rest);
                            if *what == "whole-deadline" {
                                let text = std::fs::read_to_string(&file).expect("the plan");
                                std::fs::write(&file, format!("deadline = '8s'\n{text}"))
                                    .expect("a plan");
                            }
                            let began = Instant::now();
                            let (code, drill) = drill_one(daemon, &[&file]);
                            (code, drill, began.elapsed())
                        };
                    lane.iter().map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        lanes
            .into_iter()
            .flat_map(|lane| lane.join().expect("its drills"))
            .collect()
    });
    for ((what, _, _, code, says, seconds), (got, drill, took)) in cases.iter().zip(&drills) {
        eprintln!(
            "{what}: {:.1} s, {}: {}",
            took.as_secs_f64(),
            drill["verdict"],
            drill["why"]
        );
        assert_eq!(got, code, "{what}: {drill}");
        assert!(
            drill["why"].as_str().is_some_and(|why| why.contains(says)),
            "{what} should say {says:?}: {drill}"
        );
        assert!(
            *took < Duration::from_secs(*seconds),
            "{what} took {took:?}"
        );
    }
    // What floods is counted, not kept.
    let report = drill::report(&daemon, &drills[1].1);
    let console = &report["machines"][0]["console"];
    let kept = ["head", "tail"]
        .map(|part| console[part].as_str().expect("a text").len())
        .iter()
        .sum::<usize>();
    assert!(
        console["bytes"].as_u64() > Some(300_000),
        "it flooded: {} bytes",
        console["bytes"]
    );
    assert!(kept < 300_000, "{kept} bytes are kept");
    assert_eq!(
        report["machines"][0]["checks"][0]["verdict"], "proved",
        "it answers while it floods"
    );
    drill::wait_nothing_left(&daemon, &names, &before);

    // Somebody stops it from outside, or takes all of it away.
    for (what, undefine) in [("destroyed", false), ("undefined", true)] {
        let file = plan(
            &daemon,
            what,
            &actor,
            &silent,
            &format!("ready = 'running'\n{ping}deadline = '60s'\n"),
        );
        let (code, drill) = thread::scope(|scope| {
            let drill = scope.spawn(|| drill_one(&daemon, &[&file]));
            let domain = wait_for("its domain runs", Duration::from_secs(30), || {
                let list = run(
                    "virsh",
                    &[
                        "-q",
                        "-c",
                        "qemu:///system",
                        "list",
                        "--name",
                        "--state-running",
                    ],
                )
                .out;
                let prefix = format!("{}-drill-", actor.name());
                list.lines()
                    .find(|one| one.starts_with(&prefix))
                    .map(str::to_owned)
                    .ok_or(list)
            });
            if undefine {
                must(
                    "virsh",
                    &["-q", "-c", "qemu:///system", "undefine", "--nvram", &domain],
                );
            }
            must("virsh", &["-q", "-c", "qemu:///system", "destroy", &domain]);
            drill.join().expect("a drill")
        });
        assert_eq!(code, 3, "{drill}");
        let why = drill["why"].as_str().expect("why");
        assert!(why.contains("somebody"), "{why}");
        drill::wait_nothing_left(&daemon, &names, &before);
    }
    assert_eq!(actor.guest.state(), "running");
}

/// `virt-cdp drill-run` in the background.
struct InBackground(Child);

impl InBackground {
    fn start(daemon: &Daemon, arguments: &[&str]) -> Self {
        let child = Command::new(program())
            .arg("-c")
            .arg(daemon.socket())
            .arg("drill-run")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("virt-cdp starts"))
    }

    fn is_over(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

impl Drop for InBackground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many drills are ended by a SIGKILL of the daemon; DRILL_KILLS=30 for more.
fn kills() -> u32 {
    let given = std::env::var("DRILL_KILLS").ok();
    given.map_or(5, |text| text.parse().expect("DRILL_KILLS is a number"))
}

#[test]
fn drills_in_a_row_whose_daemon_is_killed_leave_nothing_behind() {
    if !needs_libvirt() {
        return;
    }
    let mut daemon = Daemon::start();
    let network = Network::with_host();
    let actor = Actor::start(&daemon, "killed", &["--network", &network.name]);
    let name = actor.name();
    let point = actor.point(
        &daemon,
        &format!(
            "{}; ping -c 1 -W 1 {}",
            has_address(&network.address(90)),
            network.address(1)
        ),
    );
    let file = plan(
        &daemon,
        "killed",
        &actor,
        &point,
        "ready = 'ping'\nboot_deadline = '60s'\n[[machine.check]]\ntype = 'ping'\n[[machine.check]]\ntype = 'fsck'\n",
    );
    // A whole one, for the time it takes.
    let began = Instant::now();
    let (code, drill) = drill_one(&daemon, &[&file]);
    assert_eq!(code, 0, "{:?}", failed_checks(&drill));
    let whole = began.elapsed();
    let before = traces(&daemon, &[name]);
    let mut random = Random::from_env();
    let (mut in_the_middle, mut begun) = (0, 0);
    let mut moments = Vec::new();
    for _ in 0..kills() {
        let known = count(&daemon);
        let mut drill = InBackground::start(&daemon, &[&file]);
        // Up to a moment after it would have ended.
        let moment = whole.mul_f64(random.below(1100) as f64 / 1000.0);
        thread::sleep(moment);
        in_the_middle += u32::from(!drill.is_over());
        daemon.kill();
        moments.push(moment.as_millis());
        drop(drill);
        daemon.start_again();
        begun += u32::from(count_soon(&daemon, known) > known);
    }
    drill::wait_nothing_left(&daemon, &[name], &before);
    daemon.wait_state(name, "protected", Duration::from_secs(60));
    // There is a report of each that had begun, as it was signed.
    let list = daemon.json(&["drill-list", "--limit", "1000"]);
    let list = list["drills"].as_array().expect("drills");
    let mut verdicts = std::collections::BTreeMap::new();
    for drill in list {
        *verdicts.entry(drill["verdict"].to_string()).or_insert(0) += 1;
        let id = drill["id"].as_str().expect("an id");
        let html = daemon.dir.join("report.html").display().to_string();
        daemon.ok(&["drill-report", id, "--html", &html]);
        daemon.ok(&["report-verify", &html]);
        std::fs::remove_file(html).expect("the report");
    }
    eprintln!(
        "{} kills, {in_the_middle} in the middle of a drill of {:.1} s; {begun} drills begun; reports: {verdicts:?}; kills after ms: {moments:?}",
        kills(),
        whole.as_secs_f64()
    );
    assert_eq!(list.len() as u32, begun + 1, "a report of each");
    assert!(
        verdicts
            .keys()
            .all(|one| one == "\"error\"" || one == "\"proved\""),
        "{verdicts:?}"
    );
    // All is well afterwards.
    let (code, drill) = drill_one(&daemon, &[&file]);
    assert_eq!(code, 0, "{drill}");
    drill::wait_nothing_left(&daemon, &[name], &before);
}

fn count(daemon: &Daemon) -> usize {
    let list = daemon.json(&["drill-list", "--limit", "1000"]);
    list["drills"].as_array().expect("drills").len()
}

/// How many drills are listed; the report of one that was killed is written while the daemon starts.
fn count_soon(daemon: &Daemon, known: usize) -> usize {
    for _ in 0..10 {
        let now = count(daemon);
        if now > known {
            return now;
        }
        thread::sleep(Duration::from_millis(100));
    }
    known
}

#[test]
fn ctrl_c_ends_a_drill_and_removes_it() {
    if !needs_libvirt() {
        return;
    }
    let daemon = Daemon::start();
    let actor = Actor::start(&daemon, "broken-off", &[]);
    let point = actor.point(&daemon, "true");
    let file = plan(
        &daemon,
        "broken-off",
        &actor,
        &point,
        "ready = 'console:nothing like it'\n",
    );
    let before = traces(&daemon, &[actor.name()]);
    let mut drill = InBackground::start(&daemon, &[&file]);
    wait_for("its domain runs", Duration::from_secs(30), || {
        let prefix = format!("{}-drill-", actor.name());
        let list = run("virsh", &["-q", "-c", "qemu:///system", "list", "--name"]).out;
        list.lines()
            .any(|one| one.starts_with(&prefix))
            .then_some(())
            .ok_or(list)
    });
    run("kill", &["-INT", &drill.0.id().to_string()]);
    wait_for("drill-run ends", Duration::from_secs(20), || {
        drill
            .is_over()
            .then_some(())
            .ok_or_else(|| "it runs".into())
    });
    assert_eq!(drill.0.wait().expect("its status").code(), Some(1));
    drill::wait_nothing_left(&daemon, &[actor.name()], &before);
    let list = daemon.json(&["drill-list"]);
    assert_eq!(list["drills"][0]["verdict"], "cancelled", "{list}");
}

#[test]
fn a_firmware_that_finds_nothing_to_start_proves_nothing() {
    if !needs_libvirt() {
        return;
    }
    let daemon = Daemon::start();
    let actor = Actor::start(&daemon, "empty", &[]);
    let name = actor.name();
    // From now on it is to boot from its disk, on which there is nothing to boot.
    let configured = actor.guest.virsh(&["dumpxml", "--inactive", name]);
    let is_kernels = |line: &&str| {
        let tags = ["<kernel>", "<initrd>", "<cmdline>"];
        !tags.iter().any(|tag| line.trim().starts_with(tag))
    };
    let xml: Vec<&str> = configured.lines().filter(is_kernels).collect();
    let file = daemon.dir.join("empty.xml");
    std::fs::write(&file, xml.join("\n")).expect("its XML");
    actor
        .guest
        .virsh(&["define", file.to_str().expect("a plain path")]);
    actor.guest.virsh(&["destroy", name]);
    daemon.wait_state(name, "off", Duration::from_secs(30));
    actor.guest.virsh(&["start", name]);
    daemon.wait_state(name, "protected", Duration::from_secs(60));
    let point = drill::point(&daemon, name);
    let before = traces(&daemon, &[name]);
    let plan = plan(
        &daemon,
        "empty",
        &actor,
        &point,
        "boot_deadline = '10s'\n[[machine.check]]\ntype = 'boot'\n",
    );
    let (code, drill) = drill_one(&daemon, &[&plan]);
    assert_eq!(code, 3, "{drill}");
    let why = drill["machines"][0]["why"].as_str().expect("why");
    assert!(why.contains("stands still in the firmware"), "{why}");
    drill::wait_nothing_left(&daemon, &[name], &before);
}
