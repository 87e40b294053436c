//! The transmission phase of one reader's connection: requests in, replies out.
//!
//! Requests are read as many at a time as the socket has, and replies are sent several at a time. While the device answers
//! at once (what is read lies in memory), one thread does all of it, which costs the least. When reads take longer
//! than [`bounds::READ_SLOW`], several threads do: each takes the next request, lets another one wait for the one after
//! it, and replies when it is ready. Where that is for copying alone, [`bounds::COPIERS_MAX`] of them are of use; where
//! a disk is waited for, [`bounds::WORKERS_MAX`] reads are under way. Replies then come in any order, chunks of several
//! among each other.
//!
//! Invariant: whatever the client sends, the connection either stays in step (every request got
//! its one reply) or ends. A client that takes no replies holds up nobody but itself.
//! Memory: [`bounds::READ_PIECE`] and some for each thread, and one reply that must be read whole.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::answer::{Asked, Outbox, answer};
use super::bounds;
use super::error::NbdError;
use super::export::Export;
use super::handshake::Agreed;
use super::incoming::Incoming;
use super::proto::{Request, cmd};
use super::stream::Stream;

/// Serves one client until it leaves (`Ok`) or the connection ends otherwise.
pub(crate) fn serve_requests<S: Stream>(
    stream: &mut S,
    device: &dyn Export,
    agreed: &Agreed,
) -> Result<(), NbdError> {
    let second = stream
        .second()
        .map_err(NbdError::io("sharing a connection"))?;
    let session = Session {
        asked: Asked {
            device,
            size: device.size(),
            structured: agreed.structured,
            allocation: agreed.allocation,
        },
        incoming: Mutex::new(Incoming::new(stream)),
        outgoing: Mutex::new(second),
        large: Mutex::default(),
        pace: Pace::default(),
        team: Mutex::new(Team::Of(1)),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        let mut helpers = Vec::new();
        let done = session.work(0, |team| session.help(scope, &mut helpers, team));
        let helped = helpers.into_iter().map(|helper| helper.join());
        // A helper that panicked has said so, and the connection has ended with it.
        let helped: Vec<_> = helped.filter_map(Result::ok).collect();
        helped.into_iter().fold(done, Result::and)
    })
}

struct Session<'a, R, W> {
    asked: Asked<'a>,
    /// Held by who waits for the next requests.
    incoming: Mutex<Incoming<R>>,
    /// Held by who sends.
    outgoing: Mutex<W>,
    /// Held by who has an exceptionally large reply in the making.
    large: Mutex<()>,
    pace: Pace,
    team: Mutex<Team>,
    /// The team is another one.
    changed: Condvar,
}

/// Who takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Team {
    /// The first of the threads; the others wait.
    Of(usize),
    /// Nobody any more.
    Ended,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R, W> Session<'_, R, W> {
    /// Makes the team another one; an end is for good.
    fn form(&self, new: Team) {
        let mut team = lock(&self.team);
        if *team != new && *team != Team::Ended {
            *team = new;
            self.changed.notify_all();
        }
    }
}

type Helpers<'scope> = Vec<std::thread::ScopedJoinHandle<'scope, Result<(), NbdError>>>;

impl<R: Read + Send, W: Stream> Session<'_, R, W> {
    /// Starts the threads that a team of that size lacks.
    fn help<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        helpers: &mut Helpers<'scope>,
        team: usize,
    ) {
        while helpers.len() + 1 < team {
            let number = helpers.len() + 1;
            let thread = std::thread::Builder::new().name("nbd-read".into());
            match thread.spawn_scoped(scope, move || self.work(number, |_| ())) {
                Ok(helper) => helpers.push(helper),
                Err(error) => {
                    tracing::warn!(%error, "a view is read with fewer threads");
                    break;
                }
            }
        }
    }

    /// Takes requests and answers them until the client leaves, as thread `number` of the team; `help` is called
    /// when there are to be several.
    fn work(&self, number: usize, mut help: impl FnMut(usize)) -> Result<(), NbdError> {
        let mut out = Out {
            bytes: Vec::new(),
            used: 0,
            outgoing: &self.outgoing,
        };
        let mut leaving = Leaving {
            session: self,
            in_step: false,
        };
        let done = self.work_with(number, &mut out, &mut help);
        leaving.in_step = done.is_ok();
        done
    }

    fn work_with(
        &self,
        number: usize,
        out: &mut Out<'_, W>,
        help: &mut impl FnMut(usize),
    ) -> Result<(), NbdError> {
        let mut batch = Vec::with_capacity(bounds::BATCH_MAX);
        while self.is_wanted(number) {
            let mut incoming = lock(&self.incoming);
            let team = self.pace.team();
            let most = if team > 1 { 1 } else { bounds::BATCH_MAX };
            incoming.take(&mut batch, most)?;
            if batch.is_empty() {
                break;
            }
            if team > 1 {
                drop(incoming);
                self.form(Team::Of(team));
                help(team);
                self.answer_all(&batch, out)?;
            } else {
                self.answer_all(&batch, out)?;
                drop(incoming);
                self.form(Team::Of(team));
            }
        }
        Ok(())
    }

    /// Waits until thread `number` is to take requests; false when there are none any more.
    fn is_wanted(&self, number: usize) -> bool {
        let waits = |team: &mut Team| matches!(team, Team::Of(size) if *size <= number);
        let team = self.changed.wait_while(lock(&self.team), waits);
        *team.unwrap_or_else(PoisonError::into_inner) != Team::Ended
    }

    fn answer_all(&self, batch: &[Request], out: &mut Out<'_, W>) -> Result<(), NbdError> {
        let begin = Instant::now();
        let mut bytes = 0;
        for request in batch {
            bytes += u64::from(request.len);
            let _turn = self.is_large(request).then(|| lock(&self.large));
            answer(self.asked, request, out)?;
            if out.used >= bounds::REPLIES_TOGETHER {
                out.send()?;
            }
        }
        self.pace.note(begin.elapsed(), batch.len(), bytes);
        out.send()?;
        out.shrink();
        Ok(())
    }

    /// Tells whether the reply must be read whole, and is longer than what a thread keeps for replies.
    fn is_large(&self, request: &Request) -> bool {
        let whole = !self.asked.structured || request.flags & cmd::FLAG_DF != 0;
        request.command == cmd::READ && whole && request.len > bounds::READ_PIECE as u32
    }
}

/// A thread that leaves, in whatever way: the others do so too.
struct Leaving<'s, 'a, R, W: Stream> {
    session: &'s Session<'a, R, W>,
    in_step: bool,
}

impl<R, W: Stream> Drop for Leaving<'_, '_, R, W> {
    fn drop(&mut self) {
        if !self.in_step {
            // Nobody is to wait for a request on a connection that is not in step.
            let _ = lock(&self.session.outgoing).shut();
        }
        self.session.form(Team::Ended);
    }
}

/// How long a request takes, on average over the last ones.
#[derive(Debug, Default)]
struct Pace {
    average_ns: AtomicU64,
    /// Without the time that copying takes.
    waiting_ns: AtomicU64,
}

impl Pace {
    /// Notes what some requests of so many bytes in all took.
    fn note(&self, took: Duration, requests: usize, bytes: u64) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let requests = requests.max(1) as u64;
        let copying = bytes / bounds::COPIED_PER_NS;
        for (average, now) in [
            (&self.average_ns, took / requests),
            (&self.waiting_ns, took.saturating_sub(copying) / requests),
        ] {
            // Another thread's may be lost in between: it is an average.
            let before = average.load(Ordering::Relaxed);
            average.store(before - before / 8 + now / 8, Ordering::Relaxed);
        }
    }

    /// Returns how many threads are of use.
    fn team(&self) -> usize {
        let is_slow = |average: &AtomicU64| {
            u128::from(average.load(Ordering::Relaxed)) > bounds::READ_SLOW.as_nanos()
        };
        match (is_slow(&self.waiting_ns), is_slow(&self.average_ns)) {
            (true, _) => bounds::WORKERS_MAX,
            (false, true) => bounds::COPIERS_MAX,
            (false, false) => 1,
        }
    }
}

/// Replies on their way to the client.
struct Out<'a, W> {
    /// As long as was ever needed.
    bytes: Vec<u8>,
    used: usize,
    outgoing: &'a Mutex<W>,
}

impl<W: Write> Out<'_, W> {
    fn send(&mut self) -> Result<(), NbdError> {
        let bytes = self.bytes.get(..self.used).unwrap_or_default();
        if !bytes.is_empty() {
            lock(self.outgoing)
                .write_all(bytes)
                .map_err(NbdError::io("replying to a client"))?;
        }
        self.used = 0;
        Ok(())
    }

    /// Gives back what an exceptionally large read needed.
    fn shrink(&mut self) {
        if self.bytes.len() > bounds::READ_PIECE + bounds::REPLIES_TOGETHER {
            self.bytes = Vec::new();
        }
    }
}

impl<W: Write> Outbox for Out<'_, W> {
    fn room(&mut self, len: usize) -> Result<&mut [u8], NbdError> {
        if self.used > 0 && self.used + len > bounds::READ_PIECE {
            self.send()?;
        }
        let end = self.used + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        Ok(self.bytes.get_mut(self.used..end).unwrap_or_default())
    }

    fn keep(&mut self, len: usize) {
        self.used += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_what_reads_take() {
        let pace = Pace::default();
        let note = |took: Duration, requests, bytes| {
            (0..60).for_each(|_| pace.note(took, requests, bytes));
            pace.team()
        };
        assert_eq!(pace.team(), 1);
        let (slow, mib) = (bounds::READ_SLOW, 1 << 20);
        // took, requests, bytes in all -> threads
        let table = [
            (slow * 2, 1, 4096, bounds::WORKERS_MAX),
            (slow * 2, 4, 4 * 4096, 1),
            (slow * 4, 1, mib, bounds::COPIERS_MAX),
            (slow * 40, 1, mib, bounds::WORKERS_MAX),
            (slow / 10, 1, 0, 1),
        ];
        for (took, requests, bytes, team) in table {
            assert_eq!(note(took, requests, bytes), team, "{took:?} {bytes}");
        }
    }
}
