//! A protected machine as the rest of the daemon sees it: its harbor, its state, its commands.
//!
//! The work is done by the machine's supervisor thread ([`super::supervisor`]); this is the handle that
//! API calls share. Invariant: what a call reads here is a snapshot; nothing here waits for QEMU.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, TryLockError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use cdp_core::{
    Finding, GapReason, Harbor, MachineDescription, Mode, Point, PointUnderWay, RecorderStats,
    Timestamp, VolumeId,
};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    daemon::policy::DEFAULT,
    engine::{
        errors::from_harbor,
        guard,
        live::LiveSide,
        lookout::Seen,
        pace::PaceWish,
        policies::{InForce, Policies},
        quiesce::Quiet,
        reading::ReadProgress,
        slot::Slot,
        tidy::Notes,
    },
};

/// How long a command may take; a detach waits for QEMU.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// How long a point that somebody asks for may take to reach stable storage.
const POINT_DEADLINE: Duration = Duration::from_secs(5);

/// How often it is asked whether a point is confirmed.
const CONFIRM_POLL: Duration = Duration::from_millis(5);

/// How long a supervisor may take until it begins to put everything down.
pub(crate) const OBEY_DEADLINE: Duration = Duration::from_secs(5);

/// How often it is looked whether a supervisor has ended.
const END_POLL: Duration = Duration::from_millis(10);

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing has been tried yet.
    Starting,
    /// The first base point is read; there are no points yet.
    Seeding,
    /// Writes are captured and points are made.
    Protected,
    /// What was missed is read; no points are made meanwhile.
    Resyncing,
    /// The machine does not run.
    Off,
    /// The user has suspended the capture.
    Suspended,
    /// The user has ended the protection; what was kept can be viewed.
    Unprotected,
    /// A capture has ended without anybody's wish; the next attempt follows.
    Retrying,
    /// The last attempt failed; the detail has the reason and when the next one is.
    Failed,
}

impl State {
    /// Every state.
    pub(crate) const ALL: [Self; 9] = [
        Self::Starting,
        Self::Seeding,
        Self::Protected,
        Self::Resyncing,
        Self::Off,
        Self::Suspended,
        Self::Unprotected,
        Self::Retrying,
        Self::Failed,
    ];

    /// The state's stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Seeding => "seeding",
            Self::Protected => "protected",
            Self::Resyncing => "resyncing",
            Self::Off => "off",
            Self::Suspended => "suspended",
            Self::Unprotected => "unprotected",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
        }
    }
}

/// A snapshot of what a machine is doing.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    /// The state.
    pub(crate) state: State,
    /// Why, when there is something to say.
    pub(crate) detail: String,
    /// Since when.
    pub(crate) since: Timestamp,
    /// The name its source knows it by now, where that may change.
    pub(crate) called: Option<String>,
    /// Disks that are not protected, with the reason.
    pub(crate) left_out: Vec<String>,
    /// Volumes with a live tap.
    pub(crate) attached: Vec<VolumeId>,
    /// Of the seed or resync, while one is under way.
    pub(crate) progress: Option<Arc<ReadProgress>>,
    /// Of the recording, while there is one.
    pub(crate) stats: Option<RecorderStats>,
    /// The last resync that reached its barrier.
    pub(crate) last_resync: Option<Resync>,
    /// Why the last capture ended, until the next one makes points.
    pub(crate) missing: Option<GapReason>,
}

/// What a resync read, and what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resync {
    /// When the taps stood.
    pub(crate) start: Timestamp,
    /// When the barrier was reached.
    pub(crate) end: Timestamp,
    /// Of each volume.
    pub(crate) volumes: Vec<ResyncVolume>,
}

/// What a resync read of one volume, and what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResyncVolume {
    /// The volume.
    pub(crate) id: VolumeId,
    /// How much of it had to be read.
    pub(crate) extent: Doubt,
    /// Bytes read of the disk.
    pub(crate) read: u64,
    /// Bytes that differed and were journaled.
    pub(crate) differing: u64,
}

/// Which part of a volume may have changed while nobody captured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// What a bitmap marks.
    Marked,
    /// All of it; why no bitmap says more.
    Whole(String),
    /// None of it; why that is known without a bitmap.
    Nothing(String),
}

/// A point as it is wanted.
#[derive(Debug)]
pub(crate) struct PointWish {
    /// The user's text for it.
    pub(crate) label: Option<String>,
    /// Of grade quiesced if this still holds; none: of grade crash.
    pub(crate) still: Option<Still>,
}

/// A moment of a capture, known by the guest writes it had taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Still {
    /// The capture's number.
    pub(crate) capture: u64,
    /// Guest writes taken.
    pub(crate) writes: u64,
    /// A point that is later than this is not wanted.
    pub(crate) until: Instant,
}

/// What a supervisor is asked to do.
pub(crate) enum Command {
    /// Something may have changed: look, and at a machine that is not captured at once.
    Wake,
    /// Work beside the supervisor is done: go on. An attempt that is put off stays so.
    GoOn,
    /// The machine is about to start: look closely for a while.
    Expect,
    /// Try to capture now, and say how it went.
    Start(mpsc::Sender<ApiResult<()>>),
    /// Take in the disks of those targets.
    TakeIn(Vec<String>, mpsc::Sender<ApiResult<()>>),
    /// Change ack rule and flush interval; the answer puts them back.
    SetPace(PaceWish, mpsc::Sender<ApiResult<PaceWish>>),
    /// Change what the user wants.
    SetMode(Mode, mpsc::Sender<ApiResult<()>>),
    /// Begin a point now; whoever asks waits for it to be on stable storage.
    Point(PointWish, mpsc::Sender<ApiResult<PointUnderWay>>),
    /// Say whether it is known by now that the mirrors stood behind a point.
    Confirmed(Point, mpsc::Sender<ApiResult<bool>>),
    /// Say what it takes to compare what is kept with the live disks, if they are captured.
    Live(mpsc::Sender<ApiResult<LiveSide>>),
    /// Say what a quiesced point needs, if points can be made.
    Quiet(mpsc::Sender<ApiResult<Quiet>>),
    /// Put everything down; the thread ends.
    Shutdown,
    /// Leave what is captured to the daemon's successor; the thread ends.
    HandOver,
}

/// A protected machine.
pub(crate) struct Machine {
    /// The user's name for it.
    pub(crate) name: String,
    /// Its id, which nothing else ever has.
    pub(crate) id: String,
    /// What the lookout has seen of it.
    pub(crate) seen: Seen,
    harbor: Harbor,
    policies: Arc<Policies>,
    /// Changes of what is kept, as somebody asks for them.
    pub(crate) asked: Slot,
    /// The round of what is done by itself with what is kept, and how its last one went.
    pub(crate) tidying: Slot,
    pub(crate) notes: Notes,
    /// What was found damaged when the harbor was opened.
    damage: Mutex<Arc<Vec<String>>>,
    /// What was damaged when it was last tried to have it again.
    healed: Mutex<Vec<Finding>>,
    /// Held while a quiesced point is made: one at a time.
    quiescing: Mutex<()>,
    status: Mutex<Status>,
    commands: mpsc::Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The supervisor has begun to put everything down.
    leaving: AtomicBool,
    /// How its source said that it ended, since the last capture began.
    end: Mutex<Option<String>>,
}

impl Machine {
    /// A machine whose supervisor is about to be started with the receiver.
    pub(crate) fn new(
        harbor: Harbor,
        left_out: Vec<String>,
        policies: Arc<Policies>,
    ) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel();
        let status = Status {
            state: State::Starting,
            detail: String::new(),
            since: now(),
            called: None,
            left_out,
            attached: Vec::new(),
            progress: None,
            stats: None,
            last_resync: None,
            missing: None,
        };
        let MachineDescription {
            name, machine_id, ..
        } = harbor.description();
        let machine = Self {
            name,
            id: machine_id,
            seen: Seen::default(),
            harbor,
            policies,
            asked: Slot::default(),
            tidying: Slot::default(),
            notes: Notes::default(),
            damage: Mutex::default(),
            healed: Mutex::default(),
            quiescing: Mutex::default(),
            status: Mutex::new(status),
            commands,
            thread: Mutex::new(None),
            leaving: AtomicBool::new(false),
            end: Mutex::new(None),
        };
        (machine, receiver)
    }

    /// The harbor, to be held only as long as it is used.
    pub(crate) fn harbor(&self) -> Harbor {
        self.harbor.clone()
    }

    /// The machine's description.
    pub(crate) fn description(&self) -> MachineDescription {
        self.harbor().description()
    }

    /// The name of the policy its points are kept by, and the policy itself if it is known.
    pub(crate) fn policy(&self) -> (String, Option<InForce>) {
        let name = self.description().policy.unwrap_or_else(|| DEFAULT.into());
        let policy = self.policies.get(&name);
        (name, policy)
    }

    /// Lets nothing more be done with what is kept, and waits for what is under way.
    pub(crate) fn close(&self, give_up: Instant) {
        for slot in [&self.asked, &self.tidying] {
            if !slot.close(give_up) {
                let machine = &self.name;
                tracing::error!(machine, "work on its harbor is left behind: its disk hangs");
            }
        }
    }

    /// What the machine is doing.
    pub(crate) fn status(&self) -> Status {
        guard(&self.status).clone()
    }

    /// Notes a state; the time is kept while neither state nor detail change.
    pub(crate) fn set_state(&self, state: State, detail: &str) {
        let mut status = guard(&self.status);
        if status.state == state && status.detail == detail {
            return;
        }
        if status.state != state {
            status.since = now();
            tracing::info!(
                machine = self.name,
                from = status.state.name(),
                to = state.name(),
                detail,
                "state"
            );
        }
        status.state = state;
        detail.clone_into(&mut status.detail);
    }

    /// Notes whatever else a supervisor has to tell.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut guard(&self.status));
    }

    /// Notes what was found damaged when its harbor was opened.
    pub(crate) fn note_damage(&self, damage: Vec<String>) {
        *guard(&self.damage) = Arc::new(damage);
    }

    /// What was found damaged when its harbor was opened, and what verifications have found since; the latter until it is
    /// found whole.
    pub(crate) fn damage(&self) -> Arc<Vec<String>> {
        let opened = Arc::clone(&guard(&self.damage));
        let found = self.harbor.damage();
        if found.is_empty() {
            return opened;
        }
        let words = |one: &cdp_core::Finding| format!("{}: {}", one.file, one.what);
        let all = opened.iter().cloned().chain(found.iter().map(words));
        Arc::new(all.collect())
    }

    /// Keeps the supervisor's thread, to be joined at the end.
    pub(crate) fn set_thread(&self, thread: JoinHandle<()>) {
        *guard(&self.thread) = Some(thread);
    }

    /// Tells whether something is damaged that was not when it was last tried to have it again.
    pub(crate) fn is_new_damage(&self, damage: &[Finding]) -> bool {
        let healed = guard(&self.healed);
        let same = |a: &Finding, b: &Finding| {
            (&a.file, a.from, a.bytes, &a.lost) == (&b.file, b.from, b.bytes, &b.lost)
        };
        damage
            .iter()
            .any(|one| !healed.iter().any(|known| same(one, known)))
    }

    /// Notes what is damaged after it was tried to have it again.
    pub(crate) fn note_healing(&self, damage: Vec<Finding>) {
        *guard(&self.healed) = damage;
    }

    /// Notes how the machine ended, in libvirt's word.
    pub(crate) fn note_end(&self, how: &str) {
        *guard(&self.end) = Some(how.to_owned());
    }

    /// How the machine was said to have ended since the last capture began.
    pub(crate) fn end_told(&self) -> Option<String> {
        guard(&self.end).clone()
    }

    /// A new capture begins.
    pub(crate) fn forget_end(&self) {
        *guard(&self.end) = None;
    }

    /// Has the supervisor look at the machine now.
    pub(crate) fn wake(&self) {
        let _ = self.commands.send(Command::Wake);
    }

    /// Has the supervisor go on: work beside it is done.
    pub(crate) fn go_on(&self) {
        let _ = self.commands.send(Command::GoOn);
    }

    /// Has the supervisor look closely at a machine that is about to start.
    pub(crate) fn expect(&self) {
        let _ = self.commands.send(Command::Expect);
    }

    /// Takes the turn at a quiesced point; none while one is being made.
    pub(crate) fn quiescing(&self) -> Option<MutexGuard<'_, ()>> {
        match self.quiescing.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn ask<T>(
        &self,
        command: impl FnOnce(mpsc::Sender<ApiResult<T>>) -> Command,
    ) -> ApiResult<T> {
        self.ask_within(COMMAND_DEADLINE, command)
    }

    /// Sends a command and waits for its answer for at most `deadline`; it may be carried out later.
    pub(crate) fn ask_within<T>(
        &self,
        deadline: Duration,
        command: impl FnOnce(mpsc::Sender<ApiResult<T>>) -> Command,
    ) -> ApiResult<T> {
        let (answer, answered) = mpsc::channel();
        let gone = |_| {
            ApiError::new(
                ApiErrorKind::Unavailable,
                format!("machine '{}' is being put down", self.name),
            )
        };
        self.commands
            .send(command(answer))
            .map_err(|e| gone(e.to_string()))?;
        match answered.recv_timeout(deadline) {
            Ok(outcome) => outcome,
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(gone(String::new())),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ApiError::new(
                ApiErrorKind::Unavailable,
                format!(
                    "machine '{}' does not answer; QEMU or libvirt may hang",
                    self.name
                ),
            )),
        }
    }

    /// Has a point made, and waits on this thread until it is on stable storage.
    pub(crate) fn point(&self, wish: PointWish) -> ApiResult<Point> {
        let begun = self.ask(|answer| Command::Point(wish, answer))?;
        begun.wait(POINT_DEADLINE).map_err(from_harbor)
    }

    /// Waits until it is known that the mirrors stood behind a point, so that it stays.
    ///
    /// # Errors
    /// They did not, and it was taken back; or QEMU does not tell in time, and it may still be.
    pub(crate) fn wait_confirmed(&self, point: &Point) -> ApiResult<()> {
        let give_up = Instant::now() + POINT_DEADLINE;
        self.wake();
        while !self.ask(|answer| Command::Confirmed(point.clone(), answer))? {
            if Instant::now() > give_up {
                let what = format!(
                    "point {} is made, but QEMU or libvirt does not tell in time whether it has every write until then",
                    point.id
                );
                return Err(ApiError::new(ApiErrorKind::Unavailable, what)
                    .hint("it stays if 'virt-cdp point-list' shows it in a few seconds"));
            }
            std::thread::sleep(CONFIRM_POLL);
        }
        // On this thread, as it may wait for the disk.
        match self.harbor.point(point.id) {
            Some(known) if known.seq == point.seq => Ok(()),
            _ => {
                let what = format!(
                    "point {} is not there any more: a mirror was lost in that moment, or it was deleted",
                    point.id
                );
                Err(ApiError::new(ApiErrorKind::Unavailable, what)
                    .hint("try again once its state is 'protected'; see 'virt-cdp info'"))
            }
        }
    }

    /// Begins to put the machine down; [`join`](Self::join) waits for it.
    pub(crate) fn begin_shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }

    /// Begins to leave the machine to the daemon's successor; [`join`](Self::join) waits for it.
    pub(crate) fn begin_hand_over(&self) {
        let _ = self.commands.send(Command::HandOver);
    }

    /// The supervisor puts everything down now, which takes no longer than a disk that hangs is waited for.
    pub(crate) fn note_leaving(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Waits until the supervisor has put everything down; one that has not even begun by `give_up`, because its disk
    /// or its QEMU hangs, is left behind.
    pub(crate) fn join(&self, give_up: Instant) {
        let Some(thread) = guard(&self.thread).take() else {
            return;
        };
        while !thread.is_finished() {
            if !self.leaving.load(Ordering::SeqCst) && Instant::now() >= give_up {
                let machine = &self.name;
                return tracing::error!(machine, "left behind: its disk or its QEMU hangs");
            }
            std::thread::sleep(END_POLL);
        }
        let _ = thread.join();
    }
}

/// The time now.
pub(crate) fn now() -> Timestamp {
    use cdp_core::{Clock, SystemClock};
    SystemClock.now()
}
