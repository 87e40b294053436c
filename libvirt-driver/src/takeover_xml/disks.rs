//! The takeover's disks: each protected one an overlay over its view, drives empty, all others gone.
//!
//! What the guest knows of a disk stays: target, serial, wwn, boot order, limits, address. Where the bus changes, the
//! target is renamed after the new bus, the address is libvirt's to choose, and what only the old bus has goes.

use std::collections::BTreeSet;

use xmltree::Element;

use super::bad;
use super::spec::{NbdBacking, RenamedTarget, TakeoverDisk, TakeoverSpec};
use crate::disks::describe_source;
use crate::error::Result;
use crate::xml_tree::{Tree, element};

pub(super) fn edit(
    devices: &mut Element,
    machine: &str,
    spec: &TakeoverSpec,
    notes: &mut Vec<String>,
) -> Result<Vec<RenamedTarget>> {
    check(devices, machine, spec)?;
    devices.retain(|device| {
        device.name != "disk" || is_protected(device, spec) || keep_drive(device, notes)
    });
    let targets = rename(devices, machine, spec)?;
    let controller = match spec.disk_bus.as_deref() {
        Some("scsi") => scsi_controller(devices),
        _ => None,
    };
    let mut unit = 0;
    for disk in devices
        .elements_mut()
        .filter(|device| device.name == "disk")
    {
        let then = disk
            .child_attr("target", "dev")
            .unwrap_or_default()
            .to_owned();
        let pair = spec
            .disks
            .iter()
            .zip(&targets)
            .find(|(wanted, _)| wanted.target == then);
        let Some((wanted, renamed)) = pair else {
            continue;
        };
        put_overlay(disk, wanted);
        let bus = spec.disk_bus.as_deref();
        if let Some(bus) = bus.filter(|bus| disk.child_attr("target", "bus") != Some(bus)) {
            change_bus(disk, bus, renamed, notes);
            if let Some(controller) = &controller {
                disk.push(drive_address(controller, unit));
                unit += 1;
            }
        }
    }
    Ok(targets)
}

fn check(devices: &Element, machine: &str, spec: &TakeoverSpec) -> Result<()> {
    if spec.disks.is_empty() {
        return Err(bad("a takeover needs at least one disk"));
    }
    let mut seen = BTreeSet::new();
    for wanted in &spec.disks {
        if !devices
            .elements()
            .any(|device| target_of(device) == Some(wanted.target.as_str()))
        {
            return Err(bad(format!(
                "the machine of that time has no disk {}",
                wanted.target
            )));
        }
        if !seen.insert(&wanted.target) {
            return Err(bad(format!("disk {} is named twice", wanted.target)));
        }
    }
    match spec.disk_bus.as_deref() {
        None | Some("virtio" | "scsi" | "sata" | "usb") => Ok(()),
        Some("ide") if !machine.contains("q35") => Ok(()),
        Some("ide") => Err(bad(format!(
            "machine type {machine} has no IDE: use the disk bus sata"
        ))),
        Some(bus) => Err(bad(format!(
            "{bus} is no disk bus: use virtio, scsi, sata, ide or usb"
        ))),
    }
}

/// The target of a `<disk>`; none for other devices.
fn target_of(device: &Element) -> Option<&str> {
    (device.name == "disk").then(|| device.child_attr("target", "dev"))?
}

fn is_protected(disk: &Element, spec: &TakeoverSpec) -> bool {
    spec.disks
        .iter()
        .any(|wanted| target_of(disk) == Some(wanted.target.as_str()))
}

/// Empties a CD or floppy drive; anything else that is not protected goes.
fn keep_drive(disk: &mut Element, notes: &mut Vec<String>) -> bool {
    let target = disk
        .child_attr("target", "dev")
        .unwrap_or_default()
        .to_owned();
    let source = describe_source(disk);
    let drive = match disk.attr("device") {
        Some("cdrom") => "CD drive",
        Some("floppy") => "floppy drive",
        kind => {
            let kind = kind.unwrap_or("disk");
            notes.push(format!(
                "{kind} {target} ({source}): not protected, dropped"
            ));
            return false;
        }
    };
    if !source.is_empty() {
        notes.push(format!(
            "{drive} {target}: empty, the medium {source} does not come along"
        ));
    }
    disk.set("type", "file");
    disk.unset("rawio");
    disk.unset("sgio");
    for name in [
        "source",
        "backingStore",
        "mirror",
        "auth",
        "encryption",
        "transient",
    ] {
        disk.remove_all(name);
    }
    if let Some(driver) = disk.get_mut_child("driver") {
        driver.unset("type");
        driver.unset("cache");
        driver.unset("io");
    }
    true
}

/// Replaces what the disk was stored in; the rest of it stays.
fn put_overlay(disk: &mut Element, wanted: &TakeoverDisk) {
    disk.set("type", "file");
    disk.set("device", "disk");
    for name in ["rawio", "sgio", "snapshot"] {
        disk.unset(name);
    }
    for name in [
        "source",
        "backingStore",
        "mirror",
        "auth",
        "encryption",
        "transient",
        "shareable",
        "readonly",
    ] {
        disk.remove_all(name);
    }
    if !disk.has("driver") {
        disk.push(element("driver", &[]));
    }
    if let Some(driver) = disk.get_mut_child("driver") {
        driver.set("name", "qemu");
        driver.set("type", "qcow2");
        driver.set("error_policy", "stop");
        driver.set("rerror_policy", "stop");
        driver.unset("copy_on_read");
    }
    disk.push(element(
        "source",
        &[("file", &wanted.overlay.to_string_lossy())],
    ));
    let end = element("backingStore", &[]);
    disk.push(match &wanted.backing {
        Some(backing) => view(backing).with(end),
        None => end,
    });
}

fn view(backing: &NbdBacking) -> Element {
    let socket = backing.socket.to_string_lossy();
    let delay = backing.reconnect_delay_s.to_string();
    let source = element("source", &[("protocol", "nbd"), ("name", &backing.export)])
        .with(element(
            "host",
            &[("transport", "unix"), ("socket", &socket)],
        ))
        .with(element("reconnect", &[("delay", &delay)]));
    element("backingStore", &[("type", "network")])
        .with(element("format", &[("type", "raw")]))
        .with(source)
}

fn prefix(bus: &str) -> &'static str {
    match bus {
        "virtio" => "vd",
        "ide" => "hd",
        _ => "sd",
    }
}

/// Decides each protected disk's new target: its old letter if that is free, else the first that is.
fn rename(devices: &Element, machine: &str, spec: &TakeoverSpec) -> Result<Vec<RenamedTarget>> {
    let disks = || devices.elements().filter(|device| device.name == "disk");
    let moves = |disk: &Element| {
        let bus = disk.child_attr("target", "bus");
        is_protected(disk, spec) && spec.disk_bus.as_deref().is_some_and(|new| bus != Some(new))
    };
    let mut taken: BTreeSet<String> = disks()
        .filter(|disk| !moves(disk))
        .filter_map(target_of)
        .map(str::to_owned)
        .collect();
    let mut renamed = Vec::new();
    for wanted in &spec.disks {
        let then = wanted.target.clone();
        let bus = spec
            .disk_bus
            .as_deref()
            .filter(|_| disks().any(|disk| target_of(disk) == Some(&then) && moves(disk)));
        let now = match bus {
            None => then.clone(),
            Some(bus) => free_target(bus, &then, &taken).ok_or_else(|| {
                bad(format!(
                    "no room for disk {then} on the {bus} bus of machine type {machine}"
                ))
            })?,
        };
        taken.insert(now.clone());
        renamed.push(RenamedTarget { then, now });
    }
    Ok(renamed)
}

fn free_target(bus: &str, then: &str, taken: &BTreeSet<String>) -> Option<String> {
    let limit = if bus == "ide" { 4 } else { 26 };
    let letters = (b'a'..=b'z')
        .take(limit)
        .map(|letter| char::from(letter).to_string());
    let same = then
        .get(2..)
        .filter(|suffix| suffix.len() == 1 && letters.clone().any(|letter| letter == **suffix));
    same.map(str::to_owned)
        .into_iter()
        .chain(letters)
        .map(|suffix| format!("{}{suffix}", prefix(bus)))
        .find(|name| !taken.contains(name))
}

/// Makes sure of a virtio-scsi controller; returns its index where it is not the first, which libvirt would choose itself.
fn scsi_controller(devices: &mut Element) -> Option<String> {
    let controllers = || {
        devices
            .elements()
            .filter(|device| device.name == "controller" && device.attr("type") == Some("scsi"))
    };
    let is_virtio = |controller: &&Element| {
        controller
            .attr("model")
            .is_some_and(|model| model.starts_with("virtio"))
    };
    let index = |controller: &Element| {
        controller
            .attr("index")
            .and_then(|index| index.parse::<u32>().ok())
            .unwrap_or(0)
    };
    if let Some(found) = controllers().find(is_virtio) {
        return (index(found) > 0).then(|| index(found).to_string());
    }
    let next = controllers()
        .map(index)
        .max()
        .map_or(0, |last| last + 1)
        .to_string();
    devices.push(element(
        "controller",
        &[("type", "scsi"), ("index", &next), ("model", "virtio-scsi")],
    ));
    (next != "0").then_some(next)
}

fn drive_address(controller: &str, unit: u32) -> Element {
    let unit = unit.to_string();
    element(
        "address",
        &[
            ("type", "drive"),
            ("controller", controller),
            ("bus", "0"),
            ("target", "0"),
            ("unit", &unit),
        ],
    )
}

/// What a disk has on some buses only: where it stands, its name, the buses that have it, and its name for people.
const BUS_BOUND: [(&str, &str, &[&str], &str); 16] = [
    ("driver", "iothread", &["virtio"], "its iothread"),
    ("driver", "queues", &["virtio"], "its number of queues"),
    ("driver", "queue_size", &["virtio"], "its queue size"),
    ("driver", "ioeventfd", &["virtio"], ""),
    ("driver", "event_idx", &["virtio"], ""),
    ("driver", "packed", &["virtio"], ""),
    ("driver", "page_per_vq", &["virtio"], ""),
    ("driver", "iommu", &["virtio"], ""),
    ("driver", "ats", &["virtio"], ""),
    (
        "target",
        "rotation_rate",
        &["scsi", "sata", "ide"],
        "its rotation rate",
    ),
    ("target", "removable", &["usb"], ""),
    ("", "model", &["virtio"], ""),
    ("wwn", "", &["scsi", "sata", "ide"], "its WWN"),
    ("vendor", "", &["scsi"], "its vendor name"),
    ("product", "", &["scsi"], "its product name"),
    ("geometry", "", &["ide"], "its geometry"),
];

fn change_bus(disk: &mut Element, bus: &str, renamed: &RenamedTarget, notes: &mut Vec<String>) {
    let RenamedTarget { then, now } = renamed;
    disk.remove_all("address");
    for (child, attribute, buses, people) in BUS_BOUND {
        if buses.contains(&bus) {
            continue;
        }
        let dropped = match (child, attribute) {
            ("", attribute) => disk.unset(attribute).is_some(),
            (child, "") => disk.remove_all(child) > 0,
            (child, attribute) => disk
                .get_mut_child(child)
                .and_then(|child| child.unset(attribute))
                .is_some(),
        };
        if dropped && !people.is_empty() {
            notes.push(format!(
                "disk {then}: {people} does not exist on the {bus} bus, dropped"
            ));
        }
    }
    if let Some(target) = disk.get_mut_child("target") {
        target.set("bus", bus);
        target.set("dev", now);
    }
}
