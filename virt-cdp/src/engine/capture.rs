//! One capture: the taps on all volumes of a machine for as long as its QEMU runs.
//!
//! In order: a recording starts; every volume is tapped; a worker reads the disks while the taps
//! already deliver (the first time into base points, later comparing with what the harbor has); a
//! drain barrier closes the reading; from then on the machine's state can be marked by points.
//!
//! Invariant: no point is made before the barrier. A capture that ends, however, leaves the journal a
//! valid prefix of what the guest wrote.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use cdp_core::{GapReason, Harbor, Recorder, SeedWriter, Timestamp, VolumeId};
use qemu_hook::{
    attach::{self, Attachment, Names},
    bitmap::{self, BitmapNames},
    monitor::Monitor,
    node::Node,
};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::{from_harbor, from_monitor, sentence},
        machine::now,
        reading::{self, Reading},
        sink::RecorderSink,
        source::Running,
        upkeep::Confirmed,
    },
};

/// How long a QEMU that is gone may take to hang up on all taps.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// How far the reading of the disks has come.
#[derive(Debug, Default)]
pub(crate) struct ReadProgress {
    /// Bytes looked at.
    pub(crate) done: AtomicU64,
    /// Bytes of all volumes.
    pub(crate) total: AtomicU64,
}

/// What a volume is read for.
pub(crate) enum Purpose {
    /// The first base point.
    Seed(Vec<(VolumeId, SeedWriter)>),
    /// To find what was missed.
    Resync(Vec<(VolumeId, cdp_core::LatestImage)>),
}

/// The taps of a running machine, and the recording they feed.
pub(crate) struct Capture {
    recorder: Recorder,
    monitor: Arc<dyn Monitor>,
    taps: Vec<(VolumeId, Attachment)>,
    bitmaps: BitmapNames,
    reader: Option<Reader>,
    /// Shared with the reader.
    pub(crate) progress: Arc<ReadProgress>,
}

/// The QEMU side of a capture, for any thread: its bitmaps, and whether its mirrors stand.
pub(crate) struct QemuSide {
    monitor: Arc<dyn Monitor>,
    nodes: Vec<String>,
    names: Vec<Names>,
    bitmaps: BitmapNames,
    recorder: Recorder,
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

    /// Rotates the bitmaps: at the end, what was marked so far is in the journal, on stable storage.
    pub(crate) fn rotate(&self) -> ApiResult<()> {
        let refused = |e| from_monitor(&e);
        bitmap::rotate(&*self.monitor, &self.nodes, &self.bitmaps).map_err(refused)?;
        self.recorder.sync().map_err(from_harbor)?;
        bitmap::drop_previous(&*self.monitor, &self.nodes, &self.bitmaps).map_err(refused)
    }
}

struct Reader {
    thread: JoinHandle<()>,
    outcome: mpsc::Receiver<ApiResult<()>>,
    cancelled: Arc<AtomicBool>,
}

/// How the reading of the disks stands.
pub(crate) enum ReadState {
    /// Still at it.
    Reading,
    /// It ended well just now; it is reported once.
    Finished,
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
        tag: &str,
        dir: PathBuf,
        gap: Option<(GapReason, Timestamp)>,
    ) -> ApiResult<Self> {
        let recorder = harbor.record().map_err(from_harbor)?;
        if let Some((reason, start)) = gap {
            recorder.open_gap(reason, start).map_err(from_harbor)?;
        }
        let (taps, purpose) =
            Self::tap_all(&recorder, harbor, &running, tag, &dir).inspect_err(|_| {
                let _ = recorder.close();
            })?;
        // From here on it is captured again; what was missed is still missing.
        let purpose = match purpose {
            Purpose::Resync(images) => recorder
                .open_gap(GapReason::Resync, now())
                .map(|()| Purpose::Resync(images))
                .map_err(from_harbor),
            seed => Ok(seed),
        };
        let mut capture = Self {
            recorder,
            monitor: running.monitor,
            taps,
            bitmaps: BitmapNames::new(tag),
            reader: None,
            progress: Arc::new(ReadProgress::default()),
        };
        match purpose.and_then(|purpose| capture.start_reader(purpose, tag, dir)) {
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
        tag: &str,
        dir: &Path,
    ) -> ApiResult<(Vec<(VolumeId, Attachment)>, Purpose)> {
        // What is compared against, and what remembers the stream, must be there before the first write.
        let volumes = running.nodes.iter().map(|(id, _)| *id);
        let purpose = if harbor.is_seeded() {
            for id in volumes.clone() {
                recorder.volume(id).map_err(from_harbor)?.begin_resync();
            }
            let image = |id| harbor.latest_image(id).map(|image| (id, image));
            Purpose::Resync(
                volumes
                    .map(image)
                    .collect::<Result<_, _>>()
                    .map_err(from_harbor)?,
            )
        } else {
            let seed = |id| harbor.seed(id).map(|writer| (id, writer));
            Purpose::Seed(
                volumes
                    .map(seed)
                    .collect::<Result<_, _>>()
                    .map_err(from_harbor)?,
            )
        };
        let mut taps: Vec<(VolumeId, Attachment)> = Vec::new();
        for (id, node) in &running.nodes {
            match Self::tap(recorder, running, (tag, dir), *id, node) {
                Ok(tap) => taps.push((*id, tap)),
                Err(e) => {
                    for (_, tap) in taps {
                        if let Err(error) = tap.detach(&*running.monitor) {
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
        recorder: &Recorder,
        running: &Running,
        (tag, dir): (&str, &Path),
        id: VolumeId,
        node: &Node,
    ) -> ApiResult<Attachment> {
        let sink = RecorderSink(recorder.volume(id).map_err(from_harbor)?);
        let bitmaps = BitmapNames::new(tag);
        attach::attach(
            &*running.monitor,
            node,
            &Names::new(tag, id.0),
            &bitmaps,
            dir,
            sink,
        )
        .map_err(|e| from_attach(&e, &node.name))
    }

    fn start_reader(&mut self, purpose: Purpose, tag: &str, dir: PathBuf) -> ApiResult<()> {
        let total = self.taps.iter().map(|(_, t)| t.node.size).sum();
        self.progress.total.store(total, Ordering::Relaxed);
        let (send, outcome) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let reading = Reading {
            monitor: Arc::clone(&self.monitor),
            recorder: self.recorder.clone(),
            exports: self
                .taps
                .iter()
                .map(|(id, t)| (*id, t.node.name.clone(), t.names().export.clone()))
                .collect(),
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
            Ok(()) => ReadState::Finished,
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
            .filter(|(_, t)| t.is_lost())
            .map(|(id, _)| *id)
            .collect()
    }

    /// The volumes that are tapped.
    pub(crate) fn volumes(&self) -> Vec<VolumeId> {
        self.taps.iter().map(|(id, _)| *id).collect()
    }

    /// The QEMU side of this capture.
    pub(crate) fn qemu_side(&self) -> QemuSide {
        QemuSide {
            monitor: Arc::clone(&self.monitor),
            nodes: self.nodes(),
            names: self.taps.iter().map(|(_, t)| t.names().clone()).collect(),
            bitmaps: self.bitmaps.clone(),
            recorder: self.recorder.clone(),
        }
    }

    fn nodes(&self) -> Vec<String> {
        self.taps.iter().map(|(_, t)| t.node.name.clone()).collect()
    }

    /// Waits until a QEMU that is ending has hung up on all taps; false when it has not in time.
    pub(crate) fn wait_end(&self) -> bool {
        self.taps.iter().all(|(_, tap)| tap.wait_end(END_DEADLINE))
    }

    /// Hangs up on QEMU at once, on all volumes; the guest is held by nothing of ours afterwards.
    pub(crate) fn hang_up(&self) {
        self.taps.iter().for_each(|(_, tap)| tap.hang_up());
    }

    /// Ends the mirrors in good order: every write begun so far is in the journal afterwards.
    ///
    /// The recording goes on, for a last point; [`end`](Self::end) closes it.
    pub(crate) fn detach(&mut self) {
        self.stop_reader();
        for (id, tap) in self.taps.drain(..) {
            if let Err(error) = tap.detach(&*self.monitor) {
                tracing::warn!(volume = id.0, %error, "the tap was not detached in good order");
            }
        }
    }

    /// Closes whatever is still open; the recording is sealed.
    pub(crate) fn end(mut self) {
        self.stop_reader();
        for (_, tap) in self.taps.drain(..) {
            tap.abandon();
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
