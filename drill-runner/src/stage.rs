//! The door to the machines of a drill: whoever can start a VM from a point stands behind it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde_json::Value;

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
    /// The file its console goes to; none where it has none.
    fn console(&self) -> Option<PathBuf>;
    /// Its volumes, read-only, as they were at the point.
    fn volumes(&self) -> Vec<Volume>;
    /// Its addresses as they are known now, the best first.
    fn addresses(&self) -> Vec<IpAddr>;
}
