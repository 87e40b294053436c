//! A small NBD client of the tests' own, so that what is tested does not test itself.
//!
//! Writes with many requests in flight and notes when each was sent and acknowledged; reads whole exports.
//! Old-style option (EXPORT_NAME) and simple replies only.

use std::{
    collections::HashMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::now_ns;

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const WRITE_ZEROES: u16 = 6;
/// How long the last replies may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects to export `name`; returns the connection and the export's size in bytes.
pub fn connect(socket: &Path, name: &str) -> (UnixStream, u64) {
    let mut stream =
        UnixStream::connect(socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream
        .write_all(&3u32.to_be_bytes())
        .expect("client flags: fixed newstyle, no zeroes");
    let mut option = b"IHAVEOPT".to_vec();
    option.extend(1u32.to_be_bytes());
    option.extend((name.len() as u32).to_be_bytes());
    option.extend(name.as_bytes());
    stream.write_all(&option).expect("the option");
    let mut export = [0; 10];
    stream
        .read_exact(&mut export)
        .expect("an export of that name");
    let size = u64::from_be_bytes(export[..8].try_into().expect("8 bytes"));
    (stream, size)
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend(REQUEST.to_be_bytes());
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn reply(stream: &mut UnixStream) -> std::io::Result<u64> {
    let mut head = [0; 16];
    stream.read_exact(&mut head)?;
    assert_eq!(head[..4], SIMPLE_REPLY.to_be_bytes(), "a simple reply");
    assert_eq!(head[4..8], [0; 4], "no error");
    Ok(u64::from_be_bytes(head[8..].try_into().expect("8 bytes")))
}

/// Reads a whole export.
pub fn read_all(socket: &Path, name: &str) -> Vec<u8> {
    let (mut stream, size) = connect(socket, name);
    let mut data = vec![0; size as usize];
    for (number, chunk) in data.chunks_mut(4 << 20).enumerate() {
        let offset = (number * (4 << 20)) as u64;
        stream
            .write_all(&request(READ, 0, offset, chunk.len() as u32))
            .expect("a request");
        reply(&mut stream).expect("a reply");
        stream.read_exact(chunk).expect("the data");
    }
    let _ = stream.write_all(&request(DISCONNECT, 0, 0, 0));
    data
}

/// A write as its client saw it.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// When it was about to be sent, ns since the epoch.
    pub submitted: i64,
    /// When its reply had come; `i64::MAX` if none came.
    pub acknowledged: i64,
}

/// Writes with a bounded number of requests in flight.
pub struct Writer {
    stream: UnixStream,
    state: Arc<State>,
    reader: Option<JoinHandle<()>>,
    depth: usize,
    next: u64,
}

#[derive(Default)]
struct State {
    in_flight: Mutex<HashMap<u64, Written>>,
    done: Mutex<Vec<(u64, Written)>>,
    answered: Condvar,
    closing: AtomicBool,
}

impl Writer {
    /// Connects to export `name`; `first` is the number of its first write.
    pub fn connect(socket: &Path, name: &str, depth: usize, first: u64) -> Self {
        let (stream, _) = connect(socket, name);
        let state = Arc::new(State::default());
        let (mut replies, shared) = (
            stream.try_clone().expect("a second handle"),
            Arc::clone(&state),
        );
        let reader = thread::spawn(move || {
            while let Ok(cookie) = reply(&mut replies) {
                let acknowledged = now_ns();
                let mut in_flight = shared.in_flight.lock().expect("no panic");
                let written = in_flight.remove(&cookie).expect("a request of that number");
                shared.done.lock().expect("no panic").push((
                    cookie,
                    Written {
                        acknowledged,
                        ..written
                    },
                ));
                shared.answered.notify_all();
            }
            assert!(shared.closing.load(Ordering::SeqCst), "the server hung up");
        });
        Self {
            stream,
            state,
            reader: Some(reader),
            depth,
            next: first,
        }
    }

    /// Sends a write once there is room for it; `fill` makes the payload from the write's number.
    pub fn write(&mut self, offset: u64, len: u64, fill: impl FnOnce(u64) -> Vec<u8>) {
        let payload = fill(self.next);
        self.send(WRITE, offset, len, &payload);
    }

    /// Sends zeroes without a payload, like [`write`](Self::write).
    pub fn zero(&mut self, offset: u64, len: u64) {
        self.send(WRITE_ZEROES, offset, len, &[]);
    }

    fn send(&mut self, command: u16, offset: u64, len: u64, payload: &[u8]) {
        let id = self.next;
        self.next += 1;
        let mut message = request(command, id, offset, len as u32);
        message.extend_from_slice(payload);
        let mut in_flight = self.state.in_flight.lock().expect("no panic");
        while in_flight.len() >= self.depth {
            in_flight = self.state.answered.wait(in_flight).expect("no panic");
        }
        in_flight.insert(
            id,
            Written {
                offset,
                len,
                submitted: now_ns(),
                acknowledged: i64::MAX,
            },
        );
        drop(in_flight);
        self.stream.write_all(&message).expect("the write is sent");
    }

    /// Waits for all replies, a minute at most; returns every write by number.
    pub fn finish(mut self) -> Vec<(u64, Written)> {
        let in_flight = self.state.in_flight.lock().expect("no panic");
        let answered = &self.state.answered;
        let waited =
            answered.wait_timeout_while(in_flight, PATIENCE, |in_flight| !in_flight.is_empty());
        let (in_flight, _) = waited.expect("no panic");
        assert!(in_flight.is_empty(), "never answered: {in_flight:?}");
        drop(in_flight);
        self.state.closing.store(true, Ordering::SeqCst);
        let _ = self.stream.write_all(&request(DISCONNECT, 0, 0, 0));
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("every reply was right");
        }
        std::mem::take(&mut *self.state.done.lock().expect("no panic"))
    }
}
