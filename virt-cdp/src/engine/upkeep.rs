//! What a capture needs done now and then through the monitor or libvirt, off the supervisor's thread.
//!
//! All of it may be slow to answer; points must not wait for it. Each second the machine's definition is
//! looked at (later points carry it), its disks are compared with those that are captured, and the mirrors are
//! confirmed; at the bitmap interval the bitmaps are rotated; what a rotation took aside is dropped once the mirrors
//! are confirmed after it. A thread of its own asks each second whether the machine runs here: libvirt answers that
//! also while it keeps all commands waiting, as during a migration.
//!
//! Invariants: whatever was captured up to [`Upkeep::confirmed`] came through mirrors that stood on the disks
//! the guest has; at [`Upkeep::here`] nobody else wrote to them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cdp_core::{Harbor, Plug, Recorder, Seq, Timestamp, VolumeDescription, VolumeId};
use qemu_hook::{
    attach::{self, Names},
    bitmap,
    monitor::Monitor,
};

use crate::{
    api::ApiResult,
    engine::{
        errors::from_monitor,
        guard,
        machine::now,
        marking::Marking,
        source::{Look, Plugged, Presence, Source},
        volumes,
    },
};

/// How often everything is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looks in a row that find a machine in migration until its capture is given up.
const MIGRATING_LOOKS: u32 = 5;

/// The QEMU side of a capture, for any thread: its bitmaps, and whether its mirrors stand.
pub(crate) struct QemuSide {
    /// QEMU's monitor.
    pub(crate) monitor: Arc<dyn Monitor>,
    /// The volumes that are captured.
    pub(crate) volumes: Vec<VolumeId>,
    /// Of the volumes' pieces in QEMU.
    pub(crate) names: Vec<Names>,
    /// The bitmaps.
    pub(crate) marking: Arc<Marking>,
    /// Where the taps write to.
    pub(crate) recorder: Recorder,
}

impl QemuSide {
    /// The moment it is now, and the last record taken.
    pub(crate) fn moment(&self) -> Confirmed {
        // In this order: a point that belongs to the head is not later than the time.
        let head = self.recorder.head();
        Confirmed { time: now(), head }
    }

    /// Tells whether all mirrors are there still.
    pub(crate) fn mirrors_stand(&self) -> ApiResult<bool> {
        attach::mirrors_stand(&*self.monitor, &self.names).map_err(|e| from_monitor(&e))
    }

    /// Waits until every write that QEMU has under way has reached its tap.
    pub(crate) fn drain(&self) -> ApiResult<()> {
        bitmap::drain(&*self.monitor).map_err(|e| from_monitor(&e))
    }

    /// Rotates the bitmaps: what was marked so far is in the journal, on stable storage, if the mirrors stood.
    pub(crate) fn rotate(&self) -> ApiResult<()> {
        self.marking.rotate(&self.recorder)
    }
}

/// The running upkeep of one capture; dropped, it ends.
pub(crate) struct Upkeep {
    wishes: Vec<mpsc::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Seen>,
}

/// What an upkeep works with.
#[derive(Clone)]
pub(crate) struct Task {
    /// Where the machine runs.
    pub(crate) source: Arc<dyn Source>,
    /// Where what is captured is kept.
    pub(crate) harbor: Harbor,
    /// The capture's QEMU side.
    pub(crate) qemu: Arc<QemuSide>,
    /// Which run of QEMU it is.
    pub(crate) run: String,
    /// The disks as they were when they were tapped.
    pub(crate) disks: Vec<Plugged>,
    /// How often the bitmaps are rotated.
    pub(crate) bitmap_interval: Duration,
    /// Until when the mirrors are known to have stood.
    pub(crate) confirmed: Confirmed,
    /// Until when the machine is known to have run here.
    pub(crate) here: Confirmed,
}

/// Up to where something is known to have been so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confirmed {
    /// When it was looked at.
    pub(crate) time: Timestamp,
    /// The last record taken by then.
    pub(crate) head: Seq,
}

/// Disks that are not as they were when they were tapped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Volumes whose disks are not there.
    pub(crate) gone: Vec<VolumeId>,
    /// Volumes whose disks were unplugged and plugged in again.
    pub(crate) replaced: Vec<VolumeId>,
    /// Volumes that are not captured, and whose disks are there.
    pub(crate) back: Vec<VolumeId>,
}

/// What was last seen.
struct Seen {
    confirmed: Mutex<Confirmed>,
    here: Mutex<Confirmed>,
    lost: AtomicBool,
    away: AtomicBool,
    changes: Mutex<Changes>,
    left_out: Mutex<Option<Vec<String>>>,
}

impl Upkeep {
    /// Starts the upkeep of a capture whose mirrors stand.
    pub(crate) fn start(task: Task) -> std::io::Result<Self> {
        let seen = Arc::new(Seen {
            confirmed: Mutex::new(task.confirmed),
            here: Mutex::new(task.here),
            lost: AtomicBool::new(false),
            away: AtomicBool::new(false),
            changes: Mutex::default(),
            left_out: Mutex::default(),
        });
        let mut upkeep = Self {
            wishes: Vec::new(),
            threads: Vec::new(),
            seen: Arc::clone(&seen),
        };
        let theirs = Arc::clone(&seen);
        let (source, qemu, run) = (
            Arc::clone(&task.source),
            Arc::clone(&task.qemu),
            task.run.clone(),
        );
        upkeep.spawn("presence", move |wish| {
            let mut migrating = 0;
            while next_look(&wish) {
                migrating = theirs.look_whether_here(&*source, &qemu, &run, migrating);
            }
        })?;
        upkeep.spawn("upkeep", move |wish| {
            let mut rotate_at = Instant::now() + task.bitmap_interval;
            let mut disks = task.disks.clone();
            while next_look(&wish) {
                seen.look(&task, &mut disks);
                if Instant::now() >= rotate_at {
                    if let Err(error) = task.qemu.rotate() {
                        tracing::warn!(%error, "the bitmaps were not rotated");
                    }
                    rotate_at = Instant::now() + task.bitmap_interval;
                }
            }
        })?;
        Ok(upkeep)
    }

    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce(mpsc::Receiver<()>) + Send + 'static,
    ) -> std::io::Result<()> {
        let (wish, wished) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || run(wished))?;
        self.wishes.push(wish);
        self.threads.push(thread);
        Ok(())
    }

    /// Ends what it does; what was seen stays.
    pub(crate) fn stop(&mut self) {
        self.wishes.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// Has everything looked at now.
    pub(crate) fn look_now(&self) {
        for wish in &self.wishes {
            let _ = wish.send(());
        }
    }

    /// Until when the mirrors are known to have stood on the guest's disks.
    pub(crate) fn confirmed(&self) -> Confirmed {
        *guard(&self.seen.confirmed)
    }

    /// Until when the machine is known to have run here.
    pub(crate) fn here(&self) -> Confirmed {
        *guard(&self.seen.here)
    }

    /// True once a mirror was found gone, or to have missed something.
    pub(crate) fn lost(&self) -> bool {
        self.seen.lost.load(Ordering::SeqCst)
    }

    /// True once the machine was found to have gone to another QEMU while this one stays.
    pub(crate) fn away(&self) -> bool {
        self.seen.away.load(Ordering::SeqCst)
    }

    /// What became of the captured disks.
    pub(crate) fn changes(&self) -> Changes {
        guard(&self.seen.changes).clone()
    }

    /// The disks that are left out, when they are others than before; told once.
    pub(crate) fn left_out(&self) -> Option<Vec<String>> {
        guard(&self.seen.left_out).take()
    }
}

/// Waits for the next look; false at the end.
fn next_look(wish: &mpsc::Receiver<()>) -> bool {
    !matches!(
        wish.recv_timeout(LOOK_INTERVAL),
        Err(mpsc::RecvTimeoutError::Disconnected)
    )
}

impl Seen {
    /// Asks whether the machine runs here; returns how often in a row it was found in migration.
    fn look_whether_here(
        &self,
        source: &dyn Source,
        qemu: &QemuSide,
        run: &str,
        migrating: u32,
    ) -> u32 {
        let asked = qemu.moment();
        match source.presence() {
            Presence::Running(found) if found == run => {
                *guard(&self.here) = asked;
                0
            }
            Presence::Migrating => {
                if migrating + 1 >= MIGRATING_LOOKS {
                    self.away.store(true, Ordering::SeqCst);
                }
                migrating + 1
            }
            _ => migrating,
        }
    }

    fn look(&self, task: &Task, disks: &mut Vec<Plugged>) {
        let asked = task.qemu.moment();
        match task.source.look() {
            Ok(look) => {
                keep_definition(&look, &task.harbor);
                if let Some(found) = look.disks {
                    self.look_at_disks(task, disks, found);
                }
            }
            Err(error) => tracing::debug!(%error, "the machine cannot be looked at now"),
        }
        {
            let changes = guard(&self.changes);
            if !changes.gone.is_empty() || !changes.replaced.is_empty() {
                return;
            }
        }
        match task.qemu.mirrors_stand() {
            Ok(true) => {
                *guard(&self.confirmed) = asked;
                if let Err(error) = task.qemu.marking.confirm() {
                    tracing::debug!(%error, "what was marked before the last rotation stays in doubt");
                }
            }
            Ok(false) => self.lost.store(true, Ordering::SeqCst),
            Err(error) => tracing::debug!(%error, "the mirrors cannot be confirmed now"),
        }
    }

    fn look_at_disks(&self, task: &Task, before: &mut Vec<Plugged>, found: Vec<Plugged>) {
        if *before == found {
            return;
        }
        let description = task.harbor.description();
        let captured: Vec<VolumeId> = task.qemu.volumes.clone();
        let mut changes = Changes::default();
        for volume in description
            .volumes
            .iter()
            .filter(|v| captured.contains(&v.id))
        {
            let of = |disks: &[Plugged]| disks.iter().find(|d| d.target == volume.target).cloned();
            match (of(&task.disks), of(&found)) {
                (_, None) => changes.gone.push(volume.id),
                (was, is) if was != is => changes.replaced.push(volume.id),
                _ => {}
            }
        }
        *guard(&self.changes) = changes;
        // It asks QEMU: only when there is something new to say.
        match task.source.disks() {
            Ok(disks) => {
                let is_back = |v: &&VolumeDescription| {
                    v.plug == Plug::Out
                        && disks
                            .iter()
                            .any(|d| d.target == v.target && d.can_be_protected())
                };
                let back = description.volumes.iter().filter(is_back).map(|v| v.id);
                guard(&self.changes).back = back.collect();
                let said = volumes::left_out(&description.name, &description.volumes, &disks);
                *guard(&self.left_out) = Some(said);
                *before = found;
            }
            Err(error) => tracing::debug!(%error, "the disks cannot be looked at now"),
        }
    }
}

/// Keeps the machine's definition in the harbor as it is now, where there is one.
pub(crate) fn keep_definition(look: &Look, harbor: &Harbor) {
    if let Some(xml) = &look.definition
        && let Err(error) = harbor.record_xml(xml)
    {
        tracing::warn!(%error, "the domain XML was not kept");
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop();
    }
}
