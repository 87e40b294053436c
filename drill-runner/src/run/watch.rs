//! What is noted of a machine while it boots and is checked: when it was first heard of, its addresses, its screen.
//!
//! None of it decides anything; what cannot be had is left out.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{board::Board, member::Member, picture};
use crate::{
    check,
    isolation::Isolation,
    stage::{Guest, Life},
};

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long a guest may take for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a guest agent may take for an answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(1);
/// When pictures are taken while it boots, seconds after its CPUs ran.
const PICTURES_S: [u64; 6] = [3, 8, 20, 45, 90, 180];

/// Watches one machine.
pub(super) struct Watch<'a> {
    name: &'a str,
    member: &'a Member,
    board: &'a Board<'a>,
    isolation: &'a Isolation,
    is_over: AtomicBool,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        name: &'a str,
        member: &'a Member,
        board: &'a Board<'a>,
        isolation: &'a Isolation,
    ) -> Self {
        Self {
            name,
            member,
            board,
            isolation,
            is_over: AtomicBool::new(false),
        }
    }

    /// Has it end at its next look.
    pub(super) fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Watches until it is [stopped](Self::stop), or everything ends.
    pub(super) fn run(&self, is_cancelled: &dyn Fn() -> bool) {
        let begin = Instant::now();
        if self.isolation.enter().is_err() {
            return;
        }
        let (mut agent, mut ping, mut asked) = (!self.member.has_agent, false, false);
        let mut pictures = PICTURES_S.iter().peekable();
        let mut last = String::new();
        while !self.is_over.load(Ordering::Relaxed) && !is_cancelled() {
            self.learn();
            if !agent && self.agent_answers() {
                agent = true;
                self.board.time(self.name, |times, now| {
                    times.agent_ms = times.agent_ms.or(Some(now))
                });
                self.board.event(self.name, "its agent answers");
            }
            if agent && self.member.has_agent && !asked {
                asked = self.ask();
            }
            if !ping
                && self
                    .member
                    .addresses()
                    .into_iter()
                    .any(|ip| check::answers_ping(ip, PING_TIMEOUT))
            {
                ping = true;
                self.board.time(self.name, |times, now| {
                    times.ping_ms = times.ping_ms.or(Some(now))
                });
                self.board.event(self.name, "it answers a ping");
            }
            let is_due = |due: &&u64| begin.elapsed() >= Duration::from_secs(**due);
            if pictures.next_if(is_due).is_some() {
                take(self.name, self.member, self.board, "boot", &mut last);
            }
            if matches!(self.member.life(), Life::Off(_)) {
                return;
            }
            thread::sleep(INTERVAL);
        }
    }

    fn agent_answers(&self) -> bool {
        let command = serde_json::json!({ "execute": "guest-ping" });
        self.member.agent(&command, AGENT_TIMEOUT).is_ok()
    }

    /// Notes the addresses that cards were seen with on the wire.
    fn learn(&self) {
        for (mac, ip, how) in self.isolation.seen() {
            let is_local = matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
            if is_local {
                continue;
            }
            if self.member.card(&mac).is_none() {
                // Another machine has it, now at least: what answers there says nothing about this one.
                self.member.forget(ip);
                continue;
            }
            let prefix = if ip.is_ipv4() { 24 } else { 64 };
            self.note(&mac, ip, prefix, how);
        }
    }

    /// Asks the agent for the addresses; returns whether it told any.
    fn ask(&self) -> bool {
        let told = self.member.vm.agent_addresses();
        for (mac, ip, prefix) in &told {
            let is_local = matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
            if !is_local && self.member.card(mac).is_some() {
                self.note(mac, *ip, *prefix, "agent");
            }
        }
        told.iter().any(|(_, ip, _)| ip.is_ipv4())
    }

    /// Notes an address that a card has.
    fn note(&self, mac: &str, ip: std::net::IpAddr, prefix: u8, how: &str) {
        let Some(segment) = self.member.card(mac).and_then(|card| card.segment.as_ref()) else {
            return;
        };
        // Before anything is sent there: it may have been ours.
        if let Err(error) = self.isolation.reach(segment, ip, prefix) {
            tracing::debug!(%error, %ip, "an address of a drill cannot be reached");
        }
        self.member.learn(ip);
        if ip.is_ipv4()
            && self
                .board
                .address(self.name, mac, &format!("{ip}/{prefix}"), how)
        {
            self.board
                .event(self.name, &format!("it has the address {ip}"));
        }
    }
}

/// Takes a picture, unless it is the same as the last one.
fn take(name: &str, member: &Member, board: &Board<'_>, what: &str, last: &mut String) {
    let at = board.now();
    let Ok(png) = member.screenshot() else {
        return;
    };
    if let Some(picture) = picture::picture(&png, at, what)
        && picture.sha256 != *last
    {
        last.clone_from(&picture.sha256);
        board.picture(name, picture);
    }
}

/// What is taken at the end: a last picture, and the console.
pub(super) fn at_end(name: &str, member: &Member, board: &Board<'_>, has_failed: bool) {
    let what = if has_failed { "failure" } else { "end" };
    if !matches!(member.life(), Life::Off(_)) {
        take(name, member, board, what, &mut String::new());
    }
    if let Some(path) = member.console() {
        board.console(name, picture::console(&path));
    }
}
