//! Drills that policies ask for: held when they are due and the host has what they need.
//!
//! One thread looks at every machine each second. A drill that is due and cannot begin, because others run, the host is
//! short of memory, or it is not the time for it, is put off with its reason, and looked at again. Production comes first:
//! memory that is to stay free is never taken.
//!
//! Invariant: of a machine at most one of these drills runs, and of all at most as many as are configured.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use drill_runner::plan::{CheckKind, CheckPlan, MachinePlan, Plan, PointChoice, Ready};
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
    /// The job of its drill that runs.
    job: Option<String>,
    /// When its last drill of these ended; ns since the epoch.
    ended_ns: i64,
    /// The next moment of the calendar, and of which rule.
    next: Option<(String, Zoned)>,
    /// Nothing is tried before.
    not_before: Option<Instant>,
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
    machines.sort_by_key(|machine| known.get(&machine.id).map_or(0, |one| one.ended_ns));
    for machine in machines {
        let running = known.values().filter(|one| one.job.is_some()).count();
        let Some(remembered) = known.get_mut(&machine.id) else {
            continue;
        };
        let rule = machine
            .policy()
            .1
            .and_then(|in_force| in_force.policy.drill);
        let rule = rule.filter(|_| {
            let description = machine.description();
            description.mode != Mode::Released
                && matches!(description.source, MachineSource::Libvirt { .. })
        });
        let due = rule
            .filter(|rule| remembered.job.is_none() && is_due(&engine, &machine, rule, remembered));
        let Some(rule) = due else {
            if remembered.job.is_none() {
                guard(&engine.drills.put_off).remove(&machine.name);
            }
            continue;
        };
        match begin(&engine, &machine, &rule, running) {
            Ok(Some(job)) => {
                guard(&engine.drills.put_off).remove(&machine.name);
                if let When::At(calendar) = &rule.when {
                    remembered.next = calendar
                        .next(&Zoned::now())
                        .map(|next| (calendar.to_string(), next));
                }
                remembered.job = Some(job);
                // The next one begins when it is known what this one takes.
                break;
            }
            // It is another machine's to hold.
            Ok(None) => {}
            Err(why) => put_off(&engine, &machine.name, why.what),
        }
    }
    true
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
    let Some(job) = &remembered.job else {
        if let Some(proof) = engine.drills.proof(&machine.name) {
            remembered.ended_ns = remembered.ended_ns.max(proof.last_ns);
        }
        return;
    };
    let record = engine.jobs.get(job).ok().map(|job| job.record());
    let state = record
        .as_ref()
        .map_or("failed", |record| record.state.as_str());
    if state == "running" {
        return;
    }
    let report = record.as_ref().map(|record| record.drill_report.as_str());
    let verdict = report
        .and_then(|report| serde_json::from_str::<drill_runner::outcome::Report>(report).ok());
    let is_judged = verdict.is_some_and(|report| {
        use drill_runner::outcome::Verdict;
        matches!(report.verdict, Verdict::Proved | Verdict::Failed)
    });
    remembered.job = None;
    remembered.ended_ns = messages::time(crate::engine::machine::now());
    remembered.not_before = (!is_judged).then(|| Instant::now() + AFTER_ERROR);
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
            let proof = engine.drills.proof(&machine.name);
            let judged = proof.map_or(0, |proof| proof.judged_ns).max(0);
            harbor
                .base_time()
                .is_some_and(|base| messages::time(base) > judged)
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
    if plan
        .machines
        .first()
        .is_none_or(|first| first.name != machine.name)
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
