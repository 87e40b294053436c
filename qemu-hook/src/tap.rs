//! The capture end: QEMU's mirror writes to us through QEMU's own NBD client.
//!
//! QEMU holds one end of a socketpair, we hold the other, and there is no socket anyone else could
//! connect to. On our end stands an NBD server with one writable export. A request is taken in three
//! steps: its 28-byte head is read; a write's payload is read from the socket straight into the
//! sink's memory; the sink takes (and thereby numbers) the write. Then QEMU is answered.
//!
//! Invariant: no write is answered before the sink took it, and no write is answered that the sink
//! did not take. Whatever goes wrong, the socket is closed: QEMU's mirror ends with an error,
//! the guest goes on and never sees it.
//!
//! A tap can be parked: it answers what it has read and stops between two requests with its socket
//! open, so that another process goes on with it ([`resume_tap`]) and QEMU sees nothing of that.
//!
//! A crash of ours closes the socket too. Writes that were taken but not answered are in the
//! guest's hands then: it may or may not see them as done, as after a power cut.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::nbd::handshake::{Catalogue, Offer, negotiate};
use crate::nbd::stream::Stream;
use crate::nbd::{NbdError, Request, SimpleReply, bounds, cmd, errno, flag};
use crate::sink::{SinkClosed, WriteSink};

mod bypass;
mod stats;

pub use bypass::{Bypass, hang_up};
pub use stats::TapStats;

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
    control: &Control,
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
            let mut tap = Tap {
                stream: &mut stream,
                size: config.size,
                sink,
                control,
                told_of_reads: false,
            };
            tap.run()
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

struct Tap<'a, S> {
    stream: &'a mut UnixStream,
    size: u64,
    sink: S,
    control: &'a Control,
    told_of_reads: bool,
}

impl<S: WriteSink> Tap<'_, S> {
    fn run(&mut self) -> TapEnd {
        if let Err(error) = self.stream.set_timeouts(None).and_then(|()| {
            // So that a tap with nothing to do can be parked.
            self.stream.set_read_timeout(Some(PARK_LOOK))
        }) {
            return error.into();
        }
        loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return TapEnd::Disconnected,
                Err(end) => return end,
            }
            if self.control.is_to_park() {
                return TapEnd::Parked;
            }
        }
    }

    /// Takes one request and answers it; false when QEMU has left.
    fn step(&mut self) -> Result<bool, TapEnd> {
        let stats = &self.control.stats;
        let mut head = [0; Request::SIZE];
        let mut first = 0;
        while first == 0 {
            first = match self.stream.read(&mut head) {
                Ok(0) => return Ok(false),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.control.is_to_park() {
                        return Err(TapEnd::Parked);
                    }
                    0
                }
                Err(error) => return Err(error.into()),
            };
        }
        fill(self.stream, head.get_mut(first..).unwrap_or_default())?;
        stats.consume(Request::SIZE as u64);
        let request = Request::decode(&head)?;
        if request.command != cmd::WRITE {
            stats.receive();
        }
        let error = match request.command {
            cmd::WRITE => self.write(&request)?,
            cmd::WRITE_ZEROES => self.zero(&request)?,
            cmd::FLUSH => {
                stats.count_flush();
                0
            }
            cmd::DISC => {
                self.control.stats.say_goodbye();
                return Ok(false);
            }
            cmd::READ => self.refuse_read(&request),
            other => {
                tracing::warn!(command = other, "QEMU sent the tap a command it cannot do");
                errno::EINVAL
            }
        };
        let cookie = request.cookie;
        self.stream
            .write_all(&SimpleReply { error, cookie }.encode())?;
        self.control.stats.settle();
        Ok(true)
    }

    fn write(&mut self, request: &Request) -> Result<u32, TapEnd> {
        if request.len > bounds::REQUEST_MAX {
            return Err(bad("a write larger than the block size agreed on", request));
        }
        self.check(request, cmd::FLAG_FUA)?;
        if request.len == 0 {
            return Ok(0);
        }
        let len = request.len as usize;
        let mut buffer = self.sink.buffer(len)?;
        let memory = buffer.as_mut();
        if memory.len() != len {
            let reason = format!("{} bytes of memory for {len}", memory.len());
            return Err(SinkClosed(reason).into());
        }
        fill(self.stream, memory)?;
        self.control.stats.consume(u64::from(request.len));
        self.control.stats.receive();
        self.sink.write(request.offset, buffer)?;
        self.control.stats.count_write(u64::from(request.len));
        Ok(0)
    }

    fn zero(&mut self, request: &Request) -> Result<u32, TapEnd> {
        self.check(request, cmd::FLAG_FUA | cmd::FLAG_NO_HOLE)?;
        let len = u64::from(request.len);
        if len > 0 {
            self.sink.zero(request.offset, len)?;
            self.control.stats.count_zero(len);
        }
        Ok(0)
    }

    /// A write that leaves the volume, or with flags we did not offer, cannot be what QEMU means.
    fn check(&self, request: &Request, flags: u16) -> Result<(), TapEnd> {
        if !request.is_within(self.size) {
            return Err(bad("a write beyond the end of the volume", request));
        }
        if request.flags & !flags != 0 {
            return Err(bad("a write with unknown flags", request));
        }
        Ok(())
    }

    /// A mirror does not read its target; there is nothing here to read.
    fn refuse_read(&mut self, request: &Request) -> u32 {
        if !self.told_of_reads {
            self.told_of_reads = true;
            let (offset, len) = (request.offset, request.len);
            tracing::warn!(offset, len, "something reads from a tap; it is refused");
        }
        errno::ENOTSUP
    }
}

/// Fills `buf`, however long QEMU takes for it.
fn fill(stream: &mut UnixStream, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match stream.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => buf = buf.get_mut(got..).unwrap_or_default(),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn bad(what: &str, request: &Request) -> TapEnd {
    let found = format!(
        "{what}: {} bytes at byte {}, flags {:#x}",
        request.len, request.offset, request.flags
    );
    TapEnd::Protocol(NbdError::protocol("taking a write", found))
}
