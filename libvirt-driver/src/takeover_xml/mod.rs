//! The XML of a machine at some time, edited into a takeover's.
//!
//! Pure: text and a spec in, text and a list of sentences out. Each submodule edits one part of the machine;
//! what none of them knows stays as it was. In order: who it is ([`identity`]), how large ([`sizing`]), what it starts
//! from ([`firmware`]), its disks ([`disks`]), its network cards ([`network`]), its ports and screens ([`ports`]), and what
//! of the host was inside it ([`host_parts`]).
//!
//! Invariant: two domains, the one of that time and the takeover, can run side by side on one host; nothing
//! of the first one's host side (sockets, files, ports, devices, names) is in the second. Whatever does not come along,
//! or is another thing than it was, has its sentence in [`Edited::dropped`], except what the spec itself asks for.

mod disks;
mod firmware;
mod host_parts;
mod identity;
mod network;
mod ports;
mod sizing;
mod spec;

pub use spec::{
    Card, Edited, MacChoice, NbdBacking, NetworkChoice, RenamedTarget, TakeoverDisk, TakeoverSpec,
};

pub(crate) use identity::{MARK_NAMESPACE, is_takeover};

use xmltree::Element;

use crate::error::{ErrorKind, LibvirtError, Result};
use crate::xml_tree::{parse_domain, to_text};

/// Edits the XML a machine had at some time into a takeover's.
///
/// # Errors
/// [`ErrorKind::BadXml`] when the text is no domain XML, or the spec asks for what the machine cannot have.
pub fn edit(xml_of_that_time: &str, spec: &TakeoverSpec) -> Result<Edited> {
    let mut domain = parse_domain(xml_of_that_time)?;
    let mut notes = Vec::new();
    identity::edit(&mut domain, spec, &mut notes)?;
    sizing::edit(&mut domain, spec, &mut notes);
    firmware::edit(&mut domain, spec, &mut notes);
    let machine = machine_type(&domain);
    let devices = devices(&mut domain)?;
    let targets = disks::edit(devices, &machine, spec, &mut notes)?;
    network::edit(devices, spec, &mut notes);
    ports::edit(devices, spec, &mut notes);
    host_parts::edit(&mut domain, spec, &mut notes);
    Ok(Edited {
        xml: to_text(&domain)?,
        dropped: notes,
        targets,
    })
}

/// Returns the network cards of a machine, in the order of its XML.
///
/// # Errors
/// [`ErrorKind::BadXml`] when the text is no domain XML.
pub fn cards(xml: &str) -> Result<Vec<Card>> {
    let mut domain = parse_domain(xml)?;
    Ok(network::cards(devices(&mut domain)?))
}

/// Returns the memory of a machine, bytes; none where its XML does not say.
pub fn memory_bytes(xml: &str) -> Option<u64> {
    use crate::xml_tree::Tree;
    let domain = parse_domain(xml).ok()?;
    let number: u64 = domain.child_text("memory")?.parse().ok()?;
    let unit = match domain.child_attr("memory", "unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => 1 << 10,
    };
    number.checked_mul(unit)
}

/// An error about the spec or the XML.
fn bad(message: impl Into<String>) -> LibvirtError {
    LibvirtError::new(ErrorKind::BadXml, "make the takeover's XML", message)
}

fn devices(domain: &mut Element) -> Result<&mut Element> {
    domain
        .get_mut_child("devices")
        .ok_or_else(|| bad("the machine of that time has no <devices>"))
}

/// The machine type with its version, such as `pc-q35-10.0`.
fn machine_type(domain: &Element) -> String {
    use crate::xml_tree::Tree;
    let os = domain.get_child("os");
    os.and_then(|os| os.child_attr("type", "machine"))
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod spec_tests;
#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
