//! Writes that leave the old or the new and nothing between: a file of another name, synced, then renamed.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use super::{HostError, failed};

/// Writes a file with exactly these bytes and this mode.
pub(super) fn file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), HostError> {
    let part = part(path);
    let written = || -> io::Result<()> {
        remove(&part)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&part)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    finish(path, &part, written())
}

/// Makes a symbolic link, in place of a file or link that may be there.
pub(super) fn link(path: &Path, target: &Path) -> Result<(), HostError> {
    let part = part(path);
    let made = remove(&part).and_then(|()| symlink(target, &part));
    finish(path, &part, made)
}

fn finish(path: &Path, part: &Path, made: io::Result<()>) -> Result<(), HostError> {
    let renamed = made.and_then(|()| fs::rename(part, path)).and_then(|()| {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::File::open(dir)?.sync_all()
    });
    renamed.map_err(|e| {
        let _ = fs::remove_file(part);
        failed("write", path)(e)
    })
}

/// The name something has until it is whole.
fn part(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".virt-cdp-part");
    path.with_file_name(name)
}

/// Removes a file or link; one that is not there is removed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// What lies at a path, as its hash is taken: a file's bytes, or where a link leads; none if there is nothing.
pub(super) fn found(path: &Path) -> Result<Option<Vec<u8>>, HostError> {
    let look = || -> io::Result<Vec<u8>> {
        if fs::symlink_metadata(path)?.is_symlink() {
            return Ok(link_bytes(&fs::read_link(path)?));
        }
        fs::read(path)
    };
    match look() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path)(e)),
    }
}

/// A link as bytes that no file has by chance.
pub(super) fn link_bytes(target: &Path) -> Vec<u8> {
    [b"link to ".as_slice(), target.as_os_str().as_bytes()].concat()
}
