//! What daemon and guard say to each other: one packet a message, a descriptor with some.
//!
//! Both ends are the same program, but of two versions while an upgrade is under way: messages are only ever
//! added, and one that is not known is passed over.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// Longest message, in bytes.
const MESSAGE_MAX: usize = 64 << 10;

/// A message; the comments say who sends it, and what descriptor comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum Message {
    /// Daemon, first of all: how long a guest may wait.
    Hello {
        /// Milliseconds.
        deadline_ms: u64,
    },
    /// Guard: a tap that an earlier daemon handed over, with its socket.
    Orphan {
        /// The tap's name.
        key: String,
        /// What the earlier daemon left with it.
        legacy: String,
    },
    /// Guard: there are no more of them.
    Ready,
    /// Daemon: holds a tap, whose socket comes along; also takes on an orphan.
    Hold {
        /// The tap's name.
        key: String,
    },
    /// Daemon: lets go of a tap that is closed or ends in good order.
    Release {
        /// The tap's name.
        key: String,
    },
    /// Daemon: it runs.
    Beat,
    /// Daemon: the tap is parked; this is for the successor.
    Bequeath {
        /// The tap's name.
        key: String,
        /// For the successor.
        legacy: String,
    },
    /// Guard: the daemon did not answer, so its taps were closed.
    LetGo {
        /// How many.
        taps: u64,
    },
    /// Daemon: it leaves for a successor, which gets the taps bequeathed.
    HandOver,
    /// Whatever a later version says.
    #[serde(other)]
    Unknown,
}

/// Sends a message; never waits for room.
pub(super) fn send(
    socket: &UnixStream,
    message: &Message,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too long",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for the descriptor"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives a message, waiting as long as the socket is set to; `None` at the end of the connection.
pub(super) fn receive(socket: &UnixStream) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.next().and_then(|mut fds| fds.next());
    let message = serde_json::from_slice(bytes.get(..got.bytes).unwrap_or_default())?;
    Ok(Some((message, fd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_and_unknown_ones_are_passed_over() {
        let (ours, theirs) = super::super::link::packet_pair().unwrap();
        let all = [
            Message::Hello { deadline_ms: 1000 },
            Message::Hold { key: "a/0".into() },
            Message::Beat,
            Message::Bequeath {
                key: "a/0".into(),
                legacy: "{}".into(),
            },
            Message::HandOver,
        ];
        let (kept, _) = UnixStream::pair().unwrap();
        for message in &all {
            send(&ours, message, Some(kept.as_fd())).unwrap();
            let (received, fd) = receive(&theirs).unwrap().unwrap();
            assert_eq!((&received, fd.is_some()), (message, true));
        }
        rustix::net::send(&ours, br#"{"say":"news","from":2}"#, SendFlags::empty()).unwrap();
        assert!(matches!(
            receive(&theirs).unwrap(),
            Some((Message::Unknown, None))
        ));
        rustix::net::send(&ours, b"noise", SendFlags::empty()).unwrap();
        assert!(receive(&theirs).is_err());
        drop(ours);
        assert!(receive(&theirs).unwrap().is_none());
    }
}
