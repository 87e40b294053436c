//! Domains, disks and nodes as libvirt and QEMU show them.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use libvirt_driver::disks::LeftOut;
use libvirt_driver::nodes::{NodeError, OnTop, node_for};
use libvirt_driver::{Disk, DomainMonitor, DomainState, ErrorKind, Verdict};
use qemu_hook::monitor::{Monitor, MonitorError};
use serde_json::{Value, json};

use crate::host::{TestDomain, directory, hypervisor, image, run};

const MIB: u64 = 1 << 20;

/// A loop device over a file; detached when dropped.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let output = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .args(["--detach", &self.0])
            .status();
    }
}

fn disk_xml(kind: &str, format: &str, source: &str, target: &str, bus: &str) -> String {
    let attribute = if kind == "block" { "dev" } else { "file" };
    format!(
        "<disk type='{kind}' device='disk'><driver name='qemu' type='{format}'/>\
         <source {attribute}='{source}'/><target dev='{target}' bus='{bus}'/></disk>"
    )
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn disks_are_found_with_their_nodes() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let directory = directory();
    let qcow2 = image(&directory, "a.qcow2", &["-f", "qcow2"], "64M");
    let old = image(
        &directory,
        "b.qcow2",
        &["-f", "qcow2", "-o", "compat=0.10"],
        "32M",
    );
    let raw = image(&directory, "c.raw", &["-f", "raw"], "16M");
    let below = image(&directory, "d.raw", &["-f", "raw"], "8M");
    let device = Loop::over(&below);
    let mut xml = disk_xml("file", "qcow2", path(&qcow2), "vda", "virtio")
        + &disk_xml("file", "qcow2", path(&old), "sda", "sata")
        + &disk_xml("file", "raw", path(&raw), "sdb", "scsi")
        + "<disk type='file' device='cdrom'><target dev='sdc' bus='sata'/><readonly/></disk>";
    match &device {
        Some(device) => xml += &disk_xml("block", "raw", &device.0, "vdb", "virtio"),
        None => drop(writeln!(
            std::io::stderr(),
            "SKIPPED: the block disk needs a loop device"
        )),
    }
    let test = TestDomain::named("nodes");
    let domain = test.start(&hypervisor, &xml);
    let DomainState::Running { id } = domain.state().unwrap() else {
        panic!("{:?}", domain.state())
    };
    assert_eq!(hypervisor.lookup(domain.uuid()).unwrap().name(), test.name);
    assert!(
        hypervisor
            .domains()
            .unwrap()
            .iter()
            .any(|other| other.uuid() == domain.uuid())
    );

    let monitor = DomainMonitor::open(&domain).unwrap();
    assert_eq!(monitor.run_id(), id);
    let disks = domain.disks().unwrap();
    let cdrom = find(&disks, "sdc");
    assert_eq!(cdrom.verdict, Verdict::LeftOut(LeftOut::Cdrom));
    assert!(matches!(
        node_for(&monitor, cdrom),
        Err(NodeError::NoMedium { .. })
    ));
    let mut expected = vec![
        ("vda", 64 * MIB, "qcow2", true),
        ("sda", 32 * MIB, "qcow2", false),
        ("sdb", 16 * MIB, "file", false),
    ];
    expected.extend(
        device
            .as_ref()
            .map(|_| ("vdb", 8 * MIB, "host_device", false)),
    );
    for (target, size, driver, v3) in expected {
        let disk = find(&disks, target);
        assert_eq!(disk.verdict, Verdict::Protectable, "{target}");
        let node = node_for(&monitor, disk).unwrap();
        assert_eq!(
            (node.virtual_size, node.driver.as_str(), node.qcow2_v3),
            (size, driver, v3),
            "{target}"
        );
        assert_eq!(node.on_top, None, "{target}");
        let bitmap = json!({"node": node.node, "name": "b", "granularity": 65536, "persistent": node.qcow2_v3});
        monitor.execute("block-dirty-bitmap-add", bitmap).unwrap();
    }
}

#[test]
fn what_is_on_top_of_a_node_is_told() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let directory = directory();
    let qcow2 = image(&directory, "a.qcow2", &["-f", "qcow2"], "16M");
    let copy = directory.path().join("copy.qcow2");
    let test = TestDomain::named("ontop");
    let domain = test.start(
        &hypervisor,
        &disk_xml("file", "qcow2", path(&qcow2), "vda", "virtio"),
    );
    let monitor = DomainMonitor::open(&domain).unwrap();
    let disk = domain.disks().unwrap().remove(0);
    let plain = node_for(&monitor, &disk).unwrap();

    monitor
        .execute(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "sink", "size": 16 * MIB}),
        )
        .unwrap();
    let mirror = json!({"job-id": "lvd", "device": plain.node, "target": "sink", "sync": "none",
        "copy-mode": "write-blocking", "filter-node-name": "tap"});
    monitor.execute("blockdev-mirror", mirror).unwrap();
    let under = node_for(&monitor, &disk).unwrap();
    assert_eq!(under.node, plain.node);
    assert_eq!(under.virtual_size, plain.virtual_size);
    assert_eq!(
        under.on_top,
        Some(OnTop {
            node: Some("tap".into()),
            job: None,
            kind: "mirror_top".into()
        })
    );
    monitor
        .execute("block-job-cancel", json!({"device": "lvd"}))
        .unwrap();
    crate::host::wait("the job's end", || {
        monitor.execute("query-block-jobs", Value::Null).unwrap() == json!([])
    });

    test.virsh(&[
        "blockcopy",
        &test.name,
        "vda",
        path(&copy),
        "--transient-job",
    ]);
    let under = node_for(&monitor, &disk).unwrap();
    assert_eq!(under.node, plain.node);
    let on_top = under.on_top.unwrap();
    assert_eq!(
        on_top.job,
        Some(format!("copy-vda-{}", plain.node)),
        "{on_top:?}"
    );
    test.virsh(&["blockjob", &test.name, "vda", "--abort"]);
    assert_eq!(node_for(&monitor, &disk).unwrap(), plain);
}

fn find<'a>(disks: &'a [Disk], target: &str) -> &'a Disk {
    disks.iter().find(|disk| disk.target == target).unwrap()
}

#[test]
fn a_monitor_belongs_to_one_run() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let test = TestDomain::named("run");
    let domain = test.start(&hypervisor, "");
    let monitor = DomainMonitor::open(&domain).unwrap();
    assert_eq!(
        monitor.execute("query-status", Value::Null).unwrap()["status"],
        "running"
    );
    match monitor.execute("blockdev-del", json!({"node-name": "none"})) {
        Err(MonitorError::Refused { class, desc, .. }) => {
            assert_eq!(class, "GenericError");
            assert!(desc.contains("none"), "{desc}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        domain.agent_ping(Duration::from_secs(1)).unwrap_err().kind,
        ErrorKind::AgentSilent
    );
    test.virsh(&["destroy", &test.name]);
    assert_eq!(domain.state().unwrap(), DomainState::Off);
    assert!(
        monitor
            .execute("query-status", Value::Null)
            .unwrap_err()
            .is_lost()
    );
    assert_eq!(
        DomainMonitor::open(&domain).unwrap_err().kind,
        ErrorKind::DomainOff
    );
    test.virsh(&["start", &test.name]);
    assert!(
        monitor
            .execute("query-status", Value::Null)
            .unwrap_err()
            .is_lost(),
        "the old run's monitor reached the new one"
    );
    assert!(
        DomainMonitor::open(&domain)
            .unwrap()
            .execute("query-status", Value::Null)
            .is_ok()
    );
    test.virsh(&["destroy", &test.name]);
    test.virsh(&["undefine", &test.name]);
    assert_eq!(domain.state().unwrap_err().kind, ErrorKind::NoSuchDomain);
}

#[test]
fn a_screenshot_is_a_picture() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let directory = directory();
    let test = TestDomain::named("screen");
    let domain = test.start(
        &hypervisor,
        "<graphics type='vnc' port='-1' autoport='yes'/>",
    );
    let file = domain
        .screenshot(&directory.path().join("web1.today"))
        .unwrap();
    let picture = std::fs::read(&file).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    match name.as_str() {
        "web1.today.ppm" => assert!(picture.starts_with(b"P6")),
        "web1.today.png" => assert!(picture.starts_with(b"\x89PNG")),
        other => panic!("{other}"),
    }
    assert!(run("ls", &["-s", file.to_str().unwrap()]).len() > 1);
}

#[test]
fn networks_are_required_by_name() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    assert!(!hypervisor.network_exists("lvd-none").unwrap());
    assert_eq!(
        hypervisor.require_network("lvd-none").unwrap_err().kind,
        ErrorKind::NoSuchNetwork
    );
    for network in hypervisor.networks().unwrap() {
        assert_eq!(
            hypervisor.require_network(&network.name).is_ok(),
            network.active,
            "{network:?}"
        );
    }
}
