//! The reports of a host in one directory.
//!
//! Of each report there are `ID.html`, `ID.xml`, `ID.summary`, and, written last, `ID.json`: a report is there when its JSON
//! is. Each file is written whole and made durable before the next is begun. `index.html` shows all; it and the summaries can
//! be made again at any time. Whoever changes the directory holds the lock on its file `lock`.
//!
//! Invariant: a report that was added is never changed, and names the report that was the newest when it was added. A crash
//! leaves a store with or without the report it interrupted; opening it clears away what was unfinished.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    chain::Chain,
    directory::{self, verify_directory},
    entry::{Entry, Summary, newest_first},
    form::Form,
    html::html,
    id::is_id,
    index::index,
    json::{JsonError, json},
    junit::junit,
    sign::{Key, KeyError, PublicKey},
    verify::{BYTES_MAX, VerifyError, signed_json, verify},
    whole::{self, Before, UNFINISHED},
};
use crate::outcome::{BISECT, Earlier, Link, Report};

/// How many earlier drills a report tells of.
pub const HISTORY_MAX: usize = 50;

const SUMMARY: &str = "summary";
const INDEX: &str = "index.html";
const LOCK: &str = "lock";
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// Says why a store did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be used.
    #[error("{} cannot be {doing}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// There is no key to sign with.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The report could not be written.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A text is no report's number.
    #[error("`{id}` is no report's number; one looks like 20261127-031500-4f2a91c0")]
    BadId {
        /// The text.
        id: String,
    },
    /// There is a report of this number already.
    #[error("there is a report {id} already")]
    Exists {
        /// The number.
        id: String,
    },
    /// There is no report of this number.
    #[error("there is no report {id}")]
    NoReport {
        /// The number.
        id: String,
    },
    /// A report is larger than any may be.
    #[error("the report {id} has {bytes} bytes as {}; at most {BYTES_MAX} are kept", form.name())]
    TooLarge {
        /// The number.
        id: String,
        /// The form.
        form: Form,
        /// How large it is.
        bytes: usize,
    },
    /// A report is not what was signed.
    #[error("the report {id} is not to be trusted")]
    Untrusted {
        /// The number.
        id: String,
        /// Why.
        source: VerifyError,
    },
    /// A report is what was signed, but this version cannot read it.
    #[error("the report {id} cannot be read")]
    Unreadable {
        /// The number.
        id: String,
        /// Why; none where the file holds another report.
        source: Option<serde_json::Error>,
    },
}

/// The reports of a host.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    key: Key,
}

/// The right to change the directory, until it is dropped.
struct Locked(#[expect(dead_code, reason = "the lock is the open file's")] File);

impl Store {
    /// Opens the store in a directory, which is made where it is missing, as is the key.
    ///
    /// # Errors
    /// The key's, or that the directory cannot be used.
    pub fn open(dir: &Path, key_path: &Path) -> Result<Self, StoreError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(DIR_MODE);
        builder.create(dir).map_err(failed(dir, "made"))?;
        let store = Self {
            dir: dir.to_owned(),
            key: Key::open_or_make(key_path)?,
        };
        let locked = store.lock()?;
        for name in directory::names(&store.dir)? {
            if name.starts_with(UNFINISHED) {
                let path = store.dir.join(name);
                fs::remove_file(&path).map_err(failed(&path, "removed"))?;
            }
        }
        store.renew_index(&locked)?;
        Ok(store)
    }

    /// The key that its reports are checked with.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// Adds a report; fills in its history and the link to the report before it, and returns it so.
    ///
    /// # Errors
    /// A number that is none or is taken, a report that is too large, or files that cannot be written; then the report is
    /// not there.
    pub fn add(&self, mut report: Report) -> Result<Report, StoreError> {
        let id = report.id.clone();
        let json_path = self.path(&id, Form::Json)?;
        let locked = self.lock()?;
        if json_path.exists() {
            return Err(StoreError::Exists { id });
        }
        let entries = self.entries()?;
        report.history = match report.reason == BISECT {
            true => Vec::new(),
            false => history(&entries, &report.name),
        };
        report.previous = self.head(&entries);

        let files = [
            (Form::Html, html(&report, &self.key)),
            (Form::JUnit, junit(&report, &self.key)),
            (Form::Json, json(&report, &self.key)?),
        ];
        for (form, bytes) in &files {
            if bytes.len() > BYTES_MAX {
                return Err(StoreError::TooLarge {
                    id,
                    form: *form,
                    bytes: bytes.len(),
                });
            }
        }
        for (form, bytes) in &files {
            if *form == Form::Json
                && let Some(entry) = Entry::of(bytes)
            {
                self.write_summary(&entry)?;
            }
            let path = self.path(&id, *form)?;
            whole::write(&path, bytes, FILE_MODE, Before::Replaced)
                .map_err(failed(&path, "written"))?;
        }
        // The report is there now: an index that is behind is renewed by the next report or when the store is opened.
        if let Err(error) = self.renew_index(&locked) {
            tracing::warn!(%error, "the index of the reports is behind");
        }
        Ok(report)
    }

    /// All reports in short, by the time they began, the newest last.
    ///
    /// # Errors
    /// The directory cannot be read. A report that cannot be read is left out, with a warning in the log.
    pub fn list(&self) -> Result<Vec<Summary>, StoreError> {
        let entries = self.entries()?;
        Ok(entries.into_iter().map(|entry| entry.summary).collect())
    }

    /// Reads a report, and checks that it is what this store's key signed.
    ///
    /// # Errors
    /// No report of this number, or one that is not to be trusted or cannot be read.
    pub fn get(&self, id: &str) -> Result<Report, StoreError> {
        let bytes = self.read(id, Form::Json)?;
        let untrusted = |source| StoreError::Untrusted {
            id: id.to_owned(),
            source,
        };
        let unreadable = |source| StoreError::Unreadable {
            id: id.to_owned(),
            source,
        };
        verify(&bytes, Some(&self.key.public())).map_err(untrusted)?;
        let signed = signed_json(&bytes).ok_or_else(|| unreadable(None))?;
        let report: Report =
            serde_json::from_str(signed).map_err(|source| unreadable(Some(source)))?;
        if report.id == id {
            Ok(report)
        } else {
            Err(unreadable(None))
        }
    }

    /// Reads a report's file as it is, without checking it.
    ///
    /// # Errors
    /// A number that is none, or a file that is not there or cannot be read.
    pub fn read(&self, id: &str, form: Form) -> Result<Vec<u8>, StoreError> {
        let path = self.path(id, form)?;
        directory::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::NoReport { id: id.to_owned() },
            _ => failed(&path, "read")(error),
        })
    }

    /// Where a report's file is, whether it exists or not.
    ///
    /// # Errors
    /// A number that is none.
    pub fn path(&self, id: &str, form: Form) -> Result<PathBuf, StoreError> {
        if !is_id(id) {
            return Err(StoreError::BadId { id: id.to_owned() });
        }
        Ok(self.file(id, form.extension()))
    }

    /// Goes over all reports: that each is what this store's key signed, and follows the one it names.
    ///
    /// # Errors
    /// A file cannot be read. What is wrong with the reports themselves is in [`Chain::broken`].
    pub fn verify_chain(&self) -> Result<Chain, StoreError> {
        let _locked = self.lock()?;
        Ok(verify_directory(&self.dir, Some(&self.key.public()))?.chain)
    }

    /// Removes the oldest reports so that a number of them stays; returns how many were removed.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn prune(&self, keep: usize) -> Result<usize, StoreError> {
        let locked = self.lock()?;
        let entries = self.entries()?;
        let order = newest_first(&entries);
        let old = order.get(keep..).unwrap_or_default();
        for entry in old.iter().rev() {
            let id = &entry.summary.id;
            // The JSON first: what is left of a report that was half removed is no report.
            for extension in ["json", SUMMARY, "html", "xml"] {
                let path = self.file(id, extension);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done.map_err(failed(&path, "removed"))?,
                }
                if extension == "json" {
                    whole::sync_dir(&self.dir).map_err(failed(&self.dir, "synced"))?;
                }
            }
        }
        if !old.is_empty() {
            self.renew_index(&locked)?;
        }
        Ok(old.len())
    }

    fn lock(&self) -> Result<Locked, StoreError> {
        let path = self.dir.join(LOCK);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed(&path, "opened"))?;
        rustix::io::retry_on_intr(|| {
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        })
        .map_err(|error| failed(&path, "locked")(error.into()))?;
        Ok(Locked(file))
    }

    fn file(&self, id: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{id}.{extension}"))
    }

    /// All reports in short, the newest last.
    fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let ids = directory::ids(&self.dir)?;
        Ok(ids.iter().filter_map(|id| self.entry(id)).collect())
    }

    /// A report in short: from its summary where that fits, else from the report.
    fn entry(&self, id: &str) -> Option<Entry> {
        let bytes = fs::metadata(self.file(id, Form::Json.extension()))
            .ok()?
            .len();
        let kept = fs::read(self.file(id, SUMMARY)).ok();
        let kept: Option<Entry> = kept.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(entry) = kept.filter(|entry| entry.summary.id == id && entry.bytes == bytes) {
            return Some(entry);
        }
        let entry = self.rebuilt(id);
        match &entry {
            None => tracing::warn!(id, "a report cannot be read and is left out"),
            Some(entry) => {
                if let Err(error) = self.write_summary(entry) {
                    tracing::debug!(id, %error, "the summary of a report was not made again");
                }
            }
        }
        entry
    }

    fn rebuilt(&self, id: &str) -> Option<Entry> {
        let json = self.read(id, Form::Json).ok()?;
        Entry::of(&json).filter(|entry| entry.summary.id == id)
    }

    /// The newest report. Its hash is taken from the report itself; if that was damaged, as it was when it was added.
    fn head(&self, entries: &[Entry]) -> Option<Link> {
        let kept = *newest_first(entries).first()?;
        match self.rebuilt(&kept.summary.id) {
            Some(entry) if entry == *kept => Some(entry.link()),
            None => Some(kept.link()),
            // A summary says something else than its report: none of them is believed.
            Some(_) => {
                let ids = entries.iter().map(|entry| entry.summary.id.as_str());
                let all: Vec<Entry> = ids.filter_map(|id| self.rebuilt(id)).collect();
                newest_first(&all).first().map(|entry| entry.link())
            }
        }
    }

    fn write_summary(&self, entry: &Entry) -> Result<(), StoreError> {
        let path = self.file(&entry.summary.id, SUMMARY);
        serde_json::to_vec(entry)
            .map_err(io::Error::from)
            .and_then(|text| whole::write(&path, &text, FILE_MODE, Before::Replaced))
            .map_err(failed(&path, "written"))
    }

    fn renew_index(&self, _: &Locked) -> Result<(), StoreError> {
        let path = self.dir.join(INDEX);
        let page = index(&self.list()?);
        if fs::read(&path).is_ok_and(|old| old == page.as_bytes()) {
            return Ok(());
        }
        whole::write(&path, page.as_bytes(), FILE_MODE, Before::Replaced)
            .map_err(failed(&path, "written"))
    }
}

/// The drills of a plan before this one, the oldest first; probes of bisections left out.
fn history(entries: &[Entry], name: &str) -> Vec<Earlier> {
    let same = entries
        .iter()
        .filter(|entry| entry.summary.name == name && !entry.summary.is_probe());
    let mut history: Vec<Earlier> = same
        .map(|entry| Earlier {
            id: entry.summary.id.clone(),
            started: entry.summary.started.clone(),
            verdict: entry.summary.verdict,
            rto_ms: entry.summary.rto_ms,
            rpo_ms: entry.summary.rpo_ms,
        })
        .collect();
    history.drain(..history.len().saturating_sub(HISTORY_MAX));
    history
}

pub(super) fn failed(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        path,
        doing,
        source,
    }
}
