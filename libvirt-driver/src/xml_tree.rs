//! The door to XML: text to a tree, the tree to text, and the few steps domain XML needs.
//!
//! Comments and white space between elements do not survive; prefixes of elements do, prefixes of attributes (which
//! libvirt does not use) do not.

use xmltree::{Element, EmitterConfig, XMLNode};

use crate::error::{ErrorKind, LibvirtError, Result};

/// Parses domain XML; the root must be `<domain>`.
pub(crate) fn parse_domain(xml: &str) -> Result<Element> {
    let what = "read a domain's XML";
    let root = Element::parse(xml.as_bytes())
        .map_err(|error| LibvirtError::new(ErrorKind::BadXml, what, error.to_string()))?;
    if root.name == "domain" {
        return Ok(root);
    }
    Err(LibvirtError::new(
        ErrorKind::BadXml,
        what,
        format!("the root is <{}>, not <domain>", root.name),
    ))
}

/// Writes the tree, indented, without an XML declaration.
pub(crate) fn to_text(root: &Element) -> Result<String> {
    let bad = |reason: String| LibvirtError::new(ErrorKind::BadXml, "write a domain's XML", reason);
    let config = EmitterConfig::new()
        .perform_indent(true)
        .write_document_declaration(false);
    let mut bytes = Vec::new();
    root.write_with_config(&mut bytes, config)
        .map_err(|error| bad(error.to_string()))?;
    let mut text = String::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
    text.push('\n');
    Ok(text)
}

/// Makes an element with attributes.
pub(crate) fn element(name: &str, attributes: &[(&str, &str)]) -> Element {
    let mut element = Element::new(name);
    for (name, value) in attributes {
        element.set(name, value);
    }
    element
}

/// The steps domain XML needs, on xmltree's element.
pub(crate) trait Tree {
    /// The value of an attribute.
    fn attr(&self, name: &str) -> Option<&str>;
    /// Sets an attribute.
    fn set(&mut self, name: &str, value: &str);
    /// Removes an attribute; returns what it was.
    fn unset(&mut self, name: &str) -> Option<String>;
    /// True when there is a child of that name.
    fn has(&self, name: &str) -> bool;
    /// An attribute of the first child of that name.
    fn child_attr(&self, child: &str, attribute: &str) -> Option<&str>;
    /// The trimmed text of the first child of that name.
    fn child_text(&self, child: &str) -> Option<String>;
    /// The child elements.
    fn elements(&self) -> impl Iterator<Item = &Element>;
    /// The child elements, to be changed.
    fn elements_mut(&mut self) -> impl Iterator<Item = &mut Element>;
    /// Appends a child element; returns the parent, for building.
    fn with(self, child: Element) -> Self;
    /// Appends a child element.
    fn push(&mut self, child: Element);
    /// Replaces all children by a text.
    fn set_text(&mut self, text: &str);
    /// Keeps the child elements for which `keep` is true (and everything that is no element); it may change them.
    fn retain(&mut self, keep: impl FnMut(&mut Element) -> bool);
    /// Removes all child elements of that name; returns how many there were.
    fn remove_all(&mut self, name: &str) -> usize;
}

impl Tree for Element {
    fn attr(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    fn set(&mut self, name: &str, value: &str) {
        self.attributes.insert(name.to_owned(), value.to_owned());
    }

    fn unset(&mut self, name: &str) -> Option<String> {
        self.attributes.remove(name)
    }

    fn has(&self, name: &str) -> bool {
        self.get_child(name).is_some()
    }

    fn child_attr(&self, child: &str, attribute: &str) -> Option<&str> {
        self.get_child(child)?.attr(attribute)
    }

    fn child_text(&self, child: &str) -> Option<String> {
        Some(self.get_child(child)?.get_text()?.trim().to_owned())
    }

    fn elements(&self) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(XMLNode::as_element)
    }

    fn elements_mut(&mut self) -> impl Iterator<Item = &mut Element> {
        self.children.iter_mut().filter_map(XMLNode::as_mut_element)
    }

    fn with(mut self, child: Element) -> Self {
        self.push(child);
        self
    }

    fn push(&mut self, child: Element) {
        self.children.push(XMLNode::Element(child));
    }

    fn set_text(&mut self, text: &str) {
        self.children = vec![XMLNode::Text(text.to_owned())];
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut Element) -> bool) {
        self.children
            .retain_mut(|node| node.as_mut_element().is_none_or(&mut keep));
    }

    fn remove_all(&mut self, name: &str) -> usize {
        let before = self.children.len();
        self.retain(|element| element.name != name);
        before - self.children.len()
    }
}
