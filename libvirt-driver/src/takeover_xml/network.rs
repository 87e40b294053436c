//! The takeover's network cards: as they were, in another network, or none.
//!
//! The guest's side of a card (model, address, boot order) stays; the host's side is rebuilt.

use xmltree::Element;

use super::spec::{Card, MacChoice, NetworkChoice, TakeoverSpec};
use crate::xml_tree::{Tree, element};

pub(super) fn edit(devices: &mut Element, spec: &TakeoverSpec, notes: &mut Vec<String>) {
    let mut number = 0_usize;
    devices.retain(|device| {
        if device.name != "interface" {
            return true;
        }
        let keep = match &spec.network {
            NetworkChoice::None => false,
            NetworkChoice::Keep => keep_plugged(device, notes),
            NetworkChoice::Named(network) => {
                plug(device, network, notes);
                true
            }
            NetworkChoice::Loose { down } => {
                loosen(device, down.contains(&number), notes);
                true
            }
        };
        if spec.mac == MacChoice::New {
            set_mac(
                device,
                &new_mac(&spec.uuid, u32::try_from(number).unwrap_or(0)),
            );
        }
        number += 1;
        keep
    });
}

/// The network cards as they are.
pub(super) fn cards(devices: &Element) -> Vec<Card> {
    let cards = devices
        .elements()
        .filter(|device| device.name == "interface");
    cards
        .map(|card| {
            let (was_in, is_network) = place(card);
            let mac = mac_of(card);
            Card {
                mac,
                was_in,
                is_network,
            }
        })
        .collect()
}

fn mac_of(card: &Element) -> String {
    let mac = card.child_attr("mac", "address").unwrap_or_default();
    mac.to_ascii_lowercase()
}

/// What the card is plugged into, and whether that is a libvirt network.
fn place(card: &Element) -> (String, bool) {
    let kind = card.attr("type").unwrap_or_default();
    let source = |name| card.child_attr("source", name);
    match kind {
        "network" => (source("network").unwrap_or_default().to_owned(), true),
        "bridge" => (source("bridge").unwrap_or_default().to_owned(), false),
        "direct" => (source("dev").unwrap_or_default().to_owned(), false),
        other => (other.to_owned(), false),
    }
}

/// The card by its address, for people.
fn describe(card: &Element) -> String {
    format!(
        "network card {}",
        card.child_attr("mac", "address")
            .unwrap_or("without address")
    )
}

fn drop_all(card: &mut Element, names: &[&str], because: &str, notes: &mut Vec<String>) {
    let who = describe(card);
    for name in names {
        if card.remove_all(name) > 0 {
            notes.push(format!("{who}: <{name}> {because}, dropped"));
        }
    }
}

/// Leaves the card where it is plugged in; false where the original and the takeover cannot both be there.
fn keep_plugged(card: &mut Element, notes: &mut Vec<String>) -> bool {
    let kind = card.attr("type").unwrap_or_default().to_owned();
    let unmanaged = kind == "ethernet" && card.child_attr("target", "managed") == Some("no");
    if matches!(
        kind.as_str(),
        "hostdev" | "vhostuser" | "vdpa" | "server" | "vds" | "internal"
    ) || unmanaged
    {
        notes.push(format!(
            "{}: its host side ({kind}) can be used by one domain only, dropped",
            describe(card)
        ));
        return false;
    }
    drop_host_side(card, notes);
    true
}

/// Plugs the card into a libvirt network.
fn plug(card: &mut Element, network: &str, notes: &mut Vec<String>) {
    unplug(card, notes);
    card.set("type", "network");
    card.push(element("source", &[("network", network)]));
}

/// Leaves the card with a device of its own, in no bridge.
fn loosen(card: &mut Element, is_down: bool, notes: &mut Vec<String>) {
    unplug(card, notes);
    card.remove_all("bandwidth");
    card.remove_all("link");
    card.set("type", "ethernet");
    if is_down {
        card.push(element("link", &[("state", "down")]));
    }
}

/// Takes the card out of whatever it was plugged into.
fn unplug(card: &mut Element, notes: &mut Vec<String>) {
    let kind = card.attr("type").unwrap_or_default().to_owned();
    if matches!(kind.as_str(), "hostdev" | "vdpa") {
        notes.push(format!(
            "{}: was a device of the host ({kind}), is a virtio card now",
            describe(card)
        ));
        card.retain(|child| matches!(child.name.as_str(), "mac" | "boot"));
        card.unset("managed");
        card.push(element("model", &[("type", "virtio")]));
    }
    drop_host_side(card, notes);
    drop_all(
        card,
        &["filterref", "vlan", "virtualport"],
        "belongs to the network it was in",
        notes,
    );
    for name in [
        "source",
        "ip",
        "route",
        "portForward",
        "script",
        "downscript",
    ] {
        card.remove_all(name);
    }
    if !matches!(kind.as_str(), "network" | "bridge" | "direct" | "ethernet") {
        card.remove_all("driver");
        card.remove_all("backend");
    }
}

/// Removes what libvirt filled in for the run, and names of the host that can exist once only.
fn drop_host_side(card: &mut Element, notes: &mut Vec<String>) {
    let chosen = card
        .child_attr("target", "dev")
        .filter(|dev| !is_generated(dev))
        .map(str::to_owned);
    if let Some(dev) = chosen {
        notes.push(format!(
            "{}: the host's device name {dev} can exist once only, libvirt chooses one",
            describe(card)
        ));
    }
    card.remove_all("target");
    let is_network = card.attr("type") == Some("network");
    if let Some(source) = card.get_mut_child("source").filter(|_| is_network) {
        for name in ["portid", "bridge", "dev", "mode"] {
            source.unset(name);
        }
    }
    let parameters = card
        .get_mut_child("virtualport")
        .and_then(|port| port.get_mut_child("parameters"));
    if let Some(parameters) = parameters {
        parameters.unset("interfaceid");
        parameters.unset("instanceid");
    }
    drop_all(
        card,
        &["teaming"],
        "pairs it with a device of the host",
        notes,
    );
}

/// Names libvirt gives by itself.
fn is_generated(dev: &str) -> bool {
    ["vnet", "macvtap", "macvlan"].iter().any(|prefix| {
        dev.strip_prefix(prefix)
            .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn set_mac(card: &mut Element, address: &str) {
    card.remove_all("mac");
    card.push(element("mac", &[("address", address)]));
}

/// An address in QEMU's range, made from the takeover's (random) UUID and the card's number.
fn new_mac(uuid: &str, number: u32) -> String {
    // FNV-1a: spreads every digit of the UUID over the three bytes.
    let mut hash: u32 = 0x811c_9dc5;
    for byte in uuid.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    // Neighbouring numbers differ in the lowest byte, so cards of one takeover never share an address.
    let [_, a, b, c] = (hash ^ (hash >> 24)).wrapping_add(number).to_be_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}
