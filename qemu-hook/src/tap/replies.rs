//! The replies a tap owes: gathered while more requests wait, held back until a write is kept, sent in order.
//!
//! The tap's thread sends what may be sent when it has nothing else to do. What is held back is sent by
//! whoever tells the sink's word that more is kept; that thread must not wait, so a peer that does not take
//! its replies is hung up on.
//!
//! Invariant: replies leave in the order of the requests. A request counts as answered when its reply was sent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{Control, PARK_LOOK, hang_up};
use crate::nbd::SimpleReply;
use crate::sink::Ack;

/// The replies of one tap.
pub(super) struct Replies {
    control: Arc<Control>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Everything up to this number is kept.
    kept: u64,
    /// Nothing further will be kept, or the peer takes no reply.
    ended: bool,
    held: VecDeque<Held>,
    /// Replies to be sent now.
    ready: Vec<u8>,
    /// Bytes of requests that are answered when `ready` was sent.
    ready_through: u64,
    /// When the writes among them came, and how many at each moment.
    ready_received: Vec<(Instant, u64)>,
}

struct Held {
    reply: [u8; SimpleReply::SIZE],
    ack: Ack,
    through: u64,
    received: Option<Instant>,
}

impl Held {
    fn is_due(&self, kept: u64) -> bool {
        match self.ack {
            Ack::Now => true,
            Ack::Later(number) => number <= kept,
        }
    }
}

impl Replies {
    pub(super) fn new(control: &Arc<Control>) -> Replies {
        Replies {
            control: Arc::clone(control),
            state: Mutex::default(),
        }
    }

    /// Adds a reply to the request that ends with byte `through` of all that came; a write's wait is counted from when it
    /// was `received`.
    pub(super) fn add(
        &self,
        reply: &SimpleReply,
        ack: Ack,
        through: u64,
        received: Option<Instant>,
    ) {
        let held = Held {
            reply: reply.encode(),
            ack,
            through,
            received,
        };
        let mut state = self.lock();
        if state.held.is_empty() && held.is_due(state.kept) {
            state.release(held);
        } else {
            state.held.push_back(held);
            state.release_due();
            // The sink may have come to its end after it took this one.
            if state.ended && !state.held.is_empty() {
                hang_up(&self.control.stream);
            }
        }
    }

    /// Sends what may be sent, waiting for a peer that is slow to take it.
    ///
    /// # Errors
    /// The socket failed.
    pub(super) fn flush(&self) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            if state.ready.is_empty() || self.send(&mut state)? {
                return Ok(());
            }
            drop(state);
            let pause = Timespec::try_from(PARK_LOOK).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut socket = [PollFd::new(&self.control.stream, PollFlags::OUT)];
            match poll(&mut socket, Some(&pause)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Learns up to which number everything is kept, or that nothing further will be; sends what that allows.
    pub(super) fn kept(&self, number: Option<u64>) {
        let mut state = self.lock();
        match number {
            Some(number) => state.kept = state.kept.max(number),
            None => state.ended = true,
        }
        state.release_due();
        let sent = state.ready.is_empty() || self.send(&mut state).unwrap_or(false);
        if !sent || (state.ended && !state.held.is_empty()) {
            state.ended = true;
            hang_up(&self.control.stream);
        }
    }

    /// Tells whether a reply is owed still.
    pub(super) fn are_owed(&self) -> bool {
        let state = self.lock();
        !state.held.is_empty() || !state.ready.is_empty()
    }

    /// Tells whether what is owed will never be sent.
    pub(super) fn have_ended(&self) -> bool {
        self.lock().ended
    }

    /// Sends without waiting; true when everything has left.
    fn send(&self, state: &mut State) -> io::Result<bool> {
        while !state.ready.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(self.control.stream.as_fd(), &state.ready, flags) {
                Ok(sent) => drop(state.ready.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.control.stats.answer(state.ready_through);
        if !state.ready_received.is_empty() {
            let now = Instant::now();
            for (received, writes) in state.ready_received.drain(..) {
                let wait = now.saturating_duration_since(received);
                self.control.stats.count_wait(wait, writes);
            }
        }
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn release(&mut self, held: Held) {
        self.ready.extend_from_slice(&held.reply);
        self.ready_through = held.through;
        let Some(received) = held.received else {
            return;
        };
        match self.ready_received.last_mut() {
            // What one read brought.
            Some((moment, writes)) if *moment == received => *writes += 1,
            _ => self.ready_received.push((received, 1)),
        }
    }

    fn release_due(&mut self) {
        while self.held.front().is_some_and(|held| held.is_due(self.kept)) {
            if let Some(held) = self.held.pop_front() {
                self.release(held);
            }
        }
    }
}
