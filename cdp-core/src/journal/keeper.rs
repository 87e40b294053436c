//! The keeper: the thread that puts on stable storage what the writer has handed to the disk.
//!
//! Its jobs come in order, each when the writes that it is about are done: a sync; a turn from one segment to the next,
//! which seals the one and gives the other its name; the seal of the last. Meanwhile the writer goes on with the next
//! frames, those of a segment that has no name yet among them. After a sync the catalog learns which points are there
//! now, and whoever waits is told.
//!
//! Invariant: a segment is sealed, and that on stable storage, before the next one gets its name. So a sync of a segment
//! makes everything before it durable too. The first operation that fails ends the thread; what was there stays as it is.
//! A crash leaves one unsealed segment under its name, whose tail may be torn, incomplete, or never written at all (it
//! reads as zeros), and perhaps a `.part`, in which nothing is that was promised.

use std::io::{self, IoSlice};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Instant;

use super::seal::Seal;
use super::segment::Segment;
use super::sequencer::Sequencer;
use super::writer::{Step, failed};
use crate::buffer::Memory;
use crate::harbor::shared::Shared;
use crate::point::Seq;
use crate::storage::StorageFile;
use crate::storage::replace::{part_of, put_in_place};

/// A segment all of whose frames were handed to the disk.
#[derive(Debug)]
pub(crate) struct Full {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) seal: Seal,
}

/// A segment that may be written to already, and has neither header nor name.
#[derive(Debug)]
pub(crate) struct Nameless {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) header: Memory,
}

/// What the keeper is to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Put everything up to a record on stable storage, by a sync of the segment it is in.
    Sync {
        up_to: Seq,
        file: Arc<dyn StorageFile>,
        path: PathBuf,
    },
    /// Seal one segment, then give the next its header and name.
    Turn(Box<(Full, Nameless)>),
    /// Seal the last segment.
    Seal(Box<Full>),
}

/// The writer's hold on the keeper. Dropping it waits for the job under way; those behind it are left.
#[derive(Debug)]
pub(crate) struct Keeper {
    jobs: Option<mpsc::Sender<Job>>,
    turned: mpsc::Receiver<()>,
    is_abandoned: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The keeper's side.
struct Thread {
    shared: Arc<Shared>,
    sequencer: Arc<Sequencer>,
    jobs: mpsc::Receiver<Job>,
    turned: mpsc::Sender<()>,
    is_abandoned: Arc<AtomicBool>,
}

impl Keeper {
    /// Starts the thread; it tells `sequencer` what has become durable, or why nothing more does.
    ///
    /// # Errors
    /// As the operating system says.
    pub(crate) fn start(shared: Arc<Shared>, sequencer: Arc<Sequencer>) -> io::Result<Keeper> {
        let (jobs, theirs) = mpsc::channel();
        let (turned, ours) = mpsc::channel();
        let is_abandoned = Arc::new(AtomicBool::new(false));
        let keeper = Thread {
            shared,
            sequencer,
            jobs: theirs,
            turned,
            is_abandoned: Arc::clone(&is_abandoned),
        };
        let thread = thread::Builder::new()
            .name("journal-sync".into())
            .spawn(move || keeper.run())?;
        Ok(Keeper {
            jobs: Some(jobs),
            turned: ours,
            is_abandoned,
            thread: Some(thread),
        })
    }

    /// Returns its thread, until it has ended.
    pub(crate) fn thread(&self) -> Option<ThreadId> {
        self.thread.as_ref().map(|handle| handle.thread().id())
    }

    /// Gives it a job, for which all writes are done. One that has ended has told the sequencer why.
    pub(crate) fn give(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    /// Tells whether a turn has been done since this was last asked; waits for it if `wait`, or for the keeper's end.
    pub(crate) fn has_turned(&self, wait: bool) -> bool {
        match wait {
            true => self.turned.recv().is_ok(),
            false => self.turned.try_recv().is_ok(),
        }
    }

    /// Waits until all jobs are done, or one has failed.
    pub(crate) fn finish(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.finish();
    }
}

impl Thread {
    fn run(self) {
        // A panic is a bug, but one that must not leave others waiting for ever.
        let ended = panic::catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(|_| {
            let panicked = io::Error::other("the journal's keeper has panicked");
            Err(failed("go on with", &self.shared.journal_dir())(panicked))
        });
        if let Err(cause) = ended {
            self.sequencer.broken(cause);
        }
    }

    fn work(&self) -> Step<()> {
        while let Ok(job) = self.jobs.recv() {
            if self.is_abandoned.load(Ordering::Relaxed) {
                break;
            }
            match job {
                Job::Sync { up_to, file, path } => self.sync(up_to, &*file, &path)?,
                Job::Seal(full) => seal(&self.shared, &full)?,
                Job::Turn(turn) => {
                    seal(&self.shared, &turn.0)?;
                    name(&self.shared, &turn.1)?;
                    let _ = self.turned.send(());
                }
            }
        }
        Ok(())
    }

    fn sync(&self, up_to: Seq, file: &dyn StorageFile, path: &Path) -> Step<()> {
        let begin = Instant::now();
        file.sync().map_err(failed("sync", path))?;
        let notices = self.sequencer.notices(up_to);
        if !notices.is_empty() {
            let mut catalog = self.shared.catalog();
            notices.into_iter().for_each(|notice| catalog.learn(notice));
        }
        self.sequencer.synced(up_to, begin.elapsed());
        Ok(())
    }
}

/// Seals a segment whose frames are all written, durable on return.
fn seal(shared: &Shared, full: &Full) -> Step<()> {
    let footer = full.seal.footer;
    full.seal
        .write(&*full.file)
        .map_err(failed("seal", &full.segment.path))?;
    full.segment.set_sealed(footer);
    let mut catalog = shared.catalog();
    catalog.end.hash = footer.hash;
    catalog.end.last_seq = footer.last_seq;
    catalog.end.last_time = footer.last_time;
    catalog.end.next_point = footer.next_point;
    Ok(())
}

/// Writes a segment's header, syncs it, and gives it its name, durable on return.
pub(crate) fn name(shared: &Shared, nameless: &Nameless) -> Step<()> {
    let (file, path) = (&nameless.file, &nameless.segment.path);
    let create = |e| failed("create", path)(e);
    file.write_at(&[IoSlice::new(nameless.header.get())], 0)
        .map_err(create)?;
    file.sync().map_err(create)?;
    put_in_place(&*shared.options.storage, &part_of(path), path).map_err(create)?;
    let mut catalog = shared.catalog();
    catalog.end.next_segment = nameless.segment.number + 1;
    catalog.segments.push(Arc::clone(&nameless.segment));
    Ok(())
}
