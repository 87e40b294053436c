//! The record of a takeover: a small file that names everything made for it, written before it is made.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cdp_core::{Point, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::names,
};

/// What is kept of a takeover.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) uri: String,
    pub(super) machine: String,
    pub(super) machine_id: String,
    pub(super) point: Point,
    pub(super) created: Timestamp,
    pub(super) socket: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) nvram: Option<PathBuf>,
    pub(super) disks: Vec<Disk>,
}

/// A disk of a takeover.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Disk {
    /// The volume's target, and the export's name.
    pub(super) target: String,
    /// Its target in the takeover's own XML.
    pub(super) now: String,
    pub(super) overlay: PathBuf,
    pub(super) size: u64,
}

impl Record {
    /// Writes the record, durable on return.
    pub(super) fn save(&self, dir: &Path) -> ApiResult<()> {
        let path = path(dir, &self.name);
        let text = toml::to_string(self).map_err(|e| {
            ApiError::new(
                ApiErrorKind::Internal,
                format!("cannot write the record: {e}"),
            )
        })?;
        let new = path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| fs::File::open(dir)?.sync_all())
            .map_err(|e| host(&format!("keep the record {}", path.display()), &e))
    }
}

/// Reads all records; the second list names those that cannot be read.
pub(super) fn read_all(dir: &Path) -> io::Result<(Vec<Record>, Vec<String>)> {
    fs::create_dir_all(dir)?;
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|e| e.to_string());
        match text.and_then(|text| toml::from_str(&text).map_err(|e| e.to_string())) {
            Ok(record) => found.push(record),
            Err(e) => problems.push(format!(
                "takeover record {} cannot be read: {e}",
                path.display()
            )),
        }
    }
    Ok((found, problems))
}

/// Removes a record; one that is gone already is fine.
pub(super) fn remove(dir: &Path, name: &str) -> ApiResult<()> {
    match fs::remove_file(path(dir, name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(host("remove the takeover's record", &e))
        }
        _ => Ok(()),
    }
}

fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{}.toml", names::component(name)))
}

/// An error of the host's file systems.
pub(super) fn host(what: &str, error: &io::Error) -> ApiError {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ApiErrorKind::ResourceExhausted,
        io::ErrorKind::PermissionDenied => ApiErrorKind::PermissionDenied,
        _ => ApiErrorKind::Internal,
    };
    ApiError::new(kind, format!("cannot {what}: {error}"))
}
