//! The bound of an attempt: until when it may go on, and what ends it before.
//!
//! Whoever waits in a check waits here: [`Bound::nap`] and [`Bound::within`] look every [`TICK`] whether the time is over or
//! the drill was broken off, and every [`LIFE_TICK`] whether the machine still is on. Calls behind the door to the machine
//! cannot be broken off; they get [`Bound::call`] as their time.
//!
//! Invariant: once a bound has stopped it stays stopped, for the reason it had first.

use std::{
    cell::{Cell, OnceCell},
    io,
    pin::pin,
    thread,
    time::{Duration, Instant},
};

use super::Place;
use crate::stage::Life;

/// How often the bound is looked at.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// How often the machine's life is asked for.
const LIFE_TICK: Duration = Duration::from_secs(1);
/// How long one call behind the door to the machine may take.
const CALL_MAX: Duration = Duration::from_secs(5);

/// What ended an attempt from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its time is over.
    Over,
    /// Somebody broke the drill off.
    Cancelled,
    /// The machine is off, and how it came to that.
    Off(String),
}

/// Until when an attempt may go on.
pub(super) struct Bound<'a> {
    place: Place<'a>,
    began: Instant,
    until: Instant,
    needs_life: bool,
    asked_life: Cell<Option<Instant>>,
    stopped: OnceCell<Stop>,
}

impl<'a> Bound<'a> {
    /// A bound of `time` from now on; `needs_life` where it ends when the machine is off.
    pub(super) fn new(place: &Place<'a>, time: Duration, needs_life: bool) -> Self {
        let began = Instant::now();
        // A century stands for a time that does not fit.
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        let until = began
            .checked_add(time)
            .unwrap_or_else(|| began + century.min(time));
        Self {
            place: *place,
            began,
            until,
            needs_life,
            asked_life: Cell::new(None),
            stopped: OnceCell::new(),
        }
    }

    /// What has ended it; none while it may go on.
    pub(super) fn stop(&self) -> Option<&Stop> {
        if let Some(stop) = self.stopped.get() {
            return Some(stop);
        }
        let stop = self.look()?;
        Some(self.stopped.get_or_init(|| stop))
    }

    fn look(&self) -> Option<Stop> {
        if (self.place.is_cancelled)() {
            return Some(Stop::Cancelled);
        }
        let now = Instant::now();
        let is_due = self
            .asked_life
            .get()
            .is_none_or(|at| now.duration_since(at) >= LIFE_TICK);
        if self.needs_life && is_due {
            let life = self.place.guest.life();
            self.asked_life.set(Some(Instant::now()));
            if let Life::Off(why) = life {
                return Some(Stop::Off(why));
            }
        }
        (Instant::now() >= self.until).then_some(Stop::Over)
    }

    /// What is left of its time.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// How long it has been.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// All of its time, in words: `5 s`, `250 ms`.
    pub(super) fn whole(&self) -> String {
        time_words(self.until.duration_since(self.began))
    }

    /// The time a call behind the door to the machine gets.
    pub(super) fn call(&self) -> Duration {
        self.left().min(CALL_MAX)
    }

    /// Sleeps; false if it was ended meanwhile.
    pub(super) fn nap(&self, time: Duration) -> bool {
        let wake = Instant::now() + time;
        loop {
            if self.stop().is_some() {
                return false;
            }
            let left = wake.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(TICK).min(self.left()));
        }
    }

    /// Does something with sockets on this thread until it is done or the bound ends it; none in that case.
    ///
    /// # Errors
    /// There is no runtime for it.
    pub(super) fn within<T>(&self, work: impl Future<Output = T>) -> io::Result<Option<T>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut work = pin!(work);
        // The bound is looked at outside of the runtime: behind the door to the machine there may be another one.
        let done = loop {
            let tick = TICK.min(self.left());
            match runtime.block_on(async { tokio::time::timeout(tick, &mut work).await }) {
                Ok(done) => break Some(done),
                Err(_) if self.stop().is_some() => break None,
                Err(_) => {}
            }
        };
        runtime.shutdown_background();
        Ok(done)
    }
}

/// A duration as people say it, not finer than it matters.
pub(super) fn time_words(time: Duration) -> String {
    match time.as_millis() {
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms if ms < 10_000 => format!("{ms} ms"),
        ms => format!("{} s", ms / 1000),
    }
}
