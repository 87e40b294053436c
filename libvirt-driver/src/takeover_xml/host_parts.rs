//! What of the host was inside the machine: passed-through devices, shared directories, host-only options. All
//! of it goes, each with its sentence; and what libvirt filled in for the run goes without one.

use xmltree::Element;

use super::spec::TakeoverSpec;
use crate::xml_tree::{Tree, element};

pub(super) fn edit(domain: &mut Element, spec: &TakeoverSpec, notes: &mut Vec<String>) {
    if let Some(devices) = domain.get_mut_child("devices") {
        devices.retain(|device| keep_device(device, spec.is_isolated(), notes));
        devices.elements_mut().for_each(drop_alias);
    }
    domain.retain(|child| keep_option(child, notes));
}

/// Aliases libvirt gave; the user's own begin with `ua-`.
fn drop_alias(device: &mut Element) {
    if !device
        .child_attr("alias", "name")
        .is_some_and(|name| name.starts_with("ua-"))
    {
        device.remove_all("alias");
    }
}

fn keep_device(device: &mut Element, is_isolated: bool, notes: &mut Vec<String>) -> bool {
    let because = match device.name.as_str() {
        "hostdev" => format!("host device {}", describe_hostdev(device)),
        "filesystem" => {
            let tag = device.child_attr("target", "dir").unwrap_or_default();
            format!("shared directory {tag}: belongs to the host")
        }
        "shmem" => format!(
            "shared memory {}: belongs to the host",
            device.attr("name").unwrap_or_default()
        ),
        "lease" => "lock lease: held by the original".to_owned(),
        "pstore" => "persistent store of the guest's kernel: its file is the original's".to_owned(),
        "redirdev" if device.attr("type") != Some("spicevmc") => {
            "USB redirection over the network: belongs to the host".to_owned()
        }
        "smartcard"
            if device.attr("type") != Some("spicevmc")
                && device.attr("mode") != Some("passthrough") =>
        {
            "smart card reader: belongs to the host".to_owned()
        }
        "input" if matches!(device.attr("type"), Some("passthrough" | "evdev")) => {
            format!(
                "input device {} of the host",
                device
                    .child_attr("source", "dev")
                    .or(device.child_attr("source", "evdev"))
                    .unwrap_or_default()
            )
        }
        "rng" if device.child_attr("backend", "model") == Some("egd") => {
            "random number generator: fed by a daemon of the host".to_owned()
        }
        "memory"
            if device
                .get_child("source")
                .is_some_and(|source| source.has("path")) =>
        {
            let path = device
                .get_child("source")
                .and_then(|source| source.child_text("path"))
                .unwrap_or_default();
            format!(
                "memory device {}: its contents ({path}) are not captured",
                device.attr("model").unwrap_or_default()
            )
        }
        "vsock" if is_isolated => "vsock: leads to the host".to_owned(),
        "vsock" => {
            free_cid(device, notes);
            return true;
        }
        _ => return true,
    };
    notes.push(format!("{because}, dropped"));
    false
}

/// Lets libvirt choose the guest's vsock number: one of each per host.
fn free_cid(vsock: &mut Element, notes: &mut Vec<String>) {
    let was = vsock
        .child_attr("cid", "address")
        .unwrap_or_default()
        .to_owned();
    if vsock.child_attr("cid", "auto") != Some("yes") {
        notes.push(format!(
            "vsock: its number {was} can exist once only, libvirt chooses one"
        ));
    }
    vsock.remove_all("cid");
    vsock.push(element("cid", &[("auto", "yes")]));
}

fn describe_hostdev(device: &Element) -> String {
    let kind = device
        .attr("type")
        .or(device.attr("mode"))
        .unwrap_or("unknown");
    let source = device.get_child("source");
    let attr = |element: Option<&Element>, name| {
        let value = element
            .and_then(|element| element.attr(name))
            .unwrap_or_default();
        value.trim_start_matches("0x").to_owned()
    };
    let child = |name| source.and_then(|source| source.get_child(name));
    let address = child("address");
    let place = match kind {
        "pci" => {
            let part = |name| attr(address, name);
            format!(
                "{}:{}:{}.{}",
                part("domain"),
                part("bus"),
                part("slot"),
                part("function")
            )
        }
        "usb" if child("vendor").is_some() => format!(
            "{}:{}",
            attr(child("vendor"), "id"),
            attr(child("product"), "id")
        ),
        "usb" => format!(
            "bus {} device {}",
            attr(address, "bus"),
            attr(address, "device")
        ),
        "mdev" => attr(address, "uuid"),
        "scsi" => attr(child("adapter"), "name"),
        "scsi_host" => attr(source, "wwpn"),
        _ => String::new(),
    };
    format!("{kind} {place}").trim_end().to_owned()
}

/// Decides over the domain's elements beside `<devices>`.
fn keep_option(child: &mut Element, notes: &mut Vec<String>) -> bool {
    if child.prefix.as_deref() == Some("qemu") {
        notes.push(describe_qemu(child));
        return false;
    }
    match child.name.as_str() {
        "launchSecurity" => {
            let kind = child.attr("type").unwrap_or_default();
            notes.push(format!(
                "memory encryption ({kind}): bound to the host's CPU and the first start, dropped"
            ));
            false
        }
        // Written by libvirt for the run; the next start gets its own.
        "seclabel" => match child.attr("type") {
            Some("static" | "none") => true,
            _ => {
                let base = child.child_text("baselabel");
                if let Some(base) = &base {
                    notes.push(format!(
                        "security label based on {base}: libvirt's default is used"
                    ));
                }
                false
            }
        },
        "blkiotune" => {
            if child.remove_all("device") > 0 {
                notes.push(
                    "IO limits of host devices (blkiotune): the disks are elsewhere now, dropped"
                        .to_owned(),
                );
            }
            true
        }
        _ => true,
    }
}

/// The extras given to QEMU past libvirt, in one sentence.
fn describe_qemu(child: &Element) -> String {
    let words: Vec<_> = child
        .elements()
        .filter_map(|part| match part.name.as_str() {
            "arg" => part.attr("value").map(str::to_owned),
            "env" => Some(format!(
                "{}={}",
                part.attr("name")?,
                part.attr("value").unwrap_or_default()
            )),
            _ => part
                .attr("alias")
                .or(part.attr("capability"))
                .or(part.attr("behavior"))
                .map(str::to_owned),
        })
        .collect();
    format!(
        "QEMU options past libvirt (qemu:{}: {}), dropped",
        child.name,
        words.join(" ")
    )
}
