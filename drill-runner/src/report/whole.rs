//! A file that is there whole or not at all.
//!
//! The bytes go to a file beside it, are synced, and take the name; then the directory is synced. A crash leaves the old
//! file, or the new one, and maybe a file whose name starts with [`UNFINISHED`].

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::hex::hex;

/// How the names of files start that were not finished.
pub(super) const UNFINISHED: &str = ".unfinished-";

/// What becomes of a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// The new one takes its place.
    Replaced,
    /// It stays, and the new one is not written.
    Stays,
}

/// Writes a file durably.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32, before: Before) -> io::Result<()> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name");
    let name = path.file_name().ok_or_else(no_name)?.to_string_lossy();
    let chance = hex(&chance::<8>()?);
    let beside = path.with_file_name(format!("{UNFINISHED}{chance}-{name}"));
    let written = fill(&beside, bytes, mode).and_then(|()| {
        let flags = match before {
            Before::Replaced => RenameFlags::empty(),
            Before::Stays => RenameFlags::NOREPLACE,
        };
        Ok(renameat_with(CWD, &beside, CWD, path, flags)?)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written?;
    sync_dir(directory(path))
}

/// Makes durable which names a directory has.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The directory a file is in.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Bytes by chance, from the kernel.
pub(super) fn chance<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn fill(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_or_stays_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        write(&path, b"first", 0o600, Before::Stays).unwrap();
        write(&path, b"second", 0o600, Before::Replaced).unwrap();
        let refused = write(&path, b"third", 0o600, Before::Stays).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
