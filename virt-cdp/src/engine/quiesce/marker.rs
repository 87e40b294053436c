//! The marker of a freeze: a small file that says which guest may be frozen, and the thaw that is owed to it.
//!
//! How: the file is written before the freeze and removed after the thaw's answer. Whoever cannot thaw at once
//! leaves it to a thread that tries until the guest agent has answered, or the QEMU that was frozen is gone. At the
//! daemon's start every marker that is found is handed to such a thread.
//!
//! Invariant: while the file is there, somebody thaws: the call that wrote it, a thread, or the next start.
//! A crash leaves the file, or its `.part` before the freeze was sent, which is removed.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use cdp_core::{MachineSource, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    GuestAgent,
    watch::{StartWatch, Watch},
    within::within,
};
use crate::engine::{
    guard,
    source::{Presence, Source},
};

/// Pause between two attempts at a thaw that is owed; doubles up to the longest.
const OWED_PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest pause between two attempts.
const OWED_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const OWED_DEADLINE: Duration = Duration::from_secs(15);

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owed {
    /// The machine's name, for people.
    pub(crate) name: String,
    /// Where it runs.
    pub(crate) source: MachineSource,
    /// Which run of its QEMU; another one has nothing frozen.
    pub(crate) run: String,
    /// When it was written: no two markers of a machine are the same.
    pub(crate) since: Timestamp,
}

/// A marker that an earlier daemon left: its file, and what it says.
pub(crate) type Left = (PathBuf, Owed);

/// The directory of the markers, and whose thaws are owed.
pub(crate) struct Markers {
    dir: PathBuf,
    watch: StartWatch,
    /// Names of machines to which a thaw is owed for longer than it should be.
    overdue: Mutex<BTreeSet<String>>,
}

/// The marker of one machine, written or not.
#[derive(Clone)]
pub(crate) struct Marker {
    markers: Arc<Markers>,
    path: PathBuf,
    owed: Owed,
    source: Arc<dyn Source>,
}

impl Markers {
    /// Opens the directory; returns what earlier daemons left there. Files that are no markers are left alone.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(dir: PathBuf, watch: StartWatch) -> io::Result<(Arc<Self>, Vec<Left>)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("part") => fs::remove_file(&path)?,
                Some("json") => match read(&path) {
                    Ok(owed) => found.push((path, owed)),
                    Err(error) => {
                        tracing::warn!(marker = %path.display(), %error, "no marker of a freeze")
                    }
                },
                _ => {}
            }
        }
        let overdue = Mutex::default();
        let markers = Self {
            dir,
            watch,
            overdue,
        };
        Ok((Arc::new(markers), found))
    }

    /// The directory, for who looks after one marker in it alone.
    pub(super) fn beside(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            dir,
            watch: |_, _| Ok(None),
            overdue: Mutex::default(),
        })
    }

    /// The marker of a machine, by its id.
    pub(crate) fn of(self: &Arc<Self>, id: &str, owed: Owed, source: Arc<dyn Source>) -> Marker {
        self.at(self.dir.join(format!("{id}.json")), owed, source)
    }

    /// The marker that lies at `path`.
    pub(crate) fn at(
        self: &Arc<Self>,
        path: PathBuf,
        owed: Owed,
        source: Arc<dyn Source>,
    ) -> Marker {
        Marker {
            markers: Arc::clone(self),
            path,
            owed,
            source,
        }
    }

    /// Sentences on guests that may be frozen still.
    pub(crate) fn problems(&self) -> Vec<String> {
        let overdue = guard(&self.overdue);
        let sentence = |name: &String| {
            format!(
                "the file systems of '{name}' may be frozen: its guest agent does not answer the thaw, which is sent \
                 again and again; restart the agent in the guest, or reset the machine"
            )
        };
        overdue.iter().map(sentence).collect()
    }
}

pub(super) fn read(path: &Path) -> io::Result<Owed> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

impl Marker {
    /// Writes the marker; it is on stable storage on return.
    fn write(&self) -> Result<(), String> {
        if self.path.exists() {
            return Err("an earlier freeze of this guest is not known to be thawed yet".into());
        }
        let write = || -> io::Result<()> {
            let part = self.path.with_extension("part");
            fs::write(&part, serde_json::to_vec(&self.owed)?)?;
            fs::File::open(&part)?.sync_all()?;
            fs::rename(&part, &self.path)?;
            fs::File::open(&self.markers.dir)?.sync_all()
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&self.path);
            format!("nothing is frozen without a note of it, which cannot be written: {e}")
        })
    }

    /// Removes the marker. Should a crash bring it back, the next start thaws once too often.
    fn remove(&self) {
        guard(&self.markers.overdue).remove(&self.owed.name);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(marker = %self.path.display(), %error, "the marker of a freeze stays");
            }
            _ => {}
        }
    }

    /// Thaws in a thread of its own, until it is known that nothing is frozen.
    pub(crate) fn settle(self) {
        let name = self.owed.name.clone();
        let thread = thread::Builder::new()
            .name("thaw".into())
            .spawn(move || self.settle_here());
        if let Err(error) = thread {
            tracing::error!(machine = name, %error, "cannot thaw; the next start of virtcdpd will");
        }
    }

    /// Thaws until it is known that nothing is frozen, by us or by whoever has removed the marker.
    pub(super) fn settle_here(self) {
        let mut pause = OWED_PAUSE_FIRST;
        loop {
            if !read(&self.path).is_ok_and(|owed| owed == self.owed) {
                guard(&self.markers.overdue).remove(&self.owed.name);
                return;
            }
            match self.try_thaw() {
                Ok(outcome) => {
                    tracing::warn!(machine = self.owed.name, outcome, "a thaw that was owed");
                    return self.remove();
                }
                Err(reason) => {
                    if pause >= Duration::from_secs(2) {
                        guard(&self.markers.overdue).insert(self.owed.name.clone());
                    }
                    tracing::warn!(machine = self.owed.name, reason, "not thawed yet");
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(OWED_PAUSE_MAX);
        }
    }

    /// Tries once; tells how nothing is frozen any more, or why that is not known.
    fn try_thaw(&self) -> Result<String, String> {
        let (source, run) = (Arc::clone(&self.source), self.owed.run.clone());
        within(OWED_DEADLINE, "the guest agent's answer", move || {
            match source.presence() {
                Presence::Off(_) => return Ok("the machine is off".into()),
                Presence::Running(now) if now != run => return Ok("it was started anew".into()),
                Presence::Unknown(reason) => return Err(reason),
                Presence::Migrating => return Err("the machine is being migrated".into()),
                Presence::Running(_) => {}
            }
            match source.agent().map_err(|e| e.what)? {
                Some(agent) => {
                    let thawed = agent.thaw(super::THAW_DEADLINE)?;
                    Ok(format!("{thawed} file systems thawed"))
                }
                None => Ok("it has no guest agent".into()),
            }
        })
    }
}

/// A guest that is frozen, or about to be; thawed when this is dropped, whatever happens.
pub(super) struct Frozen<'a> {
    agent: Arc<dyn GuestAgent>,
    marker: &'a Marker,
    /// Thaws should this process not be able to.
    _watch: Option<Watch>,
    settled: bool,
}

impl<'a> Frozen<'a> {
    /// Writes the marker, and has a freeze of at most `limit` watched over. Nothing is frozen yet.
    ///
    /// # Errors
    /// The marker cannot be written, an earlier thaw is owed, or there is nobody to watch.
    pub(super) fn begin(
        agent: Arc<dyn GuestAgent>,
        marker: &'a Marker,
        limit: Duration,
    ) -> Result<Self, String> {
        marker.write()?;
        let watch = (marker.markers.watch)(&marker.path, limit).map_err(|error| {
            marker.remove();
            format!("nothing is frozen without somebody to watch over it: {error}")
        })?;
        Ok(Self {
            agent,
            marker,
            _watch: watch,
            settled: false,
        })
    }

    /// Freezes the guest's file systems, at least one.
    ///
    /// # Errors
    /// Refused, late (then it may happen later), or there is nothing to freeze.
    pub(super) fn freeze(&self, deadline: Duration) -> Result<(), String> {
        let agent = Arc::clone(&self.agent);
        let frozen = within(deadline, "the freeze", move || agent.freeze(deadline))?;
        match frozen {
            0 => Err("the guest agent found no file system to freeze".into()),
            _ => Ok(()),
        }
    }

    /// Thaws; returns how many file systems were frozen still.
    ///
    /// # Errors
    /// No answer in time; it is tried again in the background.
    pub(super) fn thaw(mut self, deadline: Duration) -> Result<u64, String> {
        let agent = Arc::clone(&self.agent);
        let thawed = within(deadline, "the guest agent's answer", move || {
            agent.thaw(deadline)
        })?;
        self.settled = true;
        self.marker.remove();
        Ok(thawed)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.marker.clone().settle();
        }
    }
}
