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

/// Where libvirt keeps the logs of QEMU.
const LIBVIRT_LOGS: &str = "/var/log/libvirt/qemu";

/// What is kept of a takeover.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::engine) struct Record {
    pub(in crate::engine) name: String,
    pub(super) uuid: String,
    pub(super) uri: String,
    pub(super) machine: String,
    pub(super) machine_id: String,
    pub(super) point: Point,
    pub(super) created: Timestamp,
    pub(in crate::engine) socket: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) nvram: Option<PathBuf>,
    /// What the guest writes to its console; libvirt may keep older parts beside it, with a number behind the name.
    #[serde(default)]
    pub(in crate::engine) console: Option<PathBuf>,
    /// The drill it was made for; none: it is somebody's own.
    #[serde(default)]
    pub(super) drill: Option<String>,
    pub(in crate::engine) disks: Vec<Disk>,
}

/// A disk of a takeover.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::engine) struct Disk {
    /// The volume's target, and the export's name.
    pub(in crate::engine) target: String,
    /// Its target in the takeover's own XML.
    pub(super) now: String,
    pub(super) overlay: PathBuf,
    pub(in crate::engine) size: u64,
}

impl Record {
    /// The console's file, and its older parts.
    pub(super) fn console_files(&self) -> Vec<PathBuf> {
        let Some(console) = &self.console else {
            return Vec::new();
        };
        let name = console.file_name().unwrap_or_default().to_string_lossy();
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path());
        let is_console = |path: &PathBuf| {
            let of_file = path.file_name().unwrap_or_default().to_string_lossy();
            of_file.starts_with(&*name)
        };
        files.filter(is_console).collect()
    }

    /// The logs that libvirt keeps of a domain when it is undefined; those of a drill tell nothing that its report does not,
    /// and every drill would leave some.
    pub(super) fn libvirt_logs(&self) -> Vec<PathBuf> {
        if self.drill.is_none() {
            return Vec::new();
        }
        let endings = ["", ".0", ".1", ".2"];
        let file = |ending| Path::new(LIBVIRT_LOGS).join(format!("{}.log{ending}", self.name));
        endings.map(file).into()
    }

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
