//! The tap's thread: takes request after request, and has them answered.
//!
//! Invariant: replies that may be sent are sent before the thread waits for anything. A tap is parked only between two
//! requests, with nothing read ahead and every reply sent.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::intake::{Got, Intake};
use super::replies::Replies;
use super::{Control, PARK_LOOK, TapEnd};
use crate::nbd::stream::Stream;
use crate::nbd::{NbdError, Request, SimpleReply, bounds, cmd, errno};
use crate::sink::{Ack, SinkClosed, WriteSink};

/// How often a tap that is to be parked looks whether the last reply is sent.
const REPLY_LOOK: Duration = Duration::from_millis(2);

/// The requests of one tap.
pub(super) struct Requests<'a, S> {
    stream: &'a UnixStream,
    size: u64,
    sink: S,
    control: &'a Control,
    intake: Intake<'a>,
    replies: Arc<Replies>,
    /// Bytes of all requests so far that were looked at as a whole.
    through: u64,
    told_of_reads: bool,
}

impl<'a, S: WriteSink> Requests<'a, S> {
    pub(super) fn new(
        stream: &'a UnixStream,
        size: u64,
        sink: S,
        control: &'a Arc<Control>,
    ) -> Requests<'a, S> {
        let replies = Arc::new(Replies::new(control));
        let theirs = Arc::downgrade(&replies);
        sink.on_kept(Box::new(move |number| {
            let replies = Weak::upgrade(&theirs);
            replies.inspect(|replies| replies.kept(number)).is_some()
        }));
        Requests {
            stream,
            size,
            sink,
            control,
            intake: Intake::new(stream, &control.stats),
            replies,
            through: 0,
            told_of_reads: false,
        }
    }

    pub(super) fn run(&mut self) -> TapEnd {
        if let Err(error) = self.stream.set_timeouts(None).and_then(|()| {
            // So that a tap with nothing to do can be parked.
            self.stream.set_read_timeout(Some(PARK_LOOK))
        }) {
            return error.into();
        }
        let end = loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => break TapEnd::Disconnected,
                Err(end) => break end,
            }
        };
        // What was taken is answered, however the tap ends.
        let _ = self.replies.flush();
        end
    }

    /// Takes one request; false when QEMU has left.
    fn step(&mut self) -> Result<bool, TapEnd> {
        if self.control.is_to_park() && self.intake.len() == 0 {
            return self.answer_all().map_or_else(Err, |()| Err(TapEnd::Parked));
        }
        if !self.need(Request::SIZE)? {
            return Ok(false);
        }
        let mut head = [0; Request::SIZE];
        head.copy_from_slice(self.intake.peek(Request::SIZE).unwrap_or_default());
        self.intake.advance(Request::SIZE);
        let request = Request::decode(&head)?;
        // Before its payload is read, which brings the next one.
        let received = self.intake.received();
        self.through += Request::SIZE as u64;
        if request.command != cmd::WRITE {
            self.control.stats.receive(self.through);
        }
        let (error, ack) = match request.command {
            cmd::WRITE => self.write(&request)?,
            cmd::WRITE_ZEROES => self.zero(&request)?,
            cmd::FLUSH => {
                self.control.stats.count_flush();
                (0, Ack::Now)
            }
            cmd::DISC => {
                self.control.stats.say_goodbye();
                self.answer_all()?;
                return Ok(false);
            }
            cmd::READ => (self.refuse_read(&request), Ack::Now),
            // What QEMU means by it is not known: a mirror that was refused something is not to be trusted.
            _ => return Err(bad("a command the tap cannot do", &request)),
        };
        let is_write = matches!(request.command, cmd::WRITE | cmd::WRITE_ZEROES);
        let cookie = request.cookie;
        self.replies.add(
            &SimpleReply { error, cookie },
            ack,
            self.through,
            is_write.then_some(received),
        );
        Ok(true)
    }

    /// Has `wanted` bytes of a request read ahead; false when QEMU has left before the first of a head.
    fn need(&mut self, wanted: usize) -> Result<bool, TapEnd> {
        while self.intake.len() < wanted {
            self.replies.flush()?;
            let at_boundary = wanted == Request::SIZE && self.intake.len() == 0;
            match self.intake.read(wanted, self.control.is_to_park())? {
                Got::Some => {}
                Got::Nothing if at_boundary && self.control.is_to_park() => {
                    return self.answer_all().map_or_else(Err, |()| Err(TapEnd::Parked));
                }
                Got::Nothing => {}
                Got::End if at_boundary => return Ok(false),
                Got::End => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            }
        }
        Ok(true)
    }

    /// Waits until every reply is sent, however long the sink takes with what it has.
    fn answer_all(&self) -> Result<(), TapEnd> {
        self.replies.flush()?;
        while self.replies.are_owed() {
            if self
                .control
                .overdue
                .load(std::sync::atomic::Ordering::SeqCst)
            {
                return Err(TapEnd::Overdue);
            }
            if self.replies.have_ended() {
                return Err(TapEnd::Disconnected);
            }
            thread::sleep(REPLY_LOOK);
        }
        Ok(())
    }

    fn write(&mut self, request: &Request) -> Result<(u32, Ack), TapEnd> {
        if request.len > bounds::REQUEST_MAX {
            return Err(bad("a write larger than the block size agreed on", request));
        }
        self.check(request, cmd::FLAG_FUA)?;
        let len = request.len as usize;
        self.through += u64::from(request.len);
        if len == 0 {
            self.control.stats.receive(self.through);
            return Ok((0, Ack::Now));
        }
        let ack = if len < S::COPY_BELOW.min(bounds::READ_AHEAD) {
            self.write_small(request.offset, len)?
        } else {
            self.write_large(request.offset, len)?
        };
        self.control.stats.count_write(u64::from(request.len));
        Ok((0, ack))
    }

    fn write_small(&mut self, offset: u64, len: usize) -> Result<Ack, TapEnd> {
        self.intake.expect_small();
        self.need(len)?;
        self.control.stats.receive(self.through);
        if !self.sink.has_room(len) {
            self.replies.flush()?;
        }
        let data = self.intake.peek(len).unwrap_or_default();
        let ack = self.sink.write_copy(offset, data)?;
        self.intake.advance(len);
        Ok(ack)
    }

    fn write_large(&mut self, offset: u64, len: usize) -> Result<Ack, TapEnd> {
        self.replies.flush()?;
        let mut buffer = self.sink.buffer(len)?;
        let memory = buffer.as_mut();
        if memory.len() != len {
            let reason = format!("{} bytes of memory for {len}", memory.len());
            return Err(SinkClosed(reason).into());
        }
        self.intake.fill(memory, self.control.is_to_park())?;
        self.control.stats.receive(self.through);
        Ok(self.sink.write(offset, buffer)?)
    }

    fn zero(&mut self, request: &Request) -> Result<(u32, Ack), TapEnd> {
        self.check(request, cmd::FLAG_FUA | cmd::FLAG_NO_HOLE)?;
        let len = u64::from(request.len);
        if len == 0 {
            return Ok((0, Ack::Now));
        }
        if !self.sink.has_room(0) {
            self.replies.flush()?;
        }
        let ack = self.sink.zero(request.offset, len)?;
        self.control.stats.count_zero(len);
        Ok((0, ack))
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

fn bad(what: &str, request: &Request) -> TapEnd {
    let found = format!(
        "{what}: {} bytes at byte {}, flags {:#x}",
        request.len, request.offset, request.flags
    );
    TapEnd::Protocol(NbdError::protocol("taking a write", found))
}
