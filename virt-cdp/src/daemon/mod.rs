//! The daemon, virtcdpd: from its command line to its clean stop.
//!
//! How, in order: command line, configuration, log, lock on the state directory, socket bound (clients
//! that come now wait), engine, gRPC service, READY to systemd; then SIGTERM or SIGINT: STOPPING, no new clients, calls in flight get
//! [`CALLS_DEADLINE`], the engine gets [`STOP_DEADLINE`], the socket is removed, exit 0.
//! Invariant: the engine is opened only by who holds the lock. A crash leaves the socket's and the lock's
//! files; the next start sees that nobody is behind them.

pub mod args;
pub mod config;
pub mod error;
pub mod logs;
pub mod policy;

pub mod lock;
pub mod notify;
pub mod peer;
pub mod socket;

pub mod service;

pub mod metrics;

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tonic::transport::Server;

use self::{
    args::Args,
    config::Config,
    error::DaemonError,
    lock::StateLock,
    notify::Notifier,
    service::{Guard, Service},
    socket::ApiSocket,
};
use crate::api::{ApiResult, Engine, v1::virt_cdp_server::VirtCdpServer};

/// How long calls in flight may take once the daemon stops.
pub const CALLS_DEADLINE: Duration = Duration::from_secs(5);
/// How long the engine may take to stop; less than the unit's TimeoutStopSec.
pub const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// The largest request taken: a name and a few more.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Opens the engine on a configuration.
pub type OpenEngine = fn(&Config) -> ApiResult<Arc<dyn Engine>>;

/// Runs the daemon until it is told to stop; says on stderr why it could not.
#[must_use]
pub fn main(args: &Args, open_engine: OpenEngine) -> ExitCode {
    match run(args, open_engine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            error.exit_code()
        }
    }
}

fn run(args: &Args, open_engine: OpenEngine) -> Result<(), DaemonError> {
    let config = configuration(args)?;
    logs::start(&config.log_level, args.log_format)?;
    let notifier = Notifier::from_env();
    let lock = StateLock::take(&config.state_dir)?;
    let mut socket = ApiSocket::bind(&config)?;
    let runtime = runtime()?;
    let mut signals = {
        let _context = runtime.enter();
        Signals::catch()?
    };

    notifier.status("opening what is kept");
    let engine = open_engine(&config).map_err(DaemonError::Engine)?;
    let served = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut serving = std::pin::pin!(serve(&mut socket, Arc::clone(&engine), stopped.clone())?);
        if let Some(address) = config.metrics.listen {
            tokio::spawn(metrics::serve(address, Arc::clone(&engine), stopped));
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), socket = %config.socket.display(),
            state_dir = %config.state_dir.display(), "serving"
        );
        notifier.ready("serving");
        let leave = loop {
            let signal = tokio::select! {
                ended = &mut serving => return ended.map(|()| Leave::Stop),
                signal = signals.next() => signal,
            };
            tracing::info!(signal = signal.name, "stopping");
            match signal.leave {
                Leave::Stop => notifier.stopping(),
                // What would keep the successor from starting is found out while this one still serves.
                Leave::Reload => match configuration(args) {
                    Ok(_) => notifier.reloading(),
                    Err(error) => {
                        tracing::error!(%error, "not reloaded; everything goes on as it was");
                        continue;
                    }
                },
            }
            break signal.leave;
        };
        let _ = stop.send(true);
        tokio::select! {
            ended = &mut serving => ended.map(|()| leave),
            () = tokio::time::sleep(CALLS_DEADLINE) => {
                tracing::warn!("calls in flight did not end in time; their clients are cut off");
                Ok(leave)
            }
            signal = signals.next() => {
                tracing::warn!(signal = signal.name, "second signal: not waiting for calls in flight");
                Ok(leave)
            }
        }
    });
    let reload = matches!(served, Ok(Leave::Reload));
    let left = leave_engine(engine, reload);
    drop(socket);
    runtime.shutdown_background();
    served?;
    left?;
    if reload {
        drop(lock);
        return Err(execute_anew());
    }
    tracing::info!("stopped");
    Ok(())
}

/// How the daemon leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// For good, everything put down.
    Stop,
    /// For a successor that goes on with what is captured.
    Reload,
}

/// Becomes the program as it is installed now, with the same arguments; returns only if that fails.
fn execute_anew() -> DaemonError {
    use std::os::unix::process::CommandExt as _;
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let source = match crate::guard::program() {
        Ok(program) => std::process::Command::new(program)
            .arg0(called)
            .args(arguments)
            .exec(),
        Err(error) => error,
    };
    DaemonError::System {
        what: "execute the daemon anew",
        source,
    }
}

/// Loads the configuration and puts the command line's paths into it.
fn configuration(args: &Args) -> Result<Config, DaemonError> {
    let mut config = Config::load(args.config.as_deref())?;
    let absolute = |path: &std::path::Path| {
        std::path::absolute(path).map_err(|source| DaemonError::System {
            what: "find the current directory",
            source,
        })
    };
    if let Some(dir) = &args.state_dir {
        config.state_dir = absolute(dir)?;
    }
    if let Some(path) = &args.socket {
        config.socket = absolute(path)?;
    }
    Ok(config)
}

fn runtime() -> Result<Runtime, DaemonError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("api")
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System {
            what: "start the API's threads",
            source,
        })
}

/// Serves `engine` on `socket` until `stop` changes and the calls in flight have ended.
///
/// Must be called inside a runtime with IO and time.
///
/// # Errors
/// The socket is already being served, or (in the future) the server failed.
pub fn serve(
    socket: &mut ApiSocket,
    engine: Arc<dyn Engine>,
    mut stop: watch::Receiver<bool>,
) -> Result<impl Future<Output = Result<(), DaemonError>> + Send + 'static, DaemonError> {
    let incoming = socket.accept(stop.clone())?;
    let server =
        VirtCdpServer::new(Service::new(engine)).max_decoding_message_size(REQUEST_BYTES_MAX);
    let server = tonic::service::interceptor::InterceptedService::new(server, Guard);
    Ok(async move {
        let stopped = async move {
            let _ = stop.changed().await;
        };
        Server::builder()
            .serve_with_incoming_shutdown(server, incoming, stopped)
            .await
            .map_err(|source| DaemonError::Serve { source })
    })
}

/// Lets the engine put everything down, or leave it to a successor, within its deadline.
fn leave_engine(engine: Arc<dyn Engine>, reload: bool) -> Result<(), DaemonError> {
    let (done, wait) = std::sync::mpsc::channel();
    let stopper = std::thread::Builder::new()
        .name("stop".into())
        .spawn(move || {
            if reload {
                engine.hand_over();
            } else {
                engine.shutdown();
            }
            // The connections it holds end before a successor makes its own.
            drop(engine);
            let _ = done.send(());
        });
    stopper.map_err(|source| DaemonError::System {
        what: "start the stopping thread",
        source,
    })?;
    match wait.recv_timeout(STOP_DEADLINE) {
        // Disconnected: it panicked; the log has the place, and recovery does the rest.
        Ok(()) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Ok(()),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(DaemonError::StopOverdue {
            seconds: STOP_DEADLINE.as_secs(),
        }),
    }
}

/// The signals that have the daemon leave.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// A signal that was caught.
struct Caught {
    name: &'static str,
    leave: Leave,
}

impl Signals {
    fn catch() -> Result<Self, DaemonError> {
        let catch = |kind| {
            signal(kind).map_err(|source| DaemonError::System {
                what: "catch signals",
                source,
            })
        };
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Caught {
        let (name, leave) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", Leave::Stop),
            _ = self.interrupt.recv() => ("SIGINT", Leave::Stop),
            _ = self.hangup.recv() => ("SIGHUP", Leave::Reload),
        };
        Caught { name, leave }
    }
}
