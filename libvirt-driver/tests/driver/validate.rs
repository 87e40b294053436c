//! What the edit makes of the test machines is what libvirt's schema allows.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use libvirt_driver::takeover_xml::{MacChoice, NbdBacking, NetworkChoice, TakeoverDisk};
use libvirt_driver::{TakeoverSpec, edit};

fn disk(target: &str) -> TakeoverDisk {
    let backing = NbdBacking {
        socket: "/run/virt-cdp/v.sock".into(),
        export: target.into(),
        reconnect_delay_s: 10,
    };
    TakeoverDisk {
        target: target.into(),
        overlay: format!("/o/{target}.qcow2").into(),
        backing: Some(backing),
    }
}

#[test]
fn edited_machines_are_valid() {
    if Command::new("virt-xml-validate")
        .arg("--version")
        .output()
        .is_err()
    {
        drop(writeln!(
            std::io::stderr(),
            "SKIPPED: needs virt-xml-validate"
        ));
        return;
    }
    let machines = [
        ("bios", "vda"),
        ("uefi", "sda"),
        ("i440fx", "hda"),
        ("numa", "vda"),
    ];
    let networks = [
        NetworkChoice::Keep,
        NetworkChoice::None,
        NetworkChoice::Named("lab".into()),
    ];
    let directory = tempfile::tempdir().unwrap();
    for (machine, target) in machines {
        let xml = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/xml/{machine}.xml"));
        let xml = std::fs::read_to_string(xml).unwrap();
        for network in &networks {
            for (bus, size) in [
                (None, None),
                (Some("virtio"), Some(3)),
                (Some("scsi"), Some(1)),
                (Some("usb"), None),
            ] {
                let spec = TakeoverSpec {
                    name: "t1".into(),
                    uuid: "7d3e6a52-3f1d-4b7e-9a43-0c5a61f2b9e8".into(),
                    vcpus: size,
                    memory_kib: size.map(|gib| u64::from(gib) << 20),
                    network: network.clone(),
                    mac: MacChoice::New,
                    disk_bus: bus.map(str::to_owned),
                    disks: vec![disk(target)],
                    nvram: size.map(|_| "/o/vars.fd".into()),
                    console_log: size.map(|_| "/o/console.log".into()),
                };
                let edited = edit(&xml, &spec).unwrap();
                let file = directory.path().join("t1.xml");
                std::fs::write(&file, &edited.xml).unwrap();
                let said = Command::new("virt-xml-validate")
                    .arg(&file)
                    .arg("domain")
                    .output()
                    .unwrap();
                let said_text = String::from_utf8_lossy(&said.stderr).into_owned();
                assert!(
                    said.status.success(),
                    "{machine} {network:?} {bus:?}: {said_text}\n{}",
                    edited.xml
                );
            }
        }
    }
}
