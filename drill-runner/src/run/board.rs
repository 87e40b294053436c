//! The report in the making: every thread of the drill writes on it, and whoever follows the drill is told.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{Order, Stopped, member::Member, milliseconds};
use crate::{
    outcome::{
        CardFacts, CheckReport, Console, Event, FORMAT, MachineReport, PointFacts, Recycling,
        Report, Screenshot, Times, Verdict,
    },
    plan::{CheckPlan, MachinePlan},
    stage::{Stage, Vm},
};

/// The most events that are kept of a machine.
const EVENTS_MAX: usize = 500;
/// The most addresses of a card that are told: a guest may announce any.
const ADDRESSES_MAX: usize = 16;
/// How much the pictures of all machines take in a report, bytes of base64: a report has its bounds.
const PICTURES_MAX: usize = 24 << 20;

/// The report in the making.
pub struct Board<'a> {
    order: &'a Order<'a>,
    began: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    report: Report,
    machines: Vec<Arc<dyn Vm>>,
    ready: Vec<String>,
    settled: Vec<String>,
    /// Addresses that were told, with the card's MAC address.
    told: Vec<(String, String)>,
}

impl<'a> Board<'a> {
    pub(super) fn new(order: &'a Order<'a>, stage: &dyn Stage, began: Instant) -> Self {
        let plans = order.plan.boot_order();
        let machines: Vec<MachineReport> = plans.iter().map(|plan| blank(plan, stage)).collect();
        let ages = machines.iter().map(|machine| machine.data_age_ms);
        let report = Report {
            format: FORMAT,
            id: order.id.to_owned(),
            name: order.plan.name.clone(),
            verdict: Verdict::Skipped,
            why: String::new(),
            reason: order.reason.to_owned(),
            asked_by: order.asked_by.to_owned(),
            started: now(),
            ended: String::new(),
            rto_ms: None,
            rpo_ms: ages.flatten().max(),
            host: order.host.clone(),
            plan: order.plan.to_toml(),
            machines,
            recycling: Recycling::default(),
            history: Vec::new(),
            previous: None,
        };
        let inner = Inner {
            report,
            machines: Vec::new(),
            ready: Vec::new(),
            settled: Vec::new(),
            told: Vec::new(),
        };
        let board = Self {
            order,
            began,
            inner: Mutex::new(inner),
        };
        board.tell(&board.lock());
        board
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, inner: &Inner) {
        (self.order.told)(&inner.report);
    }

    /// Milliseconds since the drill began.
    pub(super) fn now(&self) -> u64 {
        milliseconds(self.began.elapsed())
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut MachineReport) -> T) -> Option<T> {
        let mut inner = self.lock();
        let machine = inner.report.machines.iter_mut().find(|m| m.name == name)?;
        let changed = change(machine);
        self.tell(&inner);
        Some(changed)
    }

    fn see<T>(&self, name: &str, see: impl FnOnce(&MachineReport) -> T) -> Option<T> {
        let inner = self.lock();
        inner
            .report
            .machines
            .iter()
            .find(|m| m.name == name)
            .map(see)
    }

    /// Notes when a machine had reached something.
    pub(super) fn time(&self, name: &str, note: impl FnOnce(&mut Times, u64)) {
        let now = self.now();
        self.change(name, |machine| note(&mut machine.times, now));
    }

    /// Notes that something happened.
    pub(super) fn event(&self, name: &str, what: &str) {
        let event = Event {
            at_ms: self.now(),
            what: what.to_owned(),
        };
        self.change(name, |machine| {
            if machine.events.len() < EVENTS_MAX {
                machine.events.push(event);
            }
        });
    }

    /// The point of a machine, and the age of its data in ms.
    pub(super) fn point(&self, name: &str) -> Option<(PointFacts, u64)> {
        self.see(name, |machine| {
            Some((machine.point.clone()?, machine.data_age_ms.unwrap_or(0)))
        })?
    }

    /// Notes that a machine's VM is there.
    pub(super) fn brought(&self, name: &str, member: &Member) {
        self.change(name, |machine| {
            machine.domain.clone_from(&member.domain);
            machine.vcpus = member.vcpus;
            machine.memory_bytes = member.memory_bytes;
            machine.dropped.clone_from(&member.dropped);
            machine.cards = member
                .cards
                .iter()
                .map(|card| CardFacts {
                    mac: card.mac.clone(),
                    network: card.segment.clone().unwrap_or_default(),
                    address: String::new(),
                    learnt_from: String::new(),
                })
                .collect();
            for (card, known) in machine.cards.iter_mut().zip(&member.cards) {
                if let Some((ip, prefix, how)) = known.address {
                    card.address = format!("{ip}/{prefix}");
                    card.learnt_from = how.to_owned();
                }
            }
        });
        self.lock().machines.push(Arc::clone(&member.vm));
        self.event(name, "its VM is there");
    }

    /// Notes an address that a card was seen with; returns whether it is news.
    pub(super) fn address(&self, name: &str, mac: &str, address: &str, how: &str) -> bool {
        let ip = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
        let news = (mac.to_owned(), ip(address));
        {
            let told = &mut self.lock().told;
            let of_card = told.iter().filter(|(of, _)| of == mac).count();
            if told.contains(&news) || of_card >= ADDRESSES_MAX {
                return false;
            }
            told.push(news);
        }
        let noted = self.change(name, |machine| {
            let card = machine.cards.iter_mut().find(|card| card.mac == mac);
            // What was expected and is confirmed stays as it was learnt first.
            let Some(card) = card.filter(|card| ip(&card.address) != ip(address)) else {
                return false;
            };
            card.address = address.to_owned();
            card.learnt_from = how.to_owned();
            true
        });
        noted.unwrap_or(false)
    }

    /// Notes how a check goes.
    pub(super) fn check(&self, name: &str, number: usize, report: CheckReport) {
        self.change(name, |machine| {
            if let Some(place) = machine.checks.get_mut(number) {
                *place = report;
            }
        });
    }

    /// How a check goes.
    pub(super) fn check_of(&self, name: &str, number: usize) -> CheckReport {
        let found = self.see(name, |machine| machine.checks.get(number).cloned());
        found.flatten().unwrap_or_else(|| unmade("check", "", 0))
    }

    /// What the checks of a machine that did not pass come to: the first that does not hold, else the first that could not
    /// be made, which says nothing about the copy.
    pub(super) fn failed_check(&self, name: &str) -> Option<Stopped> {
        self.see(name, |machine| {
            let first = |verdict| machine.checks.iter().find(|check| check.verdict == verdict);
            let failed = first(Verdict::Failed)
                .or_else(|| first(Verdict::Error))
                .or_else(|| first(Verdict::Cancelled));
            failed.map(|check| (check.verdict, format!("{}: {}", check.name, check.why)))
        })?
    }

    /// Adds a picture. Where they become too large together, those in the middle are left out.
    pub(super) fn picture(&self, name: &str, picture: Screenshot) {
        let most = PICTURES_MAX / self.order.plan.machines.len().max(1);
        self.change(name, |machine| {
            machine.screenshots.push(picture);
            fit(&mut machine.screenshots, most);
        });
    }

    /// Notes what a machine wrote to its console.
    pub(super) fn console(&self, name: &str, console: Console) {
        self.change(name, |machine| machine.console = console);
    }

    /// Notes that a machine's boot has finished, for those that wait for it.
    pub(super) fn ready(&self, name: &str) {
        self.lock().ready.push(name.to_owned());
    }

    /// Tells whether a machine's boot has finished.
    pub(super) fn is_ready(&self, name: &str) -> bool {
        self.lock().ready.iter().any(|one| one == name)
    }

    /// Tells whether a machine's boot will not finish any more.
    pub(super) fn is_lost(&self, name: &str) -> bool {
        let inner = self.lock();
        inner.settled.iter().any(|one| one == name) && !inner.ready.iter().any(|one| one == name)
    }

    /// Notes that the last check of a machine passed.
    pub(super) fn proved(&self, name: &str) {
        self.change(name, |machine| {
            let ended = machine.checks.iter().filter_map(|check| check.ended_ms);
            machine.times.proved_ms = ended.max().or(machine.times.ready_ms);
        });
    }

    /// Notes what a machine has come to; none: everything was proved.
    pub(super) fn settle(&self, name: &str, stopped: Option<Stopped>) {
        let (verdict, why) = stopped.unwrap_or((Verdict::Proved, String::new()));
        self.change(name, |machine| {
            machine.verdict = verdict;
            machine.why = why;
        });
        self.lock().settled.push(name.to_owned());
    }

    /// The machines that were made.
    pub(super) fn machines(&self) -> Vec<Arc<dyn Vm>> {
        self.lock().machines.clone()
    }

    /// Tells whether a machine has failed.
    pub(super) fn has_failed(&self) -> bool {
        let inner = self.lock();
        let mut machines = inner.report.machines.iter();
        machines.any(|machine| machine.verdict == Verdict::Failed)
    }

    /// Notes that the machines are removed.
    pub(super) fn removed(&self) {
        let now = self.now();
        let mut inner = self.lock();
        for machine in &mut inner.report.machines {
            machine.times.removed_ms = (!machine.domain.is_empty()).then_some(now);
        }
    }

    /// Ends the drill; `over` is what ended it before its machines did.
    pub(super) fn end(&self, over: Option<Stopped>, recycling: Recycling) -> Report {
        let mut inner = self.lock();
        let report = &mut inner.report;
        report.recycling = recycling;
        report.ended = now();
        let worst = |verdict: Verdict| {
            let mut machines = report.machines.iter();
            machines.find(|machine| machine.verdict == verdict)
        };
        let of_machine = |machine: &MachineReport| {
            (
                machine.verdict,
                format!("{}: {}", machine.name, machine.why),
            )
        };
        let found = worst(Verdict::Cancelled)
            .or_else(|| worst(Verdict::Failed))
            .or_else(|| worst(Verdict::Error))
            .or_else(|| worst(Verdict::Skipped))
            .map(of_machine);
        let (verdict, why) = match (found, over) {
            (Some((Verdict::Failed, why)), _) => (Verdict::Failed, why),
            (_, Some(over)) => over,
            (Some(found), None) => found,
            (None, None) => (Verdict::Proved, String::new()),
        };
        report.verdict = verdict;
        report.why = why;
        if report.verdict == Verdict::Proved {
            let proved = report
                .machines
                .iter()
                .map(|machine| machine.times.proved_ms);
            report.rto_ms = proved.flatten().max();
        }
        self.tell(&inner);
        inner.report.clone()
    }
}

/// Leaves pictures out until the rest has no more than `most` bytes; the last one goes last.
fn fit(pictures: &mut Vec<Screenshot>, most: usize) {
    while pictures.iter().map(|one| one.png.len()).sum::<usize>() > most {
        pictures.remove(pictures.len().saturating_sub(1) / 2);
    }
}

/// A machine of which nothing is known yet.
fn blank(plan: &MachinePlan, stage: &dyn Stage) -> MachineReport {
    let (point, data_age_ms, disks) = match stage.point(&plan.name) {
        Some((point, age, disks)) => (Some(point), Some(age), disks),
        None => (None, None, Vec::new()),
    };
    let left_out = |target: &String| plan.leave_out.contains(target);
    MachineReport {
        name: plan.name.clone(),
        machine_id: String::new(),
        domain: String::new(),
        point,
        data_age_ms,
        verdict: Verdict::Skipped,
        why: "it did not come to it".into(),
        vcpus: None,
        memory_bytes: None,
        disks: disks
            .into_iter()
            .filter(|disk| !left_out(&disk.target))
            .collect(),
        cards: Vec::new(),
        dropped: Vec::new(),
        times: Times::default(),
        events: Vec::new(),
        checks: plan.checks.iter().map(blank_check).collect(),
        screenshots: Vec::new(),
        console: Console::default(),
    }
}

fn blank_check(check: &CheckPlan) -> CheckReport {
    CheckReport {
        expects: crate::check::expects(&check.kind),
        ..unmade(
            &check.title(),
            check.kind.name(),
            milliseconds(check.deadline),
        )
    }
}

fn unmade(name: &str, kind: &str, deadline_ms: u64) -> CheckReport {
    CheckReport {
        name: name.to_owned(),
        kind: kind.to_owned(),
        expects: String::new(),
        verdict: Verdict::Skipped,
        why: "it did not come to it".into(),
        started_ms: None,
        ended_ms: None,
        deadline_ms,
        attempts_total: 0,
        attempts: Vec::new(),
    }
}

fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_their_bounds_and_the_last_stays_longest() {
        let picture = |at_ms: u64, bytes: usize| Screenshot {
            at_ms,
            what: "boot".into(),
            sha256: String::new(),
            width: 1,
            height: 1,
            png: "x".repeat(bytes),
        };
        let left = |sizes: &[usize], most: usize| {
            let numbered = sizes.iter().enumerate();
            let mut all: Vec<Screenshot> = numbered
                .map(|(at, size)| picture(at as u64, *size))
                .collect();
            fit(&mut all, most);
            all.iter().map(|one| one.at_ms).collect::<Vec<_>>()
        };
        assert_eq!(left(&[4, 4, 4], 12), [0, 1, 2]);
        assert_eq!(left(&[4, 4, 4, 4, 4], 12), [0, 3, 4]);
        assert_eq!(left(&[4, 10], 12), [1]);
        assert!(left(&[20], 12).is_empty());
    }
}
