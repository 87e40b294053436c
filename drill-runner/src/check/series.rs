//! The attempts of a check, one after the other, until one passes or there can be no more.
//!
//! Invariant: a report that has ended has a verdict, and a cause unless it passed; of its attempts the first and the last
//! ones are kept.

use std::time::{Duration, Instant};

use super::{
    Place, Sign, attempt,
    bound::{Bound, Stop, time_words},
    place::millis,
    seen::{Come, Seen, off},
    words,
};
use crate::{
    outcome::{ATTEMPTS_KEPT, Attempt, CheckReport, Verdict},
    plan::{CheckKind, CheckPlan, Ready},
    stage::Life,
};

/// Runs a check to its end; `told` gets the report after every attempt.
///
/// The check ends when an attempt passes, the deadline is over, the attempts are used up, the machine is off, or the drill
/// is broken off.
pub fn run(plan: &CheckPlan, place: &Place<'_>, told: &mut dyn FnMut(&CheckReport)) -> CheckReport {
    let needs_life = !plan.kind.is_offline();
    let whole = Bound::new(place, plan.deadline, needs_life);
    let mut report = CheckReport {
        name: plan.title(),
        kind: plan.kind.name().to_owned(),
        expects: words::expects(&plan.kind),
        verdict: Verdict::Failed,
        why: String::new(),
        started_ms: Some(place.clock.now_ms()),
        ended_ms: None,
        deadline_ms: millis(plan.deadline),
        attempts_total: 0,
        attempts: Vec::new(),
    };
    let (verdict, why) = attempts(plan, place, &whole, &mut report, told);
    report.verdict = verdict;
    report.why = why;
    report.ended_ms = Some(place.clock.now_ms());
    told(&report);
    report
}

/// The report of a check of the boot where that has been waited for already, with the sign it finished with.
#[must_use]
pub fn seen_before(mut report: CheckReport, ready: &Ready, sign: Sign, at_ms: u64) -> CheckReport {
    report.expects = words::expects(&CheckKind::Boot(ready.clone()));
    (report.verdict, report.why) = (Verdict::Proved, String::new());
    (report.started_ms, report.ended_ms) = (Some(at_ms), Some(at_ms));
    let seen = Seen::passed(sign.to_string());
    keep(&mut report, at_ms, Duration::ZERO, &seen);
    report
}

fn attempts(
    plan: &CheckPlan,
    place: &Place<'_>,
    whole: &Bound<'_>,
    report: &mut CheckReport,
    told: &mut dyn FnMut(&CheckReport),
) -> (Verdict, String) {
    let mut cause = String::new();
    loop {
        match whole.stop() {
            Some(Stop::Over) if report.attempts_total == 0 => {
                return (
                    Verdict::Failed,
                    "its deadline was over before it began".into(),
                );
            }
            Some(stop) => return ended(stop, cause, plan.kind.is_offline(), place),
            None => {}
        }
        let wanted = time_of_attempt(plan);
        let bound = Bound::new(place, wanted.min(whole.left()), !plan.kind.is_offline());
        let at_ms = place.clock.now_ms();
        let began = Instant::now();
        let seen = attempt::make(plan, place, &bound, report.attempts_total + 1);
        keep(report, at_ms, began.elapsed(), &seen);
        told(report);
        match seen.come {
            Come::Passed => return (Verdict::Proved, String::new()),
            Come::Never => return (Verdict::Failed, seen.saw),
            Come::Broken => return (Verdict::Error, seen.saw),
            Come::NotYet => {}
        }
        // An attempt that the deadline cut short says less than the one before.
        let is_cut = bound.stop() == Some(&Stop::Over) && bound.elapsed() < wanted;
        if cause.is_empty() || !is_cut {
            cause = seen.saw;
        }
        if let Some(stop) = whole.stop() {
            return ended(stop, cause, plan.kind.is_offline(), place);
        }
        if plan
            .attempts
            .is_some_and(|most| report.attempts_total >= u64::from(most.max(1)))
        {
            return (Verdict::Failed, cause);
        }
        whole.nap(plan.interval.max(Duration::from_millis(10)));
    }
}

/// What a check has come to that was ended from outside.
fn ended(stop: &Stop, cause: String, is_offline: bool, place: &Place<'_>) -> (Verdict, String) {
    match stop {
        Stop::Cancelled => (Verdict::Cancelled, "it was broken off".into()),
        Stop::Off(why) => (Verdict::Failed, off(why)),
        Stop::Over if is_offline => (Verdict::Failed, cause),
        Stop::Over => match place.guest.life() {
            Life::Paused(why) => (
                Verdict::Failed,
                format!("{cause}; the machine's CPUs stand still: {why}"),
            ),
            Life::Running | Life::Off(_) => (Verdict::Failed, cause),
        },
    }
}

/// How long an attempt may take. Signs of a boot are watched, not asked for: one attempt for all of the time.
fn time_of_attempt(plan: &CheckPlan) -> Duration {
    match plan.kind {
        CheckKind::Boot(_) => plan.deadline,
        _ => plan.timeout,
    }
}

fn keep(report: &mut CheckReport, at_ms: u64, took: Duration, seen: &Seen) {
    report.attempts_total += 1;
    if report.attempts.len() >= ATTEMPTS_KEPT {
        report.attempts.remove(ATTEMPTS_KEPT / 2);
    }
    let saw = match seen.saw.is_empty() {
        true => format!("nothing after {}", time_words(took)),
        false => seen.saw.clone(),
    };
    report.attempts.push(Attempt {
        number: report.attempts_total,
        at_ms,
        took_ms: millis(took),
        passed: seen.come == Come::Passed,
        saw,
        output: seen.output.clone(),
    });
}
