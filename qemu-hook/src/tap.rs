//! The capture end: QEMU's mirror writes to us through QEMU's own NBD client.
//!
//! QEMU holds one end of a socketpair, we hold the other, and there is no socket anyone else could
//! connect to. On our end stands an NBD server with one writable export. What QEMU has sent is read ahead; request
//! by request the sink takes (and thereby numbers) the writes. A small payload is copied from the read-ahead, a
//! large one is read from the socket straight into the sink's memory. Then QEMU is answered: at once,
//! or when the sink says that the write is kept, several requests in one go where several were waiting.
//!
//! Invariant: no write is answered before the sink took it and its ack is due, and none that the sink
//! did not take. Requests are answered in the order in which they came. Whatever goes wrong, the socket is closed: QEMU's mirror fails,
//! the guest goes on and never sees it.
//!
//! A tap can be parked: it answers what it has read and stops between two requests with its socket
//! open, so that another process goes on with it ([`resume_tap`]) and QEMU sees nothing of that.
//!
//! A crash of ours closes the socket too. Writes that were taken but not answered are in the
//! guest's hands then: it may or may not see them as done, as after a power cut.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::nbd::handshake::{Catalogue, Offer, negotiate};
use crate::nbd::{NbdError, bounds, flag};
use crate::sink::{SinkClosed, WriteSink};

mod bypass;
mod intake;
mod latency;
mod replies;
mod requests;
mod stats;

pub use bypass::{Bypass, QUEUE_MAX, hang_up, hang_up_into};
pub use latency::{LATENCY_BOUNDS_US, LatencyCounts};
pub use stats::{TapCounts, TapStats};

use requests::Requests;

/// How often a tap with nothing to read looks whether it is to be parked.
const PARK_LOOK: Duration = Duration::from_millis(100);

/// What a tap offers to QEMU.
#[derive(Debug, Clone)]
pub struct TapConfig {
    /// Name of the export; any UTF-8, at most 4096 bytes. QEMU may also ask for the empty name.
    pub name: String,
    /// Size of the volume in bytes.
    pub size: u64,
    /// How long after the start of the tap QEMU's handshake must be over.
    pub handshake_deadline: Duration,
}

impl TapConfig {
    /// Makes the configuration for a volume of `size` bytes, with the usual deadline.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            size,
            handshake_deadline: bounds::HANDSHAKE_DEADLINE,
        }
    }
}

/// Why a tap ended. In every case but the last the socket is closed and QEMU's mirror ends.
#[derive(Debug)]
pub enum TapEnd {
    /// QEMU hung up or said goodbye, or [`TapHandle::close`] was called.
    Disconnected,
    /// The keeper of the data takes no more writes; the last one was not answered.
    SinkClosed(SinkClosed),
    /// QEMU sent what it must not send, or its handshake was not over in time.
    Protocol(NbdError),
    /// The socket failed.
    Io(io::Error),
    /// A reply was owed for longer than the bypass deadline.
    Overdue,
    /// [`TapHandle::park`] was called: the socket is open, between two requests.
    Parked,
}

impl From<NbdError> for TapEnd {
    fn from(error: NbdError) -> Self {
        match error {
            NbdError::Io { source, .. } => source.into(),
            other => Self::Protocol(other),
        }
    }
}

impl From<io::Error> for TapEnd {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The peer is gone, in the middle of something or before it read our reply.
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Disconnected,
            _ => Self::Io(error),
        }
    }
}

impl From<SinkClosed> for TapEnd {
    fn from(closed: SinkClosed) -> Self {
        Self::SinkClosed(closed)
    }
}

/// A tap that runs in a thread of its own. Dropping the handle leaves it running.
pub struct TapHandle {
    control: Arc<Control>,
    thread: JoinHandle<TapEnd>,
}

/// What a tap's thread, its handle and the bypass share.
#[derive(Debug)]
struct Control {
    stream: UnixStream,
    stats: Arc<TapStats>,
    overdue: AtomicBool,
    park: AtomicBool,
}

impl Control {
    fn new(stream: UnixStream) -> Arc<Self> {
        Arc::new(Self {
            stream,
            stats: Arc::new(TapStats::new()),
            overdue: AtomicBool::new(false),
            park: AtomicBool::new(false),
        })
    }

    fn is_to_park(&self) -> bool {
        self.park.load(Ordering::Relaxed)
    }
}

impl TapHandle {
    /// Ends the tap at once, from any thread, also while the sink keeps it waiting.
    ///
    /// QEMU sees the end of the connection immediately; requests it still waits for fail there.
    pub fn close(&self) {
        hang_up(&self.control.stream);
    }

    /// Has the tap answer what it has read and then stop, its socket open: see [`TapEnd::Parked`].
    ///
    /// Does not wait for that; a tap that ends otherwise meanwhile ends otherwise.
    pub fn park(&self) {
        self.control.park.store(true, Ordering::Relaxed);
    }

    /// Tells whether the tap has ended, or was closed for being overdue while its sink is still stuck.
    pub fn is_ended(&self) -> bool {
        self.thread.is_finished() || self.is_overdue()
    }

    /// Tells whether the tap has ended or is about to, because its connection was closed, from whatever side.
    pub fn is_closed(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.control.stream, PollFlags::RDHUP)];
        self.is_ended() || matches!(poll(&mut fds, Some(&at_once)), Ok(1..))
    }

    /// Tells whether the bypass has closed the tap.
    pub fn is_overdue(&self) -> bool {
        self.control.overdue.load(Ordering::SeqCst)
    }

    /// The tap's counters.
    pub fn stats(&self) -> &Arc<TapStats> {
        &self.control.stats
    }

    /// Waits for the tap to end and tells why. Does not end it: see [`close`](Self::close).
    pub fn join(self) -> TapEnd {
        let panicked = |_| TapEnd::Io(io::Error::other("the tap's thread panicked"));
        self.thread.join().unwrap_or_else(panicked)
    }
}

impl AsFd for TapHandle {
    /// The tap's socket, for a guard that is to hold another descriptor of it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.stream.as_fd()
    }
}

/// Serves QEMU in a thread named `tap-<name>`.
///
/// # Errors
/// [`NbdError::BadExport`]: the name or the size cannot be offered; [`NbdError::Thread`]: there is
/// no thread or no descriptor for it.
pub fn spawn_tap<S: WriteSink>(
    stream: UnixStream,
    config: TapConfig,
    sink: S,
) -> Result<TapHandle, NbdError> {
    spawn(stream, config, sink, Begin::Handshake)
}

/// As [`spawn_tap`], on the socket of a tap that was parked: QEMU is past the handshake.
///
/// # Errors
/// As [`spawn_tap`].
pub fn resume_tap<S: WriteSink>(
    stream: UnixStream,
    config: TapConfig,
    sink: S,
) -> Result<TapHandle, NbdError> {
    spawn(stream, config, sink, Begin::Requests)
}

/// Where a tap begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    Handshake,
    Requests,
}

fn spawn<S: WriteSink>(
    stream: UnixStream,
    config: TapConfig,
    sink: S,
    begin: Begin,
) -> Result<TapHandle, NbdError> {
    let reason = if config.name.len() > bounds::NAME_MAX {
        Some("the name is longer than 4096 bytes")
    } else if i64::try_from(config.size).is_err() {
        Some("the volume is larger than 2^63 - 1 bytes")
    } else {
        None
    };
    if let Some(reason) = reason {
        let name = config.name;
        return Err(NbdError::BadExport { name, reason });
    }
    let thread_error = |source| NbdError::Thread { source };
    let control = Control::new(stream.try_clone().map_err(thread_error)?);
    let theirs = Arc::clone(&control);
    let thread = std::thread::Builder::new()
        .name(format!("tap-{}", config.name.replace('\0', "_")))
        .spawn(move || serve(stream, &config, sink, &theirs, begin))
        .map_err(thread_error)?;
    Ok(TapHandle { control, thread })
}

/// Serves QEMU's writes into `sink` until the tap ends; the socket is closed then.
fn serve<S: WriteSink>(
    mut stream: UnixStream,
    config: &TapConfig,
    sink: S,
    control: &Arc<Control>,
    begin: Begin,
) -> TapEnd {
    let agreed = match begin {
        Begin::Requests => Ok(true),
        Begin::Handshake => negotiate(
            &mut stream,
            config,
            Instant::now() + config.handshake_deadline,
        )
        .map(|agreed| agreed.is_some()),
    };
    let end = match agreed {
        Ok(true) => {
            control.stats.set_connected();
            Requests::new(&stream, config.size, sink, control).run()
        }
        Ok(false) => TapEnd::Disconnected,
        Err(error) => error.into(),
    };
    control.stats.settle();
    if matches!(end, TapEnd::Parked) {
        return end;
    }
    // Another descriptor of this socket may be open (the handle's, a guard's): dropping ours is not enough.
    hang_up(&stream);
    if control.overdue.load(Ordering::SeqCst) {
        return TapEnd::Overdue;
    }
    end
}

impl Catalogue for TapConfig {
    fn list(&self) -> Vec<(&str, &str)> {
        vec![(&self.name, "")]
    }

    fn offer(&self, name: &str) -> Option<Offer> {
        (name == self.name || name.is_empty()).then(|| Offer {
            name: self.name.clone(),
            description: String::new(),
            size: self.size,
            flags: flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_WRITE_ZEROES,
            allocation: false,
        })
    }

    /// Only reads and block status need them, and a tap has neither.
    fn has_structured_replies(&self) -> bool {
        false
    }
}
