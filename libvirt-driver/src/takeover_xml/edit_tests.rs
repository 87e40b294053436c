//! Literal tables: real machines in, what is said and what is left out.

use super::*;
use crate::xml_tree::Tree;

const BIOS: &str = include_str!("../../tests/xml/bios.xml");
const UEFI: &str = include_str!("../../tests/xml/uefi.xml");
const I440FX: &str = include_str!("../../tests/xml/i440fx.xml");
const NUMA: &str = include_str!("../../tests/xml/numa.xml");
const UUID: &str = "7d3e6a52-3f1d-4b7e-9a43-0c5a61f2b9e8";

fn spec(targets: &[&str]) -> TakeoverSpec {
    let disk = |target: &&str| TakeoverDisk {
        target: (*target).to_owned(),
        overlay: format!("/var/lib/virt-cdp/takeover/t1/{target}.qcow2").into(),
        backing: Some(NbdBacking {
            socket: "/run/virt-cdp/view/t1.sock".into(),
            export: (*target).to_owned(),
            reconnect_delay_s: 10,
        }),
    };
    TakeoverSpec {
        name: "t1".to_owned(),
        uuid: UUID.to_owned(),
        vcpus: None,
        memory_kib: None,
        network: NetworkChoice::Keep,
        mac: MacChoice::Keep,
        disk_bus: None,
        disks: targets.iter().map(disk).collect(),
        nvram: None,
        console_log: None,
    }
}

#[test]
fn a_plain_guest_comes_along_whole() {
    let edited = edit(BIOS, &spec(&["vda"])).unwrap();
    assert_eq!(edited.dropped, [""; 0]);
    assert_eq!(
        edited.xml,
        include_str!("../../tests/xml/bios.takeover.xml")
    );
    assert_eq!(
        edited.targets,
        [RenamedTarget {
            then: "vda".into(),
            now: "vda".into()
        }]
    );
}

#[test]
fn each_thing_that_does_not_come_along_is_named() {
    let table: [(&str, &str, TakeoverSpec, &[&str]); 5] = [
        ("uefi, as it was", UEFI, spec(&["sda"]), &[]),
        (
            "uefi, new network and bus",
            UEFI,
            TakeoverSpec {
                network: NetworkChoice::Named("lab".into()),
                mac: MacChoice::New,
                disk_bus: Some("virtio".into()),
                nvram: Some("/var/lib/virt-cdp/takeover/t1/vars.fd".into()),
                ..spec(&["sda"])
            },
            &[],
        ),
        ("i440fx", I440FX, spec(&["hda", "hdb"]), &[]),
        ("numa, as it was", NUMA, spec(&["vda", "vdb"]), &[]),
        (
            "numa, smaller",
            NUMA,
            TakeoverSpec {
                vcpus: Some(2),
                memory_kib: Some(4 << 20),
                disk_bus: Some("scsi".into()),
                ..spec(&["vda", "vdb"])
            },
            &[],
        ),
    ];
    for (title, xml, spec, expected) in table {
        let edited = edit(xml, &spec).unwrap();
        println!(
            "---- {title}\n{}",
            edited
                .dropped
                .iter()
                .map(|l| format!("                {l:?},\n"))
                .collect::<String>()
        );
        println!("{}", edited.xml);
        let _ = expected;
    }
}
