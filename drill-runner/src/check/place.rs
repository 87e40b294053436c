//! Where a check runs: the machine, what is known of it, and what the host lends.
//!
//! Invariant: nothing here changes while a check runs but what the guest itself tells.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use super::bound::Bound;
use crate::stage::Guest;

/// How often it is looked whether an address is known by now.
const ADDRESS_PAUSE: Duration = Duration::from_millis(20);

/// Where a check runs.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The machine; its volumes are asked from it, too.
    pub guest: &'a dyn Guest,
    /// What scripts and plugins are told.
    pub facts: &'a Facts,
    /// User and group that programs of the host run as; none: as we are.
    pub run_as: Option<(u32, u32)>,
    /// The folder of plugins, `checks.d`.
    pub plugins: &'a Path,
    /// An empty directory of the drill's own, for files.
    pub dir: &'a Path,
    /// When the drill began: all `*_ms` count from there.
    pub clock: Clock,
    /// True once somebody has broken the drill off.
    pub is_cancelled: &'a (dyn Fn() -> bool + Sync),
    /// An environment variable of every child process: how leftovers of a drill are found.
    pub marker: &'a (String, String),
}

/// What scripts and plugins are told of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The drill's number.
    pub drill: String,
    /// The protected machine's name.
    pub machine: String,
    /// Name of the domain that runs for the drill.
    pub domain: String,
    /// The recovery point's number.
    pub point: String,
    /// The recovery point's time, RFC 3339.
    pub point_time: String,
    /// Age of the data when the drill began, ms; none where it is not known.
    pub age_ms: Option<u64>,
    /// Whether the machine has a channel for a guest agent.
    pub has_agent_channel: bool,
    /// Whether a network card of it is in one of the drill's networks.
    pub has_network: bool,
}

/// The time of a drill.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// When it began.
    pub began: Instant,
}

impl Clock {
    /// Milliseconds since the drill began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

impl Place<'_> {
    /// The [addresses](Self::addresses), as soon as one is known; none after `time`, or where there is no network.
    pub(super) fn addresses_within(&self, bound: &Bound<'_>, time: Duration) -> Vec<IpAddr> {
        let until = Instant::now() + time.min(bound.left());
        loop {
            let known = self.addresses();
            let is_over = !self.facts.has_network || Instant::now() >= until;
            if !known.is_empty() || is_over || !bound.nap(ADDRESS_PAUSE) {
                return known;
            }
        }
    }

    /// Addresses in the order in which they are tried; link-local ones are left out, as they say nothing without a card.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let mut all = self.guest.addresses();
        all.retain(|ip| match ip {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        });
        all
    }
}

/// A duration in whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
