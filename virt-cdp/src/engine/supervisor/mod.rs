//! The thread that looks after one machine: captures whenever it runs, makes points, heals.
//!
//! A loop: wait for a command or the next moment of interest, then bring what is into line with what the
//! user wants. No capture and the machine runs: start one. A capture that lost its tap: end it, note
//! the gap, start again. Failures are tried again with a growing pause; nothing is given up.
//!
//! Invariant: points are made only between a capture's barrier and its end. What a crash leaves is put
//! right by the next start: the journal is whole up to its tail, the time since is a gap.

mod closing;
mod disks;
mod ending;
mod mode;
mod points;
mod room;
mod wishes;

use std::{
    path::PathBuf,
    sync::{Arc, Weak, atomic::AtomicBool, mpsc},
    thread,
    time::{Duration, Instant},
};

use cdp_core::{GapReason, Harbor, MachineDescription, Mode, PointUnderWay, VolumeId};

use self::{closing::Closing, ending::End};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        capture::{Capture, Missing, Place},
        errors::{disk_silent, from_harbor, sentence},
        machine::{Command, Doubt, Machine, State, now},
        room::{BeingRead, Room},
        source::{self, Found, Presence, Source},
        upkeep::{Confirmed, Task, Upkeep, keep_definition},
        volumes,
        watch::{Disks, Inherited, TapWatch},
    },
};

/// How often a capture is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// A look that comes this long after the one before says that this process was stopped.
const LATE: Duration = Duration::from_millis(500);
/// How often it is asked whether a machine that is off runs again; events make it sooner.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a machine that is about to start is looked at as often as a capture.
const EXPECT_TIME: Duration = Duration::from_secs(10);
/// Pause after the first failure; doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// What is said of a machine whose last capture is not closed yet.
const DISK_HANGS: &str = "the harbor's disk does not answer";
/// What is said of a machine that is on its way to or from another host.
const MIGRATING: &str = "it is being migrated";
/// The longest pause between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What a supervisor works with.
pub(crate) struct Setting {
    /// Where the machine runs.
    pub(crate) source: Arc<dyn Source>,
    /// A directory only the daemon can enter, for sockets.
    pub(crate) private_dir: PathBuf,
    /// How often bitmaps are rotated.
    pub(crate) bitmap_interval: Duration,
    /// Looks after the taps.
    pub(crate) watch: Arc<TapWatch>,
    /// Knows whether there is room.
    pub(crate) room: Arc<Room>,
    /// Taps that an earlier daemon has left.
    pub(crate) inherited: Vec<Inherited>,
}

struct Supervisor {
    machine: Arc<Machine>,
    setting: Setting,
    tag: String,
    capture: Option<Active>,
    /// Captures begun so far.
    captures: u64,
    look_at: Instant,
    /// Until when a start that was announced is looked for closely.
    expected_until: Instant,
    pause: Duration,
    gap: Option<Missing>,
    /// What the user wants, as far as it has been followed.
    followed: Mode,
    /// While its disks are compared: true ends that.
    live: Weak<AtomicBool>,
    /// A capture of before that waits for the disk.
    closing: Option<Closing>,
    /// Work on the harbor's disk that this thread does not wait for.
    disk_work: Option<thread::JoinHandle<()>>,
}

/// A capture and what belongs to it.
struct Active {
    capture: Capture,
    /// Its number among the supervisor's captures.
    number: u64,
    /// Which run of QEMU it is, as [`Presence::Running`] says.
    run: String,
    ready: bool,
    /// The first point after the barrier, until it is on stable storage.
    first_point: Option<PointUnderWay>,
    /// Until it is ready.
    reading: Option<BeingRead>,
    upkeep: Upkeep,
    /// What the upkeep was started with.
    task: Task,
    next_point: Instant,
    looked: Instant,
}

/// The short tag of a machine, from its id: what its pieces inside QEMU are named after.
pub(crate) fn tag(machine_id: &str) -> String {
    machine_id
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(8)
        .collect()
}

/// Starts the supervisor of `machine`.
pub(crate) fn start(
    machine: &Arc<Machine>,
    commands: mpsc::Receiver<Command>,
    setting: Setting,
) -> std::io::Result<()> {
    let harbor = machine.harbor();
    // A gap that is open in the journal keeps its own start and reason.
    let gap = harbor.newest_point().map(|p| Missing {
        reason: GapReason::Crash,
        start: p.time,
        sound: None,
    });
    let supervisor = Supervisor {
        machine: Arc::clone(machine),
        setting,
        tag: tag(&harbor.description().machine_id),
        capture: None,
        captures: 0,
        look_at: Instant::now(),
        expected_until: Instant::now(),
        pause: RETRY_FIRST,
        gap,
        followed: harbor.description().mode,
        live: Weak::new(),
        closing: None,
        disk_work: None,
    };
    let thread = thread::Builder::new()
        .name(format!("vm-{}", supervisor.tag))
        .spawn(move || supervisor.run(&commands))?;
    machine.set_thread(thread);
    Ok(())
}

impl Supervisor {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        let inherited = std::mem::take(&mut self.setting.inherited);
        self.inherit(inherited);
        loop {
            match commands.recv_timeout(self.next_wait()) {
                Ok(Command::Shutdown) | Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Ok(Command::HandOver) => {
                    self.machine.note_leaving();
                    return self.hand_over();
                }
                Ok(command) => self.obey(command),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            self.look();
        }
        self.machine.note_leaving();
        self.put_down(End::DaemonStopped);
    }

    fn next_wait(&self) -> Duration {
        let until = |t: Instant| t.saturating_duration_since(Instant::now());
        match &self.capture {
            Some(active) if active.ready => until(active.next_point).min(WATCH_INTERVAL),
            Some(_) => WATCH_INTERVAL,
            None => until(self.look_at),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Wake => match &self.capture {
                Some(active) => active.upkeep.look_now(),
                None => self.look_at = Instant::now(),
            },
            Command::TakeIn(targets, answer) => {
                let _ = answer.send(self.take_in(&targets));
            }
            Command::Expect => {
                if self.capture.is_none() {
                    self.expected_until = Instant::now() + EXPECT_TIME;
                    self.look_at = Instant::now();
                }
            }
            Command::Start(answer) => {
                let outcome = self.try_capture();
                let _ = answer.send(outcome);
            }
            Command::SetPace(wish, answer) => {
                let _ = answer.send(self.set_pace(wish));
            }
            Command::SetMode(mode, answer) => {
                let _ = answer.send(self.set_mode(mode));
            }
            Command::Point(wish, answer) => {
                let _ = answer.send(self.make_point(&wish));
            }
            Command::Confirmed(point, answer) => {
                let _ = answer.send(Ok(self.is_confirmed(&point)));
            }
            Command::Live(answer) => {
                let _ = answer.send(self.live_side());
            }
            Command::Quiet(answer) => {
                let _ = answer.send(self.quiet());
            }
            Command::GoOn | Command::Shutdown | Command::HandOver => {}
        }
    }

    fn harbor(&self) -> Harbor {
        self.machine.harbor()
    }

    /// Brings what is into line with what is wanted.
    fn look(&mut self) {
        let mode = self.harbor().description().mode;
        let closed = self.is_closed();
        if mode != self.followed && closed {
            // It was wanted while the disk did not answer.
            if let Err(error) = self.follow(mode) {
                tracing::warn!(machine = self.machine.name, %error, "not put down yet");
            }
        }
        let off = match mode {
            Mode::Active => None,
            Mode::Suspended => Some(State::Suspended),
            Mode::Released => Some(State::Unprotected),
        };
        if let Some(state) = off {
            self.look_at = Instant::now() + PRESENCE_INTERVAL;
            return self.machine.set_state(state, "");
        }
        let closed = self.is_closed();
        match &self.capture {
            Some(_) => self.look_at_capture(),
            None if !closed => {
                self.look_at = Instant::now() + PRESENCE_INTERVAL;
                self.machine.set_state(State::Retrying, DISK_HANGS);
            }
            // It reads through the same QEMU, and ends soon.
            None if self.live.strong_count() > 0 => self.look_at = Instant::now() + WATCH_INTERVAL,
            None if Instant::now() >= self.look_at => self.look_at_machine(),
            None => {}
        }
    }

    fn look_at_machine(&mut self) {
        let expected = Instant::now() < self.expected_until;
        let interval = if expected {
            WATCH_INTERVAL
        } else {
            PRESENCE_INTERVAL
        };
        self.look_at = Instant::now() + interval;
        match self.presence() {
            Presence::Off(ended) => {
                self.pause = RETRY_FIRST;
                self.machine.set_state(State::Off, ended.detail());
            }
            Presence::Migrating => self.machine.set_state(State::Off, MIGRATING),
            Presence::Unknown(reason) => {
                self.failed(&ApiError::new(ApiErrorKind::Unavailable, reason))
            }
            Presence::Running(_) => {
                if let Some(low) = self.setting.room.low() {
                    return self.wait_for_room(&low);
                }
                if let Err(error) = self.try_capture() {
                    self.failed(&error);
                }
            }
        }
    }

    /// Notes a failure and when the next attempt is.
    fn failed(&mut self, error: &ApiError) {
        let detail = format!("{}; next attempt in {} s", error.what, self.pause.as_secs());
        tracing::warn!(
            machine = self.machine.name,
            error = error.what,
            "not captured"
        );
        self.machine.set_state(State::Failed, &detail);
        self.look_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    fn try_capture(&mut self) -> ApiResult<()> {
        if self.capture.is_some() {
            return Ok(());
        }
        if !self.is_closed() {
            return Err(disk_silent("the capture before is not closed yet"));
        }
        if self.live.strong_count() > 0 {
            let what = format!(
                "the disks of '{}' are still being compared",
                self.machine.name
            );
            return Err(ApiError::new(ApiErrorKind::Unavailable, what).hint("try again"));
        }
        self.recover_if_failed()?;
        let harbor = self.harbor();
        let off = |what: &str, hint: &str| {
            let what = format!("'{}' {what}", self.machine.name);
            Err(ApiError::new(ApiErrorKind::FailedPrecondition, what).hint(hint))
        };
        let run = match self.presence() {
            Presence::Running(run) => run,
            Presence::Off(_) => return off("does not run", "start it first"),
            Presence::Migrating => return off("is being migrated", "wait until it has come"),
            Presence::Unknown(reason) => {
                return Err(ApiError::new(ApiErrorKind::Unavailable, reason));
            }
        };
        self.machine.forget_end();
        let source = &self.setting.source;
        let volumes = harbor.description().volumes;
        let (monitor, found) = source::look_closely(&**source, &volumes, &self.tag)?;
        self.fit_volumes(&found)?;
        let running = source::open(monitor, found, &harbor.description().volumes);
        let disks = Disks {
            plugged: running.disks.iter().map(Found::plugged).collect(),
            left_out: volumes::left_out(&self.machine.name, &volumes, &running.disks),
        };
        match source.look() {
            Ok(look) => keep_definition(&look, &harbor),
            Err(error) => tracing::debug!(%error, "the domain XML cannot be read now"),
        }
        let gap = if harbor.is_seeded() {
            self.gap.or(Some(Missing {
                reason: GapReason::TapLost,
                start: now(),
                sound: None,
            }))
        } else {
            None
        };
        let place = Place {
            tag: &self.tag,
            dir: self.setting.private_dir.clone(),
            watch: &self.setting.watch,
        };
        let capture = Capture::start(&harbor, running, place, gap)?;
        let state = if harbor.is_seeded() {
            State::Resyncing
        } else {
            State::Seeding
        };
        let detail = whole_disks(&capture.doubts, &harbor.description());
        self.begin(capture, run, None, disks)?;
        self.machine.set_state(state, &detail);
        Ok(())
    }

    /// Looks after a capture from now on. One that is inherited is past its barrier, and its mirrors are known to
    /// have stood until then.
    fn begin(
        &mut self,
        capture: Capture,
        run: String,
        inherited: Option<Confirmed>,
        disks: Disks,
    ) -> ApiResult<()> {
        let wake = Arc::downgrade(&self.machine);
        capture.recorder().on_failure(move |_| {
            if let Some(machine) = wake.upgrade() {
                machine.wake();
            }
        });
        let qemu = Arc::new(capture.qemu_side());
        let (ready, since) = (
            inherited.is_some(),
            inherited.unwrap_or_else(|| qemu.moment()),
        );
        let task = Task {
            source: Arc::clone(&self.setting.source),
            harbor: self.harbor(),
            qemu,
            run: run.clone(),
            disks: disks.plugged,
            bitmap_interval: self.setting.bitmap_interval,
            confirmed: since,
            here: since,
        };
        let upkeep = match Upkeep::start(task.clone()) {
            Ok(upkeep) => upkeep,
            Err(e) => {
                capture.end();
                let what = format!("cannot start a thread: {e}");
                return Err(ApiError::new(ApiErrorKind::ResourceExhausted, what));
            }
        };
        self.machine.update(|s| {
            s.attached = capture.volumes();
            s.left_out = disks.left_out;
            s.progress = (!ready).then(|| Arc::clone(&capture.progress));
        });
        self.captures += 1;
        self.capture = Some(Active {
            capture,
            number: self.captures,
            run,
            ready,
            first_point: None,
            reading: (!ready).then(|| self.setting.room.being_read()),
            upkeep,
            task,
            next_point: Instant::now(),
            looked: Instant::now(),
        });
        Ok(())
    }

    /// A journal that has failed takes nothing more until it has been recovered.
    fn recover_if_failed(&self) -> ApiResult<()> {
        let harbor = self.harbor();
        if harbor.failure().is_some() {
            let report = harbor.recover().map_err(from_harbor)?;
            tracing::info!(
                machine = self.machine.name,
                ?report,
                "the journal was recovered after its failure"
            );
        }
        Ok(())
    }

    fn look_at_capture(&mut self) {
        let Some(active) = &mut self.capture else {
            return;
        };
        let slept = active.looked.elapsed() > LATE;
        active.looked = Instant::now();
        let stats = active.capture.recorder().stats();
        self.machine.update(|s| s.stats = Some(stats));
        if let Some(failure) = active.capture.recorder().failure() {
            let what = format!("the journal has failed: {}", sentence(&*failure));
            self.put_down(End::JournalFailed);
            return self.failed(&ApiError::new(ApiErrorKind::ResourceExhausted, what));
        }
        if active.upkeep.away() {
            self.put_down(End::WentElsewhere);
            self.look_at = Instant::now();
            return;
        }
        if active.upkeep.lost() || !active.capture.lost().is_empty() {
            return self.tap_lost();
        }
        if active.capture.is_cut() {
            // The guard has closed it, or QEMU: the tap itself learns it in a moment.
            return self.machine.set_state(State::Retrying, "");
        }
        if self.yields_room() || !self.look_at_disks() {
            return;
        }
        let Some(active) = &mut self.capture else {
            return;
        };
        if !active.ready {
            return self.look_at_reading();
        }
        // After having been stopped, what became of the taps meanwhile is learnt first.
        if !slept && Instant::now() >= active.next_point {
            let interval = Duration::from_millis(self.machine.description().point_interval_ms);
            active.next_point = next_moment(active.next_point, interval);
            // A disk that hangs must not keep this thread from noticing what comes of it.
            if let Err(error) = active.capture.recorder().begin_point_if_written() {
                tracing::warn!(
                    machine = self.machine.name,
                    error = sentence(&error),
                    "no point could be made"
                );
            }
        }
    }
}

/// Says which volumes are read whole in a resync, and why.
fn whole_disks(doubts: &[(VolumeId, Doubt)], description: &MachineDescription) -> String {
    let whole = doubts.iter().filter_map(|(id, doubt)| match doubt {
        Doubt::Whole(reason) => {
            let target = &description.volume(*id)?.target;
            Some(format!("{target}: whole disk, because {reason}"))
        }
        Doubt::Marked | Doubt::Nothing(_) => None,
    });
    whole.collect::<Vec<_>>().join("; ")
}

/// The next moment on the beat after `last`; beats that have passed are left out.
fn next_moment(last: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    let next = last + interval;
    if next > now { next } else { now + interval }
}
