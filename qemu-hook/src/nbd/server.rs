//! Serves read-only views on a unix socket.
//!
//! One thread accepts; every connection has a thread of its own, so a client that hangs, or sends
//! nonsense, is alone with it. At most [`bounds::CONNECTIONS_MAX`] are kept; a handshake that is not
//! over at its deadline is closed.
//!
//! Invariant: after [`NbdServer::stop`] there is no thread, no connection and no socket file left.
//! After a crash of ours the socket file is left; the next server at that path replaces it.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::bounds;
use super::error::NbdError;
use super::export::Exports;
use super::handshake::{Catalogue, Offer, negotiate};
use super::proto::flag;
use super::serve::serve_requests;
use super::stream::Stream;

/// How long the accepting thread rests when the system has no descriptor left for a connection.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A server of views; dropping it is the same as [`stop`](Self::stop).
pub struct NbdServer {
    path: PathBuf,
    /// Device and inode of the socket file: only ours is removed.
    identity: (u64, u64),
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl NbdServer {
    /// Serves `exports` on a new socket at `path`, with the permission bits `mode` and, where
    /// given, the owner (user id, group id). A socket that nobody listens on is replaced.
    ///
    /// # Errors
    /// [`NbdError::Listen`]: the socket cannot be made, for one because a server listens there;
    /// [`NbdError::Thread`].
    pub fn listen_unix(
        path: impl AsRef<Path>,
        mode: u32,
        owner: Option<(u32, u32)>,
        exports: Exports,
    ) -> Result<Self, NbdError> {
        let path = path.as_ref().to_path_buf();
        let (listener, identity) = bind(&path, mode, owner).map_err(|source| NbdError::Listen {
            path: path.clone(),
            source,
        })?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            exports,
            stopping: AtomicBool::new(false),
            live: Mutex::default(),
        });
        let mut server = Self {
            path,
            identity,
            listener: Arc::clone(&listener),
            shared: Arc::clone(&shared),
            acceptor: None,
        };
        let acceptor = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || shared.accept_all(&listener))
            .map_err(|source| NbdError::Thread { source })?;
        server.acceptor = Some(acceptor);
        Ok(server)
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of connections that are open now, the ones in their handshake among them.
    pub fn connections(&self) -> usize {
        self.shared
            .live()
            .iter()
            .filter(|one| one.is_open())
            .count()
    }

    /// Closes the listener and all connections, waits for their threads, removes the socket.
    ///
    /// Waits for a read of a view that is under way; the client never gets its reply.
    pub fn stop(self) {}

    fn close(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; there is nothing to do about a failure.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let live = std::mem::take(&mut *self.shared.live());
        for one in &live {
            let _ = one.stream.shut();
        }
        for one in live {
            let _ = one.thread.join();
        }
        if identity_of(&self.path).ok() == Some(self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.close();
    }
}

struct Shared {
    exports: Exports,
    stopping: AtomicBool,
    live: Mutex<Vec<Connection>>,
}

/// A connection as the server holds it: enough to end it and to wait for it.
struct Connection {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Connection {
    fn is_open(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            let accepted = listener.accept();
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let admitted = accepted.and_then(|(stream, _)| self.admit(stream));
            if let Err(error) = admitted {
                tracing::warn!(%error, "a client of a view was not served");
                std::thread::sleep(ACCEPT_REST);
            }
        }
    }

    /// Gives the connection a thread, or closes it when there are too many.
    fn admit(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let mut live = self.live();
        live.retain(Connection::is_open);
        if live.len() >= bounds::CONNECTIONS_MAX {
            tracing::warn!(most = bounds::CONNECTIONS_MAX, "too many clients of a view");
            return Ok(());
        }
        let ours = stream.try_clone()?;
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("nbd-view".into())
            .spawn(move || shared.serve(stream))?;
        live.push(Connection {
            stream: ours,
            thread,
        });
        Ok(())
    }

    fn serve(&self, stream: UnixStream) {
        let mut open = HangUp(stream);
        match serve_stream(&mut open.0, &self.exports) {
            Ok(()) => tracing::debug!("a client of a view has left"),
            Err(_) if self.stopping.load(Ordering::SeqCst) => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::info!(error, "a view's connection has ended");
            }
        }
    }
}

/// Ends the connection with its thread, although the server still holds the socket.
struct HangUp(UnixStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        // Fails when the client has hung up already, which is as good.
        let _ = self.0.shut();
    }
}

/// Serves one client on any connected socket: handshake, then requests, until it leaves.
///
/// # Errors
/// [`NbdError::Io`], [`NbdError::TimedOut`] or [`NbdError::Protocol`]: the connection must be closed.
pub fn serve_stream<S: Stream>(stream: &mut S, exports: &Exports) -> Result<(), NbdError> {
    let deadline = Instant::now() + bounds::HANDSHAKE_DEADLINE;
    let Some(agreed) = negotiate(stream, exports, deadline)? else {
        return Ok(());
    };
    let Some((_, named)) = exports.find(&agreed.export) else {
        return Ok(());
    };
    serve_requests(stream, &*named.device, &agreed)
}

impl Catalogue for Exports {
    fn list(&self) -> Vec<(&str, &str)> {
        let all = self.iter();
        all.map(|(name, named)| (name, named.description.as_str()))
            .collect()
    }

    fn offer(&self, name: &str) -> Option<Offer> {
        let (name, named) = self.find(name)?;
        Some(Offer {
            name: name.to_owned(),
            description: named.description.clone(),
            size: named.device.size(),
            flags: flag::READ_ONLY | flag::CAN_MULTI_CONN | flag::SEND_CACHE,
            allocation: true,
        })
    }
}

/// Makes the socket; nobody can connect before its mode and owner are set.
fn bind(
    path: &Path,
    mode: u32,
    owner: Option<(u32, u32)>,
) -> io::Result<(UnixListener, (u64, u64))> {
    remove_stale(path)?;
    let kind = (AddressFamily::UNIX, SocketType::STREAM);
    let socket: OwnedFd = rustix::net::socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let opened = std::fs::set_permissions(path, Permissions::from_mode(mode))
        .and_then(|()| match owner {
            Some((user, group)) => std::os::unix::fs::lchown(path, Some(user), Some(group)),
            None => Ok(()),
        })
        .and_then(|()| identity_of(path))
        .and_then(|identity| Ok((identity, rustix::net::listen(&socket, 64)?)));
    match opened {
        Ok((identity, ())) => Ok((UnixListener::from(socket), identity)),
        Err(error) => {
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Removes a socket that is left over from a server that is gone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
