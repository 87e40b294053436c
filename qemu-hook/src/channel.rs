//! How QEMU gets its end of a socket: by descriptor; by path only where it has to be.
//!
//! A descriptor needs no path that QEMU's user can reach, and nobody else can connect. qemu-storage-daemon
//! has no `getfd`: there the socket gets a path in a directory that only we can enter, and the path is
//! removed as soon as the connection stands. QEMU must then run as a user who may enter it: as ours, or root.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::monitor::{Monitor, MonitorError};

/// How long QEMU may take to connect to a path after it was told to.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Our end of a socket whose other end QEMU takes.
pub(crate) enum OurEnd {
    /// It stands.
    Connected(UnixStream),
    /// QEMU has still to connect.
    Expected(JoinHandle<io::Result<UnixStream>>),
}

/// Makes a socket of which QEMU can take one end; returns ours and the address for QEMU.
pub(crate) fn for_qemu(
    monitor: &dyn Monitor,
    name: &str,
    dir: &Path,
) -> Result<(OurEnd, Value), ChannelError> {
    let (ours, theirs) = UnixStream::pair()?;
    if pass(monitor, name, theirs.as_fd())? {
        return Ok((OurEnd::Connected(ours), json!({"type": "fd", "str": name})));
    }
    let (listener, path) = listen(dir, name)?;
    let accept = thread::Builder::new().name("tap-accept".into()).spawn({
        let path = path.clone();
        move || {
            let accepted = accept_one(&listener);
            let _ = fs::remove_file(path);
            accepted
        }
    })?;
    Ok((
        OurEnd::Expected(accept),
        json!({"type": "unix", "path": path}),
    ))
}

/// Gives QEMU a listening socket; returns its path for us to connect to, and the address for QEMU.
pub(crate) fn listening(
    monitor: &dyn Monitor,
    name: &str,
    dir: &Path,
) -> Result<(PathBuf, Value), ChannelError> {
    let (listener, path) = listen(dir, name)?;
    if pass(monitor, name, listener.as_fd())? {
        return Ok((path, json!({"type": "fd", "data": {"str": name}})));
    }
    drop(listener);
    fs::remove_file(&path)?;
    Ok((
        path.clone(),
        json!({"type": "unix", "data": {"path": path}}),
    ))
}

/// Why a socket could not be made or passed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// QEMU's monitor.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The system.
    #[error("cannot make a socket for QEMU")]
    Io(#[from] io::Error),
}

/// Passes a descriptor; false where QEMU knows no `getfd`.
fn pass(
    monitor: &dyn Monitor,
    name: &str,
    fd: std::os::fd::BorrowedFd<'_>,
) -> Result<bool, MonitorError> {
    match monitor.send_fd(name, fd) {
        Ok(()) => Ok(true),
        Err(MonitorError::Refused { class, .. }) if class == "CommandNotFound" => Ok(false),
        Err(e) => Err(e),
    }
}

fn listen(dir: &Path, name: &str) -> io::Result<(UnixListener, PathBuf)> {
    let path = dir.join(format!("{name}.sock"));
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    Ok((UnixListener::bind(&path)?, path))
}

fn accept_one(listener: &UnixListener) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let give_up = Instant::now() + CONNECT_DEADLINE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < give_up => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e),
        }
    }
}
