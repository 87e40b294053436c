//! The bypass: closes a tap whose reply is overdue, so that the guest goes on.
//!
//! QEMU's NBD client waits for a reply for ever, and a guest's write with it. One thread looks at all taps many
//! times within the deadline. It knows how many bytes QEMU had sent at each look (those a tap has read, and
//! those that wait in its socket) and how many of them belong to requests that were answered: so it knows the
//! age of the oldest request that was not, also of one that nobody has read yet.
//!
//! Invariant: the thread takes no lock that is held over anything slow, and does no disk I/O. A request that
//! QEMU itself has not sent whole is not held against the tap.
//! A crash of ours closes all sockets; a process that is stopped is the guard's business, who hears a beat from
//! this thread at each look.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::stats::Progress;
use super::{Control, TapHandle};
use crate::nbd::stream::Stream;

/// Looks within one deadline.
const LOOKS: u32 = 20;
/// More than a socket can hold of what QEMU sent, in bytes.
pub const QUEUE_MAX: usize = 4 << 20;

/// Ends a tap's connection and throws away what QEMU sent and nobody read.
///
/// The second part matters: unread bytes stay charged to QEMU's side of the socket, which then never becomes
/// writable, and QEMU waits in its main loop for that instead of seeing that we hung up. They are taken in one
/// call, which the kernel does not mix with another's: whoever reads at the same time finds the end, and never a
/// payload that is made of two.
pub fn hang_up(socket: &UnixStream) {
    hang_up_into(socket, &mut vec![0; QUEUE_MAX]);
}

/// As [`hang_up`], with [`QUEUE_MAX`] bytes that are there already: it waits for no memory.
pub fn hang_up_into(socket: &UnixStream, rest: &mut [u8]) {
    // Fails only when QEMU has hung up already.
    let _ = socket.shut();
    let waits = rustix::io::ioctl_fionread(socket.as_fd()).is_ok_and(|bytes| bytes > 0);
    if waits {
        let _ = rustix::net::recv(socket, rest, rustix::net::RecvFlags::DONTWAIT);
    }
}

/// Watches over taps; dropped, it ends.
pub struct Bypass {
    watched: Arc<Mutex<Vec<Watched>>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Watched {
    control: Weak<Control>,
    backlog: Backlog,
}

impl Bypass {
    /// Starts to watch; `beat` is called at every look, which is twenty times within `deadline`, and must be quick.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(deadline: Duration, beat: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let watched = Arc::<Mutex<Vec<Watched>>>::default();
        let theirs = Arc::clone(&watched);
        let (stop, stopped) = mpsc::channel();
        let mut beat = beat;
        let look = move || {
            let pause = deadline / LOOKS;
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
                let now = Instant::now();
                lock(&theirs).retain_mut(|tap| tap.look(now, deadline));
                beat();
            }
        };
        let thread = std::thread::Builder::new()
            .name("bypass".into())
            .spawn(look)?;
        Ok(Self {
            watched,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Watches over a tap for as long as it runs.
    pub fn watch(&self, tap: &TapHandle) {
        lock(&self.watched).push(Watched {
            control: Arc::downgrade(&tap.control),
            backlog: Backlog::default(),
        });
    }
}

impl Drop for Bypass {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(watched: &Mutex<Vec<Watched>>) -> MutexGuard<'_, Vec<Watched>> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    /// Looks at the tap once; false when there is nothing left to watch.
    fn look(&mut self, now: Instant, deadline: Duration) -> bool {
        let Some(control) = self.control.upgrade() else {
            return false;
        };
        if control.overdue.load(Ordering::Relaxed) {
            return false;
        }
        if !control.stats.is_connected() {
            return true;
        }
        let Progress {
            consumed,
            received,
            answered,
        } = control.stats.progress();
        // After the counters: what is read between the two is missed until the next look, never counted twice.
        let unread = rustix::io::ioctl_fionread(control.stream.as_fd()).unwrap_or(0);
        let owed = unread > 0 || received > answered;
        let age = self.backlog.age(now, consumed + unread, answered, owed);
        if age <= deadline {
            return true;
        }
        control.overdue.store(true, Ordering::SeqCst);
        control.stats.note_overdue();
        hang_up(&control.stream);
        // Nothing is logged here: a log may lie on the disk that hangs. Who looks at the tap says it.
        false
    }
}

/// How many bytes QEMU had sent at each look, as far as they are not answered.
#[derive(Debug, Default)]
struct Backlog {
    marks: VecDeque<(Instant, u64)>,
}

impl Backlog {
    /// Returns at least how old the oldest request is that waits for us; `owed` is false when none does.
    fn age(&mut self, now: Instant, sent: u64, answered: u64, owed: bool) -> Duration {
        if !owed {
            self.marks.clear();
            return Duration::ZERO;
        }
        if self.marks.back().is_none_or(|(_, before)| sent > *before) {
            self.marks.push_back((now, sent));
        }
        while self
            .marks
            .front()
            .is_some_and(|(_, sent)| *sent <= answered)
        {
            self.marks.pop_front();
        }
        let oldest = self.marks.front().map_or(now, |(seen, _)| *seen);
        now.saturating_duration_since(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_oldest_request_not_answered() {
        let start = Instant::now();
        let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
        let tenths = |n: u32| Duration::from_millis(100) * n;
        let mut backlog = Backlog::default();
        // (tenths of a second, sent, answered, owed) -> age in tenths
        for ((when, sent, answered, owed), age) in [
            ((0, 0, 0, false), 0),
            ((1, 100, 0, true), 0),
            ((2, 100, 0, true), 1),
            ((3, 300, 0, true), 2),
            // The first is answered, the others came at 3.
            ((5, 300, 100, true), 2),
            ((6, 400, 300, true), 0),
            ((7, 400, 350, true), 1),
            // QEMU has sent half a request: nothing is owed, and the wait is not ours.
            ((8, 420, 400, false), 0),
            ((30, 440, 400, true), 0),
            ((31, 440, 400, true), 1),
            ((32, 440, 440, false), 0),
        ] {
            assert_eq!(
                backlog.age(at(when), sent, answered, owed),
                tenths(age),
                "at {when}"
            );
        }
        assert!(backlog.marks.is_empty());
    }
}
