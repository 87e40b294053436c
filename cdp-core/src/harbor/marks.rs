//! What is known of the marks outside the harbor: which of them tell what the harbor may lack.
//!
//! Whoever captures has something mark, beside each volume, what was written (a bitmap of QEMU). The marks carry
//! names; those of which the harbor knows that they tell everything are named here, in `marks.toml`, replaced as a
//! whole.
//!
//! Invariant: nothing is trusted that is not named here. A file that is missing or cannot be read, and a
//! journal that has lost more than its unsynced tail, leave no name: then the whole volume is compared.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checked;
use crate::bounds::MARKS_MAX;
use crate::error::{HarborError, Result};
use crate::machine::VolumeId;
use crate::storage::Storage;
use crate::storage::replace::{read_all, remove_if_there, replace};

/// What is known of the marks of a machine's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// Of the volumes that have marks.
    #[serde(default)]
    pub volumes: Vec<VolumeMarks>,
}

/// What is known of the marks of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMarks {
    /// The volume.
    pub id: VolumeId,
    /// The image to which it applies.
    pub image: String,
    /// Bytes of the volume.
    pub size: u64,
    /// Names of the marks of which each, where it is found, tells all that the harbor may lack; the newest last.
    #[serde(default)]
    pub epochs: Vec<String>,
    /// What the image was like when the harbor had all of it and nobody wrote to it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
}

impl Marks {
    /// Returns what is known of the marks of a volume.
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeMarks> {
        self.volumes.iter().find(|volume| volume.id == id)
    }
}

/// Returns the path of the file.
fn path_of(dir: &Path) -> PathBuf {
    dir.join("marks.toml")
}

/// Reads what is known; nothing if that cannot be told.
pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Marks {
    let path = path_of(dir);
    let text = match read_all(storage, &path, MARKS_MAX) {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Marks::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no marks are trusted");
            return Marks::default();
        }
    };
    let rest = checked::of_toml(&text);
    let marks = rest.and_then(|rest| toml::from_str(rest).map_err(|e| e.to_string()));
    marks.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "no marks are trusted");
        Marks::default()
    })
}

/// Replaces what is known, durable on return.
pub(crate) fn write(storage: &dyn Storage, dir: &Path, marks: &Marks) -> Result<()> {
    let path = path_of(dir);
    let failed = |e| HarborError::storage("write", &path, e);
    let text = toml::to_string(marks).map_err(|e| failed(io::Error::other(e)))?;
    replace(storage, &path, checked::toml(&text).as_bytes()).map_err(failed)
}

/// Trusts no marks any more, durable on return.
pub(crate) fn forget(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let path = path_of(dir);
    let failed = |e| HarborError::storage("remove", &path, e);
    remove_if_there(storage, &path).map_err(failed)?;
    storage.sync_dir(dir).map_err(failed)
}
