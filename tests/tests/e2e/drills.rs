//! Drills of small guests: what they prove, what fails them and why, and that they leave nothing.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use virt_cdp_tests::{
    daemon::Daemon,
    drill::{self, Actor, Network, drill_one, failed_checks, has_address, traces},
    must, needs_libvirt, program, unique, wait_for,
};

/// Writes a program.
fn executable(path: &Path, text: &str) -> String {
    fs::write(path, text).expect("a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
    path.display().to_string()
}

/// What a guest does that serves what is asked for: a greeting on port 7000, a page on port 80, an agent.
fn serves(address: &str, gateway: &str, greeting: &str) -> String {
    format!(
        "{}\nip route add default via {gateway}\nstart-qemu-ga\nmkdir -p /tmp/www\necho '{greeting}' >/tmp/www/index.html\n\
         httpd -p 80 -h /tmp/www\nnc -ll -p 7000 -e echo '{greeting}' &\nping -c 1 -W 1 {gateway}",
        has_address(address)
    )
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key}: {value}"))
}

fn checks(drill: &Value) -> Vec<(&str, &str)> {
    let checks = drill["machines"][0]["checks"].as_array().expect("checks");
    checks
        .iter()
        .map(|check| (text(check, "name"), text(check, "verdict")))
        .collect()
}

/// The SHA-256 of what `text` is.
fn sha256(text: &str) -> String {
    let file = std::env::temp_dir().join(unique("sum"));
    fs::write(&file, text).expect("a file");
    let sum = must("sha256sum", &[file.to_str().expect("a plain path")]);
    let _ = fs::remove_file(file);
    sum.split(' ').next().expect("a sum").to_owned()
}

/// A daemon with a folder of plugins, in which is `answers`.
fn daemon_with_plugin() -> Daemon {
    let mut daemon = Daemon::start();
    let plugins = daemon.dir.join("plugins");
    fs::create_dir(&plugins).expect("a folder of plugins");
    let plugin = "#!/bin/sh\n\
        read -r request\n\
        case $request in *'\"color\":\"green\"'*) echo '{\"saw\":\"it is green\"}' ;; *) echo '{\"saw\":\"it is not green\"}'; exit 1 ;; esac\n";
    executable(&plugins.join("green"), plugin);
    daemon.reconfigure(|text| format!("{text}[drills]\nplugins = '{}'\n", plugins.display()));
    daemon
}

#[test]
fn a_drill_proves_a_guest_in_every_way_and_leaves_nothing_but_its_report() {
    if !needs_libvirt() {
        return;
    }
    let daemon = daemon_with_plugin();
    let network = Network::with_host();
    let actor = Actor::start(
        &daemon,
        "every",
        &["--network", &network.name, "--agent", "qemu-ga"],
    );
    let (name, address) = (actor.name(), network.address(50));
    let point = actor.point(&daemon, &serves(&address, &network.address(1), "it was up"));
    let script = executable(
        &daemon.dir.join("script"),
        "#!/bin/sh\nset -e\nnbdinfo --size \"$VIRT_CDP_VIEW_vda\"\nenv | grep ^VIRT_CDP_ | sort\n",
    );
    let page = sha256("it was up\n");
    let plan = daemon.dir.join("plan.toml");
    let text_of_plan = format!(
        "name = 'every-way-{name}'\npoint = '{point}'\n[[machine]]\nname = '{name}'\nready = 'agent'\n\
        [[machine.check]]\ntype = 'ping'\n\
        [[machine.check]]\ntype = 'tcp'\nport = 7000\nbanner = '^it was up$'\n\
        [[machine.check]]\ntype = 'http'\nbody = 'it was .p'\nstatus = 200\n\
        [[machine.check]]\ntype = 'agent'\n\
        [[machine.check]]\ntype = 'exec'\ncommand = 'cat /tmp/www/index.html; exit 7'\nexit_code = 7\noutput = '^it was up$'\n\
        [[machine.check]]\ntype = 'files'\nfiles = {{ '/tmp/www/index.html' = '{page}' }}\n\
        [[machine.check]]\ntype = 'fsck'\n\
        [[machine.check]]\ntype = 'script'\npath = '{script}'\noutput = 'VIRT_CDP_MACHINE={name}'\n\
        [[machine.check]]\ntype = 'plugin'\nplugin = 'green'\nsettings = {{ color = 'green' }}\n"
    );
    fs::write(&plan, text_of_plan).expect("a plan");
    let plan = plan.display().to_string();
    daemon.ok(&["plan-check", &plan]);
    let before = traces(&daemon, &[name]);

    let reports = daemon.dir.join("reports");
    let reports_dir = reports.display().to_string();
    let (code, drill) = drill_one(&daemon, &[&plan, "--report", &reports_dir]);
    assert_eq!((code, text(&drill, "verdict")), (0, "proved"), "{drill}");
    for (check, verdict) in checks(&drill) {
        assert_eq!(verdict, "proved", "{check}: {drill}");
    }
    assert_eq!(checks(&drill).len(), 9);
    assert!(
        drill["rto_ms"].as_u64() > Some(0) && drill["rpo_ms"].is_u64(),
        "{drill}"
    );
    // The folder of reports is the test's.
    let files = reports.clone();
    let id = text(&drill, "id").to_owned();

    // What the script was told.
    let report = drill::report(&daemon, &drill);
    let machine = &report["machines"][0];
    let script = &machine["checks"][7]["attempts"];
    let printed = script[script.as_array().expect("attempts").len() - 1]["output"]
        .as_str()
        .expect("its output");
    for (variable, value) in [
        ("ADDRESS", address.as_str()),
        ("MACHINE", name),
        ("DRILL", id.as_str()),
        ("POINT", point.as_str()),
        ("VOLUMES", "vda"),
    ] {
        assert!(
            printed.contains(&format!("VIRT_CDP_{variable}={value}\n")),
            "{variable}: {printed}"
        );
    }
    assert!(printed.starts_with(&format!("{}\n", 24 << 20)), "{printed}");
    // What is shown of the machine.
    assert_eq!(
        machine["cards"][0]["address"],
        format!("{address}/24"),
        "{}",
        machine["cards"]
    );
    assert!(
        machine["console"]["head"]
            .as_str()
            .is_some_and(|head| head.contains("Linux version")),
        "{}",
        machine["console"]
    );
    assert!(
        !machine["screenshots"]
            .as_array()
            .expect("pictures")
            .is_empty()
    );
    for time in [
        "running_ms",
        "ping_ms",
        "agent_ms",
        "ready_ms",
        "proved_ms",
        "removed_ms",
    ] {
        assert!(
            machine["times"][time].is_u64(),
            "{time}: {}",
            machine["times"]
        );
    }

    // The report is as it was signed in each form; one that was changed is not.
    for form in ["html", "json", "xml"] {
        let file = files.join(format!("{id}.{form}"));
        let path = file.display().to_string();
        daemon.ok(&["report-verify", &path]);
        let mut bytes = fs::read(&file).expect("the report");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).expect("a changed report");
        daemon.refused(&["report-verify", &path], &path);
    }
    let listed = daemon.json(&["drill-list", name]);
    assert_eq!(listed["drills"][0]["id"], json!(id), "{listed}");
    assert_eq!(
        listed["drills"][0]["machines"][0]["verdict"], "proved",
        "{listed}"
    );

    fs::remove_dir_all(&files).expect("the test's own");
    drill::wait_nothing_left(&daemon, &[name], &before);
    assert_eq!(actor.guest.state(), "running");
}

/// `virt-cdp` in the background, ended at the end.
struct Background(Child);

impl Background {
    fn start(daemon: &Daemon, arguments: &[&str]) -> Self {
        let child = Command::new(program())
            .arg("-c")
            .arg(daemon.socket())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("virt-cdp starts"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_does_not_hold_fails_its_own_check_with_a_cause_and_a_kept_drill_can_be_looked_into() {
    if !needs_libvirt() {
        return;
    }
    let mut daemon = daemon_with_plugin();
    let network = Network::with_host();
    let options = ["--network", &network.name, "--agent", "qemu-ga"];
    let actor = Actor::start(&daemon, "fails", &options);
    let (name, address) = (actor.name(), network.address(51));
    let serves = serves(&address, &network.address(1), "up");
    // Without checksums, so that the kernel, which only reads, does not see what fsck sees: a bitmap of blocks that is wrong.
    actor.guest.sh("mkfs.ext4 -q -F -O ^metadata_csum /dev/vda");
    let point = actor.point(&daemon, &serves);
    actor.guest.sh("at=$(dumpe2fs /dev/vda 2>/dev/null | sed -n 's/.*Block bitmap at \\([0-9]*\\).*/\\1/p' | head -n 1); size=$(dumpe2fs -h /dev/vda 2>/dev/null | sed -n 's/^Block size: *//p'); dd if=/dev/zero of=/dev/vda bs=$size seek=$at count=1 conv=notrunc 2>/dev/null");
    actor.guest.flush();
    let damaged = drill::point(&daemon, name);
    let script = executable(
        &daemon.dir.join("script"),
        "#!/bin/sh\necho it is not as it was\nexit 4\n",
    );
    let plan = |point: &str, offline: &str| {
        let file = daemon.dir.join(format!("plan-{point}.toml"));
        let sum = "0".repeat(64);
        let short = "deadline = '2s'\ninterval = '200ms'\n";
        let plan = format!(
            "point = '{point}'\n[[machine]]\nname = '{name}'\nready = 'agent'\nboot_deadline = '40s'\n\
            [[machine.check]]\ntype = 'ping'\n\
            [[machine.check]]\ntype = 'tcp'\nport = 7000\nbanner = '^down$'\n{short}\
            [[machine.check]]\ntype = 'tcp'\nport = 7001\n{short}\
            [[machine.check]]\ntype = 'http'\nbody = 'nothing like it'\n{short}\
            [[machine.check]]\ntype = 'http'\npath = '/missing'\n{short}\
            [[machine.check]]\ntype = 'exec'\ncommand = 'exit 3'\n{short}\
            [[machine.check]]\ntype = 'files'\nfiles = {{ '/tmp/www/index.html' = '{sum}' }}\n{short}\
            [[machine.check]]\ntype = 'script'\npath = '{script}'\n{short}\
            [[machine.check]]\ntype = 'plugin'\nplugin = 'green'\nsettings = {{ color = 'red' }}\n{short}{offline}"
        );
        fs::write(&file, plan).expect("a plan");
        file.display().to_string()
    };
    let before = traces(&daemon, &[name]);
    let bad = plan(&damaged, "[[machine.check]]\ntype = 'fsck'\n");
    let (code, drill) = drill_one(&daemon, &[&bad]);
    assert_eq!((code, text(&drill, "verdict")), (3, "failed"), "{drill}");
    assert_eq!(checks(&drill)[0], ("ping", "proved"));
    let failed = failed_checks(&drill);
    let why = [
        ("tcp:7000", "\"up"),
        ("tcp:7001", "refused"),
        ("http:80/", "nothing like it"),
        ("http:80/missing", "404"),
        ("exec:exit 3", "exit code 3"),
        ("files:/tmp/www/index.html", "SHA-256"),
        (&format!("script:{script}"), "exit code 4"),
        ("plugin:green", "it is not green"),
        ("fsck", ""),
    ];
    assert_eq!(failed.len(), why.len(), "{failed:?}");
    for ((name, told), (expected, cause)) in failed.iter().zip(why) {
        assert_eq!(name, expected);
        assert!(
            told.contains(cause) && !told.is_empty(),
            "{name} should say {cause:?}: {told}"
        );
    }
    let why = text(&drill, "why");
    assert!(why.starts_with(name) && why.contains("tcp:7000"), "{why}");
    drill::wait_nothing_left(&daemon, &[name], &before);

    // Kept: looked into as root, and from the host through a port, while it has the original's addresses.
    let keep = daemon.dir.join("keep.toml");
    let text_of_plan = format!(
        "point = '{point}'\n[[machine]]\nname = '{name}'\nready = 'agent'\nboot_deadline = '40s'\n\
        [[machine.check]]\ntype = 'ping'\n[[machine.check]]\ntype = 'tcp'\nport = 7001\ndeadline = '2s'\n"
    );
    fs::write(&keep, text_of_plan).expect("a plan");
    let keep = keep.display().to_string();
    let (code, drill) = drill_one(&daemon, &[&keep, "--keep-on-failure"]);
    assert_eq!((code, &drill["kept"]), (3, &json!(true)), "{drill}");
    let id = text(&drill, "id");
    let state = daemon.json(&["drill-list", name]);
    assert_eq!(state["drills"][1]["state"], "kept", "{state}");
    daemon.ok(&[
        "drill-shell",
        id,
        "--",
        "busybox",
        "ping",
        "-c",
        "1",
        "-W",
        "5",
        &address,
    ]);
    let addresses = daemon.ok(&["drill-shell", id, "--", "ip", "-o", "addr"]);
    assert!(addresses.contains(&network.address(1)), "{addresses}");
    let host = TcpStream::connect_timeout(
        &format!("{address}:80").parse().expect("an address"),
        Duration::from_millis(1500),
    );
    assert!(host.is_err(), "the host itself does not reach it");
    let forward = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("its address").port()
    };
    let to = format!("{forward}:{address}:80");
    let _forwards = Background::start(&daemon, &["drill-shell", id, "--forward", &to]);
    let page = wait_for("the page of the copy", Duration::from_secs(20), || {
        let mut stream = TcpStream::connect(("127.0.0.1", forward)).map_err(|e| e.to_string())?;
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .map_err(|e| e.to_string())?;
        stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .map_err(|e| e.to_string())?;
        let mut page = String::new();
        stream
            .read_to_string(&mut page)
            .map_err(|e| e.to_string())?;
        Ok(page)
    });
    assert!(page.contains("200 OK") && page.ends_with("up\n"), "{page}");
    daemon.ok(&["drill-discard", id]);
    drill::wait_nothing_left(&daemon, &[name], &before);
    daemon.refused(&["drill-discard", id], "no drill");
    daemon.refused(&["drill-shell", id, "--", "true"], "does not run here");

    // A stop removes what was kept, and does not wait for it any longer than that takes.
    let (_, drill) = drill_one(&daemon, &[&keep, "--keep-on-failure"]);
    assert_eq!(drill["kept"], json!(true), "{drill}");
    let began = Instant::now();
    daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(15), "{began:?}");
    daemon.start_again();
    drill::wait_nothing_left(&daemon, &[name], &before);
}
