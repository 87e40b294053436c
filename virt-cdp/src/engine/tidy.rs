//! Tidy: what is done with what is kept, for each machine, again and again.
//!
//! One thread of the daemon, `tidy`, goes over the machines at every interval and starts a round of each, in a thread of
//! its own: the steps of [`STEPS`], one after the other. A round that is not over by the next interval, because its step
//! is long or its disk hangs, is left to itself; the machine's next round begins when it has ended. What fails is said
//! once, and once more when it works again; the other steps are done nevertheless.
//!
//! Invariant: at most one round of a machine is under way. A machine that was unprotected is left as it is.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, Weak, mpsc},
    thread,
};

use cdp_core::{Harbor, Mode, Usage};

use super::{
    Engine,
    errors::from_harbor,
    guard,
    machine::{Machine, now},
    policies::InForce,
};
use crate::{
    api::{ApiResult, v1},
    daemon::config::Tidy,
};

mod base;
mod pacer;
mod retention;
mod scrub;
mod size;

pub(crate) use size::SizeState;

/// What a step has to work with.
struct Round {
    machine: String,
    harbor: Harbor,
    /// The policy; none: nothing is removed.
    in_force: Option<InForce>,
    tidy: Tidy,
    theirs: Weak<Machine>,
}

impl Round {
    /// Tells whether the machine is being put down, or is not protected any more.
    fn is_over(&self) -> bool {
        self.theirs.upgrade().is_none_or(|machine| {
            machine.tidying.is_closed() || machine.description().mode == Mode::Released
        })
    }
}

/// One thing that is done in a round.
struct Step {
    name: &'static str,
    run: fn(&Round) -> ApiResult<()>,
}

/// The steps, in their order. First what is cheap and lets go of points; what needs the disk for long comes behind it.
const STEPS: [Step; 5] = [
    Step {
        name: "retention",
        run: retention::run,
    },
    Step {
        name: "base-point",
        run: base::build,
    },
    Step {
        name: "merge",
        run: base::merge,
    },
    Step {
        name: "compact",
        run: base::compact,
    },
    Step {
        name: "scrub",
        run: scrub::run,
    },
];
/// How these threads are served by processor and disk among all: as the last.
const PRIORITY: i32 = 19;

/// What has gone wrong in the last round of a machine, step by step.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<BTreeMap<&'static str, String>>);

impl Notes {
    /// Notes how a step went; says so in the log when that is new.
    fn note(&self, machine: &str, step: &'static str, outcome: ApiResult<()>) {
        let mut notes = guard(&self.0);
        match outcome {
            Ok(()) if notes.remove(step).is_some() => {
                tracing::info!(machine, step, "works again");
            }
            Ok(()) => {}
            Err(error) => {
                let known = notes.insert(step, error.what.clone());
                if known.as_ref() != Some(&error.what) {
                    tracing::warn!(machine, step, error = error.what, "cannot be done now");
                }
            }
        }
    }

    /// What has gone wrong, as sentences.
    fn troubles(&self) -> Vec<String> {
        let notes = guard(&self.0);
        notes
            .iter()
            .map(|(step, why)| format!("{step}: {why}"))
            .collect()
    }
}

/// Lets the thread run as long as it is held.
pub(crate) struct Ticking {
    _stop: mpsc::Sender<()>,
}

/// Starts the thread; the first rounds begin after one interval.
///
/// # Errors
/// As the operating system says.
pub(crate) fn start(engine: Weak<Engine>, tidy: Tidy) -> io::Result<Ticking> {
    let (stop, stopped) = mpsc::channel::<()>();
    thread::Builder::new().name("tidy".into()).spawn(move || {
        while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(tidy.interval) {
            let Some(engine) = engine.upgrade() else {
                break;
            };
            let machines: Vec<Arc<Machine>> = guard(&engine.machines).values().cloned().collect();
            drop(engine);
            machines
                .iter()
                .for_each(|machine| begin_round(machine, &tidy));
        }
    })?;
    Ok(Ticking { _stop: stop })
}

/// Starts a machine's round, unless its last one is under way.
fn begin_round(machine: &Arc<Machine>, tidy: &Tidy) {
    if machine.description().mode == Mode::Released {
        return;
    }
    let round = Round {
        machine: machine.name.clone(),
        harbor: machine.harbor(),
        in_force: machine.policy().1,
        tidy: tidy.clone(),
        theirs: Arc::downgrade(machine),
    };
    let started = machine.tidying.start("tidy-round", move || {
        // Of this thread alone; the disk's scheduler goes by it too.
        let _ = rustix::process::setpriority_process(None, PRIORITY);
        for step in STEPS.iter().take_while(|_| !round.is_over()) {
            let outcome = (step.run)(&round);
            if let Some(machine) = round.theirs.upgrade() {
                machine.notes.note(&machine.name, step.name, outcome);
            }
        }
    });
    match started {
        Ok(true) => {}
        Ok(false) => tracing::debug!(machine = machine.name, "the last round is still under way"),
        Err(error) => machine.notes.note(&machine.name, "tidy", Err(error)),
    }
}

/// What stands in the way of keeping a machine's points as its policy says, and how large its harbor is for it; as
/// sentences without the machine's name.
pub(crate) fn problems(machine: &Machine) -> Vec<String> {
    let mut problems: Vec<String> = policy_problem(machine).into_iter().collect();
    problems.extend(machine.notes.troubles());
    let limit = limit(machine.policy().1);
    if limit > 0
        && let Ok(usage) = machine.harbor().usage()
    {
        problems.extend(size::words(used(usage), limit));
    }
    problems
}

/// Says that a machine's policy is not known.
pub(crate) fn policy_problem(machine: &Machine) -> Option<String> {
    match machine.policy() {
        (_, Some(_)) => None,
        (name, None) => Some(format!(
            "its policy '{name}' is not known, so nothing of it is removed: assign another with policy-assign, or make \
             it with policy-set"
        )),
    }
}

/// How large a harbor is, measured by the size limit of the policy in force.
pub(crate) fn size_state(usage: Usage, in_force: Option<InForce>) -> SizeState {
    SizeState::of(used(usage), limit(in_force))
}

fn used(usage: Usage) -> u64 {
    usage.journal_bytes.saturating_add(usage.base_bytes)
}

/// Bytes; 0: none.
fn limit(in_force: Option<InForce>) -> u64 {
    in_force.map_or(0, |in_force| in_force.policy.size_limit)
}

/// What a round would remove by a policy now, for `policy-preview`.
pub(crate) fn preview(
    harbor: &Harbor,
    policy: v1::Policy,
    in_force: InForce,
) -> ApiResult<v1::PolicyPreview> {
    let going = harbor.preview_policy(&in_force.policy.keep, now());
    let ids: Vec<cdp_core::PointId> = going.iter().map(|point| point.id).collect();
    let all = harbor.points().len() as u64;
    let freed = harbor.gain(&ids).map_err(from_harbor)?;
    Ok(v1::PolicyPreview {
        policy: Some(policy),
        kept: all.saturating_sub(ids.len() as u64),
        freed_bytes: freed.soon + freed.later,
        points: going.iter().map(super::messages::point).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiError, ApiErrorKind};

    #[test]
    fn what_fails_is_noted_until_it_works_again() {
        let notes = Notes::default();
        let fails = |what: &str| Err(ApiError::new(ApiErrorKind::Internal, what));
        notes.note("web1", "retention", fails("no space left"));
        notes.note("web1", "scrub", fails("damaged"));
        assert_eq!(
            notes.troubles(),
            ["retention: no space left", "scrub: damaged"]
        );
        notes.note("web1", "retention", fails("not writable"));
        notes.note("web1", "scrub", Ok(()));
        assert_eq!(notes.troubles(), ["retention: not writable"]);
        notes.note("web1", "retention", Ok(()));
        assert!(notes.troubles().is_empty());
    }
}
