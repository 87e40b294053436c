//! A plain QMP socket: QEMU or qemu-storage-daemon without libvirt in between.
//!
//! One thread reads everything QEMU says. Answers go to the command that waits for them (QMP
//! answers in order, every command carries an id all the same); events go to whoever subscribed,
//! known to us or not. When the socket ends, every waiting and every later command is
//! [`MonitorError::Lost`]; the caller connects anew.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, IoSlice, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use serde_json::{Value, json};

use crate::monitor::{Monitor, MonitorError};

/// How long QEMU may take for one answer; draining commands wait for the guest's writes.
const REPLY_DEADLINE: Duration = Duration::from_secs(30);
/// How long the greeting may take: a QMP socket that serves somebody else never greets.
const GREETING_DEADLINE: Duration = Duration::from_secs(5);
/// The longest line that is read from QEMU, bytes.
const LINE_MAX: u64 = 64 << 20;

/// A connection to a QMP socket, with capabilities negotiated.
pub struct QmpSocket {
    shared: Arc<Shared>,
    writer: Mutex<Writer>,
}

struct Writer {
    stream: UnixStream,
    next_id: u64,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    subscribers: Mutex<Vec<mpsc::Sender<Value>>>,
}

#[derive(Default)]
struct Waiting {
    replies: HashMap<u64, mpsc::Sender<Value>>,
    lost: Option<String>,
}

impl QmpSocket {
    /// Connects to the QMP socket at `path` and negotiates capabilities.
    ///
    /// # Errors
    /// [`MonitorError::Lost`] when nothing listens there, or somebody else holds the socket (QMP
    /// sockets serve one client at a time); [`MonitorError::Malformed`] when it is not QMP.
    pub fn connect(path: &Path) -> Result<Self, MonitorError> {
        let name = path.display().to_string();
        let stream = UnixStream::connect(path)
            .map_err(|e: io::Error| lost("connect", &format!("{name}: {e}")))?;
        Self::over(stream, &name)
    }

    /// Negotiates capabilities over a socket that is connected; `name` is for messages.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn over(stream: UnixStream, name: &str) -> Result<Self, MonitorError> {
        let lost = |e: io::Error| lost("connect", &format!("{name}: {e}"));
        stream
            .set_read_timeout(Some(GREETING_DEADLINE))
            .map_err(lost)?;
        let mut reader = BufReader::new(stream.try_clone().map_err(lost)?);
        let mut greeting = String::new();
        match io::Read::take(&mut reader, 64 << 10).read_line(&mut greeting) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(self::lost(
                    "connect",
                    &format!(
                        "{name}: no greeting within {} s (a QMP socket serves one client at a time: is somebody else connected?)",
                        GREETING_DEADLINE.as_secs()
                    ),
                ));
            }
            Err(e) => return Err(lost(e)),
        }
        let hello: Value = serde_json::from_str(&greeting).unwrap_or(Value::Null);
        if hello.get("QMP").is_none() {
            return Err(MonitorError::Malformed {
                command: "connect".into(),
                reason: format!("{name} does not greet as QMP"),
            });
        }
        stream.set_read_timeout(None).map_err(lost)?;
        let shared = Arc::new(Shared::default());
        let for_reader = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || for_reader.read_all(reader))
            .map_err(lost)?;
        let socket = Self {
            shared,
            writer: Mutex::new(Writer { stream, next_id: 1 }),
        };
        socket.execute("qmp_capabilities", Value::Null)?;
        Ok(socket)
    }

    /// Returns a receiver of all events from now on, each the whole JSON object QEMU sent.
    pub fn events(&self) -> mpsc::Receiver<Value> {
        let (tx, rx) = mpsc::channel();
        guard(&self.shared.subscribers).push(tx);
        rx
    }

    /// True once QEMU has closed the connection.
    pub fn is_lost(&self) -> bool {
        guard(&self.shared.waiting).lost.is_some()
    }

    fn call(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, MonitorError> {
        let (tx, rx) = mpsc::channel();
        {
            let mut writer = guard(&self.writer);
            let id = writer.next_id;
            writer.next_id += 1;
            let mut waiting = guard(&self.shared.waiting);
            if let Some(reason) = &waiting.lost {
                return Err(lost(command, reason));
            }
            waiting.replies.insert(id, tx);
            drop(waiting);
            let mut message = json!({"execute": command, "id": id});
            if !arguments.is_null() {
                message["arguments"] = arguments;
            }
            let mut line = message.to_string();
            line.push('\n');
            send(&mut writer.stream, line.as_bytes(), fd)
                .map_err(|e| lost(command, &e.to_string()))?;
        }
        let reply = rx.recv_timeout(REPLY_DEADLINE).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => lost(
                command,
                &format!("no answer within {} s", REPLY_DEADLINE.as_secs()),
            ),
            mpsc::RecvTimeoutError::Disconnected => {
                let waiting = guard(&self.shared.waiting);
                lost(command, waiting.lost.as_deref().unwrap_or("closed"))
            }
        })?;
        unwrap_reply(command, reply)
    }
}

impl Drop for QmpSocket {
    fn drop(&mut self) {
        let _ = guard(&self.writer).stream.shutdown(Shutdown::Both);
    }
}

impl Monitor for QmpSocket {
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        self.call(command, arguments, None)
    }

    fn send_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), MonitorError> {
        self.call("getfd", json!({"fdname": name}), Some(fd))
            .map(|_| ())
    }
}

impl Shared {
    fn read_all(&self, mut reader: BufReader<UnixStream>) {
        let reason = loop {
            let mut line = String::new();
            match io::Read::take(&mut reader, LINE_MAX).read_line(&mut line) {
                Ok(0) => break "QEMU closed the monitor".to_owned(),
                Ok(_) => match serde_json::from_str(&line) {
                    Ok(message) => self.dispatch(message),
                    Err(e) => break format!("not JSON: {e}"),
                },
                Err(e) => break e.to_string(),
            }
        };
        let mut waiting = guard(&self.waiting);
        waiting.lost = Some(reason);
        waiting.replies.clear();
        drop(waiting);
        guard(&self.subscribers).clear();
    }

    fn dispatch(&self, message: Value) {
        if message.get("event").is_some() {
            guard(&self.subscribers).retain(|s| s.send(message.clone()).is_ok());
            return;
        }
        let Some(id) = message.get("id").and_then(Value::as_u64) else {
            return;
        };
        if let Some(waiter) = guard(&self.waiting).replies.remove(&id) {
            let _ = waiter.send(message);
        }
    }
}

/// Turns a QMP reply object into the value of `return`, or QEMU's error.
///
/// # Errors
/// [`MonitorError::Refused`] for an `error` member, [`MonitorError::Malformed`] for neither.
pub fn unwrap_reply(command: &str, mut reply: Value) -> Result<Value, MonitorError> {
    if let Some(error) = reply.get("error") {
        let text = |key| {
            error
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        return Err(MonitorError::Refused {
            command: command.to_owned(),
            class: text("class"),
            desc: text("desc"),
        });
    }
    match reply.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(MonitorError::Malformed {
            command: command.to_owned(),
            reason: "neither `return` nor `error` in the reply".into(),
        }),
    }
}

fn send(stream: &mut UnixStream, line: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(fd) = fd else {
        return stream.write_all(line);
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for the descriptor"));
    }
    let sent = rustix::net::sendmsg(
        stream.as_fd(),
        &[IoSlice::new(line)],
        &mut control,
        rustix::net::SendFlags::NOSIGNAL,
    )?;
    stream.write_all(line.get(sent..).unwrap_or_default())
}

fn lost(command: &str, reason: &str) -> MonitorError {
    MonitorError::Lost {
        command: command.to_owned(),
        reason: reason.to_owned(),
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
