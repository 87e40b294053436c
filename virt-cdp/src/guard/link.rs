//! The daemon's side: it starts a guard, tells it of every tap, and gets what a predecessor handed over.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{
    NAME,
    wire::{Message, receive, send},
};

/// How long a new guard may take until it can be connected to.
const START_DEADLINE: Duration = Duration::from_secs(5);
/// How often that is tried.
const START_POLL: Duration = Duration::from_millis(10);
/// Pause before a guard that ended is replaced again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// A tap that an earlier daemon parked and handed over.
#[derive(Debug)]
pub struct Orphan {
    /// The tap's name.
    pub key: String,
    /// What the earlier daemon left with it.
    pub legacy: String,
    /// Its socket, between two requests.
    pub socket: UnixStream,
}

/// The connection to the guard; the last one dropped ends it.
#[derive(Debug, Clone)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    program: PathBuf,
    deadline: Duration,
    state: Mutex<State>,
    /// Taps that guards have said they closed.
    closed: AtomicU64,
}

#[derive(Debug)]
struct State {
    socket: Option<Arc<UnixStream>>,
    taps: BTreeMap<String, UnixStream>,
}

/// A tap that the guard knows of, until this is dropped.
#[derive(Debug)]
pub struct Held {
    link: Link,
    key: String,
    bequeathed: bool,
}

impl Link {
    /// Connects to the guard at `path`, or starts one, with `program` as its executable; returns what an
    /// earlier daemon handed over.
    ///
    /// # Errors
    /// No guard can be started or talked to.
    pub fn open(
        path: &Path,
        program: &Path,
        deadline: Duration,
    ) -> io::Result<(Self, Vec<Orphan>)> {
        let (socket, orphans) = connect_or_start(path, program, deadline)?;
        let socket = Arc::new(socket);
        let link = Self(Arc::new(Inner {
            path: path.to_path_buf(),
            program: program.to_path_buf(),
            deadline,
            state: Mutex::new(State {
                socket: Some(Arc::clone(&socket)),
                taps: BTreeMap::new(),
            }),
            closed: AtomicU64::new(0),
        }));
        let weak = Arc::downgrade(&link.0);
        thread::Builder::new()
            .name("guard".into())
            .spawn(move || keep_up(&weak, socket))?;
        Ok((link, orphans))
    }

    /// Tells the guard that the daemon runs; never waits.
    pub fn beat(&self) {
        let _ = self.0.say(&Message::Beat);
    }

    /// True while there is a guard.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.0.lock().socket.is_some()
    }

    /// Returns how many taps guards have closed because this daemon did not answer, as far as they could tell it.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.0.closed.load(Ordering::Relaxed)
    }

    /// Has the guard hold a tap's socket; `key` is its name among all taps of this daemon.
    ///
    /// # Errors
    /// The system has no descriptor left, or there is no guard just now.
    pub fn hold(&self, key: &str, socket: impl AsFd) -> io::Result<Held> {
        let copy = UnixStream::from(socket.as_fd().try_clone_to_owned()?);
        let mut state = self.0.lock();
        let Some(guard) = &state.socket else {
            return Err(io::Error::other(
                "the guard has ended; another is being started",
            ));
        };
        let message = Message::Hold { key: key.into() };
        send(guard, &message, Some(copy.as_fd()))?;
        state.taps.insert(key.into(), copy);
        drop(state);
        Ok(Held {
            link: self.clone(),
            key: key.into(),
            bequeathed: false,
        })
    }

    /// Tells the guard that this daemon leaves for a successor, which gets the taps bequeathed.
    ///
    /// # Errors
    /// There is no guard: the taps end with the process.
    pub fn hand_over(&self) -> io::Result<()> {
        self.0.say(&Message::HandOver)
    }
}

impl Held {
    /// Leaves the tap, which is parked, to a successor, with whatever that needs to go on.
    ///
    /// # Errors
    /// There is no guard: the tap ends with the process.
    pub fn bequeath(mut self, legacy: String) -> io::Result<()> {
        let key = self.key.clone();
        self.link.0.say(&Message::Bequeath { key, legacy })?;
        self.bequeathed = true;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bequeathed {
            return;
        }
        let key = self.key.clone();
        self.link.0.lock().taps.remove(&key);
        let _ = self.link.0.say(&Message::Release { key });
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: &Message) -> io::Result<()> {
        let socket = self.lock().socket.clone();
        match socket {
            Some(socket) => send(&socket, message, None),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Starts another guard and tells it of all taps.
    fn start_again(&self) -> io::Result<Arc<UnixStream>> {
        let (socket, orphans) = connect_or_start(&self.path, &self.program, self.deadline)?;
        // Nobody but this daemon hands over to a guard of this path.
        drop(orphans);
        let socket = Arc::new(socket);
        let mut state = self.lock();
        for (key, tap) in &state.taps {
            let message = Message::Hold { key: key.clone() };
            send(&socket, &message, Some(tap.as_fd()))?;
        }
        state.socket = Some(Arc::clone(&socket));
        Ok(socket)
    }
}

/// Waits for the end of a guard, and replaces it, for as long as there is a link.
fn keep_up(link: &Weak<Inner>, first: Arc<UnixStream>) {
    let mut socket = first;
    loop {
        while let Ok(Some((message, _))) = receive(&socket) {
            let Some(inner) = link.upgrade() else { return };
            if let Message::LetGo { taps } = message {
                inner.closed.fetch_add(taps, Ordering::Relaxed);
            }
        }
        let Some(inner) = link.upgrade() else { return };
        inner.lock().socket = None;
        tracing::warn!("the guard has ended; another is started");
        socket = match inner.start_again() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, "no guard can be started; a stopped daemon would hold up guests");
                thread::sleep(RESTART_PAUSE);
                socket
            }
        };
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Wakes the thread that waits for the guard's end.
        if let Some(socket) = self.lock().socket.take() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn connect_or_start(
    path: &Path,
    program: &Path,
    deadline: Duration,
) -> io::Result<(UnixStream, Vec<Orphan>)> {
    let give_up = Instant::now() + START_DEADLINE;
    let mut started = false;
    loop {
        let error = match greet(path, deadline) {
            Ok(met) => return Ok(met),
            Err(error) => error,
        };
        if Instant::now() >= give_up {
            return Err(error);
        }
        if !started {
            start(path, program)?;
            started = true;
        }
        thread::sleep(START_POLL);
    }
}

/// Starts a guard, which outlives this process if need be.
fn start(path: &Path, program: &Path) -> io::Result<()> {
    let mut guard = Command::new(program)
        .arg0(NAME)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Not ours to be stopped with, as by Ctrl+C.
        .process_group(0)
        .spawn()?;
    thread::Builder::new()
        .name("guard-wait".into())
        .spawn(move || guard.wait())?;
    Ok(())
}

/// Connects to a guard and takes what it gives away.
fn greet(path: &Path, deadline: Duration) -> io::Result<(UnixStream, Vec<Orphan>)> {
    let socket = packet_socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = UnixStream::from(socket);
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    send(&socket, &Message::Hello { deadline_ms }, None)?;
    socket.set_read_timeout(Some(START_DEADLINE))?;
    let mut orphans = Vec::new();
    loop {
        match receive(&socket)? {
            Some((Message::Orphan { key, legacy }, Some(fd))) => orphans.push(Orphan {
                key,
                legacy,
                socket: fd.into(),
            }),
            Some((Message::Ready, _)) => break,
            Some(_) => {}
            None => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
    socket.set_read_timeout(None)?;
    Ok((socket, orphans))
}

/// Makes the guard's listening socket; one that nobody listens on is replaced.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = packet_socket()?;
    if let Err(errno) = rustix::net::bind(&socket, &address) {
        if errno != rustix::io::Errno::ADDRINUSE || rustix::net::connect(&socket, &address).is_ok()
        {
            return Err(errno.into());
        }
        fs::remove_file(path)?;
        rustix::net::bind(&socket, &address)?;
    }
    rustix::net::listen(&socket, 4)?;
    Ok(socket.into())
}

fn packet_socket() -> io::Result<OwnedFd> {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(
        kind.0,
        kind.1,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

#[cfg(test)]
pub(super) fn packet_pair() -> io::Result<(UnixStream, UnixStream)> {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (one, other) = rustix::net::socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None)?;
    Ok((one.into(), other.into()))
}
