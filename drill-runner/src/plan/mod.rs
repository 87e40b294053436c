//! The plan of a drill: which machines, from which point, in which order, and what must hold in them.
//!
//! A plan is a TOML file, or made from the flags of a command line. It is checked as a whole before anything starts; what is
//! wrong is told with its line and its cure. [`Plan::to_toml`] writes it so that [`Plan::parse`] reads the same.
//!
//! Invariant: in a [`Plan`] that exists every name is there once, what a machine waits for is in it, nothing waits for itself,
//! and every pattern compiles.

mod check;
mod raw;
mod raw_check;
mod short;
mod write;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, time::Duration};

pub use check::{Body, CheckKind, CheckPlan, FileSum, Pattern, Ready};
pub use short::FORMS;

/// How long a drill may take from its start to the last check, unless the plan says.
pub const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How long a machine may take to boot, unless the plan says.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// How many machines a plan may have.
pub const MACHINES_MAX: usize = 64;

/// A drill as it is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Its name: what its reports go by.
    pub name: String,
    /// From which point.
    pub point: PointChoice,
    /// How long all of it may take.
    pub deadline: Duration,
    /// Whether its machines stay when it fails.
    pub keep_on_failure: bool,
    /// Its machines, in the order of the file; at least one.
    pub machines: Vec<MachinePlan>,
    /// The networks it stands in for, where more is to be said of them.
    pub networks: Vec<NetworkPlan>,
}

/// From which point the machines are taken; all of them at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointChoice {
    /// A moment in the grammar of `--at`; each of several is a drill of its own.
    At(Vec<String>),
    /// One by chance between two moments.
    Random {
        /// The earliest.
        from: String,
        /// The latest.
        to: String,
    },
}

impl Default for PointChoice {
    fn default() -> Self {
        Self::At(vec!["latest".into()])
    }
}

/// A machine of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct MachinePlan {
    /// The protected machine.
    pub name: String,
    /// Machines of the plan that must be ready before its turn.
    pub after: Vec<String>,
    /// How long it waits then.
    pub delay: Duration,
    /// When its boot counts as finished.
    pub ready: Ready,
    /// How long its boot may take.
    pub boot_deadline: Duration,
    /// vCPUs; none: as it was.
    pub vcpus: Option<u32>,
    /// Memory in bytes; none: as it was.
    pub memory: Option<u64>,
    /// Disks that are left out, by target.
    pub leave_out: Vec<String>,
    /// Its network cards, where more is to be said of them; by MAC address or number, as in the domain's XML.
    pub cards: Vec<CardPlan>,
    /// What must hold.
    pub checks: Vec<CheckPlan>,
}

impl MachinePlan {
    /// A machine as it was, without checks.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            after: Vec::new(),
            delay: Duration::ZERO,
            ready: Ready::Auto,
            boot_deadline: BOOT_DEADLINE,
            vcpus: None,
            memory: None,
            leave_out: Vec::new(),
            cards: Vec::new(),
            checks: Vec::new(),
        }
    }
}

/// A network card of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardPlan {
    /// Which: its MAC address, or its number from 0.
    pub card: String,
    /// The address it has, with its prefix length, where that cannot be learnt.
    pub address: Option<(IpAddr, u8)>,
    /// The network it is put into in the place of its own; `none` leaves the card without a link.
    pub network: Option<String>,
}

/// A network that a drill stands in for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Its name, as in the original's XML (a network, a bridge, or a device of the host).
    pub name: String,
    /// The address of the host's side, with prefix length: what the guests have as their gateway.
    pub gateway: (IpAddr, u8),
}

/// Says what is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", line.map(|l| format!("line {l}: ")).unwrap_or_default())]
pub struct PlanError {
    /// The line in the file, from 1; none if it is no file's.
    pub line: Option<usize>,
    /// What is wrong, in a sentence without a full stop.
    pub what: String,
    /// The cure.
    pub hint: String,
}

impl PlanError {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            line: None,
            what: what.into(),
            hint: hint.into(),
        }
    }
}

/// Checks a moment in the grammar of `--at`; says what is wrong with it.
pub type MomentCheck<'a> = &'a dyn Fn(&str) -> Result<(), String>;

impl Plan {
    /// Parses a plan file.
    ///
    /// # Errors
    /// The first thing that is wrong with it, with its line.
    pub fn parse(text: &str, moment: MomentCheck<'_>) -> Result<Self, PlanError> {
        raw::parse(text, moment)
    }

    /// Makes a plan of one machine, as the flags of a command line give it.
    #[must_use]
    pub fn of_one(machine: MachinePlan, point: PointChoice) -> Self {
        Self {
            name: machine.name.clone(),
            point,
            deadline: DEADLINE,
            keep_on_failure: false,
            machines: vec![machine],
            networks: Vec::new(),
        }
    }

    /// Writes it as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        write::plan(self)
    }

    /// Its machines in an order in which none comes before what it waits for; else as in the file.
    #[must_use]
    pub fn boot_order(&self) -> Vec<&MachinePlan> {
        let mut order: Vec<&MachinePlan> = Vec::new();
        while order.len() < self.machines.len() {
            let before = order.len();
            for machine in &self.machines {
                let is_in = |name: &String| order.iter().any(|one| one.name == *name);
                if !is_in(&machine.name) && machine.after.iter().all(is_in) {
                    order.push(machine);
                }
            }
            if order.len() == before {
                break;
            }
        }
        order
    }
}
