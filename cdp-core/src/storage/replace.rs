//! Puts a whole small file in place, or leaves the old one.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use super::{OpenMode, Storage};

/// Returns the name under which a file is written until it is complete.
pub(crate) fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// Removes a file if it is there.
pub(crate) fn remove_if_there(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    match storage.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a complete, synced file its name, durable on return.
pub(crate) fn put_in_place(storage: &dyn Storage, part: &Path, path: &Path) -> io::Result<()> {
    storage.rename(part, path)?;
    match path.parent() {
        Some(dir) if dir != Path::new("") => storage.sync_dir(dir),
        _ => storage.sync_dir(Path::new(".")),
    }
}

/// Replaces a file's content as a whole, durable on return.
pub(crate) fn replace(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = part_of(path);
    remove_if_there(storage, &part)?;
    let file = storage.open(&part, OpenMode::New)?;
    file.write_at(&[IoSlice::new(bytes)], 0)?;
    file.sync()?;
    put_in_place(storage, &part, path)
}

/// Reads a file of at most `max` bytes.
pub(crate) fn read_all(storage: &dyn Storage, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = storage.open(path, OpenMode::Read)?;
    let len = file.length()?;
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{len} bytes"),
        ));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}
