//! Literal tables: the disks of real machines, and what is refused for which reason.

use super::*;

const BIOS: &str = include_str!("../tests/xml/bios.xml");
const UEFI: &str = include_str!("../tests/xml/uefi.xml");
const I440FX: &str = include_str!("../tests/xml/i440fx.xml");
const NUMA: &str = include_str!("../tests/xml/numa.xml");

#[test]
fn every_field_of_a_plain_disk_is_read() {
    let expected = Disk {
        target: "vda".into(),
        bus: "virtio".into(),
        alias: Some("virtio-disk0".into()),
        source: "/var/lib/libvirt/images/web1.qcow2".into(),
        source_index: Some(2),
        format: "qcow2".into(),
        serial: Some("WEB1-0001".into()),
        verdict: Verdict::Protectable,
    };
    assert_eq!(parse_disks(BIOS).unwrap(), [expected]);
}

#[test]
fn real_machines_have_these_disks() {
    use Verdict::{LeftOut as Out, Protectable as Yes, Refused as No};
    type Row = (&'static str, &'static str, &'static str, Verdict);
    let table: [(&str, &str, &[Row]); 3] = [
        (
            "uefi",
            UEFI,
            &[
                ("sda", "sata", "/dev/vg0/win11", Yes),
                (
                    "sdb",
                    "sata",
                    "/srv/iso/virtio-win.iso",
                    Out(LeftOut::Cdrom),
                ),
                ("vda", "virtio", "/srv/scratch/win11-temp.img", Yes),
                (
                    "sdc",
                    "scsi",
                    "/dev/disk/by-id/wwn-0x5000",
                    No(Refusal::Lun),
                ),
            ],
        ),
        (
            "i440fx",
            I440FX,
            &[
                ("hda", "ide", "/var/lib/libvirt/images/erp.img", Yes),
                ("hdb", "ide", "default/erp-data.img", Yes),
                ("hdc", "ide", "/dev/sr0", Out(LeftOut::Cdrom)),
                (
                    "fda",
                    "fdc",
                    "/srv/floppies/licence.img",
                    Out(LeftOut::Floppy),
                ),
            ],
        ),
        (
            "numa",
            NUMA,
            &[
                ("vda", "virtio", "rbd:pool/db1-root", Yes),
                ("vdb", "virtio", "/dev/vg0/db1-data", Yes),
                ("vdc", "virtio", "/dev/vg0/quorum", No(Refusal::Shareable)),
            ],
        ),
    ];
    for (machine, xml, expected) in table {
        let disks = parse_disks(xml).unwrap();
        let found: Vec<_> = disks
            .iter()
            .map(|disk| {
                (
                    disk.target.as_str(),
                    disk.bus.as_str(),
                    disk.source.as_str(),
                    disk.verdict.clone(),
                )
            })
            .collect();
        assert_eq!(found, expected, "{machine}");
    }
}

#[test]
fn each_reason_is_recognised() {
    let source = "<source file='/a'/>";
    let table = [
        ("type='file' device='disk'", source, Verdict::Protectable),
        ("type='file'", source, Verdict::Protectable),
        (
            "type='file' device='disk'",
            "",
            Verdict::LeftOut(LeftOut::Empty),
        ),
        (
            "type='file' device='disk'",
            "<source file='/a'/><readonly/>",
            Verdict::LeftOut(LeftOut::ReadOnly),
        ),
        (
            "type='file' device='disk'",
            "<source file='/a'/><shareable/>",
            Verdict::Refused(Refusal::Shareable),
        ),
        (
            "type='file' device='disk'",
            "<source file='/a'/><transient/>",
            Verdict::Refused(Refusal::Transient),
        ),
        (
            "type='file' device='disk'",
            "<source file='/a'><encryption format='luks'/></source>",
            Verdict::Refused(Refusal::Encrypted),
        ),
        (
            "type='file' device='disk'",
            "<source file='/a'/><encryption format='luks'/>",
            Verdict::Refused(Refusal::Encrypted),
        ),
        (
            "type='file' device='disk'",
            "<source file='/a'/><driver type='qcow2'><iothreads><iothread id='1'/></iothreads></driver>",
            Verdict::Refused(Refusal::IothreadMapping),
        ),
        (
            "type='file' device='disk'",
            "<source file='/a'/><driver type='vmdk'/>",
            Verdict::Refused(Refusal::Format("vmdk".into())),
        ),
        (
            "type='dir' device='disk'",
            "<source dir='/a'/>",
            Verdict::Refused(Refusal::Source("dir".into())),
        ),
        (
            "type='nvme' device='disk'",
            "<source type='pci'/>",
            Verdict::Refused(Refusal::Source("nvme".into())),
        ),
        (
            "type='vhostuser' device='disk'",
            "<source path='/a'/>",
            Verdict::Refused(Refusal::Source("vhostuser".into())),
        ),
        (
            "type='vhostvdpa' device='disk'",
            "<source dev='/a'/>",
            Verdict::Refused(Refusal::Source("vhostvdpa".into())),
        ),
    ];
    for (attributes, children, expected) in table {
        let xml = format!(
            "<domain><devices><disk {attributes}>{children}<target dev='vda'/></disk></devices></domain>"
        );
        let disks = parse_disks(&xml).unwrap();
        assert_eq!(disks[0].verdict, expected, "{attributes} {children}");
    }
}

#[test]
fn what_is_no_domain_is_an_error() {
    for xml in ["", "<domain>", "<network/>", "not xml"] {
        let error = parse_disks(xml).unwrap_err();
        assert_eq!(error.kind, crate::ErrorKind::BadXml, "{xml}");
    }
    assert_eq!(parse_disks("<domain/>").unwrap(), []);
}
