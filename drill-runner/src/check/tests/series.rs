//! When a check ends, and what its report says.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::*;
use crate::outcome::{ATTEMPTS_KEPT, Verdict};

fn silent_plan(deadline_ms: u64) -> CheckPlan {
    let mut plan = CheckPlan::of(CheckKind::Agent);
    plan.deadline = Duration::from_millis(deadline_ms);
    plan.interval = Duration::from_millis(10);
    plan
}

#[test]
fn it_is_tried_until_it_passes() {
    let calls = AtomicU64::new(0);
    let scene = Scene::with_agent(move |_, _| match calls.fetch_add(1, Ordering::SeqCst) {
        0..2 => Err(StageError::AgentSilent("not connected".into())),
        _ => Ok(json!({})),
    });
    let mut told = Vec::new();
    let plan = silent_plan(5000);
    let report = scene.at(|place| run(&plan, place, &mut |one| told.push(one.clone())));
    assert_eq!(report.verdict, Verdict::Proved);
    assert_eq!(report.why, "");
    assert_eq!(report.attempts_total, 3);
    let passed: Vec<bool> = report.attempts.iter().map(|one| one.passed).collect();
    assert_eq!(passed, [false, false, true]);
    assert_eq!(told.len(), 4, "after each attempt and at the end");
    assert_eq!(told[0].attempts_total, 1);
    assert_eq!(told.last(), Some(&report));
}

#[test]
fn of_many_attempts_the_first_and_the_last_are_kept() {
    let scene = Scene::new();
    let mut plan = silent_plan(5000);
    plan.attempts = Some(37);
    let report = scene.run(&plan);
    assert_eq!(report.attempts_total, 37);
    let numbers: Vec<u64> = report.attempts.iter().map(|one| one.number).collect();
    let wanted: Vec<u64> = (1..=10).chain(28..=37).collect();
    assert_eq!(numbers, wanted);
    assert_eq!(numbers.len(), ATTEMPTS_KEPT);
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(report.why, "the guest agent does not answer: not connected");
}

#[test]
fn it_ends_with_its_deadline() {
    let began = Instant::now();
    let report = Scene::new().run(&silent_plan(300));
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(report.verdict, Verdict::Failed);
    assert!(report.attempts_total > 3, "{}", report.attempts_total);
}

#[test]
fn it_ends_at_once_when_the_machine_is_off() {
    let scene = Scene::new();
    *scene.machine.life.lock().unwrap() = Life::Off("shut down by the guest".into());
    let began = Instant::now();
    let report = scene.run(&silent_plan(60_000));
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(report.why, "the machine is off: shut down by the guest");
}

#[test]
fn a_machine_that_goes_off_in_the_middle_of_an_attempt_ends_it() {
    let scene = Scene::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let banner = Some(pattern("never"));
    let plan = once(CheckKind::Tcp { port, banner }, 60_000);
    let began = Instant::now();
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            *scene.machine.life.lock().unwrap() = Life::Off("crashed".into());
        });
        scene.run(&plan)
    });
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(report.why, "the machine is off: crashed");
}

#[test]
fn it_can_be_broken_off_in_the_middle_of_an_attempt() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let banner = Some(pattern("never"));
    let script = CheckKind::Script {
        path: "/bin/sleep".into(),
        args: vec!["1000".into()],
        exit_code: 0,
        output: None,
    };
    for kind in [CheckKind::Tcp { port, banner }, script] {
        let scene = Scene::new();
        let plan = once(kind, 60_000);
        let began = Instant::now();
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(200));
                scene.cancelled.store(true, Ordering::SeqCst);
            });
            scene.run(&plan)
        });
        let took = began.elapsed();
        assert!(took < Duration::from_millis(1000), "{took:?}");
        assert_eq!(report.verdict, Verdict::Cancelled);
    }
}

#[test]
fn cpus_that_stand_still_are_told() {
    let scene = Scene::new();
    *scene.machine.life.lock().unwrap() = Life::Paused("an I/O error".into());
    let report = scene.run(&silent_plan(100));
    assert!(
        report.why.ends_with("CPUs stand still: an I/O error"),
        "{}",
        report.why
    );
}

#[test]
fn an_attempt_that_the_deadline_cuts_short_does_not_hide_the_cause() {
    let calls = AtomicU64::new(0);
    let scene = Scene::with_agent(move |_, timeout| {
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(StageError::AgentSilent("the true cause".into()));
        }
        thread::sleep(timeout);
        Err(StageError::AgentSilent("timed out".into()))
    });
    let report = scene.run(&silent_plan(200));
    assert_eq!(report.attempts_total, 2);
    assert!(report.why.ends_with("the true cause"), "{}", report.why);
}
