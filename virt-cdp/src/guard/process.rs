//! The guard's own side: one thread, one loop, and nothing in it that may wait for a disk.
//!
//! A guest waits until it has closed the taps, so: its memory stays where it is, and what an end needs is run once at
//! the start, because code that was never run is still on the disk; a tap is closed before a word is said about it, and
//! the words are written by another thread, because standard error may be a log on the very disk that hangs; and it is
//! served before the processes that keep the machine busy.
//! Invariant: from the last beat to the closed taps nothing is opened, read or written but sockets.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use qemu_hook::tap::{QUEUE_MAX, hang_up_into};
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
/// How the guard is served among the processes of the machine: as few are, being idle nearly all the time.
const PRIORITY: i32 = -15;
/// Words that wait to be said; more are lost.
const WORDS_MAX: usize = 16;

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
    let words = speak()?;
    let listener = super::link::listen(path)?;
    stay_ready();
    let ended = Guard::new(Some(words)).run(&listener);
    let _ = fs::remove_file(path);
    ended
}

/// Has the guard run at once, and wait for no disk to page it in, as far as the system allows that.
fn stay_ready() {
    let _ = rustix::process::setpriority_process(None, PRIORITY);
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let _ = mlockall(flags);
    // What will be needed is run once, so that it is there.
    let mut rehearsal = Guard::new(None);
    for legacy in [None, Some(String::new())] {
        let Ok((socket, other)) = UnixStream::pair() else {
            return;
        };
        let _ = rustix::io::write(&other, b"x");
        let (now, legacy_there) = (Instant::now(), legacy.is_some());
        let tap = Tap {
            socket,
            legacy,
            waits_since: Some(now),
            orphan_since: now,
        };
        rehearsal.taps.insert("rehearsal".into(), tap);
        if legacy_there {
            rehearsal.look(now + PATIENCE * 2);
        } else {
            rehearsal.let_go("it is rehearsed");
        }
    }
}

/// Starts the thread that says what the guard has to say.
fn speak() -> io::Result<mpsc::SyncSender<String>> {
    let (words, said) = mpsc::sync_channel::<String>(WORDS_MAX);
    let say = move || {
        for word in said {
            let _ = writeln!(io::stderr(), "guard: {word}");
        }
    };
    thread::Builder::new().name("words".into()).spawn(say)?;
    Ok(words)
}

struct Guard {
    daemon: Option<UnixStream>,
    taps: BTreeMap<String, Tap>,
    deadline: Duration,
    last_beat: Instant,
    handed_over: bool,
    since: Instant,
    /// Takes what a closed tap left unread.
    rest: Vec<u8>,
    /// To the thread that says it; none in the rehearsal.
    words: Option<mpsc::SyncSender<String>>,
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

impl Guard {
    fn new(words: Option<mpsc::SyncSender<String>>) -> Self {
        Self {
            daemon: None,
            taps: BTreeMap::new(),
            deadline: Duration::from_secs(1),
            last_beat: Instant::now(),
            handed_over: false,
            since: Instant::now(),
            // Written to, so that the memory is there.
            rest: vec![1; QUEUE_MAX],
            words,
        }
    }

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
                        hang_up_into(&tap.socket, &mut self.rest);
                        false
                    }
                });
            }
            Message::Beat
            | Message::Orphan { .. }
            | Message::Ready
            | Message::LetGo { .. }
            | Message::Unknown => {}
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
        let mut closed = Vec::new();
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
                hang_up_into(&tap.socket, &mut self.rest);
                closed.push(key.clone());
                return false;
            }
            true
        });
        for key in closed {
            self.say(format!("no successor took tap {key} in time; it is closed"));
        }
    }

    /// Has something said, if that can be without waiting.
    fn say(&self, word: String) {
        if let Some(words) = &self.words {
            let _ = words.try_send(word);
        }
    }

    /// Closes all taps: the guests go on without us.
    fn let_go(&mut self, why: &str) {
        let taps = std::mem::take(&mut self.taps);
        for tap in taps.values() {
            hang_up_into(&tap.socket, &mut self.rest);
        }
        if !taps.is_empty() {
            // A daemon that was only stopped finds it when it goes on.
            if let Some(daemon) = &self.daemon {
                let taps = taps.len() as u64;
                let _ = send(daemon, &Message::LetGo { taps }, None);
            }
            self.say(format!("{why}; {} taps are closed", taps.len()));
        }
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
