//! The door to the machines of a drill: whoever can start a VM from a point stands behind it.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;

use crate::{
    isolation::Segment,
    outcome::{DiskFacts, PointFacts},
    plan::MachinePlan,
};

/// Says why something behind the door did not work, in a sentence without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The guest has no agent, or it does not answer.
    #[error("{0}")]
    AgentSilent(String),
    /// The guest refused, or cannot do that.
    #[error("{0}")]
    Refused(String),
    /// The machine does not run.
    #[error("{0}")]
    Off(String),
    /// Something of the host failed.
    #[error("{0}")]
    Host(String),
}

/// How a machine of a drill is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Its CPUs run.
    Running,
    /// Its CPUs stand still, and why.
    Paused(String),
    /// It is off, or gone, and how it came to that.
    Off(String),
}

/// A volume of a machine, as a view serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its target.
    pub target: String,
    /// Its size.
    pub size_bytes: u64,
    /// Where the read-only view of it is served: an NBD URI.
    pub uri: String,
}

/// A machine that runs in a drill. Every call may block up to its own bound, and none for ever.
pub trait Guest: Send + Sync {
    /// Tells how it is.
    fn life(&self) -> Life;
    /// Sends a command to the guest agent; returns the `return` member.
    ///
    /// # Errors
    /// [`StageError::AgentSilent`], [`StageError::Refused`], [`StageError::Off`].
    fn agent(&self, command: &Value, timeout: Duration) -> Result<Value, StageError>;
    /// Takes a picture of its screen: a PNG file.
    ///
    /// # Errors
    /// [`StageError::Refused`] where it has no screen.
    fn screenshot(&self) -> Result<Vec<u8>, StageError>;
    /// What its screen says, where that is one of text: letters, row after row without line ends. None where that is not
    /// known; anything where the screen is not one of text.
    fn screen_text(&self) -> Option<String> {
        None
    }
    /// How many bytes it has read of its disks; none where that is not known, or its kernel does not come from them.
    fn disk_reads(&self) -> Option<u64> {
        None
    }
    /// The file its console goes to; none where it has none.
    fn console(&self) -> Option<PathBuf>;
    /// Its volumes, read-only, as they were at the point.
    fn volumes(&self) -> Vec<Volume>;
    /// Its addresses as they are known now, the best first.
    fn addresses(&self) -> Vec<IpAddr>;
}

/// An address of a guest: the MAC address of its card in lower case, the IP address, and its prefix length.
pub type CardAddress = (String, IpAddr, u8);

/// A machine as it is for whoever holds the drill.
pub trait Vm: Guest {
    /// Lets its CPUs run.
    ///
    /// # Errors
    /// The machine is gone, or libvirt refuses.
    fn go(&self) -> Result<(), StageError>;
    /// The devices of the host behind its network cards: MAC address in lower case, and name.
    ///
    /// # Errors
    /// The machine is gone.
    fn devices(&self) -> Result<Vec<(String, String)>, StageError>;
    /// Its addresses as its agent tells them; none without one.
    fn agent_addresses(&self) -> Vec<CardAddress>;
    /// Removes it with all that was made for it; fine if it is gone already.
    ///
    /// # Errors
    /// What could not be removed; calling it again tries again.
    fn remove(&self) -> Result<(), StageError>;
}

/// A network card of a machine in a drill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its MAC address, in lower case.
    pub mac: String,
    /// The segment it is to be put into; none: its link is down.
    pub segment: Option<String>,
    /// Its address with prefix length, and how it came to be known: `plan`, `libvirt`, `original`.
    pub address: Option<(IpAddr, u8, &'static str)>,
}

/// A machine that was brought up: its VM is there, and its CPUs stand still.
pub struct Brought {
    /// The machine.
    pub vm: Arc<dyn Vm>,
    /// Name of its domain.
    pub domain: String,
    /// vCPUs it has.
    pub vcpus: Option<u32>,
    /// Memory it has, bytes.
    pub memory_bytes: Option<u64>,
    /// Its network cards.
    pub cards: Vec<Card>,
    /// Whether it has a channel for a guest agent.
    pub has_agent: bool,
    /// Whether the agent of its original answers, so that its own must.
    pub agent_is_expected: bool,
    /// Sentences: what of the original could not come along.
    pub dropped: Vec<String>,
}

/// Where the machines of a drill come from.
pub trait Stage: Sync {
    /// The networks the machines of the plan are in, with what is known of their addresses.
    fn segments(&self) -> Vec<Segment>;
    /// The point a machine is taken from, the age of its data when the drill began in ms, and its disks.
    fn point(&self, machine: &str) -> Option<(PointFacts, u64, Vec<DiskFacts>)>;
    /// Makes the VM of a machine.
    ///
    /// # Errors
    /// [`StageError::Host`] where that says nothing about the copy; else it cannot be started. Nothing is left then.
    fn bring_up(&self, machine: &MachinePlan) -> Result<Brought, StageError>;
}
