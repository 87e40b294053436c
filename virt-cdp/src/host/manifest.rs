//! The list of what was laid down: paths, kinds, and the hashes by which our own work is known again.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Host, HostError, MANIFEST, failed, write};

/// The version of the list.
const FORMAT: u32 = 1;

/// What was laid down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// Below which the program was installed.
    pub(super) prefix: PathBuf,
    /// In the order in which it was laid down.
    pub(super) entries: Vec<Entry>,
}

/// Something that was laid down, or was about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its path on the host.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) kind: Kind,
    /// Its hashes: one; two while it is replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) hashes: Vec<String>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// A file; its hash is of its bytes.
    File,
    /// A symbolic link; its hash is of where it leads.
    Link,
    /// Lines in a file that was there; their hash.
    Block,
    /// Lines in a file that we made; their hash.
    BlockFile,
    /// A directory; it has none.
    Dir,
}

impl Manifest {
    /// An empty list.
    pub(super) fn new(prefix: &Path) -> Self {
        Self {
            format: FORMAT,
            prefix: prefix.into(),
            entries: Vec::new(),
        }
    }

    /// Reads the list of a host; none if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is none of ours.
    pub(super) fn read(host: &Host) -> Result<Option<Self>, HostError> {
        let path = host.at(Path::new(MANIFEST));
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let bad = |reason: String| HostError::Manifest {
            path: path.clone(),
            reason,
        };
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(bad(format!("it is of version {}", manifest.format)));
        }
        let inside = |entry: &Entry| {
            entry.path.is_absolute()
                && entry
                    .path
                    .components()
                    .all(|part| part != std::path::Component::ParentDir)
        };
        match manifest.entries.iter().find(|entry| !inside(entry)) {
            Some(entry) => Err(bad(format!("{:?} is no path of a host", entry.path))),
            None => Ok(Some(manifest)),
        }
    }

    /// Writes the list; it is on stable storage on return.
    pub(super) fn write(&self, host: &Host) -> Result<(), HostError> {
        let path = host.at(Path::new(MANIFEST));
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| failed("write", &path)(io::Error::other(e)))?;
        text.push(b'\n');
        write::file(&path, &text, 0o644)
    }

    /// The entry of a path.
    pub(super) fn entry(&self, path: &Path) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path)
    }

    /// Notes that something with `hash` is about to be at `path`, beside what may be there.
    pub(super) fn note(&mut self, path: &Path, kind: Kind, hash: Option<String>) {
        let at = self.entries.iter().position(|entry| entry.path == path);
        let at = at.unwrap_or_else(|| {
            self.entries.push(Entry {
                path: path.into(),
                kind,
                hashes: Vec::new(),
            });
            self.entries.len() - 1
        });
        if let (Some(entry), Some(hash)) = (self.entries.get_mut(at), hash)
            && !entry.hashes.contains(&hash)
        {
            entry.hashes.push(hash);
        }
    }

    /// Notes that what is at `path` has this hash now.
    pub(super) fn settle(&mut self, path: &Path, hash: String) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.path == path) {
            entry.hashes = vec![hash];
        }
    }
}

/// The hash by which bytes are known again.
pub(super) fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
