//! Literal tables: what the spec asks for is in the new XML, and what it cannot ask for is an error.

use std::collections::BTreeSet;

use super::tests::{BIOS, I440FX, NUMA, UEFI, UUID, everything_else, spec};
use super::*;
use crate::xml_tree::Tree;

#[test]
fn what_the_spec_asks_for_is_there() {
    let find = |xml: &str, path: &[&str]| {
        let root = parse_domain(xml).unwrap();
        path.iter()
            .try_fold(root, |at, name| at.get_child(*name).cloned())
    };
    let edited = edit(UEFI, &everything_else(&["sda"], "virtio")).unwrap();
    let text = |path: &[&str]| {
        find(&edited.xml, path)
            .unwrap()
            .get_text()
            .map(|text| text.into_owned())
    };
    let attr = |path: &[&str], name: &str| {
        find(&edited.xml, path)
            .unwrap()
            .attr(name)
            .map(str::to_owned)
    };
    assert_eq!(text(&["name"]).as_deref(), Some("t1"));
    assert_eq!(text(&["uuid"]).as_deref(), Some(UUID));
    assert_eq!(text(&["genid"]), None);
    assert_eq!(text(&["vcpu"]).as_deref(), Some("2"));
    assert_eq!(text(&["memory"]).as_deref(), Some("4194304"));
    assert_eq!(text(&["currentMemory"]).as_deref(), Some("4194304"));
    assert_eq!(
        text(&["os", "nvram"]).as_deref(),
        Some("/var/lib/virt-cdp/takeover/t1/vars.fd")
    );
    assert_eq!(
        attr(&["devices", "disk", "target"], "dev").as_deref(),
        Some("vda")
    );
    assert_eq!(
        attr(&["devices", "disk", "target"], "bus").as_deref(),
        Some("virtio")
    );
    assert_eq!(
        attr(&["devices", "disk", "boot"], "order").as_deref(),
        Some("1")
    );
    assert_eq!(
        attr(&["devices", "interface"], "type").as_deref(),
        Some("network")
    );
    assert_eq!(
        attr(&["devices", "interface", "source"], "network").as_deref(),
        Some("lab")
    );
    assert_eq!(
        attr(&["devices", "serial", "log"], "file").as_deref(),
        Some("/var/lib/virt-cdp/takeover/t1/console.log")
    );
    assert!(is_takeover(&parse_domain(&edited.xml).unwrap()));

    let none = TakeoverSpec {
        network: NetworkChoice::None,
        ..spec(&["sda"])
    };
    assert!(!edit(UEFI, &none).unwrap().xml.contains("<interface"));
}

#[test]
fn loose_cards_are_in_no_network_and_tell_what_they_were_in() {
    let edited = edit(
        UEFI,
        &TakeoverSpec {
            network: NetworkChoice::Loose { down: vec![1] },
            ..spec(&["sda"])
        },
    )
    .unwrap();
    let root = parse_domain(&edited.xml).unwrap();
    let devices = root.get_child("devices").unwrap();
    let cards: Vec<_> = devices
        .elements()
        .filter(|device| device.name == "interface")
        .collect();
    assert_eq!(cards.len(), 2);
    // Nor does anything else lead to the host.
    let screen = devices.get_child("graphics").unwrap();
    assert_eq!(screen.child_attr("listen", "type"), Some("none"));
    assert!(screen.attr("port").is_none() && screen.attr("autoport").is_none());
    assert!(!devices.has("vsock"));
    for card in &cards {
        assert_eq!(card.attr("type"), Some("ethernet"));
        assert!(!card.has("source") && !card.has("target"), "{card:?}");
        assert!(card.has("model") && card.has("mac"));
    }
    assert!(!cards[0].has("link"));
    assert_eq!(cards[1].child_attr("link", "state"), Some("down"));
    let told = super::cards(UEFI).unwrap();
    let told: Vec<(&str, &str, bool)> = told
        .iter()
        .map(|card| (card.mac.as_str(), card.was_in.as_str(), card.is_network))
        .collect();
    assert_eq!(
        told,
        [
            ("52:54:00:11:22:33", "br0", false),
            ("52:54:00:11:22:34", "hostdev", false),
        ]
    );
}

#[test]
fn new_addresses_differ_between_cards_and_takeovers() {
    let macs = |uuid: &str| {
        let spec = TakeoverSpec {
            uuid: uuid.to_owned(),
            network: NetworkChoice::Named("lab".to_owned()),
            mac: MacChoice::New,
            ..spec(&["sda"])
        };
        let root = parse_domain(&edit(UEFI, &spec).unwrap().xml).unwrap();
        let devices = root.get_child("devices").unwrap();
        devices
            .elements()
            .filter_map(|card| card.child_attr("mac", "address").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let (first, second) = (macs(UUID), macs("7d3e6a52-3f1d-4b7e-9a43-0c5a61f2b9e9"));
    let all: BTreeSet<_> = first.iter().chain(&second).collect();
    assert_eq!(all.len(), 4);
    assert!(
        all.iter()
            .all(|mac| mac.starts_with("52:54:00:") && mac.len() == 17),
        "{all:?}"
    );
    assert_eq!(macs(UUID), first);
}

#[test]
fn targets_follow_the_bus_and_avoid_each_other() {
    let table: [(&str, &[&str], &str, &[&str]); 5] = [
        (BIOS, &["vda"], "scsi", &["sda"]),
        // sdb is the CD drive's.
        (NUMA, &["vdb", "vda"], "sata", &["sdb", "sda"]),
        (UEFI, &["vda", "sda"], "sata", &["sdc", "sda"]),
        (I440FX, &["hda", "hdb"], "virtio", &["vda", "vdb"]),
        (I440FX, &["hda"], "ide", &["hda"]),
    ];
    for (xml, disks, bus, expected) in table {
        let spec = TakeoverSpec {
            disk_bus: Some(bus.to_owned()),
            ..spec(disks)
        };
        let edited = edit(xml, &spec).unwrap();
        let then: Vec<_> = edited
            .targets
            .iter()
            .map(|target| target.then.as_str())
            .collect();
        let now: Vec<_> = edited
            .targets
            .iter()
            .map(|target| target.now.as_str())
            .collect();
        assert_eq!(
            (then.as_slice(), now.as_slice()),
            (disks, expected),
            "{disks:?} to {bus}"
        );
    }
}

#[test]
fn a_takeover_of_a_takeover_has_one_mark() {
    let first = edit(BIOS, &spec(&["vda"])).unwrap();
    let second = edit(&first.xml, &spec(&["vda"])).unwrap();
    assert_eq!(
        second.xml.matches("virtcdp:takeover").count(),
        1,
        "{}",
        second.xml
    );
    assert!(
        second.xml.contains(&format!("of=\"{UUID}\"")),
        "{}",
        second.xml
    );
}

#[test]
fn what_cannot_be_is_an_error() {
    let bus = |bus: &str| TakeoverSpec {
        disk_bus: Some(bus.to_owned()),
        ..spec(&["vda"])
    };
    let table = [
        (BIOS, spec(&[]), "a takeover needs at least one disk"),
        (
            BIOS,
            spec(&["vdb"]),
            "the machine of that time has no disk vdb",
        ),
        (BIOS, spec(&["vda", "vda"]), "disk vda is named twice"),
        (
            BIOS,
            bus("ide"),
            "machine type pc-q35-10.0 has no IDE: use the disk bus sata",
        ),
        (
            BIOS,
            bus("nvme"),
            "nvme is no disk bus: use virtio, scsi, sata, ide or usb",
        ),
        (
            BIOS,
            TakeoverSpec {
                name: String::new(),
                ..spec(&["vda"])
            },
            "a takeover needs a name and a UUID",
        ),
        (
            "<domain/>",
            spec(&["vda"]),
            "the machine of that time has no <devices>",
        ),
    ];
    for (xml, spec, expected) in table {
        let error = edit(xml, &spec).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::BadXml, expected)
        );
    }
}
