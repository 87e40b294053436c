//! Quiesced points: the guest agent freezes the guest's file systems, a point is made, and they are thawed.
//!
//! In order, each step with a deadline: the machine must be protected; the agent must answer; a marker is written
//! ([`marker`]); freeze; the guest writes taken so far are counted; a drain, so that whatever QEMU has under way
//! reaches the taps; the point; thaw. Where a step fails, the rest up to the thaw is left out, and a point of grade
//! crash is made after it, with the reason.
//!
//! Why the grade can be trusted: the agent answers the freeze when everything is on the disks, which with these
//! mirrors means that the taps have taken it. If no guest write was taken between that and the point, the point is
//! the state in which the file systems were frozen, whatever became of the freeze meanwhile. The sequencer
//! compares the counts when the point takes its place; where they differ the grade is crash.
//!
//! Invariant: nothing is frozen without a marker on stable storage, and the marker goes only when a thaw was
//! answered or that QEMU is gone. A crash leaves the marker: the watch ([`watch`]) thaws at once, else the next start.

pub(crate) mod marker;

pub(crate) mod watch;
mod within;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cdp_core::Point;

use self::{
    marker::{Frozen, Marker, Markers, Owed},
    within::within,
};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::sentence,
        machine::{Command, Machine, PointWish, Still, now},
        source::Source,
        upkeep::QemuSide,
    },
};

/// How long the agent may take to give a sign of life, before anything is frozen.
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// How long the agent may take to answer a thaw; after that it is asked again in the background.
const THAW_DEADLINE: Duration = Duration::from_secs(2);

/// The guest agent, as far as points need it. An error is a sentence.
pub(crate) trait GuestAgent: Send + Sync {
    /// Asks for a sign of life.
    fn ping(&self, timeout: Duration) -> Result<(), String>;
    /// Freezes all file systems; returns how many.
    fn freeze(&self, timeout: Duration) -> Result<u64, String>;
    /// Thaws all file systems; returns how many were frozen.
    fn thaw(&self, timeout: Duration) -> Result<u64, String>;
}

/// What a quiesced point needs of the capture, at one moment of it.
pub(crate) struct Quiet {
    /// Where the machine runs.
    pub(crate) source: Arc<dyn Source>,
    /// The capture's QEMU.
    pub(crate) qemu: QemuSide,
    /// Which run of QEMU it is.
    pub(crate) run: String,
    /// The capture and the guest writes it has taken.
    pub(crate) still: Still,
}

/// A point, and how it came about.
#[derive(Debug)]
pub(crate) struct Made {
    /// The point, of whatever grade it became.
    pub(crate) point: Point,
    /// Why it is not quiesced, or what else there is to say; empty: nothing.
    pub(crate) note: String,
    /// From the freeze's sending to the thaw's answer; zero: nothing was frozen.
    pub(crate) frozen: Duration,
}

/// What happened between freeze and thaw: the machine's side of it, as a door for tests.
pub(crate) trait Stand {
    /// Counts the guest writes, drains, and makes the point, all before `until`.
    fn point(&self, until: Instant) -> Result<Point, String>;
}

/// Makes a point with the guest's file systems frozen, or one of grade crash where that cannot be.
///
/// `limit` bounds the time from the freeze to the sending of the thaw.
///
/// # Errors
/// No point can be made at all: those of a point by hand. Nothing is frozen then.
pub(crate) fn point(
    machine: &Machine,
    markers: &Arc<Markers>,
    limit: Duration,
    label: Option<String>,
) -> ApiResult<Made> {
    let quiet = machine.ask(Command::Quiet)?;
    let description = machine.description();
    let owed = Owed {
        name: description.name,
        source: description.source,
        run: quiet.run,
        since: now(),
    };
    let source = Arc::clone(&quiet.source);
    let agent = within(PING_DEADLINE, "libvirt's answer", move || {
        source.agent().map_err(|e| e.what)
    });
    let marker = markers.of(&description.machine_id, owed, quiet.source);
    let stand = MachineStand {
        machine,
        label: label.clone(),
    };
    let tried = agent.and_then(|agent| {
        let agent =
            agent.ok_or("a machine without libvirt has no guest agent that could be asked")?;
        Ok(attempt(&agent, &marker, limit, &stand))
    });
    let (made, note, frozen) = match tried {
        Ok(tried) => (tried.point, tried.note, tried.frozen),
        Err(reason) => (None, reason, Duration::ZERO),
    };
    let point = match made {
        Some(point) => point,
        None => machine.point(PointWish { label, still: None })?,
    };
    Ok(Made {
        point,
        note,
        frozen,
    })
}

/// How an attempt ended: with a point or without, and why.
#[derive(Debug)]
struct Tried {
    point: Option<Point>,
    note: String,
    frozen: Duration,
}

/// Freezes, has the point made, thaws. Whatever happens in between, the thaw is sent or owed.
fn attempt(
    agent: &Arc<dyn GuestAgent>,
    marker: &Marker,
    limit: Duration,
    stand: &dyn Stand,
) -> Tried {
    let without = |note: String| Tried {
        point: None,
        note,
        frozen: Duration::ZERO,
    };
    let theirs = Arc::clone(agent);
    let alive = within(PING_DEADLINE, "the guest agent's answer", move || {
        theirs.ping(PING_DEADLINE)
    });
    if let Err(reason) = alive {
        return without(reason);
    }
    let frozen = match Frozen::begin(Arc::clone(agent), marker, limit + THAW_DEADLINE * 2) {
        Ok(frozen) => frozen,
        Err(reason) => return without(reason),
    };
    let began = Instant::now();
    let until = began + limit;
    let made = frozen
        .freeze(limit * 3 / 5)
        .and_then(|()| stand.point(until));
    let thawed = frozen.thaw(THAW_DEADLINE);
    let frozen = began.elapsed();
    let mut notes = Vec::new();
    let point = match made {
        Ok(point) => {
            if point.grade != cdp_core::Grade::Quiesced {
                notes.push(
                    "the guest wrote to its disks although its file systems were frozen (swap, or a disk without \
                     a file system)"
                        .to_owned(),
                );
            }
            Some(point)
        }
        Err(reason) => {
            notes.push(reason);
            None
        }
    };
    match thawed {
        Ok(0) if point.is_some() => notes.push(
            "the guest had thawed its file systems by itself; the point was made before it wrote to them".into(),
        ),
        Ok(_) => {}
        Err(reason) => notes.push(format!(
            "the thaw is not answered ({reason}); it is sent again until it is"
        )),
    }
    Tried {
        point,
        note: notes.join("; "),
        frozen,
    }
}

/// The machine that is protected.
struct MachineStand<'a> {
    machine: &'a Machine,
    label: Option<String>,
}

impl Stand for MachineStand<'_> {
    fn point(&self, until: Instant) -> Result<Point, String> {
        let left = || until.saturating_duration_since(Instant::now());
        let quiet = self
            .machine
            .ask_within(left(), Command::Quiet)
            .map_err(|e| e.what)?;
        let still = Still {
            until,
            ..quiet.still
        };
        let qemu = quiet.qemu;
        within(left(), "QEMU's drain", move || {
            qemu.drain().map_err(|e| e.what)
        })?;
        let wish = PointWish {
            label: self.label.clone(),
            still: Some(still),
        };
        let begun = self
            .machine
            .ask_within(left(), |answer| Command::Point(wish, answer))
            .map_err(|e| e.what)?;
        begun.wait(left()).map_err(|e| sentence(&e))
    }
}

/// Says that one quiesced point at a time is made of a machine.
pub(crate) fn busy(name: &str) -> ApiError {
    let what = format!("a quiesced point of '{name}' is being made already");
    ApiError::new(ApiErrorKind::FailedPrecondition, what).hint("wait a few seconds and try again")
}

#[cfg(test)]
mod tests;
