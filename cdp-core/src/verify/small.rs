//! Verifies the small files: descriptions and lists of the harbor, and the domain XMLs.
//!
//! Each has a checksum of its own text in it. One that was written by an older version has none; it must be readable.

use super::{Found, Lost};
use crate::bounds::{DESCRIPTION_MAX, XML_MAX};
use crate::error::{HarborError, Result};
use crate::harbor::checked;
use crate::harbor::shared::Shared;
use crate::storage::replace::read_all;

/// The files in the harbor's own directory.
const FILES: [&str; 5] = [
    "machine.toml",
    "points.toml",
    "marks.toml",
    "damage.toml",
    "scrub.toml",
];

/// Those of them that a verification writes.
pub(super) const OWN: [&str; 2] = ["damage.toml", "scrub.toml"];

/// Returns the names of the small files that are there.
pub(super) fn names(shared: &Shared) -> Result<Vec<String>> {
    let list = |dir: &std::path::Path| {
        let names = shared.options.storage.list(dir);
        names.map_err(|e| HarborError::storage("list", dir, e))
    };
    let there = list(&shared.dir)?;
    let mut names: Vec<String> = FILES
        .iter()
        .filter(|name| there.iter().any(|one| one == *name))
        .map(ToString::to_string)
        .collect();
    let xmls = list(&shared.xml_dir())?;
    let xmls = xmls.iter().filter(|name| name.ends_with(".xml"));
    names.extend(xmls.map(|name| format!("xml/{name}")));
    Ok(names)
}

/// Reads one of them; what is wrong goes into `found`.
pub(super) fn check(shared: &Shared, name: &str, found: &mut Found) -> Result<()> {
    let is_xml = name.starts_with("xml/");
    let most = if is_xml {
        XML_MAX + checked::XML_MORE
    } else {
        DESCRIPTION_MAX.max(crate::bounds::DAMAGE_MAX)
    };
    // It is replaced as a whole now and then, and read as a whole: what was found is looked at again.
    for _ in 0..2 {
        let bytes = match read_all(&*shared.options.storage, &shared.dir.join(name), most) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                found.add(0..0, &format!("it cannot be read: {error}"), Lost::Nothing);
                return Ok(());
            }
        };
        let len = bytes.len() as u64;
        let Err(what) = look(&bytes, is_xml) else {
            return Ok(());
        };
        *found = Found::default();
        found.add(0..len, &what, Lost::Nothing);
    }
    Ok(())
}

fn look(bytes: &[u8], is_xml: bool) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    if is_xml {
        return checked::of_xml(text).map(|_| ());
    }
    let rest = checked::of_toml(text)?;
    toml::from_str::<toml::Table>(rest)
        .map(|_| ())
        .map_err(|e| e.to_string())
}
