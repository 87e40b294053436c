//! One capture: the taps on all volumes of a machine for as long as its QEMU runs.
//!
//! In order: a recording starts; every volume is tapped; a worker reads the disks while the taps
//! already deliver (the first time into base points, later comparing with what the harbor has); a
//! drain barrier closes the reading; from then on the machine's state can be marked by points.
//!
//! Invariant: no point is made before the barrier. A capture that ends, however, leaves the journal a
//! valid prefix of what the guest wrote.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
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
        source::{Running, Source},
        upkeep::Confirmed,
        watch::{Inherited, Legacy, TapWatch},
    },
    guard::Held,
};

/// How long a QEMU that is gone may take to hang up on all taps.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// How long the taps may take to be parked; a guest may wait meanwhile.
const PARK_DEADLINE: Duration = Duration::from_millis(500);

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
    taps: Vec<Tapped>,
    bitmaps: BitmapNames,
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
        place: Place<'_>,
        gap: Option<(GapReason, Timestamp)>,
    ) -> ApiResult<Self> {
        let recorder = harbor.record().map_err(from_harbor)?;
        if let Some((reason, start)) = gap {
            recorder.open_gap(reason, start).map_err(from_harbor)?;
        }
        let (taps, purpose) =
            Self::tap_all(&recorder, harbor, &running, &place).inspect_err(|_| {
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
            bitmaps: BitmapNames::new(place.tag),
            reader: None,
            progress: Arc::new(ReadProgress::default()),
        };
        match purpose.and_then(|purpose| capture.start_reader(purpose, place.tag, place.dir)) {
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
        place: &Place<'_>,
    ) -> ApiResult<(Vec<Tapped>, Purpose)> {
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
        let mut taps: Vec<Tapped> = Vec::new();
        for (id, node) in &running.nodes {
            match Self::tap(recorder, harbor, running, place, *id, node) {
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
        recorder: &Recorder,
        harbor: &Harbor,
        running: &Running,
        place: &Place<'_>,
        id: VolumeId,
        node: &Node,
    ) -> ApiResult<Tapped> {
        let sink = RecorderSink(recorder.volume(id).map_err(from_harbor)?);
        let bitmaps = BitmapNames::new(place.tag);
        let machine = harbor.description().machine_id;
        let mut held = None;
        let tap = attach::attach(
            &*running.monitor,
            node,
            &Names::new(place.tag, id.0),
            &bitmaps,
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
        let total = self.taps.iter().map(|t| t.tap.node.size).sum();
        self.progress.total.store(total, Ordering::Relaxed);
        let (send, outcome) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let reading = Reading {
            monitor: Arc::clone(&self.monitor),
            recorder: self.recorder.clone(),
            exports: self
                .taps
                .iter()
                .map(|t| (t.id, t.tap.node.name.clone(), t.tap.names().export.clone()))
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
            .filter(|t| t.tap.is_lost())
            .map(|t| t.id)
            .collect()
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
            nodes: self.nodes(),
            names: self.taps.iter().map(|t| t.tap.names().clone()).collect(),
            bitmaps: self.bitmaps.clone(),
            recorder: self.recorder.clone(),
        }
    }

    fn nodes(&self) -> Vec<String> {
        self.taps.iter().map(|t| t.tap.node.name.clone()).collect()
    }

    /// Waits until a QEMU that is ending has hung up on all taps; false when it has not in time.
    pub(crate) fn wait_end(&self) -> bool {
        self.taps.iter().all(|t| t.tap.wait_end(END_DEADLINE))
    }

    /// Hangs up on QEMU at once, on all volumes; the guest is held by nothing of ours afterwards.
    pub(crate) fn hang_up(&self) {
        self.taps.iter().for_each(|t| t.tap.hang_up());
    }

    /// Parks all taps and leaves them, with the recording sealed, to a successor; false when that failed, and
    /// then the taps are closed.
    pub(crate) fn bequeath(mut self, run: &str, confirmed: Confirmed, left_out: &[String]) -> bool {
        self.stop_reader();
        // What can be written before the guest has to wait is written before.
        let synced = self.recorder.sync();
        let give_up = Instant::now() + PARK_DEADLINE;
        self.taps.iter().for_each(|t| t.tap.park());
        let volumes = self.volumes();
        let mut parked = synced.is_ok();
        let mut left = Vec::new();
        for Tapped { id, tap, held } in self.taps.drain(..) {
            let node = tap.node.clone();
            parked &= tap.parked(give_up);
            left.push((id, node, held));
        }
        let closed = self.recorder.close();
        if let Err(error) = &closed {
            let error = sentence(error);
            tracing::warn!(error, "the recording was not closed in good order");
        }
        let head = self.recorder.head();
        parked
            && closed.is_ok()
            && left.into_iter().all(|(_, node, held)| {
                let legacy = Legacy::new(run, &volumes, head, confirmed, left_out, &node);
                serde_json::to_string(&legacy)
                    .map_err(std::io::Error::from)
                    .and_then(|legacy| held.bequeath(legacy))
                    .is_ok()
            })
    }

    /// Goes on with the taps that an earlier daemon has parked: the guest, who may be waiting, comes first.
    pub(crate) fn inherit(
        harbor: &Harbor,
        inherited: Vec<Inherited>,
        source: &dyn Source,
        tag: &str,
        watch: &TapWatch,
    ) -> ApiResult<Self> {
        let recorder = harbor.record().map_err(from_harbor)?;
        let machine = harbor.description().machine_id;
        let mut taps = Vec::new();
        let mut resume = |left: Inherited| -> ApiResult<()> {
            let (id, node) = (left.volume, left.legacy.node());
            let sink = RecorderSink(recorder.volume(id).map_err(from_harbor)?);
            let name = node.name.clone();
            let failed = |what: String| ApiError::new(ApiErrorKind::Internal, what);
            let tap = Attachment::resume(node, Names::new(tag, id.0), left.socket, sink)
                .map_err(|e| from_attach(&e, &name))?;
            let held = watch
                .hold(&machine, id, tap.tap())
                .map_err(|e| failed(format!("cannot have the tap watched: {e}")));
            match held {
                Ok(held) => taps.push(Tapped { id, tap, held }),
                Err(e) => {
                    tap.abandon();
                    return Err(e);
                }
            }
            Ok(())
        };
        let resumed = inherited.into_iter().try_for_each(&mut resume);
        let monitor = resumed.and_then(|()| source.monitor());
        let monitor = match monitor {
            Ok(monitor) => monitor,
            Err(e) => {
                for Tapped { tap, held, .. } in taps {
                    tap.abandon();
                    drop(held);
                }
                let _ = recorder.close();
                return Err(e);
            }
        };
        Ok(Self {
            recorder,
            monitor,
            taps,
            bitmaps: BitmapNames::new(tag),
            reader: None,
            progress: Arc::new(ReadProgress::default()),
        })
    }

    /// Ends the mirrors in good order: every write begun so far is in the journal afterwards.
    ///
    /// The recording goes on, for a last point; [`end`](Self::end) closes it.
    pub(crate) fn detach(&mut self) {
        self.stop_reader();
        for Tapped { id, tap, held } in self.taps.drain(..) {
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
