//! Literal tables: QEMU's answers as 10.0.2 gives them, shortened to what is read.

use super::*;
use crate::disks::Verdict;

fn disk(alias: Option<&str>, index: Option<u32>) -> Disk {
    Disk {
        target: "vda".into(),
        bus: "virtio".into(),
        alias: alias.map(str::to_owned),
        source: "/a".into(),
        source_index: index,
        format: "qcow2".into(),
        serial: None,
        verdict: Verdict::Protectable,
    }
}

fn devices(top: &str, driver: &str) -> Value {
    json!([
        {"device": "", "qdev": "/machine/peripheral/virtio-disk10/virtio-backend", "inserted": {"node-name": "other", "drv": "raw"}},
        {"device": "", "qdev": "/machine/peripheral/virtio-disk1/virtio-backend", "inserted": {"node-name": top, "drv": driver}},
        {"device": "", "qdev": "sata0-0-0"},
    ])
}

fn nodes(encrypted: bool, ro: bool, compat: &str) -> Value {
    json!([
        {"node-name": "libvirt-2-storage", "drv": "file", "ro": ro, "encrypted": false, "image": {"virtual-size": 197_120}},
        {"node-name": "libvirt-2-format", "drv": "qcow2", "ro": ro, "encrypted": encrypted, "image": {
            "virtual-size": 67_108_864, "format-specific": {"type": "qcow2", "data": {"compat": compat}}}},
        {"node-name": "libvirt-3-storage", "drv": "host_device", "ro": ro, "encrypted": false, "image": {"virtual-size": 1_048_576}},
    ])
}

fn found(node: &str, size: u64, driver: &str, v3: bool, on_top: Option<OnTop>) -> DiskNode {
    DiskNode {
        node: node.into(),
        virtual_size: size,
        driver: driver.into(),
        allocated: None,
        qcow2_v3: v3,
        on_top,
    }
}

#[test]
fn the_node_is_found_under_whatever_is_on_top() {
    let mirror = |node: Option<&str>, job: Option<&str>, kind: &str| {
        Some(OnTop {
            node: node.map(str::to_owned),
            job: job.map(str::to_owned),
            kind: kind.to_owned(),
        })
    };
    let none = json!([]);
    let copy = json!([{"device": "copy-vda-libvirt-2-format", "type": "mirror"}]);
    let other = json!([{"device": "copy-vdb-libvirt-5-format", "type": "mirror"}]);
    let qcow2 = |on_top| found("libvirt-2-format", 67_108_864, "qcow2", true, on_top);
    let table = [
        ("qcow2", "libvirt-2-format", "qcow2", 2, &none, qcow2(None)),
        (
            "raw",
            "libvirt-3-storage",
            "host_device",
            3,
            &none,
            found("libvirt-3-storage", 1_048_576, "host_device", false, None),
        ),
        (
            "a filter with a name",
            "tap-vda",
            "mirror_top",
            2,
            &none,
            qcow2(mirror(Some("tap-vda"), None, "mirror_top")),
        ),
        (
            "a filter over raw",
            "tap-vda",
            "mirror_top",
            3,
            &none,
            found(
                "libvirt-3-storage",
                1_048_576,
                "host_device",
                false,
                mirror(Some("tap-vda"), None, "mirror_top"),
            ),
        ),
        (
            "libvirt's copy, hidden",
            "libvirt-2-format",
            "qcow2",
            2,
            &copy,
            qcow2(mirror(None, Some("copy-vda-libvirt-2-format"), "mirror")),
        ),
        (
            "another disk's copy",
            "libvirt-2-format",
            "qcow2",
            2,
            &other,
            qcow2(None),
        ),
    ];
    for (case, top, driver, index, jobs, expected) in table {
        let disk = disk(Some("virtio-disk1"), Some(index));
        let node = find_node(
            &devices(top, driver),
            &nodes(false, false, "1.1"),
            jobs,
            &disk,
        )
        .unwrap();
        assert_eq!(node, expected, "{case}");
    }
}

#[test]
fn old_qcow2_cannot_keep_bitmaps() {
    let disk = disk(Some("virtio-disk1"), None);
    let devices = devices("libvirt-2-format", "qcow2");
    let node = find_node(&devices, &nodes(false, false, "0.10"), &json!([]), &disk).unwrap();
    assert!(!node.qcow2_v3);
}

#[test]
fn what_cannot_be_used_is_told() {
    let plain = nodes(false, false, "1.1");
    let find = |top: &str, driver: &str, nodes: &Value, alias: Option<&str>, index| {
        find_node(
            &devices(top, driver),
            nodes,
            &json!([]),
            &disk(alias, index),
        )
        .unwrap_err()
        .to_string()
    };
    let alias = Some("virtio-disk1");
    let table = [
        (
            find("libvirt-2-format", "qcow2", &plain, None, None),
            "disk vda: QEMU has no device ",
        ),
        (
            find(
                "libvirt-2-format",
                "qcow2",
                &plain,
                Some("virtio-disk7"),
                None,
            ),
            "disk vda: QEMU has no device virtio-disk7",
        ),
        (
            find("x", "qcow2", &plain, Some("sata0-0-0"), None),
            "disk vda: no medium",
        ),
        (
            find(
                "libvirt-2-format",
                "qcow2",
                &nodes(true, false, "1.1"),
                alias,
                None,
            ),
            "disk vda: the image is encrypted",
        ),
        (
            find(
                "libvirt-2-format",
                "qcow2",
                &nodes(false, true, "1.1"),
                alias,
                None,
            ),
            "disk vda: QEMU has it read-only",
        ),
        (
            find("f", "throttle", &plain, alias, None),
            "disk vda: the node below the filter f is not found",
        ),
        (
            find("f", "throttle", &plain, alias, Some(9)),
            "disk vda: the node below the filter f is not found",
        ),
        (
            find("gone", "raw", &plain, alias, None),
            "disk vda: QEMU's answer has no such node",
        ),
    ];
    for (found, expected) in table {
        assert_eq!(found, expected);
    }
}
