//! The domain XML as it was at each change, one file each.

use std::io;
use std::path::{Path, PathBuf};

use super::checked;
use crate::bounds::XML_MAX;
use crate::error::{HarborError, Result};
use crate::point::XmlVersion;
use crate::storage::Storage;
use crate::storage::replace::{read_all, replace};

fn path_of(dir: &Path, version: XmlVersion) -> PathBuf {
    dir.join(format!("{:06}.xml", version.0))
}

/// Returns the newest version that is kept.
pub(crate) fn newest(storage: &dyn Storage, dir: &Path) -> Result<Option<XmlVersion>> {
    let names = storage
        .list(dir)
        .map_err(|e| HarborError::storage("list", dir, e))?;
    let versions = names
        .iter()
        .filter_map(|name| name.strip_suffix(".xml")?.parse().ok());
    Ok(versions.max().map(XmlVersion))
}

/// Returns a version's text.
pub(crate) fn read(storage: &dyn Storage, dir: &Path, version: XmlVersion) -> Result<String> {
    let path = path_of(dir, version);
    let bytes =
        read_all(storage, &path, XML_MAX + checked::XML_MORE).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => HarborError::NoSuchXml(version),
            _ => HarborError::storage("read", &path, e),
        })?;
    let damaged = |what: String| HarborError::damaged(&path, what);
    let text = String::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
    checked::of_xml(&text).map(str::to_string).map_err(damaged)
}

/// Keeps a text unless it is that of `newest`; returns its version.
pub(crate) fn keep(
    storage: &dyn Storage,
    dir: &Path,
    newest: Option<XmlVersion>,
    text: &str,
) -> Result<XmlVersion> {
    if text.len() as u64 > XML_MAX {
        let len = text.len() as u64;
        return Err(HarborError::TooLong {
            what: "a domain XML",
            len,
            max: XML_MAX,
        });
    }
    if let Some(newest) = newest
        && read(storage, dir, newest).is_ok_and(|kept| kept == text)
    {
        return Ok(newest);
    }
    let version = XmlVersion(newest.map_or(1, |newest| newest.0 + 1));
    let path = path_of(dir, version);
    replace(storage, &path, checked::xml(text).as_bytes())
        .map_err(|e| HarborError::storage("write", &path, e))?;
    Ok(version)
}
