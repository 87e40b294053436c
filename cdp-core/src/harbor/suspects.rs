//! Files in which a reader came upon damage, until they are verified.
//!
//! A view that meets damage can only tell its reader. It notes the file here, so that the next verification takes it
//! first, finds out which points it costs, and marks them. In memory only: whoever reads it again meets it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Harbor;
use crate::error::{HarborError, Result};

/// Files that are to be looked at, and how often each was noted.
type Noted = BTreeMap<PathBuf, u64>;

/// Files that are to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Suspects(Mutex<Noted>);

impl Suspects {
    fn files(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the file of which an outcome says that it is damaged; hands the outcome on.
    pub(crate) fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(HarborError::Damaged { path, .. }) = &outcome
            && self.add(path)
        {
            tracing::warn!(path = %path.display(), "a reader came upon damage; the file is verified next");
        }
        outcome
    }

    /// Notes a file; true if it was not noted.
    pub(crate) fn add(&self, path: &Path) -> bool {
        let mut files = self.files();
        let times = files.entry(path.to_path_buf()).or_default();
        *times += 1;
        *times == 1
    }

    pub(crate) fn all(&self) -> Noted {
        self.files().clone()
    }

    /// Forgets files that were verified, but for those that were noted again since they were `known` as they are here.
    pub(crate) fn forget(&self, known: &Noted, verified: impl Fn(&Path) -> bool) {
        self.files()
            .retain(|path, times| known.get(path) != Some(times) || !verified(path));
    }
}

impl Harbor {
    /// Tells whether a reader has come upon damage in a file that was not verified since.
    pub fn has_suspects(&self) -> bool {
        !self.shared.suspects.files().is_empty()
    }
}
