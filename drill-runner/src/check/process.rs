//! A program of the host that a check runs, and everything it leaves behind.
//!
//! It gets a group of its own, an empty environment but for what it is given, and an end: when it has exited or its bound
//! is over, its whole group is killed. Whoever has left the group is found by the number of the run in its environment.
//! Output is read as it comes and held within bounds, so that a program that floods is only a program that is busy.
//!
//! Invariant: when [`Program::run`] returns, nothing it has started runs, unless it wiped its environment on purpose.
//! Pipes that somebody else still holds are not waited for.

use std::{
    fs::{self, File},
    io::{self, PipeReader, Read, Seek, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
        pidfd_send_signal, waitid,
    },
};

use super::{
    Place,
    bound::{Bound, TICK},
    seen::Flood,
    sockets::cause,
};

/// The variable that has the number of the run.
const RUN: &str = "VIRT_CDP_CHECK_RUN";
/// Where programs are looked for.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a killed program may take to be gone; one that hangs in the kernel is left to a thread.
const GONE_WITHIN: Duration = Duration::from_millis(300);

static RUNS: AtomicU64 = AtomicU64::new(0);

/// A program that is about to run.
pub(super) struct Program {
    command: Command,
    name: String,
    run: String,
}

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// None where its bound was over first.
    pub(super) status: Option<ExitStatus>,
    /// What it printed, its errors among it.
    pub(super) output: String,
    /// What it printed without its errors, where they were kept apart.
    pub(super) plain: String,
}

impl Program {
    /// A program as we are, with the environment that every program gets.
    pub(super) fn new(path: impl AsRef<Path>, place: &Place<'_>) -> Self {
        let path = path.as_ref();
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let run = format!("{}-{number}", std::process::id());
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .env(&place.marker.0, &place.marker.1)
            .env(RUN, &run)
            .current_dir("/")
            .stdin(Stdio::null())
            .process_group(0);
        if let Some(zone) = std::env::var_os("TZ") {
            command.env("TZ", zone);
        }
        Self {
            command,
            name: path.display().to_string(),
            run,
        }
    }

    /// Changes it as [`Command`] can.
    pub(super) fn with(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// Lets it run as somebody else.
    pub(super) fn owned_by(self, user: Option<(u32, u32)>) -> Self {
        match user {
            Some((uid, gid)) => self.with(|command| {
                command.uid(uid).gid(gid);
            }),
            None => self,
        }
    }

    /// Gives it something to read.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn reads(self, text: &[u8]) -> io::Result<Self> {
        let mut file = File::from(memfd_create("request", MemfdFlags::CLOEXEC)?);
        file.write_all(text)?;
        file.rewind()?;
        Ok(self.with(|command| {
            command.stdin(file);
        }))
    }

    /// Starts it without waiting for it; it ends when what is returned is dropped.
    ///
    /// # Errors
    /// Why it cannot be started, in a sentence.
    pub(super) fn start(mut self) -> Result<Running, String> {
        // A file that is still held open by whoever wrote it is so for a moment only.
        let mut tries = 0;
        let child = loop {
            match self.command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 50 => {
                    tries += 1;
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => {
                    return Err(format!("{} cannot be run: {}", self.name, cause(&error)));
                }
                Ok(child) => break child,
            }
        };
        Ok(Running {
            child: Some(child),
            run: self.run,
        })
    }

    /// Runs it to its end. With `apart` its errors are kept out of `plain`.
    ///
    /// # Errors
    /// Why it cannot be run, in a sentence.
    pub(super) fn run(mut self, apart: bool, bound: &Bound<'_>) -> Result<Ended, String> {
        let pipe = || {
            let (reader, writer) = io::pipe()?;
            fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
            Ok((reader, writer))
        };
        let trouble = |error: io::Error| format!("there is no pipe: {}", cause(&error));
        let (out, writer) = pipe().map_err(trouble)?;
        let mut pipes = vec![Some(out)];
        if apart {
            let (errors, writer) = pipe().map_err(trouble)?;
            self.command.stderr(writer);
            pipes.push(Some(errors));
        } else {
            self.command.stderr(writer.try_clone().map_err(trouble)?);
        }
        self.command.stdout(writer);
        let mut running = self.start()?;
        let (mut all, mut plain) = (Flood::default(), Flood::default());
        let mut has_ended = false;
        while bound.stop().is_none() {
            has_ended = running.has_ended();
            wait_for_output(&pipes, bound, has_ended);
            // A pipe holds less than this: what was printed before the end is read, and a flood is not waited for.
            for _ in 0..64 {
                if !read(&mut pipes, &mut all, &mut plain) {
                    break;
                }
            }
            if has_ended {
                break;
            }
        }
        let status = running.end();
        read(&mut pipes, &mut all, &mut plain);
        Ok(Ended {
            status: status.filter(|_| has_ended),
            output: all.text(),
            plain: plain.text(),
        })
    }
}

/// Waits until there is something to read, for a tick at most.
fn wait_for_output(pipes: &[Option<PipeReader>], bound: &Bound<'_>, has_ended: bool) {
    let time = match has_ended {
        true => Duration::ZERO,
        false => TICK.min(bound.left()),
    };
    let mut fds: Vec<PollFd<'_>> = pipes
        .iter()
        .flatten()
        .map(|pipe| PollFd::new(pipe, PollFlags::IN))
        .collect();
    if fds.is_empty() {
        thread::sleep(time.min(Duration::from_millis(5)));
        return;
    }
    let time = Timespec::try_from(time).ok();
    // Whether there is something is seen when it is read.
    let _ = poll(&mut fds, time.as_ref());
}

/// Reads a piece of each pipe; false if there was none.
fn read(pipes: &mut [Option<PipeReader>], all: &mut Flood, plain: &mut Flood) -> bool {
    let mut piece = [0_u8; 64 * 1024];
    let mut came = false;
    for (number, slot) in pipes.iter_mut().enumerate() {
        let Some(pipe) = slot else { continue };
        match pipe.read(&mut piece) {
            Ok(0) => *slot = None,
            Ok(read) => {
                let read = piece.get(..read).unwrap_or_default();
                all.take(read);
                if number == 0 {
                    plain.take(read);
                }
                came = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => came = true,
            Err(_) => *slot = None,
        }
    }
    came
}

/// A program that runs; it and everything it started is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Option<Child>,
    run: String,
}

impl Running {
    fn pid(&self) -> Option<Pid> {
        let id = self.child.as_ref()?.id();
        i32::try_from(id).ok().and_then(Pid::from_raw)
    }

    /// Whether it has exited. Its number stays taken, so that its group cannot be mistaken for another.
    pub(super) fn has_ended(&self) -> bool {
        let Some(pid) = self.pid() else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
    }

    /// Asks it to end by itself, and waits for that a little.
    pub(super) fn ask_to_end(&mut self, patience: Duration) {
        if let Some(pid) = self.pid() {
            // It may have ended already.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + patience;
        while !self.has_ended() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills what is left of it; returns how it exited, if it is gone.
    fn end(&mut self) -> Option<ExitStatus> {
        let pid = self.pid()?;
        // Nobody may be left in the group.
        let _ = kill_process_group(pid, Signal::KILL);
        kill_strays(&self.run);
        let mut child = self.child.take()?;
        let until = Instant::now() + GONE_WITHIN;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
                Ok(None) | Err(_) => break,
            }
        }
        // It hangs in the kernel. Somebody has to take note of its end.
        let _ = thread::Builder::new()
            .name("reaper".into())
            .spawn(move || child.wait());
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills who has left the group, until a round finds nobody: a killed one may have had a child a moment before.
fn kill_strays(run: &str) {
    let wanted = format!("{RUN}={run}");
    for _ in 0..5 {
        let mut found = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.and_then(Pid::from_raw) else {
                continue;
            };
            // The door to the process comes first: what is read then is of nobody who got its number later.
            let Ok(door) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let is_ours = environment
                .split(|byte| *byte == 0)
                .any(|one| one == wanted.as_bytes());
            if is_ours && pidfd_send_signal(door, Signal::KILL).is_ok() {
                found = true;
            }
        }
        if !found {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

impl Ended {
    /// How it ended, in words: `exit code 1`, `killed by signal 9`.
    pub(super) fn how(&self) -> Option<String> {
        let status = self.status?;
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "an end of no known kind".to_owned(),
        })
    }

    /// Its exit code; none where it was killed or its bound was over.
    pub(super) fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }
}
