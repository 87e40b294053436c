//! What tests of drills share: guests whose points say what their copies do, networks of the test's own, and what there is of
//! a drill on the host.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::{daemon::Daemon, guest::Guest, must, run, unique, wait_for};

/// A libvirt network of the test's own: a bridge that leads nowhere. Removed when dropped.
pub struct Network {
    /// Its name.
    pub name: String,
    /// The first three numbers of its addresses.
    pub subnet: String,
}

impl Network {
    /// Makes one where the host has the address `.1` and gives out others.
    pub fn with_host() -> Self {
        Self::make(true)
    }

    /// Makes one in which the host has no address.
    pub fn without_host() -> Self {
        Self::make(false)
    }

    fn make(with_host: bool) -> Self {
        let mut third = std::process::id() % 250;
        loop {
            let network = Self {
                name: unique("net"),
                subnet: format!("10.77.{third}"),
            };
            let taken = format!(" {}.1/", network.subnet);
            if !must("ip", &["-o", "-4", "addr"]).contains(&taken) && network.begin(with_host) {
                return network;
            }
            third = (third + 1) % 250;
        }
    }

    fn begin(&self, with_host: bool) -> bool {
        let subnet = &self.subnet;
        let ip = match with_host {
            true => format!(
                "<ip address='{subnet}.1' netmask='255.255.255.0'><dhcp><range start='{subnet}.100' end='{subnet}.199'/></dhcp></ip>"
            ),
            false => String::new(),
        };
        let xml = format!("<network><name>{}</name>{ip}</network>", self.name);
        let file = std::env::temp_dir().join(format!("{}.xml", self.name));
        fs::write(&file, xml).expect("the network's XML");
        let made = virsh(&["net-create", file.to_str().expect("a plain path")]).ok;
        let _ = fs::remove_file(file);
        made
    }

    /// An address in it.
    pub fn address(&self, last: u8) -> String {
        format!("{}.{last}", self.subnet)
    }

    /// Its bridge.
    pub fn bridge(&self) -> String {
        let info = virsh(&["net-info", &self.name]).out;
        let bridge = info.lines().find_map(|line| line.strip_prefix("Bridge:"));
        bridge.expect("a bridge").trim().to_owned()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        virsh(&["net-destroy", &self.name]);
    }
}

fn virsh(arguments: &[&str]) -> crate::Ran {
    run(
        "virsh",
        &[&["-q", "-c", "qemu:///system"], arguments].concat(),
    )
}

/// A protected guest with a small disk, each point of which says what a copy of it does when it boots.
pub struct Actor {
    /// The original.
    pub guest: Guest,
}

impl Actor {
    /// Starts and protects one; `more` are options of `tests/guest/domain-xml`.
    pub fn start(daemon: &Daemon, what: &str, more: &[&str]) -> Self {
        let name = unique(what);
        let guest = Guest::start_with(&name, &[("qcow2", 24 << 20)], more);
        guest.sh("mkfs.ext4 -q /dev/vda");
        daemon.ok(&["protect", &name]);
        Self { guest }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.guest.name
    }

    /// Makes a point a copy of which runs `script` when it boots; the original does not. Returns its number.
    pub fn point(&self, daemon: &Daemon, script: &str) -> String {
        self.guest.sh(&format!(
            "mount /dev/vda /mnt && cat >/mnt/boot.sh <<'END_OF_SCRIPT' && umount /mnt\n{script}\nEND_OF_SCRIPT\n"
        ));
        self.guest.flush();
        point(daemon, self.name())
    }
}

/// Makes a point of what there is now; returns its number.
pub fn point(daemon: &Daemon, machine: &str) -> String {
    daemon.json(&["point-create", machine])["id"].to_string()
}

/// What a script of a guest begins with that has a static address: `ADDRESS/PREFIX`.
pub fn has_address(address: &str) -> String {
    format!("ip link set eth0 up; ip addr add {address}/24 dev eth0")
}

/// Holds a drill; returns the exit code, and of each drill what `--json` tells.
pub fn drill(daemon: &Daemon, arguments: &[&str]) -> (i32, Vec<Value>) {
    let all = [&["--json", "drill-run"], arguments].concat();
    let ran = daemon.cli(&all);
    let told: Value = serde_json::from_str(&ran.out)
        .unwrap_or_else(|e| panic!("virt-cdp {all:?} printed no JSON: {e}: {ran:?}"));
    let drills = told["drills"].as_array().expect("drills").clone();
    (ran.code.expect("an exit code"), drills)
}

/// Holds one drill of one machine; returns the exit code, and what `--json` tells.
pub fn drill_one(daemon: &Daemon, arguments: &[&str]) -> (i32, Value) {
    let (code, mut drills) = drill(daemon, arguments);
    assert_eq!(drills.len(), 1, "{drills:?}");
    (code, drills.remove(0))
}

/// The report of a drill, as JSON.
pub fn report(daemon: &Daemon, drill: &Value) -> Value {
    let id = drill["id"].as_str().expect("an id");
    daemon.json(&["drill-report", id])["report"].clone()
}

/// The checks of a drill's first machine that did not pass: name and why.
pub fn failed_checks(drill: &Value) -> Vec<(String, String)> {
    let checks = drill["machines"][0]["checks"].as_array().expect("checks");
    let failed = checks.iter().filter(|check| check["verdict"] != "proved");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    failed
        .map(|check| (text(&check["name"]), text(&check["why"])))
        .collect()
}

/// Everything on the host that may be of a drill of this daemon, reports left out: to be the same before and after.
pub fn traces(daemon: &Daemon, machines: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut add = |what: &str, value: &str| {
        found.insert(format!("{what} {value}"));
    };
    let domains = virsh(&["list", "--all", "--name"]).out;
    for domain in domains.lines().filter(|one| of(one, machines)) {
        add("domain", domain);
    }
    for place in [
        "/var/lib/libvirt/qemu",
        "/var/log/libvirt/qemu",
        "/run/libvirt/qemu",
        "/etc/libvirt/qemu",
    ] {
        for path in walk(Path::new(place)) {
            if path.contains("-drill-") && of(&path, machines) {
                add("libvirt's", &path);
            }
        }
    }
    for path in walk(&daemon.dir) {
        let below = path.trim_start_matches(daemon.dir.to_str().expect("a plain path"));
        let kept = [
            "/state/drills/reports",
            "/state/drills/bisect",
            "/state/drills/key",
            "/state/harbors",
        ];
        let is_kept = kept.iter().any(|one| below.starts_with(one));
        let is_daemons = ["/state/", "/run/", "/overlays/"]
            .iter()
            .any(|one| below.starts_with(one));
        if is_daemons && !is_kept {
            add("file", below);
        }
    }
    let views = daemon.json(&["view-list"]);
    for view in views["views"].as_array().expect("views") {
        add("view", &view["id"].to_string());
    }
    let takeovers = daemon.json(&["takeover-list"]);
    for takeover in takeovers["takeovers"].as_array().expect("takeovers") {
        add("takeover", &takeover["name"].to_string());
    }
    let drills = daemon.json(&["drill-list", "--limit", "1000"]);
    for drill in drills["drills"].as_array().expect("drills") {
        let id = drill["id"].as_str().expect("an id");
        if drill["state"] != "ended" {
            add("drill", id);
        }
        for process in processes(id) {
            add("process", &process);
        }
    }
    found
}

fn of(text: &str, machines: &[&str]) -> bool {
    machines.iter().any(|machine| text.contains(machine))
}

/// The processes that were started for a drill.
pub fn processes(id: &str) -> Vec<String> {
    let marker = format!("VIRT_CDP_DRILL={id}");
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let is_marked = |path: &Path| {
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|one| one == marker.as_bytes())
    };
    let marked = entries
        .map(|entry| entry.path())
        .filter(|path| is_marked(path));
    marked
        .map(|path| {
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).replace('\0', " ")
        })
        .collect()
}

/// All files below a directory.
fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        found.push(path.display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&path));
        }
    }
    found
}

/// Waits until there is what there was before, and nothing else.
pub fn wait_nothing_left(daemon: &Daemon, machines: &[&str], before: &BTreeSet<String>) {
    wait_for(
        "nothing of the drills is left",
        std::time::Duration::from_secs(30),
        || {
            let now = traces(daemon, machines);
            let more: Vec<&String> = now.difference(before).collect();
            let less: Vec<&String> = before.difference(&now).collect();
            match more.is_empty() && less.is_empty() {
                true => Ok(()),
                false => Err(format!("more: {more:?}; less: {less:?}")),
            }
        },
    );
}
