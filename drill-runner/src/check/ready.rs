//! When the boot of a machine counts as finished: the sign that is waited for, and the check `boot`.
//!
//! Signs are watched by turns. With [`Ready::Auto`] a machine with a channel for an agent is ready when the agent answers;
//! a guest may have none, and so the screen is watched, too, and counts after [`SCREEN_INSTEAD_OF_AGENT`], unless the
//! original's agent is known to answer. A screen that stands still is a weak sign: it does not count where the machine is
//! seen to be [stuck] before its system.
//!
//! Invariant: every sign is told once, when it is seen first.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::{
    Place,
    bound::Bound,
    console::Follower,
    exec, ping,
    screen::Screen,
    seen::{Come, Seen, quote},
    stuck, words,
};
use crate::{
    plan::Ready,
    stage::{Life, StageError},
};

/// How long an agent is waited for before a screen that stands still will do in its place.
pub const SCREEN_INSTEAD_OF_AGENT: Duration = Duration::from_secs(60);
/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// The time between two pictures of the screen.
const PICTURES: Duration = Duration::from_millis(500);
/// The time between two questions to an agent, and how long one of them may take.
const AGENT: Duration = Duration::from_secs(1);

/// A sign that a machine has booted, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Its CPUs run.
    Running,
    /// It answers a ping.
    Ping,
    /// Its guest agent answers.
    Agent,
    /// Its console has shown what it should.
    Console,
    /// Its screen stands still.
    Screen,
    /// Its screen stands still, and its guest agent, which there is a channel for, has not answered. It may be missing in
    /// the guest: all but the checks that need it still work.
    ScreenWithoutAgent,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "its CPUs run",
            Self::Ping => "it answers a ping",
            Self::Agent => "its guest agent answers",
            Self::Console => "its console has shown what it should",
            Self::Screen => "its screen stands still",
            Self::ScreenWithoutAgent => {
                "its screen stands still; its guest agent has not answered and may be missing in the guest"
            }
        })
    }
}

/// Waits until the boot of a machine counts as finished; `told` gets every sign on the way, the last one too.
///
/// # Errors
/// Why it does not, in a sentence without a full stop: the deadline is over, the machine is off, or the drill was broken off.
pub fn wait_ready(
    ready: &Ready,
    deadline: Duration,
    place: &Place<'_>,
    told: &mut dyn FnMut(Sign),
) -> Result<Sign, String> {
    let bound = Bound::new(place, deadline, true);
    wait(ready, SCREEN_INSTEAD_OF_AGENT, place, &bound, told).map_err(|seen| seen.saw)
}

/// The check `boot`.
pub(super) fn attempt(ready: &Ready, place: &Place<'_>, bound: &Bound<'_>) -> Seen {
    match wait(ready, SCREEN_INSTEAD_OF_AGENT, place, bound, &mut |_| {}) {
        Ok(sign) => Seen::passed(sign.to_string()),
        Err(seen) => seen,
    }
}

/// Waits within a bound; a screen that stands still will do in an agent's place after `instead`.
pub(super) fn wait(
    ready: &Ready,
    instead: Duration,
    place: &Place<'_>,
    bound: &Bound<'_>,
    told: &mut dyn FnMut(Sign),
) -> Result<Sign, Seen> {
    let mut watch = Watch::new(ready, instead, place);
    loop {
        if bound.stop().is_some() {
            return Err(watch.why_not(bound));
        }
        let sign = watch.look(place, bound, told)?;
        if let Some(sign) = sign {
            told(sign);
            return Ok(sign);
        }
        if !watch.is_behind {
            bound.nap(PAUSE);
        }
    }
}

/// What is watched, and what was seen of it.
struct Watch<'a> {
    ready: &'a Ready,
    has_agent_channel: bool,
    /// When a screen will do in the agent's place; none: never.
    instead: Option<Duration>,
    began: Instant,
    runs: bool,
    paused: Option<String>,
    screen: Screen,
    screen_due: Instant,
    is_still: bool,
    screen_trouble: Option<String>,
    stuck: Option<String>,
    agent_due: Instant,
    agent_trouble: Option<String>,
    ping_trouble: Option<String>,
    console: Option<Follower>,
    is_behind: bool,
}

impl<'a> Watch<'a> {
    fn new(ready: &'a Ready, instead: Duration, place: &Place<'_>) -> Self {
        let now = Instant::now();
        Self {
            ready,
            has_agent_channel: place.facts.has_agent_channel,
            instead: (!place.facts.agent_is_expected).then_some(instead),
            began: now,
            runs: false,
            paused: None,
            screen: Screen::default(),
            screen_due: now,
            is_still: false,
            screen_trouble: None,
            stuck: None,
            agent_due: now,
            agent_trouble: None,
            ping_trouble: None,
            console: match ready {
                Ready::Console(_) => place.guest.console().map(|path| Follower::new(&path)),
                _ => None,
            },
            is_behind: false,
        }
    }

    /// Looks once at what there is to be looked at; the sign that was waited for, if it was seen.
    fn look(
        &mut self,
        place: &Place<'_>,
        bound: &Bound<'_>,
        told: &mut dyn FnMut(Sign),
    ) -> Result<Option<Sign>, Seen> {
        if !self.looks_alive(place) {
            return Ok(None);
        }
        if !self.runs {
            self.runs = true;
            match self.ready {
                Ready::Running => return Ok(Some(Sign::Running)),
                _ => told(Sign::Running),
            }
        }
        Ok(match self.ready {
            Ready::Running => Some(Sign::Running),
            Ready::Agent => self.agent(place, bound),
            Ready::Ping => self.ping(place, bound)?,
            Ready::Console(pattern) => {
                let Some(console) = &mut self.console else {
                    return Err(Seen::broken("the machine has no console"));
                };
                let (is_there, is_more) = console.look(pattern);
                self.is_behind = is_more;
                is_there.then_some(Sign::Console)
            }
            Ready::Screen => self.screen(place).then_some(Sign::Screen),
            Ready::Auto if !self.has_agent_channel => self.screen(place).then_some(Sign::Screen),
            Ready::Auto => match self.agent(place, bound) {
                Some(sign) => Some(sign),
                None => {
                    let is_time = self
                        .instead
                        .is_some_and(|time| self.began.elapsed() >= time);
                    (self.screen(place) && is_time).then_some(Sign::ScreenWithoutAgent)
                }
            },
        })
    }

    fn looks_alive(&mut self, place: &Place<'_>) -> bool {
        let life = place.guest.life();
        self.screen.cpus(life == Life::Running, Instant::now());
        self.paused = match life {
            Life::Paused(why) => Some(why),
            Life::Running | Life::Off(_) => None,
        };
        self.paused.is_none()
    }

    fn agent(&mut self, place: &Place<'_>, bound: &Bound<'_>) -> Option<Sign> {
        if Instant::now() < self.agent_due {
            return None;
        }
        let answer = exec::ping(place, bound.call().min(AGENT));
        self.agent_due = Instant::now() + AGENT;
        match answer {
            Ok(()) => Some(Sign::Agent),
            Err(StageError::AgentSilent(_)) => None,
            Err(error) => {
                self.agent_trouble = Some(error.to_string());
                None
            }
        }
    }

    fn ping(&mut self, place: &Place<'_>, bound: &Bound<'_>) -> Result<Option<Sign>, Seen> {
        let once = Bound::new(place, bound.left().min(AGENT), true);
        let seen = ping::attempt(place, &once);
        match seen.come {
            Come::Passed => Ok(Some(Sign::Ping)),
            Come::Broken => Err(seen),
            Come::NotYet | Come::Never => {
                self.ping_trouble = Some(seen.saw);
                Ok(None)
            }
        }
    }

    /// Whether the screen stands still, as it was when it was looked at last.
    fn screen(&mut self, place: &Place<'_>) -> bool {
        if Instant::now() < self.screen_due {
            return self.is_still;
        }
        self.is_still = match place.guest.screenshot() {
            Ok(png) => {
                self.screen_trouble = None;
                let is_still = self.screen.shows(&png, Instant::now());
                self.stuck = is_still.then(|| stuck::why(place.guest)).flatten();
                is_still && self.stuck.is_none()
            }
            Err(error) => {
                self.screen_trouble = Some(error.to_string());
                false
            }
        };
        self.screen_due = Instant::now() + PICTURES;
        self.is_still
    }

    /// Why the sign was not seen, when the bound has ended the waiting.
    fn why_not(&self, bound: &Bound<'_>) -> Seen {
        let (what, detail) = match self.ready {
            Ready::Running => ("its CPUs did not run", None),
            Ready::Agent => ("its guest agent did not answer", self.agent_trouble.clone()),
            Ready::Ping => ("it did not answer a ping", self.ping_trouble.clone()),
            Ready::Screen => (
                "its screen did not come to a standstill",
                self.screen_trouble.clone(),
            ),
            Ready::Auto if !self.has_agent_channel => (
                "its screen did not come to a standstill",
                self.screen_trouble.clone(),
            ),
            Ready::Auto if self.instead.is_none() => (
                "its guest agent did not answer, which the original's does",
                self.agent_trouble.clone(),
            ),
            Ready::Auto => (
                "its guest agent did not answer and its screen did not come to a standstill",
                self.agent_trouble
                    .clone()
                    .or_else(|| self.screen_trouble.clone()),
            ),
            Ready::Console(pattern) => {
                let last = self.console.as_ref().map(Follower::last_line);
                let wanted = words::pattern(pattern);
                let said = match last.filter(|line| !line.is_empty()) {
                    Some(line) => format!("its last line is {}", quote(&line)),
                    None => "it has shown nothing".to_owned(),
                };
                let mut seen = Seen::stopped(bound, &format!("its console did not show {wanted}"));
                seen.saw = format!("{}; {said}", seen.saw);
                return seen;
            }
        };
        let mut seen = Seen::stopped(bound, what);
        if let Some(why) = &self.paused {
            seen.saw = format!("{}; its CPUs stand still: {why}", seen.saw);
        } else if let Some(why) = &self.stuck {
            seen.saw = format!("{}; {why}", seen.saw);
        } else if let Some(why) = detail {
            seen.saw = format!("{}: {why}", seen.saw);
        }
        seen
    }
}
