//! Where a machine's UEFI variables are.

use std::path::PathBuf;

use crate::error::Result;
use crate::xml_tree::parse_domain;

/// Returns the path of the UEFI variables in a domain's XML; none for a machine without them.
///
/// # Errors
/// [`crate::ErrorKind::BadXml`] when the text is no domain XML.
pub fn nvram_of(xml: &str) -> Result<Option<PathBuf>> {
    let root = parse_domain(xml)?;
    let nvram = root.get_child("os").and_then(|os| os.get_child("nvram"));
    let text = nvram.and_then(|nvram| {
        let source = nvram
            .get_child("source")
            .and_then(|s| s.attributes.get("file").cloned());
        source.or_else(|| nvram.get_text().map(|text| text.trim().to_owned()))
    });
    Ok(text.filter(|path| !path.is_empty()).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_are_found_in_every_spelling() {
        let table = [
            ("<os/>", None),
            (
                "<os><nvram>/var/a_VARS.fd</nvram></os>",
                Some("/var/a_VARS.fd"),
            ),
            ("<os><nvram template='/t.fd'/></os>", None),
            (
                "<os><nvram type='file'><source file='/b.fd'/></nvram></os>",
                Some("/b.fd"),
            ),
        ];
        for (os, expected) in table {
            let xml = format!("<domain type='qemu'><name>a</name>{os}</domain>");
            assert_eq!(nvram_of(&xml).unwrap(), expected.map(PathBuf::from), "{os}");
        }
    }
}
