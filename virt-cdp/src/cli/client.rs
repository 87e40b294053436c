//! The connection to the daemon.
//!
//! What: a blocking face on the gRPC client. How: the socket is connected to at the first call, and again
//! at the next one after it was lost, so that a shell outlives a restart of the daemon.
//! Invariant: Ctrl-C ends every wait in here, and is told to who called.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::error::{CliError, CliResult};
use crate::{api::v1::virt_cdp_client::VirtCdpClient, daemon::config::DEFAULT_SOCKET};

/// The largest answer taken: some millions of points.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// The generated client, on our channel.
pub(super) type Api = VirtCdpClient<Channel>;

/// How a pause ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    Over,
    Interrupted,
}

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    path: PathBuf,
}

impl Address {
    /// Parses `unix:///path` or `/path`; the default socket for none.
    pub(super) fn parse(uri: Option<&str>) -> CliResult<Self> {
        let Some(uri) = uri else {
            return Ok(Self {
                path: DEFAULT_SOCKET.into(),
            });
        };
        let path = Path::new(uri.strip_prefix("unix://").unwrap_or(uri));
        if !path.is_absolute() {
            return Err(CliError::usage(format!("`{uri}` is no URI of a virtcdpd"))
                .hint("give unix:///path/to/socket or /path/to/socket"));
        }
        Ok(Self { path: path.into() })
    }

    /// Whether it is where a daemon listens that was told nothing else.
    pub(super) fn is_usual(&self) -> bool {
        self.path == Path::new(DEFAULT_SOCKET)
    }

    /// Returns it as a URI.
    pub(super) fn uri(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

/// A connection that is made when it is needed.
pub(super) struct Client {
    address: Address,
    api: Option<Api>,
    waiter: Option<Waiter>,
}

/// What waits for answers, and for Ctrl-C.
struct Waiter {
    runtime: Runtime,
    interrupt: Signal,
}

impl Client {
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            api: None,
            waiter: None,
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Heeds Ctrl-C from now on, and only what comes from now on.
    ///
    /// A shell calls this before each command, and before its line editor first takes the signal: what
    /// is not there when the editor starts is not there when it gives the signal back.
    pub(super) fn heed_interrupts(&mut self) -> CliResult {
        let waiter = self.waiter()?;
        let _context = waiter.runtime.enter();
        waiter.interrupt = signal(SignalKind::interrupt()).map_err(no_start)?;
        Ok(())
    }

    /// Makes one call and waits for its answer.
    pub(super) fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Api) -> Result<Response<T>, Status>,
    ) -> CliResult<T> {
        let mut api = self.api()?;
        let Waiter { runtime, interrupt } = self.waiter()?;
        let answer = runtime.block_on(async {
            tokio::select! {
                answer = call(&mut api) => answer.map_err(Ok),
                _ = interrupt.recv() => Err(Err(())),
            }
        });
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(Err(())) => Err(CliError::interrupted("interrupted")
                .hint("what was asked of virtcdpd may still be done")),
            // Only a status that was made on this side has a source.
            Err(Ok(status)) if std::error::Error::source(&status).is_some() => {
                self.api = None;
                let what = format!(
                    "the connection to virtcdpd at {} was lost",
                    self.address.uri()
                );
                Err(CliError::failure(what).hint("see whether it runs: systemctl status virtcdpd"))
            }
            Err(Ok(status)) => Err(status.into()),
        }
    }

    /// Waits, unless Ctrl-C comes.
    pub(super) fn pause(&mut self, time: Duration) -> CliResult<Pause> {
        let Waiter { runtime, interrupt } = self.waiter()?;
        Ok(runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(time) => Pause::Over,
                _ = interrupt.recv() => Pause::Interrupted,
            }
        }))
    }

    fn waiter(&mut self) -> CliResult<&mut Waiter> {
        let waiter = match self.waiter.take() {
            Some(waiter) => waiter,
            None => Waiter::new()?,
        };
        Ok(self.waiter.insert(waiter))
    }

    fn api(&mut self) -> CliResult<Api> {
        if let Some(api) = &self.api {
            return Ok(api.clone());
        }
        let address = self.address.clone();
        let api = connect(&address, &self.waiter()?.runtime)?;
        Ok(self.api.insert(api).clone())
    }
}

impl Waiter {
    fn new() -> CliResult<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(no_start)?;
        let interrupt = {
            let _context = runtime.enter();
            signal(SignalKind::interrupt()).map_err(no_start)?
        };
        Ok(Self { runtime, interrupt })
    }
}

fn no_start(error: io::Error) -> CliError {
    CliError::failure(format!("cannot start the client: {error}"))
}

fn connect(address: &Address, runtime: &Runtime) -> CliResult<Api> {
    // Looked at first, as the channel's own error does not tell these apart.
    std::os::unix::net::UnixStream::connect(&address.path)
        .map_err(|error| unreachable(address, &error))?;
    let path = address.path.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let _context = runtime.enter();
    // The channel wants a URI with a host; nothing resolves it.
    let channel = Endpoint::from_static("http://virtcdpd").connect_with_connector_lazy(connector);
    Ok(VirtCdpClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
}

fn unreachable(address: &Address, error: &io::Error) -> CliError {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket".into(),
        io::ErrorKind::ConnectionRefused => "nobody serves this socket".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    };
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "be root, or a member of the group that owns the socket",
        _ => {
            "start it (systemctl start virtcdpd), or say where it listens with -c URI or VIRT_CDP_URI"
        }
    };
    CliError::failure(format!(
        "cannot reach virtcdpd at {}: {reason}",
        address.uri()
    ))
    .hint(hint)
}
