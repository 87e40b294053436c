//! Drills that policies ask for: held when they are due and the host has what they need.
//!
//! One thread looks at every machine each second. A drill that is due and cannot begin, because others run, the host is
//! short of memory, or it is not the time for it, is put off with its reason, and looked at again. Production comes first:
//! memory that is to stay free is never taken.
//!
//! One that could not be held has said nothing: it stays due, is put off with the reason meanwhile, and is tried again.
//!
//! Invariant: of a machine at most one of these drills runs, and of all at most as many as are configured.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use drill_runner::{
    outcome::{Report, Verdict},
    plan::{CheckKind, CheckPlan, MachinePlan, Plan, PointChoice, Ready},
};
use jiff::Zoned;

use super::{Moment, Wish, memory};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    cli::at,
    daemon::policy::{DrillRule, When},
    engine::{Engine, guard, machine::Machine, messages},
    units::format_size,
};
use cdp_core::{MachineSource, Mode};

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a machine is left alone after a drill that could not be held.
const AFTER_ERROR: Duration = Duration::from_secs(60);

/// What is remembered of a machine.
#[derive(Default)]
struct Remembered {
    /// Its drill that runs.
    begun: Option<Begun>,
    /// When its last drill of these ended that could be held; ns since the epoch.
    ended_ns: i64,
    /// When the last one ended, whatever it came to; ns since the epoch.
    tried_ns: i64,
    /// The base points' time for which one was held last; ns since the epoch.
    base_ns: i64,
    /// The next moment of the calendar, and of which rule.
    next: Option<(String, Zoned)>,
    /// Nothing is tried before.
    not_before: Option<Instant>,
    /// Why the last one could not be held.
    unheld: Option<String>,
}

/// A drill that was begun.
struct Begun {
    job: String,
    /// The base points' time when it began; ns since the epoch.
    base_ns: i64,
    /// The moment of the calendar after the one it was begun for.
    next: Option<(String, Zoned)>,
}

/// What a drill has come to, as far as its rule goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// It has said something.
    Judged,
    /// Somebody broke it off.
    Cancelled,
    /// It could not be held, and why: it is due still.
    Unheld(String),
}

impl Remembered {
    /// Notes that the drill that ran has ended.
    fn end(&mut self, end: End, now_ns: i64, now: Instant) {
        let Some(begun) = self.begun.take() else {
            return;
        };
        self.tried_ns = now_ns;
        self.not_before = (end != End::Judged).then(|| now + AFTER_ERROR);
        if let End::Unheld(why) = end {
            self.unheld = Some(why);
            return;
        }
        self.unheld = None;
        self.ended_ns = now_ns;
        self.next = begun.next;
        if end == End::Judged {
            self.base_ns = begun.base_ns;
        }
    }

    /// Whether a drill is due after a base point: the newest is of `base_ns`, points up to `judged_ns` were judged.
    ///
    /// A plan may have points drilled that are older than the base point, so what was judged does not tell it alone.
    fn is_due_after(&self, base_ns: i64, judged_ns: i64) -> bool {
        base_ns > judged_ns.max(self.base_ns)
    }
}

/// Starts the thread, which ends with the engine.
///
/// # Errors
/// There is no thread for it.
pub(crate) fn start(engine: &Arc<Engine>) -> io::Result<()> {
    let weak = Arc::downgrade(engine);
    thread::Builder::new()
        .name("drills".into())
        .spawn(move || {
            let mut known = BTreeMap::new();
            while look(&weak, &mut known) {
                thread::sleep(LOOK_INTERVAL);
            }
        })?;
    Ok(())
}

/// Looks at every machine once; false when there is nothing left to look at.
fn look(engine: &Weak<Engine>, known: &mut BTreeMap<String, Remembered>) -> bool {
    let Some(engine) = engine.upgrade() else {
        return false;
    };
    let mut machines = engine.machine_list();
    known.retain(|id, _| machines.iter().any(|machine| machine.id == *id));
    for machine in &machines {
        let remembered = known.entry(machine.id.clone()).or_default();
        settle(&engine, machine, remembered);
    }
    // Whose drill is the longest ago comes first: nobody waits for ever for one that is always due.
    machines.sort_by_key(|machine| {
        let known = known.get(&machine.id);
        known.map_or(0, |one| one.ended_ns.max(one.tried_ns))
    });
    for machine in machines {
        let running = known.values().filter(|one| one.begun.is_some()).count();
        let Some(remembered) = known.get_mut(&machine.id) else {
            continue;
        };
        if remembered.begun.is_some() {
            continue;
        }
        let rule = rule(&machine);
        if rule.is_none() {
            remembered.unheld = None;
        }
        let due = rule.filter(|rule| is_due(&engine, &machine, rule, remembered));
        let Some(rule) = due else {
            match &remembered.unheld {
                Some(why) => put_off(&engine, &machine.name, why.clone()),
                None => settled(&engine, &machine.name),
            }
            continue;
        };
        match begin(&engine, &machine, &rule, running) {
            Ok(Some(job)) => {
                // One that could not be held stays put off until it is.
                if remembered.unheld.is_none() {
                    settled(&engine, &machine.name);
                }
                let next = match &rule.when {
                    When::At(calendar) => calendar
                        .next(&Zoned::now())
                        .map(|next| (calendar.to_string(), next)),
                    _ => None,
                };
                let base = machine.harbor().base_time();
                remembered.begun = Some(Begun {
                    job,
                    base_ns: base.map_or(0, messages::time),
                    next,
                });
                // The next one begins when it is known what this one takes.
                break;
            }
            // It is another machine's to hold.
            Ok(None) => settled(&engine, &machine.name),
            Err(why) => put_off(&engine, &machine.name, why.what),
        }
    }
    true
}

/// What the policy of a machine asks for; none where there is nothing to start a drill from.
fn rule(machine: &Machine) -> Option<Arc<DrillRule>> {
    let description = machine.description();
    let can_be_held = description.mode != Mode::Released
        && matches!(description.source, MachineSource::Libvirt { .. });
    let (_, in_force) = machine.policy();
    in_force
        .and_then(|in_force| in_force.policy.drill)
        .filter(|_| can_be_held)
}

/// Notes that no drill of a machine is put off.
fn settled(engine: &Engine, machine: &str) {
    guard(&engine.drills.put_off).remove(machine);
}

/// Notes why a drill is put off; says so in the log when that is new.
fn put_off(engine: &Engine, machine: &str, why: String) {
    let mut all = guard(&engine.drills.put_off);
    match all.get_mut(machine) {
        Some((known, _)) => *known = why,
        None => {
            tracing::info!(machine, why, "a drill is put off");
            all.insert(machine.to_owned(), (why, Instant::now()));
        }
    }
}

/// Notes a drill that has ended.
fn settle(engine: &Engine, machine: &Machine, remembered: &mut Remembered) {
    let Some(begun) = &remembered.begun else {
        if let Some(proof) = engine.drills.proof(machine) {
            remembered.ended_ns = remembered.ended_ns.max(proof.ended_ns);
        }
        return;
    };
    let record = engine.jobs.get(&begun.job).ok().map(|job| job.record());
    if record.as_ref().is_some_and(|one| one.state == "running") {
        return;
    }
    let end = end_of(record.as_ref());
    if matches!(end, End::Judged | End::Cancelled) {
        settled(engine, &machine.name);
    }
    let now_ns = messages::time(crate::engine::machine::now());
    remembered.end(end, now_ns, Instant::now());
}

/// What a drill's job says of how it ended.
fn end_of(job: Option<&v1::Job>) -> End {
    let Some(job) = job else {
        return End::Unheld("virtcdpd has forgotten what became of the drill".into());
    };
    let report = serde_json::from_str::<Report>(&job.drill_report).ok();
    let unheld = |why: &str| {
        End::Unheld(format!(
            "the last drill could not be held: {}",
            match why {
                "" => "virtcdpd does not say why",
                why => why,
            }
        ))
    };
    match (job.state.as_str(), report) {
        ("cancelled", _) => End::Cancelled,
        ("done", Some(report)) => match report.verdict {
            Verdict::Proved | Verdict::Failed => End::Judged,
            Verdict::Cancelled => End::Cancelled,
            Verdict::Error | Verdict::Skipped => unheld(&report.why),
        },
        _ => unheld(&job.error),
    }
}

fn is_due(
    engine: &Engine,
    machine: &Machine,
    rule: &DrillRule,
    remembered: &mut Remembered,
) -> bool {
    if remembered
        .not_before
        .is_some_and(|then| Instant::now() < then)
    {
        return false;
    }
    let harbor = machine.harbor();
    if harbor.newest_point().is_none() {
        return false;
    }
    let now_ns = messages::time(crate::engine::machine::now());
    match &rule.when {
        When::Continuous => true,
        When::Every(span) => {
            let span = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
            now_ns.saturating_sub(remembered.ended_ns) >= span
        }
        When::BasePoint => {
            let proof = engine.drills.proof(machine);
            let judged = proof.map_or(0, |proof| proof.judged_ns).max(0);
            harbor
                .base_time()
                .is_some_and(|base| remembered.is_due_after(messages::time(base), judged))
        }
        When::At(calendar) => {
            let name = calendar.to_string();
            let is_known = remembered.next.as_ref().is_some_and(|(of, _)| *of == name);
            if !is_known {
                remembered.next = calendar.next(&Zoned::now()).map(|next| (name, next));
            }
            remembered
                .next
                .as_ref()
                .is_some_and(|(_, next)| Zoned::now() >= *next)
        }
    }
}

/// Begins a drill; none where another machine of its plan does that; an error tells why it is put off.
fn begin(
    engine: &Arc<Engine>,
    machine: &Machine,
    rule: &DrillRule,
    running: usize,
) -> ApiResult<Option<String>> {
    let later = |what: String| Err(ApiError::new(ApiErrorKind::Unavailable, what));
    let plan = plan(machine, rule)?;
    if let Some(path) = &rule.plan
        && !is_first(engine, machine, &plan, path)?
    {
        return Ok(None);
    }
    let limits = &engine.config.drills;
    if running >= limits.parallel {
        return later(match running {
            0 => "drills.parallel is 0: none is held".into(),
            1 => "a drill of another machine runs".into(),
            more => format!("{more} drills of other machines run"),
        });
    }
    if !limits.window.holds(&Zoned::now()) {
        return later(format!("drills may begin in {} only", limits.window));
    }
    let needed = memory::wanted(engine, &plan);
    let free = memory::free(engine);
    if free < needed.saturating_add(limits.reserve_memory) {
        let [free, needed, reserve] = [free, needed, limits.reserve_memory].map(format_size);
        return later(format!(
            "the host is short of memory: {free} are available, the drill needs {needed}, and {reserve} stay free"
        ));
    }
    let moment = moment(&plan)?;
    let wish = Wish {
        plan,
        moment,
        reason: rule.words(),
        asker: None,
    };
    Ok(Some(engine.drill(wish)?.id))
}

/// Whether a plan begins with a machine, which holds it then; an error tells why nobody does.
fn is_first(engine: &Engine, machine: &Machine, plan: &Plan, path: &Path) -> ApiResult<bool> {
    let Some(first) = plan.machines.first() else {
        return Ok(false);
    };
    let never = |what: String| Err(ApiError::new(ApiErrorKind::FailedPrecondition, what));
    let begins = format!("the plan {} begins with '{}'", path.display(), first.name);
    // The plan may name it as its domain is called now.
    let Ok(first) = engine.machine(&first.name) else {
        return never(format!(
            "{begins}, which is not protected; protect it, or correct the plan"
        ));
    };
    if first.id == machine.id {
        return Ok(true);
    }
    match rule(&first).and_then(|rule| rule.plan.clone()) {
        Some(other) if other == path => Ok(false),
        _ => never(format!(
            "{begins}, and its policy does not ask for this plan: nobody holds it; assign '{}' a policy that does, or \
             have the plan begin with '{}'",
            first.name, machine.name
        )),
    }
}

/// The plan of a rule for a machine.
fn plan(machine: &Machine, rule: &DrillRule) -> ApiResult<Plan> {
    let invalid =
        |what: String, hint: String| ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint);
    let Some(path) = &rule.plan else {
        let checks = rule.checks.iter().map(|text| CheckPlan::parse_short(text));
        let mut checks = checks
            .collect::<Result<Vec<_>, _>>()
            .map_err(|(what, hint)| invalid(what, hint))?;
        if checks.is_empty() {
            checks.push(CheckPlan::of(CheckKind::Boot(Ready::Auto)));
        }
        let of_one = MachinePlan {
            checks,
            ..MachinePlan::of(&machine.name)
        };
        return Ok(Plan::of_one(of_one, PointChoice::default()));
    };
    let text = fs::read_to_string(path).map_err(|error| {
        invalid(
            format!("cannot read the plan {}: {error}", path.display()),
            String::new(),
        )
    })?;
    let check = |text: &str| {
        at::parse_here(text)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    Plan::parse(&text, &check)
        .map_err(|error| invalid(format!("the plan {}, {error}", path.display()), error.hint))
}

/// The moment of a plan by the daemon's clock; of several the first.
fn moment(plan: &Plan) -> ApiResult<Moment> {
    let parse = |text: &str| {
        at::parse_here(text).map_err(|error| {
            let hint = error.hint();
            ApiError::new(ApiErrorKind::InvalidArgument, error.to_string()).hint(hint)
        })
    };
    Ok(match &plan.point {
        PointChoice::At(all) => match all.first() {
            Some(first) => Moment::At(parse(first)?.newest()),
            None => Moment::At(v1::At::default()),
        },
        PointChoice::Random { from, to } => {
            Moment::Random(parse(from)?.oldest(), parse(to)?.newest())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(remembered: &mut Remembered, base_ns: i64) {
        let then = Zoned::now();
        remembered.begun = Some(Begun {
            job: "1".into(),
            base_ns,
            next: Some(("Mon 03:00".into(), then)),
        });
    }

    #[test]
    fn what_could_not_be_held_stays_due_and_tells_why() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        begun(&mut remembered, 7);
        remembered.end(End::Unheld("no network".into()), 100, now);
        assert_eq!((remembered.ended_ns, remembered.base_ns), (0, 0));
        assert_eq!(remembered.tried_ns, 100);
        assert!(
            remembered.next.is_none(),
            "the moment of the calendar stays"
        );
        assert_eq!(remembered.not_before, Some(now + AFTER_ERROR));
        assert_eq!(remembered.unheld.as_deref(), Some("no network"));
        assert!(remembered.is_due_after(7, 0));
        // The next one is held.
        begun(&mut remembered, 7);
        remembered.end(End::Judged, 200, now);
        assert_eq!((remembered.ended_ns, remembered.base_ns), (200, 7));
        assert!(remembered.next.is_some());
        assert_eq!((remembered.not_before, remembered.unheld), (None, None));
    }

    #[test]
    fn a_drill_of_an_older_point_is_one_after_the_base_point() {
        let mut remembered = Remembered::default();
        // What was judged is older than the base point, time and again.
        assert!(remembered.is_due_after(50, 10));
        begun(&mut remembered, 50);
        remembered.end(End::Judged, 60, Instant::now());
        assert!(!remembered.is_due_after(50, 10));
        assert!(remembered.is_due_after(70, 10), "there is a newer one");
        assert!(!remembered.is_due_after(70, 71), "which was judged by hand");
    }

    #[test]
    fn the_end_of_a_drill_is_read_from_its_job() {
        let job = |state: &str, error: &str| v1::Job {
            state: state.into(),
            error: error.into(),
            ..Default::default()
        };
        assert_eq!(end_of(Some(&job("cancelled", ""))), End::Cancelled);
        let why = "the last drill could not be held: no domain XML";
        let failed = job("failed", "no domain XML");
        assert_eq!(end_of(Some(&failed)), End::Unheld(why.into()));
        assert!(matches!(end_of(None), End::Unheld(_)));
    }
}
