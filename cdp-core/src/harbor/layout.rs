//! The directory: how it is made, and its description.
//!
//! `machine.toml` is written last, and makes a directory a harbor. A crash before leaves a skeleton
//! that is no harbor, and that [`create`] takes over.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::checked;
use crate::bounds::DESCRIPTION_MAX;
use crate::error::{HarborError, Result};
use crate::machine::{FORMAT_VERSION, MachineDescription};
use crate::storage::Storage;
use crate::storage::replace::{read_all, replace};

/// The description, and the mark of a harbor.
const DESCRIPTION: &str = "machine.toml";
/// The file that is locked.
const LOCK: &str = "LOCK";
/// The folders.
const FOLDERS: [&str; 3] = ["base", "journal", "xml"];

/// Returns the path of the file that is locked.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    dir.join(LOCK)
}

/// Makes a harbor in a directory that does not exist, is empty, or holds what a crash left of this.
pub(crate) fn create(storage: &dyn Storage, dir: &Path, desc: &MachineDescription) -> Result<()> {
    let failed = |action| move |e| HarborError::storage(action, dir, e);
    make_dir(storage, dir)?;
    check_skeleton(storage, dir)?;
    let _lock = storage
        .lock(&lock_path(dir))
        .map_err(failed("lock"))?
        .ok_or_else(|| HarborError::Locked {
            dir: dir.to_path_buf(),
        })?;
    check_skeleton(storage, dir)?;
    for folder in FOLDERS {
        make_dir(storage, &dir.join(folder))?;
    }
    // The description makes it a harbor: no folder may be missing then.
    storage.sync_dir(dir).map_err(failed("sync"))?;
    let desc = MachineDescription {
        format_version: FORMAT_VERSION,
        ..desc.clone()
    };
    write_description(storage, dir, &desc)?;
    match dir.parent() {
        Some(parent) if parent != Path::new("") => storage.sync_dir(parent).map_err(failed("sync")),
        _ => Ok(()),
    }
}

/// Reads and checks the description; without it, the directory is no harbor.
pub(crate) fn read_description(storage: &dyn Storage, dir: &Path) -> Result<MachineDescription> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let path = dir.join(DESCRIPTION);
    let not_a_harbor = |why: String| HarborError::NotAHarbor {
        dir: dir.to_path_buf(),
        why,
    };
    let bytes = read_all(storage, &path, DESCRIPTION_MAX).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            not_a_harbor(format!("it has no {DESCRIPTION}"))
        }
        _ => HarborError::storage("read", &path, e),
    })?;
    let text = String::from_utf8(bytes).map_err(|e| not_a_harbor(e.to_string()))?;
    let version: Version = toml::from_str(&text).map_err(|e| not_a_harbor(e.to_string()))?;
    if version.format_version > FORMAT_VERSION {
        let (found, known) = (version.format_version, FORMAT_VERSION);
        return Err(HarborError::UnknownVersion { path, found, known });
    }
    let desc: MachineDescription =
        toml::from_str(&text).map_err(|e| not_a_harbor(e.to_string()))?;
    desc.validate()?;
    Ok(desc)
}

/// Replaces the description, durable on return; it must be of the present version.
pub(crate) fn write_description(
    storage: &dyn Storage,
    dir: &Path,
    desc: &MachineDescription,
) -> Result<()> {
    let path = dir.join(DESCRIPTION);
    let text = toml::to_string(desc).map_err(|e| HarborError::InvalidDescription(e.to_string()))?;
    replace(storage, &path, checked::toml(&text).as_bytes())
        .map_err(|e| HarborError::storage("write", &path, e))
}

fn make_dir(storage: &dyn Storage, dir: &Path) -> Result<()> {
    match storage.create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(HarborError::storage("create", dir, e))
        }
        _ => Ok(()),
    }
}

/// Checks that a directory holds nothing but what [`create`] makes before the description.
fn check_skeleton(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let list = |dir: &Path| {
        storage
            .list(dir)
            .map_err(|e| HarborError::storage("list", dir, e))
    };
    for name in list(dir)? {
        let is_empty_folder =
            FOLDERS.contains(&name.as_str()) && list(&dir.join(&name))?.is_empty();
        if !is_empty_folder && name != LOCK && name != format!("{DESCRIPTION}.part") {
            return Err(HarborError::AlreadyExists {
                path: dir.join(name),
            });
        }
    }
    Ok(())
}
