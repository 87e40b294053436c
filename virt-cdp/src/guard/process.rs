//! The guard's own side: one thread, one loop.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use qemu_hook::tap::hang_up;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mm::{MlockAllFlags, mlockall},
};

use super::wire::{Message, receive, send};

/// Looks within one deadline.
const LOOKS: u32 = 20;
/// How long a tap for which no guest waits is kept for a successor that does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guard without taps waits for its first daemon.
const LONELINESS: Duration = Duration::from_secs(10);
/// How long a message of the daemon that has begun may take; it is one packet, so it never does.
const RECEIVE_DEADLINE: Duration = Duration::from_millis(100);

/// Runs the guard on the socket at `path` until it has nothing to guard.
#[must_use]
pub fn main(path: &Path) -> ExitCode {
    match run(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "error: the guard cannot go on at {}: {error}",
                path.display()
            );
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path) -> io::Result<()> {
    stay_in_memory();
    let listener = super::link::listen(path)?;
    let ended = Guard::default().run(&listener);
    let _ = fs::remove_file(path);
    ended
}

/// Has the guard never wait for a disk to page its code in, as far as the system allows that.
fn stay_in_memory() {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let _ = mlockall(flags);
    // What will be needed is run once, so that it is there.
    if let Ok((one, other)) = UnixStream::pair() {
        let _ = rustix::io::write(&other, b"x");
        hang_up(&one);
    }
}

struct Guard {
    daemon: Option<UnixStream>,
    taps: BTreeMap<String, Tap>,
    deadline: Duration,
    last_beat: Instant,
    handed_over: bool,
    since: Instant,
}

/// A tap's socket as the guard holds it.
struct Tap {
    socket: UnixStream,
    /// What an earlier daemon left with it; while there is something, no daemon reads from the tap.
    legacy: Option<String>,
    /// Since when unread bytes were seen in it.
    waits_since: Option<Instant>,
    orphan_since: Instant,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            daemon: None,
            taps: BTreeMap::new(),
            deadline: Duration::from_secs(1),
            last_beat: Instant::now(),
            handed_over: false,
            since: Instant::now(),
        }
    }
}

impl Guard {
    fn run(mut self, listener: &UnixListener) -> io::Result<()> {
        loop {
            self.wait(listener)?;
            let now = Instant::now();
            if self
                .daemon
                .as_ref()
                .is_some_and(|daemon| is_readable(daemon.as_fd()))
            {
                self.hear(now);
            }
            if is_readable(listener.as_fd()) {
                self.admit(listener, now);
            }
            self.look(now);
            let lonely = self.taps.is_empty() && self.daemon.is_none();
            if lonely && (self.handed_over || now - self.since > LONELINESS) {
                return Ok(());
            }
        }
    }

    /// Waits for a message, a daemon, or the next look.
    fn wait(&self, listener: &UnixListener) -> io::Result<()> {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(self.daemon.iter().map(|d| PollFd::new(d, PollFlags::IN)));
        let pause = self.deadline / LOOKS;
        let pause = Timespec {
            tv_sec: pause.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes a daemon, and gives it what an earlier one handed over.
    fn admit(&mut self, listener: &UnixListener, now: Instant) {
        let Ok((daemon, _)) = listener.accept() else {
            return;
        };
        let ours = rustix::net::sockopt::socket_peercred(&daemon)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if !ours || self.daemon.is_some() {
            return;
        }
        let told = daemon
            .set_read_timeout(Some(RECEIVE_DEADLINE))
            .and_then(|()| {
                for (key, tap) in &self.taps {
                    let (key, legacy) = (key.clone(), tap.legacy.clone().unwrap_or_default());
                    send(
                        &daemon,
                        &Message::Orphan { key, legacy },
                        Some(tap.socket.as_fd()),
                    )?;
                }
                send(&daemon, &Message::Ready, None)
            });
        if told.is_ok() {
            (self.daemon, self.last_beat, self.handed_over) = (Some(daemon), now, false);
        }
    }

    /// Takes all messages that are there.
    fn hear(&mut self, now: Instant) {
        while let Some(daemon) = &self.daemon {
            if !is_readable(daemon.as_fd()) {
                return;
            }
            match receive(daemon) {
                Ok(Some((message, fd))) => self.obey(message, fd, now),
                Ok(None) | Err(_) => {
                    self.daemon = None;
                    self.since = now;
                    if !self.handed_over {
                        self.let_go("the daemon has ended");
                        self.handed_over = true;
                    }
                }
            }
        }
    }

    fn obey(&mut self, message: Message, fd: Option<OwnedFd>, now: Instant) {
        self.last_beat = now;
        match message {
            Message::Hello { deadline_ms } => {
                self.deadline = Duration::from_millis(deadline_ms.max(1));
            }
            Message::Hold { key } => match fd {
                Some(fd) => {
                    let tap = Tap {
                        socket: fd.into(),
                        legacy: None,
                        waits_since: None,
                        orphan_since: now,
                    };
                    self.taps.insert(key, tap);
                }
                None => {
                    if let Some(tap) = self.taps.get_mut(&key) {
                        tap.legacy = None;
                    }
                }
            },
            Message::Release { key } => drop(self.taps.remove(&key)),
            Message::Bequeath { key, legacy } => {
                if let Some(tap) = self.taps.get_mut(&key) {
                    (tap.legacy, tap.orphan_since, tap.waits_since) = (Some(legacy), now, None);
                }
            }
            Message::HandOver => {
                self.handed_over = true;
                self.taps.retain(|_, tap| match tap.legacy {
                    Some(_) => true,
                    None => {
                        hang_up(&tap.socket);
                        false
                    }
                });
            }
            Message::Beat | Message::Orphan { .. } | Message::Ready | Message::Unknown => {}
        }
    }

    /// Closes what must not wait any longer.
    fn look(&mut self, now: Instant) {
        let beats_stay_away =
            self.daemon.is_some() && !self.handed_over && now - self.last_beat > self.deadline;
        if beats_stay_away && !self.taps.is_empty() {
            self.let_go("the daemon does not answer");
        }
        let deadline = self.deadline;
        self.taps.retain(|key, tap| {
            if tap.legacy.is_none() {
                return true;
            }
            let unread = rustix::io::ioctl_fionread(&tap.socket).unwrap_or(0);
            let since = match unread {
                0 => None,
                _ => Some(tap.waits_since.unwrap_or(now)),
            };
            tap.waits_since = since;
            let overdue = since.is_some_and(|since| now - since > deadline);
            if overdue || now - tap.orphan_since > PATIENCE {
                eprintln!("guard: no successor took tap {key} in time; it is closed");
                hang_up(&tap.socket);
                return false;
            }
            true
        });
    }

    /// Closes all taps: the guests go on without us.
    fn let_go(&mut self, why: &str) {
        let taps = std::mem::take(&mut self.taps);
        if !taps.is_empty() {
            eprintln!("guard: {why}; {} taps are closed", taps.len());
        }
        taps.values().for_each(|tap| hang_up(&tap.socket));
    }
}

/// True when there is something to be received, be it the end.
fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&at_once)), Ok(1..))
}
