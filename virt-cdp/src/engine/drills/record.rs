//! The record of a drill that runs: a small file, written before anything is made for it.

use std::{fs, io, path::Path};

use cdp_core::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::{ApiError, ApiErrorKind, ApiResult};

/// What is kept of a drill while it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) reason: String,
    pub(super) asked_by: String,
    pub(super) started: Timestamp,
    pub(super) machines: Vec<String>,
    pub(super) plan: String,
}

impl Record {
    /// Writes the record, durable on return.
    pub(super) fn save(&self, dir: &Path) -> ApiResult<()> {
        let dir = dir.join("running");
        let path = dir.join(format!("{}.toml", self.id));
        let text = toml::to_string(self).map_err(|e| failed(&e.to_string()))?;
        let new = path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| fs::File::open(&dir)?.sync_all())
            .map_err(|e| failed(&e.to_string()))
    }
}

/// Reads all records; one that cannot be read is told in the log, and left.
pub(super) fn read_all(dir: &Path) -> Vec<Record> {
    let entries = fs::read_dir(dir.join("running"))
        .into_iter()
        .flatten()
        .flatten();
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.path()) {
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|e| e.to_string());
        match text.and_then(|text| toml::from_str(&text).map_err(|e| e.to_string())) {
            Ok(record) => found.push(record),
            Err(error) => {
                tracing::error!(path = %path.display(), error, "the record of a drill cannot be read");
            }
        }
    }
    found
}

/// Removes a record; one that is gone already is fine.
pub(super) fn remove(dir: &Path, id: &str) -> ApiResult<()> {
    match fs::remove_file(dir.join("running").join(format!("{id}.toml"))) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&e.to_string())),
        _ => Ok(()),
    }
}

fn failed(why: &str) -> ApiError {
    ApiError::new(
        ApiErrorKind::Internal,
        format!("cannot keep the record of a drill: {why}"),
    )
}
