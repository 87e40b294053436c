//! The XML of a machine at some time, edited into a takeover's.
//!
//! Pure: text and a spec in, text and a list of sentences out.

mod spec;

pub use spec::{
    Edited, MacChoice, NbdBacking, NetworkChoice, RenamedTarget, TakeoverDisk, TakeoverSpec,
};

use xmltree::Element;

use crate::error::{ErrorKind, LibvirtError, Result};
use crate::xml_tree::Tree;

/// The namespace of the mark in a takeover's metadata.
const MARK_NAMESPACE: &str = "urn:virt-cdp:takeover";

/// Edits the XML a machine had at some time into a takeover's.
///
/// # Errors
/// [`ErrorKind::BadXml`] when the text is no domain XML, or the spec asks for what the machine cannot have.
pub fn edit(_xml_of_that_time: &str, _spec: &TakeoverSpec) -> Result<Edited> {
    Err(LibvirtError::new(
        ErrorKind::BadXml,
        "edit",
        "not there yet",
    ))
}

/// Tells whether the XML has the mark that [`edit`] leaves.
pub(crate) fn is_takeover(domain: &Element) -> bool {
    domain.get_child("metadata").is_some_and(|metadata| {
        metadata
            .elements()
            .any(|element| element.namespace.as_deref() == Some(MARK_NAMESPACE))
    })
}
