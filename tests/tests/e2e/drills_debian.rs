//! Drills of the Debian guest with sshd and PostgreSQL: a good point is proved; of one with a seeded break exactly the right
//! check fails, and the report says why.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use virt_cdp_tests::{
    daemon::Daemon,
    drill::{self, drill_one, failed_checks, traces},
    must, needs, needs_libvirt, repository, run, unique, wait_for,
};

/// Asks PostgreSQL over its protocol for the number of orders, and prints it.
const PROBE: &str = r#"#!/usr/bin/env python3
import os, socket, struct
db = socket.create_connection((os.environ["VIRT_CDP_ADDRESS"], 5432), timeout=10)
stream = db.makefile("rb")
start = struct.pack("!i", 196608) + b"user\0probe\0database\0postgres\0\0"
db.sendall(struct.pack("!i", len(start) + 4) + start)
def message():
    kind = stream.read(1)
    if not kind:
        raise SystemExit("the server has closed the connection")
    body = stream.read(struct.unpack("!i", stream.read(4))[0] - 4)
    if kind == b"E":
        raise SystemExit(body.decode(errors="replace").replace("\0", " "))
    return kind, body
while message()[0] != b"Z":
    pass
query = b"SELECT count(*) FROM orders\0"
db.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
while True:
    kind, body = message()
    if kind == b"D":
        print("orders:", body[6:].decode())
    if kind == b"Z":
        break
"#;

/// The Debian guest, with a disk of its own over the built one; removed at the end.
struct Debian {
    name: String,
    dir: PathBuf,
}

impl Debian {
    fn start() -> Self {
        let script = |name: &str| {
            repository()
                .join("tests/guest")
                .join(name)
                .display()
                .to_string()
        };
        let built = PathBuf::from(must(&script("build-debian"), &[]).trim());
        let name = unique("debian");
        let dir = PathBuf::from("/var/lib/libvirt/images").join(&name);
        fs::create_dir_all(&dir).expect("a directory for the guest's disks");
        let guest = Self { name, dir };
        let mut disks = Vec::new();
        for disk in ["disk", "db"] {
            let overlay = guest
                .dir
                .join(format!("{disk}.qcow2"))
                .display()
                .to_string();
            let base = built.join(format!("{disk}.qcow2")).display().to_string();
            must(
                "qemu-img",
                &[
                    "create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &overlay,
                ],
            );
            disks.extend(["--disk".to_owned(), overlay]);
        }
        let mut arguments = vec!["debian", &guest.name, "--network", "default"];
        arguments.extend(disks.iter().map(String::as_str));
        let xml = must(&script("domain-xml"), &arguments);
        let file = guest.dir.join("domain.xml").display().to_string();
        fs::write(&file, xml).expect("the domain's XML");
        virsh(&["define", &file]);
        virsh(&["start", &guest.name]);
        wait_for("its agent answers", Duration::from_secs(180), || {
            guest.agent(&json!({ "execute": "guest-ping" })).map(drop)
        });
        guest
    }

    fn agent(&self, command: &Value) -> Result<Value, String> {
        let ran = run(
            "virsh",
            &[
                "-q",
                "-c",
                "qemu:///system",
                "qemu-agent-command",
                &self.name,
                &command.to_string(),
            ],
        );
        match ran.ok {
            true => serde_json::from_str(&ran.out).map_err(|e| e.to_string()),
            false => Err(ran.err),
        }
    }

    /// Runs a shell script in the guest, which has to go well; returns what it printed.
    fn sh(&self, script: &str) -> String {
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
        let started = self.agent(&json!({ "execute": "guest-exec", "arguments": arguments }));
        let pid = started.expect("the script starts")["return"]["pid"].clone();
        let question = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
        let done = wait_for("the script ends", Duration::from_secs(120), || {
            let status = self.agent(&question)?["return"].clone();
            (status["exited"] == true)
                .then_some(status)
                .ok_or_else(|| "it runs".into())
        });
        let printed = |key: &str| {
            let coded = done[key].as_str().unwrap_or_default();
            run("sh", &["-c", &format!("echo {coded} | base64 -d")]).out
        };
        assert_eq!(
            done["exitcode"],
            0,
            "{script}: {}{}",
            printed("out-data"),
            printed("err-data")
        );
        printed("out-data")
    }

    /// Makes a point at which `breaks` was done; it is undone by `undo`.
    fn broken(&self, daemon: &Daemon, breaks: &str, undo: &str) -> String {
        self.sh(&format!("{breaks}\nsync; sync -f /srv/db"));
        let point = drill::point(daemon, &self.name);
        self.sh(&format!("{undo}\nsync; sync -f /srv/db"));
        point
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let domain = ["-q", "-c", "qemu:///system"];
        run(
            "virsh",
            &[&domain, ["destroy", self.name.as_str()].as_slice()].concat(),
        );
        run(
            "virsh",
            &[&domain, ["undefine", self.name.as_str()].as_slice()].concat(),
        );
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn virsh(arguments: &[&str]) {
    must(
        "virsh",
        &[&["-q", "-c", "qemu:///system"], arguments].concat(),
    );
}

fn write_plan(dir: &Path, name: &str, what: &str, point: &str) -> String {
    let script = dir.join("probe").display().to_string();
    let path = dir.join(format!("{what}.toml"));
    let plan = format!(
        "name = '{what}'\npoint = '{point}'\ndeadline = '6m'\n[[machine]]\nname = '{name}'\nready = 'agent'\nboot_deadline = '150s'\n\
        [[machine.check]]\ntype = 'agent'\n\
        [[machine.check]]\ntype = 'ping'\ndeadline = '60s'\n\
        [[machine.check]]\ntype = 'tcp'\nport = 22\nbanner = '^SSH-2.0'\ndeadline = '45s'\n\
        [[machine.check]]\ntype = 'tcp'\nport = 5432\ndeadline = '45s'\n\
        [[machine.check]]\ntype = 'exec'\nname = 'orders in the guest'\ncommand = 'psql -h /run/postgresql -U probe -d postgres -Atc \"SELECT count(*) FROM orders\"'\noutput = '^1000$'\ndeadline = '45s'\n\
        [[machine.check]]\ntype = 'script'\nname = 'orders over the network'\npath = '{script}'\noutput = '^orders: 1000$'\ndeadline = '45s'\n"
    );
    fs::write(&path, plan).expect("a plan");
    path.display().to_string()
}

/// A break: its name, how it is made, how it is undone, the checks that fail, and what the report says of it.
type Break = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
);

const DATABASE: &[&str] = &["tcp:5432", "orders in the guest", "orders over the network"];
const ALL: &[&str] = &[
    "agent",
    "ping",
    "tcp:22",
    "tcp:5432",
    "orders in the guest",
    "orders over the network",
];

const BREAKS: [Break; 4] = [
    (
        "deleted-data",
        "systemctl stop database && cp -a /srv/db/postgres /root/saved && rm -r /srv/db/postgres",
        "cp -a /root/saved /srv/db/postgres && rm -r /root/saved && systemctl start database",
        DATABASE,
        "tcp:5432: connection refused",
    ),
    (
        "stopped-service",
        "systemctl -q disable ssh",
        "systemctl -q enable ssh",
        &["tcp:22"],
        "tcp:22: connection refused",
    ),
    (
        "broken-fstab",
        "cp /etc/fstab /etc/fstab.saved && echo 'LABEL=nowhere /srv/nowhere ext4 x-systemd.device-timeout=3s 0 0' >>/etc/fstab",
        "mv /etc/fstab.saved /etc/fstab",
        ALL,
        "boot did not finish",
    ),
    (
        "removed-kernel",
        "mv /boot/vmlinuz /root/vmlinuz",
        "mv /root/vmlinuz /boot/vmlinuz",
        ALL,
        "boot did not finish",
    ),
];

#[test]
fn a_debian_with_a_database_is_proved_and_each_seeded_break_fails_exactly_its_checks() {
    if !needs_libvirt() || !needs(&["python3", "mmdebstrap"]) {
        return;
    }
    let breaks = match std::env::var_os("DRILL_ALL") {
        Some(_) => BREAKS.as_slice(),
        None => &BREAKS[..1],
    };
    let guest = Debian::start();
    let daemon = Daemon::start();
    guest.sh("systemctl -q enable --now database; for i in $(seq 60); do psql -h /run/postgresql -U probe -d postgres -Atc 'SELECT 1' && exit; sleep 0.5; done; systemctl status database; exit 1");
    daemon.ok(&["protect", &guest.name]);
    let probe = daemon.dir.join("probe");
    fs::write(&probe, PROBE).expect("a script");
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755)).expect("its mode");
    let good = guest.broken(&daemon, "true", "true");
    let mut plans = vec![("good", write_plan(&daemon.dir, &guest.name, "good", &good))];
    for (what, breaks, undo, ..) in breaks {
        let point = guest.broken(&daemon, breaks, undo);
        plans.push((what, write_plan(&daemon.dir, &guest.name, what, &point)));
    }
    let names = [guest.name.as_str()];
    let before = traces(&daemon, &names);
    let keep = std::env::var_os("DRILL_REPORTS").map(PathBuf::from);
    let mut drills: Vec<(&str, i32, Value)> = Vec::new();
    for two in plans.chunks(2) {
        thread::scope(|scope| {
            let two: Vec<_> = two
                .iter()
                .map(|(what, plan)| {
                    let daemon = &daemon;
                    scope.spawn(move || {
                        let began = Instant::now();
                        let (code, drill) = drill_one(daemon, &[plan]);
                        eprintln!(
                            "{what}: {:.1} s, RTO {} ms: {} {}",
                            began.elapsed().as_secs_f64(),
                            drill["rto_ms"],
                            drill["verdict"],
                            drill["why"]
                        );
                        (*what, code, drill)
                    })
                })
                .collect();
            drills.extend(two.into_iter().map(|one| one.join().expect("a drill")));
        });
    }
    if let Some(keep) = keep {
        fs::create_dir_all(&keep).expect("a directory for reports");
        for (what, _, drill) in &drills {
            let file = keep.join(format!("{what}.html")).display().to_string();
            daemon.ok(&[
                "drill-report",
                drill["id"].as_str().expect("an id"),
                "--html",
                &file,
            ]);
        }
    }
    let (_, code, drill) = &drills[0];
    assert_eq!(*code, 0, "{:?} {drill}", failed_checks(drill));
    for ((what, _, _, checks, says), (_, code, drill)) in breaks.iter().zip(&drills[1..]) {
        assert_eq!(*code, 3, "{what}: {drill}");
        let failed: Vec<String> = failed_checks(drill)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(failed, *checks, "{what}: {drill}");
        let why = drill["why"].as_str().expect("why");
        assert!(why.contains(says), "{what} should say {says:?}: {why}");
        // What is behind it can be seen.
        let report = drill::report(&daemon, drill);
        let console = report["machines"][0]["console"].to_string();
        match *what {
            "broken-fstab" => assert!(
                console.contains("nowhere") && console.contains("mergency"),
                "{console}"
            ),
            "removed-kernel" => assert!(
                !report["machines"][0]["screenshots"]
                    .as_array()
                    .expect("pictures")
                    .is_empty()
            ),
            _ => {}
        }
    }
    drill::wait_nothing_left(&daemon, &names, &before);
    daemon.wait_state(&guest.name, "protected", Duration::from_secs(1));
}
