//! Who the takeover is: name, UUID, generation ID, and the mark by which we know it as ours.

use xmltree::{Element, Namespace};

use super::bad;
use super::spec::TakeoverSpec;
use crate::error::Result;
use crate::xml_tree::{Tree, element};

/// The namespace of the mark in a takeover's metadata.
pub(crate) const MARK_NAMESPACE: &str = "urn:virt-cdp:takeover";
const MARK_PREFIX: &str = "virtcdp";

/// Tells whether the XML has the mark that [`edit`] leaves.
pub(crate) fn is_takeover(domain: &Element) -> bool {
    let is_mark = |element: &Element| element.namespace.as_deref() == Some(MARK_NAMESPACE);
    domain
        .get_child("metadata")
        .is_some_and(|metadata| metadata.elements().any(is_mark))
}

pub(super) fn edit(
    domain: &mut Element,
    spec: &TakeoverSpec,
    notes: &mut Vec<String>,
) -> Result<()> {
    if spec.name.is_empty() || spec.uuid.is_empty() {
        return Err(bad("a takeover needs a name and a UUID"));
    }
    let original = domain.child_text("uuid").unwrap_or_default();
    domain.unset("id");
    set_first(domain, "uuid", &spec.uuid);
    set_first(domain, "name", &spec.name);
    if let Some(genid) = domain.get_mut_child("genid") {
        // Empty: libvirt makes a new one.
        genid.children.clear();
        notes.push("VM generation ID: a new one, so that the guest notices".to_owned());
    }
    smbios(domain, spec, notes);
    mark(domain, &original);
    Ok(())
}

/// Sets the text of a top element, made where it is missing.
fn set_first(domain: &mut Element, name: &str, text: &str) {
    match domain.get_mut_child(name) {
        Some(found) => found.set_text(text),
        None => {
            let mut made = element(name, &[]);
            made.set_text(text);
            domain.children.insert(0, xmltree::XMLNode::Element(made));
        }
    }
}

/// libvirt refuses a domain whose SMBIOS UUID is not its own.
fn smbios(domain: &mut Element, spec: &TakeoverSpec, notes: &mut Vec<String>) {
    for sysinfo in domain
        .elements_mut()
        .filter(|element| element.name == "sysinfo")
    {
        for system in sysinfo
            .elements_mut()
            .filter(|element| element.name == "system")
        {
            for entry in system
                .elements_mut()
                .filter(|entry| entry.attr("name") == Some("uuid"))
            {
                entry.set_text(&spec.uuid);
                notes.push(format!(
                    "SMBIOS system UUID: now the takeover's, {}",
                    spec.uuid
                ));
            }
        }
    }
}

fn mark(domain: &mut Element, original: &str) {
    let mut namespaces = Namespace::empty();
    namespaces.put(MARK_PREFIX, MARK_NAMESPACE);
    let mut mark = element("takeover", &[("of", original)]);
    mark.prefix = Some(MARK_PREFIX.to_owned());
    mark.namespace = Some(MARK_NAMESPACE.to_owned());
    mark.namespaces = Some(namespaces);
    if !domain.has("metadata") {
        domain.push(element("metadata", &[]));
    }
    if let Some(metadata) = domain.get_mut_child("metadata") {
        metadata.retain(|element| element.namespace.as_deref() != Some(MARK_NAMESPACE));
        metadata.push(mark);
    }
}
