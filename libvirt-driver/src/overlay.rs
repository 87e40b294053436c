//! The qcow2 overlays of a takeover: made with `qemu-img`, looked at with `qemu-img`.
//!
//! How: made under a temporary name beside the final one, given to QEMU's user, synced and renamed: an overlay
//! that is there is whole. The backing is recorded as an NBD URI, so that any `qemu-img` can follow it while the
//! view is served; the reconnect delay is in the domain's XML, which the URI cannot hold.
//!
//! Invariant: an image that is there already is never overwritten.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::{ErrorKind, LibvirtError, Result};
use crate::qemu_user::QemuUser;
use crate::takeover_xml::NbdBacking;

/// What `qemu-img info` tells of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// `qcow2`, `raw`, ...
    pub format: String,
    /// The backing image as it is recorded, if any.
    pub backing_filename: Option<String>,
}

/// Creates an overlay of `virtual_size` bytes over a view, without contacting the view.
///
/// An equal overlay that is there already is kept with what was written to it, so that a takeover can be
/// resumed. `owner` is who may open it: [`crate::qemu_user::qemu_identity`].
///
/// # Errors
/// [`ErrorKind::Host`] when something else is at that path, or `qemu-img` or the file system fails.
pub fn create_overlay(
    path: &Path,
    virtual_size: u64,
    backing: &NbdBacking,
    owner: Option<QemuUser>,
) -> Result<()> {
    let what = format!("create the overlay {}", path.display());
    let uri = nbd_uri(backing);
    if path.exists() {
        let found = image_info(path)?;
        let wanted = ImageInfo {
            virtual_size,
            format: "qcow2".to_owned(),
            backing_filename: Some(uri),
        };
        if found == wanted {
            return Ok(());
        }
        return Err(LibvirtError::new(
            ErrorKind::Host,
            what,
            format!("another image is there already: {found:?}"),
        ));
    }
    let unfinished = unfinished(path);
    let size = virtual_size.to_string();
    run(
        &what,
        Command::new("qemu-img")
            .args([
                "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &uri, "--",
            ])
            .args([unfinished.as_os_str(), size.as_ref()]),
    )?;
    let io = |error| LibvirtError::io(what.clone(), error);
    if let Some(owner) = owner {
        chown(&unfinished, Some(owner.uid), Some(owner.gid)).map_err(io)?;
    }
    File::open(&unfinished)
        .and_then(|file| file.sync_all())
        .map_err(io)?;
    fs::rename(&unfinished, path).map_err(io)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io)
}

/// Where an overlay is until it is whole.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    name.into()
}

/// Looks at an image, also at one that a running QEMU has open; does not open its backing image.
///
/// # Errors
/// [`ErrorKind::Host`].
pub fn image_info(path: &Path) -> Result<ImageInfo> {
    let what = format!("look at the image {}", path.display());
    let output = run(
        &what,
        Command::new("qemu-img")
            .args(["info", "--force-share", "--output=json", "--"])
            .arg(path),
    )?;
    serde_json::from_slice(&output).map_err(|error| {
        LibvirtError::new(ErrorKind::Host, what, format!("qemu-img's answer: {error}"))
    })
}

fn run(what: &str, command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .map_err(|error| LibvirtError::io(format!("{what} with qemu-img"), error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LibvirtError::new(ErrorKind::Host, what, message))
}

/// The URI of a view: `nbd+unix:///EXPORT?socket=PATH`.
pub fn nbd_uri(backing: &NbdBacking) -> String {
    let export = percent_encode(backing.export.as_bytes());
    let socket = percent_encode(backing.socket.as_os_str().as_bytes());
    format!("nbd+unix:///{export}?socket={socket}")
}

fn percent_encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte))
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_encoded() {
        let table = [
            (
                "/run/virt-cdp/web1/view.sock",
                "vda",
                "nbd+unix:///vda?socket=/run/virt-cdp/web1/view.sock",
            ),
            (
                "/run/a b&c",
                "x?y",
                "nbd+unix:///x%3Fy?socket=/run/a%20b%26c",
            ),
        ];
        for (socket, export, expected) in table {
            let backing = NbdBacking {
                socket: socket.into(),
                export: export.to_owned(),
                reconnect_delay_s: 10,
            };
            assert_eq!(nbd_uri(&backing), expected);
        }
    }
}
