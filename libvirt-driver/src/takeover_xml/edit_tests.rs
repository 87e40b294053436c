//! Literal tables: real machines in, what comes along and what is said about the rest.
//!
//! Two checks stand against silence: the sentences are literal, and every value of the old XML that is not in the
//! new one must be in a sentence or in the table of values that libvirt writes for a run.

use std::collections::BTreeSet;

use super::*;
use crate::xml_tree::Tree;

pub(super) const BIOS: &str = include_str!("../../tests/xml/bios.xml");
pub(super) const UEFI: &str = include_str!("../../tests/xml/uefi.xml");
pub(super) const I440FX: &str = include_str!("../../tests/xml/i440fx.xml");
pub(super) const NUMA: &str = include_str!("../../tests/xml/numa.xml");
pub(super) const UUID: &str = "7d3e6a52-3f1d-4b7e-9a43-0c5a61f2b9e8";

pub(super) fn spec(targets: &[&str]) -> TakeoverSpec {
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

pub(super) fn everything_else(targets: &[&str], disk_bus: &str) -> TakeoverSpec {
    TakeoverSpec {
        vcpus: Some(2),
        memory_kib: Some(4 << 20),
        network: NetworkChoice::Named("lab".to_owned()),
        mac: MacChoice::New,
        disk_bus: Some(disk_bus.to_owned()),
        nvram: Some("/var/lib/virt-cdp/takeover/t1/vars.fd".into()),
        console_log: Some("/var/lib/virt-cdp/takeover/t1/console.log".into()),
        ..spec(targets)
    }
}

/// Sentences about the UEFI machine that do not depend on the spec.
const UEFI_ALWAYS: [&str; 20] = [
    "VM generation ID: a new one, so that the guest notices",
    "SMBIOS system UUID: now the takeover's, 7d3e6a52-3f1d-4b7e-9a43-0c5a61f2b9e8",
    "TPM: kept, but its state is not captured: it starts empty, and what is sealed to it (BitLocker, LUKS) needs its recovery key",
    "CD drive sdb: empty, the medium /srv/iso/virtio-win.iso does not come along",
    "disk vda (/srv/scratch/win11-temp.img): not protected, dropped",
    "lun sdc (/dev/disk/by-id/wwn-0x5000): not protected, dropped",
    "network card 52:54:00:11:22:33: the host's device name win11-lan can exist once only, libvirt chooses one",
    "serial port 0: its log /var/log/win11-serial.log stays the original's, dropped",
    "serial port 0: was unix /run/win11-kdebug.sock, is a pty now",
    "channel com.example.backup: was unix /run/backup-agent.sock, is a socket libvirt chooses now",
    "screen spice: was port 5911, TLS port 5912, TLS for some channels, on 0.0.0.0, is a free port on 127.0.0.1 without a password now",
    "sound: went to the host (pulseaudio), goes nowhere now",
    "shared directory share: belongs to the host, dropped",
    "input device /dev/input/event3 of the host, dropped",
    "host device pci 0000:65:00.0, dropped",
    "host device usb 0529:0001, dropped",
    "host device mdev c2177883-f1bb-47f0-914d-32a22e3a8804, dropped",
    "USB redirection over the network: belongs to the host, dropped",
    "smart card reader: belongs to the host, dropped",
    "vsock: its number 37 can exist once only, libvirt chooses one",
];
const UEFI_ALWAYS_TOO: [&str; 3] = [
    "shared memory looking-glass: belongs to the host, dropped",
    "memory encryption (sev): bound to the host's CPU and the first start, dropped",
    "QEMU options past libvirt (qemu:commandline: -device edu DISPLAY=:0), dropped",
];

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
    let uefi = |more: &[&'static str]| {
        UEFI_ALWAYS
            .iter()
            .chain(&UEFI_ALWAYS_TOO)
            .chain(more)
            .copied()
            .collect::<BTreeSet<_>>()
    };
    let set = |sentences: &[&'static str]| sentences.iter().copied().collect::<BTreeSet<_>>();
    let table = [
        (
            "uefi as it was",
            UEFI,
            spec(&["sda"]),
            uefi(&[
                "UEFI variables: there is no copy of that time, they start from the template (boot entries and enrolled keys are lost)",
                "network card 52:54:00:11:22:34: its host side (hostdev) can be used by one domain only, dropped",
            ]),
        ),
        (
            "uefi with all changes",
            UEFI,
            everything_else(&["sda"], "virtio"),
            uefi(&[
                "CPU topology: laid out for 4 vCPUs, dropped",
                "disk sda: its rotation rate does not exist on the virtio bus, dropped",
                "disk sda: its WWN does not exist on the virtio bus, dropped",
                "network card 52:54:00:11:22:33: <vlan> belongs to the network it was in, dropped",
                "network card 52:54:00:11:22:33: <virtualport> belongs to the network it was in, dropped",
                "network card 52:54:00:11:22:34: was a device of the host (hostdev), is a virtio card now",
            ]),
        ),
        (
            "i440fx as it was",
            I440FX,
            spec(&["hda", "hdb"]),
            set(&[
                "CD drive hdc: empty, the medium /dev/sr0 does not come along",
                "floppy drive fda: empty, the medium /srv/floppies/licence.img does not come along",
                "serial port 0: was tcp 0.0.0.0:4555, is a pty now",
                "parallel port 0: was file /srv/printer/out.prn, is a pty now",
                "screen sdl: belongs to the host's desktop or network, dropped",
            ]),
        ),
        (
            "i440fx with all changes",
            I440FX,
            everything_else(&["hda", "hdb"], "sata"),
            set(&[
                "CD drive hdc: empty, the medium /dev/sr0 does not come along",
                "floppy drive fda: empty, the medium /srv/floppies/licence.img does not come along",
                "disk hda: its geometry does not exist on the sata bus, dropped",
                "network card 52:54:00:20:03:01: <filterref> belongs to the network it was in, dropped",
                "serial port 0: was tcp 0.0.0.0:4555, is a pty now",
                "parallel port 0: was file /srv/printer/out.prn, is a pty now",
                "screen sdl: belongs to the host's desktop or network, dropped",
            ]),
        ),
        (
            "numa as it was",
            NUMA,
            spec(&["vda", "vdb"]),
            set(&[
                "disk vdc (/dev/vg0/quorum): not protected, dropped",
                "network card 52:54:00:db:00:01: its host side (vhostuser) can be used by one domain only, dropped",
                "IO limits of host devices (blkiotune): the disks are elsewhere now, dropped",
            ]),
        ),
        (
            "numa with all changes",
            NUMA,
            everything_else(&["vda", "vdb"], "scsi"),
            set(&[
                "vCPU list: which vCPUs were online is dropped, all are",
                "CPU pinning of vCPU 7: there is no such vCPU now, dropped",
                "CPU tuning vcpusched of vCPUs 0-3: laid out for another number of vCPUs, dropped",
                "CPU topology: laid out for 8 vCPUs, dropped",
                "memory hot-plug (maxMemory): laid out for another size, dropped",
                "memory device dimm: the takeover has its own memory size, dropped",
                "memory limits (memtune): set for another size, dropped",
                "NUMA cells: laid out for another size, dropped",
                "NUMA policy of cells (memnode): there are no cells now, dropped",
                "huge pages of cells: there are no cells now, the default size is used",
                "PCI bus 9: no longer belongs to a NUMA cell",
                "disk vdc (/dev/vg0/quorum): not protected, dropped",
                "disk vda: its iothread does not exist on the scsi bus, dropped",
                "disk vda: its number of queues does not exist on the scsi bus, dropped",
                "network card 52:54:00:db:00:01: the host's device name vhu-db1 can exist once only, libvirt chooses one",
                "serial port: added, for the console log",
                "IO limits of host devices (blkiotune): the disks are elsewhere now, dropped",
            ]),
        ),
    ];
    for (case, xml, spec, expected) in table {
        let edited = edit(xml, &spec).unwrap();
        let said: BTreeSet<_> = edited.dropped.iter().map(String::as_str).collect();
        assert_eq!(
            said.len(),
            edited.dropped.len(),
            "{case}: something is said twice"
        );
        assert_eq!(said, expected, "{case}");
    }
}

/// Every attribute value and text of a tree.
fn values(element: &xmltree::Element, into: &mut BTreeSet<String>) {
    into.extend(element.attributes.values().cloned());
    into.extend(element.get_text().map(|text| text.trim().to_owned()));
    element.elements().for_each(|child| values(child, into));
}

#[test]
fn no_value_is_lost_without_a_sentence() {
    // What is not in the new XML: disk sources (the spec replaces them), what libvirt filled in for the run, and parts
    // of things that a sentence names as a whole.
    let table: [(&str, &str, TakeoverSpec, &[&str]); 4] = [
        (
            "bios",
            BIOS,
            spec(&["vda"]),
            &[
                "+64055:+64055",
                "/var/lib/libvirt/images/base.qcow2",
                "/var/lib/libvirt/images/web1.qcow2",
                "0ea3b4ef-dd18-46bd-9f91-9a42c4d5a3ce",
                "bind",
                "connected",
                "dac",
                "dynamic",
                "virbr0",
                "web1",
            ],
        ),
        (
            "uefi",
            UEFI,
            spec(&["sda"]),
            &[
                "/dev/vg0/win11",
                "/run/user/1000/pulse/native",
                "/srv/share",
                "/var/lib/libvirt/qemu/nvram/win11_VARS.fd",
                "0x02",
                "0x06",
                "0x3b",
                "5d6c3b26-8d5a-4e4c-9a32-0e1fd7e2cf3a",
                "9c1a3e52-0f6c-4a50-9d0b-6d0f4be5a001",
                "all",
                "apparmor",
                "bind",
                "block",
                "connect",
                "connected",
                "disconnected",
                "dynamic",
                "evdev",
                "ivshmem-plain",
                "libvirt-0b6f43a1-5f8e-4d62-8d0e-7c1d29a5f0a1",
                "mount",
                "passthrough",
                "secure",
                "subsystem",
                "tcp",
                "usb.example",
                "vfio",
                "vfio-pci",
                "virtiofs",
            ],
        ),
        (
            "i440fx",
            I440FX,
            spec(&["hda", "hdb"]),
            &[
                "/var/lib/libvirt/images/erp.img",
                ":0.0",
                "bind",
                "block",
                "default",
                "erp-2003",
                "erp-data.img",
                "telnet",
                "volume",
            ],
        ),
        (
            "numa",
            NUMA,
            spec(&["vda", "vdb"]),
            &[
                "/dev/sdb",
                "/dev/vg0/db1-data",
                "/run/openvswitch/vhu-db1",
                "0x05",
                "2ec115d7-3a88-3ceb-bc12-0ac909a6fd87",
                "block",
                "ceph",
                "db1",
                "libvirt",
                "mon1.example",
                "pool/db1-root",
                "rbd",
                "server",
                "vhu-db1",
            ],
        ),
    ];
    for (case, xml, spec, allowed) in table {
        let edited = edit(xml, &spec).unwrap();
        let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
        values(&parse_domain(xml).unwrap(), &mut before);
        values(&parse_domain(&edited.xml).unwrap(), &mut after);
        let said = edited.dropped.join("\n");
        let lost: Vec<_> = before
            .difference(&after)
            .map(String::as_str)
            .filter(|value| !said.contains(value.trim_start_matches("0x")) && !is_runs_own(value))
            .collect();
        assert_eq!(lost, allowed, "{case}");
    }
}

/// Aliases, generated names and sockets, process labels.
fn is_runs_own(value: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let stem = value.trim_end_matches(|c: char| c.is_ascii_digit() || "-.".contains(c));
    const STEMS: [&str; 24] = [
        "virtio-disk",
        "sata",
        "scsi",
        "ide",
        "fdc",
        "pcie",
        "pci",
        "net",
        "serial",
        "parallel",
        "channel",
        "input",
        "tpm",
        "sound",
        "video",
        "balloon",
        "hostdev",
        "redir",
        "vsock",
        "shmem",
        "fs",
        "vnet",
        "macvtap",
        "dimm",
    ];
    STEMS.contains(&stem)
        || value.contains("/libvirt/qemu/channel/")
        || value.starts_with("/dev/pts/")
        || digits(value)
}
