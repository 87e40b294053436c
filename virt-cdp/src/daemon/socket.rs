//! The API's unix socket: made, guarded and removed.
//!
//! How: 1. its directory is made where missing (mode 0711: QEMU passes through it to the views); 2. what
//! lies in its place is looked at: a socket that answers is another daemon's, one that does not is a
//! crashed one's and goes; 3. it never has a wider mode than 0660;
//! 4. every connection gets its peer checked and is then handed to the gRPC server.
//! Invariant: the socket removed at the end is the one made at the start.

use std::{
    fs::{DirBuilder, Metadata, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    os::unix::net::{UnixListener as StdListener, UnixStream as StdStream},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};
use tonic::{codegen::tokio_stream::Stream, transport::server::Connected};

use super::{
    config::Config,
    error::DaemonError,
    peer::{Accounts, Door, Peer},
};

const SOCKET_MODE: u32 = 0o660;
/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;
const DIR_MODE: u32 = 0o711;
/// The group that owns the socket where there is one of this name and nothing else is configured.
const USUAL_GROUP: &str = "virt-cdp";
/// How long the accept loop rests after an error (no descriptors left, for one).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    path: PathBuf,
    identity: Option<(u64, u64)>,
    listener: Option<StdListener>,
    door: Door,
}

impl ApiSocket {
    /// Binds the socket the configuration names.
    ///
    /// # Errors
    /// The directory cannot be made, the path is taken, or the group does not exist.
    pub fn bind(config: &Config) -> Result<Self, DaemonError> {
        let path = &config.socket;
        for dir in [path.parent().unwrap_or(Path::new("/")), config.run_dir()] {
            make_dir(dir)?;
        }
        clear_the_place(path)?;
        let gid = socket_gid(config.socket_group.as_deref())?;
        let listen = |source| DaemonError::Listen {
            path: path.clone(),
            source,
        };

        let listener = bind_narrow(path).map_err(listen)?;
        let made = Self {
            path: path.clone(),
            identity: path.symlink_metadata().ok().as_ref().map(identity),
            listener: Some(listener),
            door: Door {
                own_uid: rustix::process::geteuid().as_raw(),
                gid,
            },
        };
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(listen)?;
        // Whatever the umask took away.
        std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(listen)?;
        if let Some(listener) = &made.listener {
            listener.set_nonblocking(true).map_err(listen)?;
        }
        Ok(made)
    }

    /// Starts taking connections; they come out of the stream until `stop` changes.
    ///
    /// Must be called inside the runtime, once.
    ///
    /// # Errors
    /// The runtime cannot watch the socket, or a second call.
    pub fn accept(&mut self, stop: watch::Receiver<bool>) -> Result<Incoming, DaemonError> {
        let listen = |source| DaemonError::Listen {
            path: self.path.clone(),
            source,
        };
        let listener = self
            .listener
            .take()
            .ok_or_else(|| listen(io::ErrorKind::NotConnected.into()))?;
        let listener = UnixListener::from_std(listener).map_err(listen)?;
        let (to, connections) = mpsc::channel(16);
        tokio::spawn(accept_loop(listener, self.door, to, stop));
        Ok(Incoming { connections })
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let now = self.path.symlink_metadata().ok().as_ref().map(identity);
        if now.is_some() && now == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Binds a socket that never has a wider mode than it is to have: its file gets that of the socket.
///
/// The umask would do the same, but for all threads of the process and for what they start meanwhile.
fn bind_narrow(path: &Path) -> io::Result<StdListener> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn make_dir(dir: &Path) -> Result<(), DaemonError> {
    if dir.is_dir() {
        return Ok(());
    }
    let refused = |source| DaemonError::Directory {
        role: "socket directory",
        path: dir.into(),
        source,
    };
    if let Some(above) = dir.parent() {
        DirBuilder::new()
            .recursive(true)
            .create(above)
            .map_err(refused)?;
    }
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .map_err(refused)
}

/// Removes the socket of a daemon that is gone; leaves everything else alone.
fn clear_the_place(path: &Path) -> Result<(), DaemonError> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(DaemonError::Listen {
                path: path.into(),
                source,
            });
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(DaemonError::NotASocket { path: path.into() });
    }
    match StdStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "removing the socket of a daemon that is gone");
            std::fs::remove_file(path).map_err(|source| DaemonError::Listen {
                path: path.into(),
                source,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => Err(DaemonError::SocketServed { path: path.into() }),
    }
}

fn socket_gid(group: Option<&str>) -> Result<u32, DaemonError> {
    let accounts = Accounts::read();
    match group {
        Some(group) => accounts
            .group(group)
            .ok_or_else(|| DaemonError::NoSuchGroup {
                group: group.into(),
            }),
        None => Ok(accounts
            .group(USUAL_GROUP)
            .unwrap_or_else(|| rustix::process::getegid().as_raw())),
    }
}

async fn accept_loop(
    listener: UnixListener,
    door: Door,
    to: mpsc::Sender<Connection>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
            () = to.closed() => return,
        };
        match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))) {
            Ok((cred, stream)) => {
                let peer = Peer {
                    pid: cred.pid(),
                    uid: cred.uid(),
                    gid: cred.gid(),
                };
                let admitted = door.admits(peer, &Accounts::read());
                if !admitted {
                    tracing::warn!(
                        uid = peer.uid,
                        gid = peer.gid,
                        pid = peer.pid,
                        "refused a client of the API"
                    );
                }
                if to
                    .send(Connection {
                        stream,
                        access: Access { peer, admitted },
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of the API");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The accepted connections, as the gRPC server takes them.
#[derive(Debug)]
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections
            .poll_recv(context)
            .map(|connection| connection.map(Ok))
    }
}

/// What was decided about a connection; every request on it carries this.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Who is at the other end.
    pub peer: Peer,
    /// Whether it may use the API.
    pub admitted: bool,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    access: Access,
}

impl Connected for Connection {
    type ConnectInfo = Access;

    fn connect_info(&self) -> Access {
        self.access
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
