//! Which files were verified when. Kept as `scrub.toml`; so a scrub that was ended goes on where it was.
//!
//! A file is known by its name and its length: it never changes once it is whole, and another one of its name hardly has
//! its length. What is not known counts as never verified: a file that is lost or damaged costs nothing but work.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Harbor, checked};
use crate::bounds::SCRUB_MAX;
use crate::clock::Timestamp;
use crate::error::{HarborError, Result};
use crate::storage::Storage;
use crate::storage::replace::{read_all, remove_if_there, replace};

/// Which files were verified when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scrub {
    files: BTreeMap<String, (u64, Timestamp)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Text {
    #[serde(default)]
    files: Vec<File>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    name: String,
    len: u64,
    at: Timestamp,
}

fn path_of(dir: &Path) -> PathBuf {
    dir.join("scrub.toml")
}

/// Reads what is known; nothing if that cannot be told.
pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Result<Scrub> {
    let path = path_of(dir);
    let text = match read_all(storage, &path, SCRUB_MAX) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|e| e.to_string()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Scrub::default()),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => Err(e.to_string()),
        Err(e) => return Err(HarborError::storage("read", &path, e)),
    };
    let text = text.and_then(|text| {
        let rest = checked::of_checked_toml(&text)?;
        toml::from_str::<Text>(rest).map_err(|e| e.to_string())
    });
    let text = text.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error, "everything counts as not verified");
        Text::default()
    });
    let files = text.files.into_iter();
    let files = files.map(|file| (file.name, (file.len, file.at))).collect();
    Ok(Scrub { files })
}

/// Replaces what is known, durable on return.
pub(super) fn write(storage: &dyn Storage, dir: &Path, scrub: &Scrub) -> Result<()> {
    let path = path_of(dir);
    let failed = |e| HarborError::storage("write", &path, e);
    let file = |(name, (len, at)): (&String, &(u64, Timestamp))| File {
        name: name.clone(),
        len: *len,
        at: *at,
    };
    let files = scrub.files.iter().map(file).collect();
    let text = toml::to_string(&Text { files }).map_err(|e| failed(io::Error::other(e)))?;
    replace(storage, &path, checked::toml(&text).as_bytes()).map_err(failed)
}

/// Counts everything as not verified, durable on return.
pub(super) fn forget(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let path = path_of(dir);
    let failed = |e| HarborError::storage("remove", &path, e);
    remove_if_there(storage, &path).map_err(failed)?;
    storage.sync_dir(dir).map_err(failed)
}

impl Scrub {
    /// Returns when a file of that name and length was verified.
    pub(crate) fn verified(&self, name: &str, len: u64) -> Option<Timestamp> {
        let (known, at) = self.files.get(name)?;
        (*known == len).then_some(*at)
    }

    /// Takes note of files that were verified; `all` are those that there are, if that is known.
    pub(super) fn take(
        &mut self,
        verified: BTreeMap<String, u64>,
        now: Timestamp,
        all: Option<&[String]>,
    ) {
        if let Some(all) = all {
            self.files.retain(|name, _| all.contains(name));
        }
        let verified = verified.into_iter().map(|(name, len)| (name, (len, now)));
        self.files.extend(verified);
    }
}

impl Harbor {
    /// Returns when the file was verified that was not verified for longest, of those that ever were and are still kept;
    /// none before anything was verified.
    pub fn verified_since(&self) -> Option<Timestamp> {
        let there = self.segments_and_layers();
        let scrub = self.shared.scrub();
        let known = there.iter().filter_map(|name| scrub.files.get(name));
        known.map(|(_, at)| *at).min()
    }

    /// Returns how many segments and layers were ever verified, and how many there are.
    pub fn verified_files(&self) -> (u64, u64) {
        let there = self.segments_and_layers();
        let scrub = self.shared.scrub();
        let known = there.iter().filter(|name| scrub.files.contains_key(*name));
        (known.count() as u64, there.len() as u64)
    }

    fn segments_and_layers(&self) -> Vec<String> {
        let segments = self.shared.catalog().segments.clone();
        let bases = self.shared.bases().clone();
        let segments = segments.iter().map(|one| self.shared.name_of(&one.path));
        let bases = bases.iter().map(|one| self.shared.name_of(&one.path));
        segments.chain(bases).collect()
    }
}
