//! A full guest boots from a view: agent, console log, screenshot, and the pull under a running guest.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use libvirt_driver::overlay::{create_overlay, image_info};
use libvirt_driver::qemu_user::qemu_identity;
use libvirt_driver::takeover::{StartMode, Traces, new_uuid};
use libvirt_driver::takeover_xml::{MacChoice, NbdBacking, NetworkChoice, TakeoverDisk};
use libvirt_driver::{ErrorKind, TakeoverSpec, edit};

use crate::host::{Server, TestDomain, directory, hypervisor};

/// The Debian guest of tests/guest/build-debian, where it was built.
const DISK: &str = "/var/cache/virt-cdp-guests/debian/disk.qcow2";
const BOOT_DEADLINE: Duration = Duration::from_secs(300);

#[test]
#[ignore = "boots a full guest: minutes under emulation"]
fn a_guest_boots_from_its_view() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    if !Path::new(DISK).exists() {
        drop(writeln!(
            std::io::stderr(),
            "SKIPPED: needs the guest of tests/guest/build-debian"
        ));
        return;
    }
    let directory = directory();
    let name = TestDomain::named("guest");
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guest/domain-xml");
    let xml = Command::new(made)
        .args(["debian", "lvd-original", "--disk", DISK])
        .output()
        .unwrap();
    let xml = String::from_utf8(xml.stdout).unwrap();
    let size = image_info(Path::new(DISK)).unwrap().virtual_size;
    let socket = directory.path().join("view.sock");
    let server = Server::nbd_at_full_speed(Path::new(DISK), &socket, "vda");
    let file = |name: &str| directory.path().join(name);
    let backing = NbdBacking {
        socket,
        export: "vda".into(),
        reconnect_delay_s: 10,
    };
    create_overlay(&file("vda.qcow2"), size, &backing, qemu_identity()).unwrap();
    let spec = TakeoverSpec {
        name: name.name.clone(),
        uuid: new_uuid().unwrap(),
        vcpus: Some(2),
        memory_kib: None,
        network: NetworkChoice::None,
        mac: MacChoice::Keep,
        disk_bus: None,
        disks: vec![TakeoverDisk {
            target: "vda".into(),
            overlay: file("vda.qcow2"),
            backing: Some(backing),
        }],
        nvram: None,
        console_log: Some(file("console.log")),
    };
    let edited = edit(&xml, &spec).unwrap();
    println!("dropped: {:#?}", edited.dropped);
    let domain = hypervisor
        .define_and_start(&edited.xml, StartMode::Running)
        .unwrap();
    let start = Instant::now();
    while let Err(error) = domain.agent_ping(Duration::from_secs(2)) {
        assert_eq!(error.kind, ErrorKind::AgentSilent, "{error}");
        assert!(start.elapsed() < BOOT_DEADLINE, "no agent: {error}");
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("agent after {:?}", start.elapsed());
    let refused = serde_json::json!({"execute": "guest-file-read", "arguments": {"handle": 4711}});
    let refused = domain
        .agent_command(&refused, Duration::from_secs(5))
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused, "{refused}");
    let console = std::fs::read_to_string(file("console.log")).unwrap();
    assert!(console.contains("Linux"), "{console}");
    println!(
        "screenshot: {:?}",
        domain
            .screenshot(&file("screen"))
            .map_err(|error| error.to_string())
    );

    let start = Instant::now();
    domain
        .block_pull("vda", &mut |_| ControlFlow::Continue(()))
        .unwrap();
    println!("pulled {} MiB in {:?}", size >> 20, start.elapsed());
    drop(server);
    assert_eq!(
        image_info(&file("vda.qcow2")).unwrap().backing_filename,
        None
    );
    domain.agent_ping(Duration::from_secs(10)).unwrap();
    let traces = Traces {
        uuid: spec.uuid,
        files: vec![file("vda.qcow2"), file("console.log")],
        directories: vec![],
    };
    hypervisor.discard(&traces).unwrap();
    assert!(!file("console.log").exists() && !file("vda.qcow2").exists());
}
