//! A drill from its start to its end.
//!
//! How: the isolated network is made. Each machine has a thread: it waits for its turn, has its VM made, puts the cards into
//! the network, lets the CPUs run, waits until the boot has finished, and runs all of its checks at once, each on a thread in
//! the network. Beside it a [watcher](watch) notes when the machine was first heard of, and takes pictures. At the end
//! everything is removed, unless it failed and is to be looked at.
//!
//! Invariant: it ends within the plan's deadline and what removing takes, whatever the guests do. What the report says was
//! measured by one clock, which began with the drill.

mod board;
mod member;
mod picture;
mod watch;

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

pub use board::Board;
use member::Member;

use crate::{
    check::{self, Clock, Facts, Place, Sign},
    isolation::{Isolation, MARKER},
    outcome::{CheckReport, Host, Recycling, Report, Verdict},
    plan::{CheckKind, CheckPlan, MachinePlan, Plan, Ready},
    stage::{Stage, StageError, Vm},
};

/// How often what may end a wait is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What a drill is held with.
pub struct Order<'a> {
    /// Its number.
    pub id: &'a str,
    /// What is wanted.
    pub plan: &'a Plan,
    /// Why it is held.
    pub reason: &'a str,
    /// Who asked for it.
    pub asked_by: &'a str,
    /// Where it is held.
    pub host: Host,
    /// An empty directory for its files.
    pub dir: &'a Path,
    /// The folder of check plugins.
    pub plugins: &'a Path,
    /// The user that programs of the host are run as; none: as we are.
    pub run_as: Option<(u32, u32)>,
    /// Whether somebody has broken it off.
    pub is_cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Hears of everything that changes.
    pub told: &'a (dyn Fn(&Report) + Sync),
}

/// A drill that has ended.
pub struct Held {
    /// What it has come to.
    pub report: Report,
    /// What was left to be looked at.
    pub kept: Option<Kept>,
}

/// The machines and the network of a drill that failed and was kept.
pub struct Kept {
    /// The network.
    pub isolation: Isolation,
    /// The machines.
    pub machines: Vec<Arc<dyn Vm>>,
}

impl Kept {
    /// Removes them; returns what is left, in sentences.
    pub fn remove(self) -> Vec<String> {
        let left = remove(&self.machines);
        self.isolation.remove();
        left
    }
}

/// Holds a drill.
pub fn run(order: &Order<'_>, stage: &dyn Stage) -> Held {
    let began = Instant::now();
    let board = Board::new(order, stage, began);
    let isolation = match Isolation::make(order.id, order.dir, &stage.segments()) {
        Ok(isolation) => isolation,
        Err(error) => {
            let why = format!("its network could not be made: {error}");
            let report = board.end(Some((Verdict::Error, why)), Recycling::default());
            return Held { report, kept: None };
        }
    };
    let drill = Drill {
        order,
        stage,
        board: &board,
        isolation: &isolation,
        began,
        marker: (MARKER.to_owned(), order.id.to_owned()),
    };
    thread::scope(|scope| {
        for machine in order.plan.boot_order() {
            let drill = &drill;
            scope.spawn(move || drill.machine(machine));
        }
    });
    let over = drill.over();
    let machines = board.machines();
    // Who breaks it off wants nothing kept.
    if order.plan.keep_on_failure && board.has_failed() && !(order.is_cancelled)() {
        let recycling = Recycling {
            kept: true,
            ..Recycling::default()
        };
        let report = board.end(over, recycling);
        let kept = Some(Kept {
            isolation,
            machines,
        });
        return Held { report, kept };
    }
    let removing = Instant::now();
    let left = remove(&machines);
    board.removed();
    isolation.remove();
    let recycling = Recycling {
        kept: false,
        took_ms: milliseconds(removing.elapsed()),
        left,
    };
    let report = board.end(over, recycling);
    Held { report, kept: None }
}

/// Removes machines, all at once; returns what is left, in sentences.
fn remove(machines: &[Arc<dyn Vm>]) -> Vec<String> {
    thread::scope(|scope| {
        let all: Vec<_> = machines
            .iter()
            .map(|machine| scope.spawn(|| machine.remove()))
            .collect();
        let outcomes = all.into_iter().map(|one| one.join());
        let left = outcomes.filter_map(|outcome| match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("a machine could not be removed by a defect".to_owned()),
        });
        left.collect()
    })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Tells whether a check of the boot asks for no more than was waited for.
fn is_known(plan: &MachinePlan, check: &CheckPlan, sign: Sign) -> bool {
    let CheckKind::Boot(ready) = &check.kind else {
        return false;
    };
    // CPUs that run say nothing of a boot.
    *ready == plan.ready || (*ready == Ready::Auto && sign != Sign::Running)
}

struct Drill<'a> {
    order: &'a Order<'a>,
    stage: &'a dyn Stage,
    board: &'a Board<'a>,
    isolation: &'a Isolation,
    began: Instant,
    marker: (String, String),
}

/// Why a machine did not come further.
type Stopped = (Verdict, String);

impl Drill<'_> {
    /// Why everything is to end now, if it is.
    fn over(&self) -> Option<Stopped> {
        if (self.order.is_cancelled)() {
            return Some((Verdict::Cancelled, "it was broken off".into()));
        }
        let deadline = self.order.plan.deadline;
        (self.began.elapsed() > deadline).then(|| {
            let deadline = crate::units::format_duration(deadline);
            let why =
                format!("the drill did not come to its end within its deadline of {deadline}");
            (Verdict::Failed, why)
        })
    }

    /// Waits until something is so, or until everything is to end.
    fn wait(&self, mut is_so: impl FnMut() -> bool) -> Result<(), Stopped> {
        loop {
            if is_so() {
                return Ok(());
            }
            if let Some(over) = self.over() {
                return Err(over);
            }
            thread::sleep(LOOK);
        }
    }

    /// The life of one machine in the drill, up to the last of its checks.
    fn machine(&self, plan: &MachinePlan) {
        let name = plan.name.as_str();
        let stopped = self.live(plan).err();
        let what = match &stopped {
            Some((_, why)) => why.clone(),
            None => "all of its checks passed".to_owned(),
        };
        self.board.event(name, &what);
        self.board.settle(name, stopped);
    }

    fn live(&self, plan: &MachinePlan) -> Result<(), Stopped> {
        let (name, board) = (plan.name.as_str(), self.board);
        self.turn(plan)?;
        board.time(name, |times, now| times.turn_ms = Some(now));
        if board.point(name).is_none() {
            return Err((
                Verdict::Failed,
                "it has no recovery point of that time".into(),
            ));
        }
        let brought = self.stage.bring_up(plan).map_err(|error| match error {
            StageError::Host(what) => (Verdict::Error, format!("it could not be started: {what}")),
            other => (Verdict::Failed, format!("it could not be started: {other}")),
        })?;
        let member = Member::new(brought);
        board.brought(name, &member);
        self.plug(name, &member)?;
        member.vm.go().map_err(|error| match error {
            StageError::Host(what) => (Verdict::Error, format!("it could not run: {what}")),
            other => (Verdict::Failed, format!("it could not run: {other}")),
        })?;
        board.time(name, |times, now| times.running_ms = Some(now));
        board.event(name, "its CPUs run");
        let watched = watch::Watch::new(name, &member, board, self.isolation);
        let outcome = thread::scope(|scope| {
            let watcher = scope.spawn(|| watched.run(&|| self.over().is_some()));
            // Checks of the disks need no machine that runs.
            let offline = self.checks(scope, plan, &member, None);
            let ready = self.ready(plan, &member);
            let online = match &ready {
                Ok(sign) => self.checks(scope, plan, &member, Some(*sign)),
                Err(_) => Vec::new(),
            };
            for check in offline.into_iter().chain(online) {
                let _ = check.join();
            }
            watched.stop();
            let _ = watcher.join();
            ready
        });
        let failed = outcome.is_err() || board.failed_check(name).is_some();
        watch::at_end(name, &member, board, failed);
        outcome?;
        match board.failed_check(name) {
            None => {
                board.proved(name);
                Ok(())
            }
            Some((verdict, why)) => Err(match self.over() {
                Some((Verdict::Cancelled, why)) => (Verdict::Cancelled, why),
                _ => (verdict, why),
            }),
        }
    }

    /// Waits until what the machine waits for is ready, and for its delay.
    fn turn(&self, plan: &MachinePlan) -> Result<(), Stopped> {
        let mut lost = None;
        self.wait(|| {
            lost = plan.after.iter().find(|one| self.board.is_lost(one));
            lost.is_some() || plan.after.iter().all(|one| self.board.is_ready(one))
        })?;
        if let Some(lost) = lost {
            let why = format!("'{lost}', which it waits for, did not become ready");
            return Err((Verdict::Skipped, why));
        }
        let begin = Instant::now();
        self.wait(|| begin.elapsed() >= plan.delay)
    }

    fn plug(&self, name: &str, member: &Member) -> Result<(), Stopped> {
        let failed = |what: String| (Verdict::Error, format!("its network cards: {what}"));
        let devices = member.vm.devices().map_err(|e| failed(e.to_string()))?;
        for card in &member.cards {
            let Some(segment) = &card.segment else {
                continue;
            };
            if let Some((address, prefix, _)) = card.address
                && let Err(error) = self.isolation.reach(segment, address, prefix)
            {
                self.board.event(name, &error.to_string());
            }
            let device = devices.iter().find(|(mac, _)| *mac == card.mac);
            let Some((_, device)) = device else {
                return Err(failed(format!("there is no device of card {}", card.mac)));
            };
            let plugged = self.isolation.plug(device, segment);
            plugged.map_err(|e| failed(e.to_string()))?;
        }
        Ok(())
    }

    fn ready(&self, plan: &MachinePlan, member: &Member) -> Result<Sign, Stopped> {
        let (name, board) = (plan.name.as_str(), self.board);
        let over = || self.over().is_some();
        let facts = self.facts(plan, member);
        let waited = thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                self.isolation.enter().map_err(|error| error.to_string())?;
                let place = self.place(member, &facts, &over);
                let deadline = plan.boot_deadline;
                check::wait_ready(&plan.ready, deadline, &place, &mut |_| {})
            });
            waiter.join()
        });
        let waited = waited.unwrap_or_else(|_| Err("waiting for it failed by a defect".into()));
        match waited {
            Ok(sign) => {
                board.time(name, |times, now| times.ready_ms = Some(now));
                board.event(name, &format!("its boot has finished: {sign}"));
                board.ready(name);
                Ok(sign)
            }
            Err(why) => match self.over() {
                Some(over) => Err(over),
                None => Err((Verdict::Failed, format!("its boot did not finish: {why}"))),
            },
        }
    }

    /// Starts all checks of one sort, each on a thread of its own: those that need a machine, once its boot has finished
    /// with `sign`, or those that need none.
    fn checks<'s, 'e: 's>(
        &'e self,
        scope: &'s thread::Scope<'s, 'e>,
        plan: &'e MachinePlan,
        member: &'e Member,
        sign: Option<Sign>,
    ) -> Vec<thread::ScopedJoinHandle<'s, ()>> {
        let all = plan.checks.iter().enumerate();
        let of_sort = all.filter(|(_, check)| check.kind.is_offline() == sign.is_none());
        of_sort
            .map(|(number, check)| {
                scope.spawn(move || self.check(plan, member, number, check, sign))
            })
            .collect()
    }

    fn check(
        &self,
        plan: &MachinePlan,
        member: &Member,
        number: usize,
        check: &CheckPlan,
        sign: Option<Sign>,
    ) {
        let tell = |report: &CheckReport| self.board.check(&plan.name, number, report.clone());
        if let Err(error) = self.isolation.enter() {
            let mut report = self.board.check_of(&plan.name, number);
            report.verdict = Verdict::Error;
            report.why = format!("the drill's network could not be entered: {error}");
            return tell(&report);
        }
        if let Some(sign) = sign.filter(|sign| is_known(plan, check, *sign)) {
            let report = self.board.check_of(&plan.name, number);
            return tell(&check::seen_before(
                report,
                &plan.ready,
                sign,
                self.board.now(),
            ));
        }
        let facts = self.facts(plan, member);
        let over = || self.over().is_some();
        let place = self.place(member, &facts, &over);
        let mut report = check::run(check, &place, &mut |report| tell(report));
        // Nobody broke it off: the time of the whole drill was over.
        if report.verdict == Verdict::Cancelled
            && let Some((verdict, why)) = self.over()
        {
            (report.verdict, report.why) = (verdict, why);
        }
        tell(&report);
        if report.verdict == Verdict::Proved {
            // The watcher may have been slower.
            self.board.time(&plan.name, |times, now| match check.kind {
                CheckKind::Ping => times.ping_ms = times.ping_ms.or(Some(now)),
                CheckKind::Agent => times.agent_ms = times.agent_ms.or(Some(now)),
                _ => {}
            });
        }
        let what = match report.verdict {
            Verdict::Proved => format!("{} passed", report.name),
            _ => format!("{} did not pass: {}", report.name, report.why),
        };
        self.board.event(&plan.name, &what);
    }

    fn facts(&self, plan: &MachinePlan, member: &Member) -> Facts {
        let point = self.board.point(&plan.name);
        Facts {
            drill: self.order.id.to_owned(),
            machine: plan.name.clone(),
            domain: member.domain.clone(),
            point: point
                .as_ref()
                .map(|(point, _)| point.id.to_string())
                .unwrap_or_default(),
            point_time: point
                .as_ref()
                .map(|(point, _)| point.time.clone())
                .unwrap_or_default(),
            age_ms: point.map(|(_, age)| age),
            has_agent_channel: member.has_agent,
            agent_is_expected: member.agent_is_expected,
            has_network: member.cards.iter().any(|card| card.segment.is_some()),
        }
    }

    fn place<'p>(
        &'p self,
        member: &'p Member,
        facts: &'p Facts,
        is_cancelled: &'p (dyn Fn() -> bool + Sync),
    ) -> Place<'p> {
        Place {
            guest: member,
            facts,
            run_as: self.order.run_as,
            plugins: self.order.plugins,
            dir: self.order.dir,
            clock: Clock { began: self.began },
            is_cancelled,
            marker: &self.marker,
        }
    }
}
