//! One capture: the taps on all volumes of a machine for as long as its QEMU runs.
//!
//! In order: a recording starts; the bitmaps are judged; every volume is tapped; a worker reads the disks while the
//! taps already deliver (the first time into base points, later what is in doubt, comparing with what the harbor
//! has); a drain barrier closes the reading; from then on the machine's state can be marked by points.
//!
//! Invariant: no point is made before the barrier. A capture that ends, however, leaves the journal a
//! valid prefix of what the guest wrote.

mod handover;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use cdp_core::{GapReason, Harbor, Recorder, Seq, Timestamp, VolumeId};
use qemu_hook::{
    attach::{self, Attachment, Names},
    monitor::Monitor,
    node::Node,
};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::{from_harbor, sentence},
        live::LiveSide,
        machine::{Doubt, Resync, now},
        marking::Marking,
        reading::{self, Purpose, ReadProgress, Reading},
        sink::RecorderSink,
        source::Running,
        upkeep::QemuSide,
        watch::TapWatch,
    },
    guard::Held,
};

/// How long a QEMU that is gone may take to hang up on all taps.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// How long the taps may take to be parked; a guest may wait meanwhile.
const PARK_DEADLINE: Duration = Duration::from_millis(500);

/// The taps of a running machine, and the recording they feed.
pub(crate) struct Capture {
    recorder: Recorder,
    monitor: Arc<dyn Monitor>,
    taps: Vec<Tapped>,
    marking: Arc<Marking>,
    /// What a resync reads, of each volume.
    pub(crate) doubts: Vec<(VolumeId, Doubt)>,
    reader: Option<Reader>,
    /// Shared with the reader.
    pub(crate) progress: Arc<ReadProgress>,
}

/// A volume's tap, and what keeps it watched.
struct Tapped {
    id: VolumeId,
    tap: Attachment,
    held: Held,
}

/// Where a machine's taps are made.
pub(crate) struct Place<'a> {
    /// The machine's short tag.
    pub(crate) tag: &'a str,
    /// A directory for sockets that nobody else can enter.
    pub(crate) dir: PathBuf,
    /// Looks after the taps.
    pub(crate) watch: &'a TapWatch,
}

/// Why and since when points are missing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Missing {
    /// Why.
    pub(crate) reason: GapReason,
    /// Since when.
    pub(crate) start: Timestamp,
    /// The last record that is known to be sound; points behind it are taken back. None: all are.
    pub(crate) sound: Option<Seq>,
}

impl Missing {
    /// Has it recorded, durable on return; nothing while an earlier gap is open.
    pub(crate) fn record(self, recorder: &Recorder) -> cdp_core::error::Result<()> {
        match self.sound {
            Some(sound) => recorder.open_gap_since(self.reason, self.start, sound),
            None => recorder.open_gap(self.reason, self.start),
        }
    }
}

struct Reader {
    thread: JoinHandle<()>,
    outcome: mpsc::Receiver<ApiResult<Option<Resync>>>,
    cancelled: Arc<AtomicBool>,
}

/// How the reading of the disks stands.
pub(crate) enum ReadState {
    /// Still at it.
    Reading,
    /// It ended well just now; it is reported once, with what a resync found.
    Finished(Option<Resync>),
    /// It ended badly.
    Failed(ApiError),
    /// It is done since long.
    Idle,
}

impl Capture {
    /// Taps all volumes of a running machine and starts to read its disks.
    ///
    /// `gap` is what is recorded as the reason why points are missing until the barrier.
    pub(crate) fn start(
        harbor: &Harbor,
        running: Running,
        place: Place<'_>,
        gap: Option<Missing>,
    ) -> ApiResult<Self> {
        let recorder = harbor.record().map_err(from_harbor)?;
        if let Some(gap) = gap {
            gap.record(&recorder).map_err(from_harbor)?;
        }
        let monitor = Arc::clone(&running.monitor);
        let marked = Marking::start(monitor, harbor.clone(), place.tag, &running.nodes);
        let tapped = marked.and_then(|marking| {
            let tapped = Self::tap_all(&recorder, harbor, &running, &marking, &place);
            if tapped.is_err() && !harbor.is_seeded() {
                marking.remove();
            }
            let (taps, purpose) = tapped?;
            Ok((Arc::new(marking), taps, purpose))
        });
        let (marking, taps, purpose) = tapped.inspect_err(|_| {
            let _ = recorder.close();
        })?;
        let mut capture = Self {
            recorder,
            monitor: running.monitor,
            taps,
            marking,
            doubts: Vec::new(),
            reader: None,
            progress: Arc::new(ReadProgress::default()),
        };
        match capture.start_reader(purpose, place.tag, place.dir) {
            Ok(()) => Ok(capture),
            Err(e) => {
                capture.end();
                Err(e)
            }
        }
    }

    fn tap_all(
        recorder: &Recorder,
        harbor: &Harbor,
        running: &Running,
        marking: &Marking,
        place: &Place<'_>,
    ) -> ApiResult<(Vec<Tapped>, Purpose)> {
        // What is compared against must be there before the first write.
        let mut purpose = Purpose::default();
        for id in running.nodes.iter().map(|(id, _)| *id) {
            // Base points without points behind them are of a seed that was not finished: it starts anew.
            if harbor.is_seeded() && harbor.has_base(id) {
                let image = harbor.latest_image(id).map_err(from_harbor)?;
                purpose.resync.push((id, image));
            } else {
                let writer = harbor.seed(id).map_err(from_harbor)?;
                purpose.seed.push((id, writer));
            }
        }
        let mut taps: Vec<Tapped> = Vec::new();
        for (id, node) in &running.nodes {
            let recorder = recorder.volume(*id).map_err(from_harbor);
            let last_write = marking.last_write(*id);
            let sink = recorder.map(|recorder| RecorderSink {
                recorder,
                last_write,
            });
            match sink.and_then(|sink| Self::tap(sink, harbor, running, place, *id, node)) {
                Ok(tapped) => taps.push(tapped),
                Err(e) => {
                    for tapped in taps {
                        if let Err(error) = tapped.tap.detach(&*running.monitor) {
                            tracing::warn!(%error, "a tap could not be detached");
                        }
                    }
                    return Err(e);
                }
            }
        }
        Ok((taps, purpose))
    }

    fn tap(
        sink: RecorderSink,
        harbor: &Harbor,
        running: &Running,
        place: &Place<'_>,
        id: VolumeId,
        node: &Node,
    ) -> ApiResult<Tapped> {
        let machine = harbor.description().machine_id;
        let mut held = None;
        let tap = attach::attach(
            &*running.monitor,
            node,
            &Names::new(place.tag, id.0),
            &place.dir,
            sink,
            |tap| {
                held = Some(place.watch.hold(&machine, id, tap)?);
                Ok(())
            },
        )
        .map_err(|e| from_attach(&e, &node.name))?;
        let unwatched = || ApiError::new(ApiErrorKind::Internal, "a tap is not watched");
        let held = held.ok_or_else(unwatched)?;
        Ok(Tapped { id, tap, held })
    }

    fn start_reader(&mut self, purpose: Purpose, tag: &str, dir: PathBuf) -> ApiResult<()> {
        let resyncs = |id| purpose.resync.iter().any(|(one, _)| *one == id);
        if !purpose.resync.is_empty() {
            // From here on it is captured again; what was missed is still missing.
            self.recorder
                .open_gap(GapReason::Resync, now())
                .map_err(from_harbor)?;
        }
        let names = |t: &Tapped| (t.id, t.tap.names().clone());
        let to_read = self.marking.tapped(self.taps.iter().map(names))?;
        let resynced = to_read.iter().filter(|v| resyncs(v.id));
        self.doubts = resynced.clone().map(|v| (v.id, v.doubt.clone())).collect();
        let seeded = self.taps.iter().filter(|t| !resyncs(t.id));
        let seeded: u64 = seeded.map(|t| t.tap.node.size).sum();
        let total = seeded + resynced.map(|v| v.bytes).sum::<u64>();
        self.progress.total.store(total, Ordering::Relaxed);
        let (send, outcome) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let reading = Reading {
            monitor: Arc::clone(&self.monitor),
            recorder: self.recorder.clone(),
            exports: self.exports(),
            marking: Arc::clone(&self.marking),
            to_read,
            tag: tag.to_owned(),
            dir,
            progress: Arc::clone(&self.progress),
            cancelled: Arc::clone(&cancelled),
        };
        let thread = std::thread::Builder::new()
            .name(format!("read-{tag}"))
            .spawn(move || {
                let _ = send.send(reading::run(&reading, purpose));
            })
            .map_err(|e| {
                ApiError::new(
                    ApiErrorKind::ResourceExhausted,
                    format!("cannot start a thread: {e}"),
                )
            })?;
        self.reader = Some(Reader {
            thread,
            outcome,
            cancelled,
        });
        Ok(())
    }

    /// Tells how the reading stands; a finished one is reported once.
    pub(crate) fn read_state(&mut self) -> ReadState {
        let Some(reader) = &self.reader else {
            return ReadState::Idle;
        };
        let outcome = match reader.outcome.try_recv() {
            Err(mpsc::TryRecvError::Empty) => return ReadState::Reading,
            Err(mpsc::TryRecvError::Disconnected) => Err(ApiError::new(
                ApiErrorKind::Internal,
                "the reading of the disks ended by a defect",
            )),
            Ok(outcome) => outcome,
        };
        if let Some(reader) = self.reader.take() {
            let _ = reader.thread.join();
        }
        match outcome {
            Ok(resync) => ReadState::Finished(resync),
            Err(e) => ReadState::Failed(e),
        }
    }

    /// The recording that the taps feed.
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The volumes whose tap was lost.
    pub(crate) fn lost(&self) -> Vec<VolumeId> {
        self.taps
            .iter()
            .filter(|t| t.tap.is_lost())
            .map(|t| t.id)
            .collect()
    }

    /// True when a tap was lost, or is about to be: its connection is closed.
    pub(crate) fn is_cut(&self) -> bool {
        self.taps.iter().any(|t| t.tap.tap().is_closed())
    }

    /// The volumes that are tapped.
    pub(crate) fn volumes(&self) -> Vec<VolumeId> {
        self.taps.iter().map(|t| t.id).collect()
    }

    /// True when a tap was closed because its reply was overdue.
    pub(crate) fn is_overdue(&self) -> bool {
        self.taps.iter().any(|t| t.tap.tap().is_overdue())
    }

    /// The QEMU side of this capture.
    pub(crate) fn qemu_side(&self) -> QemuSide {
        QemuSide {
            monitor: Arc::clone(&self.monitor),
            volumes: self.volumes(),
            names: self.taps.iter().map(|t| t.tap.names().clone()).collect(),
            marking: Arc::clone(&self.marking),
            recorder: self.recorder.clone(),
        }
    }

    /// What it takes to compare what is kept with the disks, through sockets in `dir`.
    pub(crate) fn live_side(&self, tag: &str, dir: PathBuf, ended: Arc<AtomicBool>) -> LiveSide {
        LiveSide {
            qemu: self.qemu_side(),
            exports: self.exports(),
            tag: tag.to_owned(),
            dir,
            ended,
        }
    }

    /// Volume, node, and the name for its export.
    fn exports(&self) -> Vec<(VolumeId, String, String)> {
        let export = |t: &Tapped| (t.id, t.tap.node.name.clone(), t.tap.names().export.clone());
        self.taps.iter().map(export).collect()
    }

    /// Lets go of volumes whose disks are unplugged; the others go on. Returns the nodes of those that went.
    pub(crate) fn let_go(&mut self, gone: &[VolumeId]) -> Vec<String> {
        let (went, stay): (Vec<Tapped>, Vec<Tapped>) = std::mem::take(&mut self.taps)
            .into_iter()
            .partition(|tapped| gone.contains(&tapped.id));
        self.taps = stay;
        let nodes = went.iter().map(|t| t.tap.node.name.clone()).collect();
        self.detach_all(went);
        self.marking = Arc::new(self.marking.without(gone));
        nodes
    }

    /// The node that is tapped of each volume.
    pub(crate) fn tapped(&self) -> Vec<(VolumeId, String)> {
        let node = |t: &Tapped| (t.id, t.tap.node.name.clone());
        self.taps.iter().map(node).collect()
    }

    /// The machine's QEMU.
    pub(crate) fn monitor(&self) -> &dyn Monitor {
        &*self.monitor
    }

    /// Waits until a QEMU that is ending has hung up on all taps; false when it has not in time.
    pub(crate) fn wait_end(&self) -> bool {
        self.taps.iter().all(|t| t.tap.wait_end(END_DEADLINE))
    }

    /// Notes what the images are like, after a QEMU that has ended in good order.
    pub(crate) fn rest(&self) -> ApiResult<()> {
        if !self.taps.iter().all(|t| t.tap.said_goodbye()) {
            return Ok(());
        }
        self.recorder.sync().map_err(from_harbor)?;
        self.marking.rest()
    }

    /// Hangs up on QEMU at once, on all volumes; the guest is held by nothing of ours afterwards.
    pub(crate) fn hang_up(&self) {
        self.taps.iter().for_each(|t| t.tap.hang_up());
    }

    /// Ends the mirrors in good order: every write begun so far is in the journal afterwards.
    ///
    /// The recording goes on, for a last point; [`end`](Self::end) closes it.
    pub(crate) fn detach(&mut self) {
        self.stop_reader();
        let taps = std::mem::take(&mut self.taps);
        self.detach_all(taps);
    }

    fn detach_all(&self, taps: Vec<Tapped>) {
        for Tapped { id, tap, held } in taps {
            let detached = tap.detach(&*self.monitor);
            drop(held);
            if let Err(error) = detached {
                tracing::warn!(volume = id.0, %error, "the tap was not detached in good order");
            }
        }
    }

    /// Closes whatever is still open; the recording is sealed.
    pub(crate) fn end(mut self) {
        self.stop_reader();
        for Tapped { tap, held, .. } in self.taps.drain(..) {
            tap.abandon();
            drop(held);
        }
        if let Err(error) = self.recorder.close() {
            tracing::warn!(
                error = sentence(&error),
                "the recording was not closed in good order"
            );
        }
    }

    fn stop_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.cancelled.store(true, Ordering::Relaxed);
            let _ = reader.thread.join();
        }
    }
}

fn from_attach(error: &attach::AttachError, node: &str) -> ApiError {
    let what = format!("cannot tap {node}: {}", sentence(error));
    match error {
        attach::AttachError::Busy { .. } => ApiError::new(ApiErrorKind::FailedPrecondition, what)
            .hint("wait for that job, or end it, then try again"),
        attach::AttachError::Monitor(e) if e.is_lost() => {
            ApiError::new(ApiErrorKind::Unavailable, what)
        }
        _ => ApiError::new(ApiErrorKind::FailedPrecondition, what),
    }
}
