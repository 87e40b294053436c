//! The guest agent of a domain, over libvirt.
//!
//! An agent that is not there is [`ErrorKind::AgentSilent`], and libvirt then refuses further commands at once until
//! the agent synchronises again; a command the agent refused is [`ErrorKind::Refused`].

use std::time::Duration;

use serde_json::Value;

use crate::domain::Domain;
use crate::error::{ErrorKind, LibvirtError, Result};

impl Domain {
    /// Asks the guest agent for a sign of life.
    ///
    /// # Errors
    /// [`ErrorKind::AgentSilent`], [`ErrorKind::DomainOff`].
    pub fn agent_ping(&self, timeout: Duration) -> Result<()> {
        self.agent_command(&serde_json::json!({ "execute": "guest-ping" }), timeout)
            .map(drop)
    }

    /// Has the guest agent freeze all file systems of the guest; returns how many it froze.
    ///
    /// # Errors
    /// Those of [`Domain::agent_command`]. After a time-out they may be frozen later: thaw whatever the outcome.
    pub fn agent_freeze(&self, timeout: Duration) -> Result<u64> {
        self.count("guest-fsfreeze-freeze", timeout)
    }

    /// Has the guest agent thaw all file systems of the guest; returns how many were frozen still.
    ///
    /// The agent takes commands in their order: an answer tells that no earlier freeze is still to come.
    ///
    /// # Errors
    /// Those of [`Domain::agent_command`].
    pub fn agent_thaw(&self, timeout: Duration) -> Result<u64> {
        self.count("guest-fsfreeze-thaw", timeout)
    }

    fn count(&self, execute: &str, timeout: Duration) -> Result<u64> {
        let answer = self.agent_command(&serde_json::json!({ "execute": execute }), timeout)?;
        answer.as_u64().ok_or_else(|| {
            let what = format!("{execute} in domain {}", self.name());
            LibvirtError::new(
                ErrorKind::Refused,
                what,
                format!("the answer is no number: {answer}"),
            )
        })
    }

    /// Sends `command` (`{"execute": ..., "arguments": ...}`) to the guest agent; returns the `return` member.
    ///
    /// `timeout` is rounded up to whole seconds, at least one. When it is over the command may still be carried out.
    ///
    /// # Errors
    /// [`ErrorKind::AgentSilent`], [`ErrorKind::DomainOff`], [`ErrorKind::Refused`].
    pub fn agent_command(&self, command: &Value, timeout: Duration) -> Result<Value> {
        let what = "command the guest agent of";
        let reply = self
            .virt()?
            .qemu_agent_command(&command.to_string(), seconds(timeout), 0)
            .map_err(|error| self.error(what, error))?;
        let mut reply: Value = serde_json::from_str(&reply).map_err(|error| {
            let what = format!("{what} domain {}", self.name());
            LibvirtError::new(
                ErrorKind::Refused,
                what,
                format!("the answer is not JSON: {error}"),
            )
        })?;
        Ok(reply.get_mut("return").map(Value::take).unwrap_or_default())
    }
}

/// Whole seconds, rounded up, at least one: zero and negative numbers mean something else to libvirt.
fn seconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis().div_ceil(1000))
        .unwrap_or(i32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_whole_seconds() {
        let table = [
            (0, 1),
            (1, 1),
            (1000, 1),
            (1001, 2),
            (5000, 5),
            (u64::MAX, i32::MAX),
        ];
        for (millis, expected) in table {
            assert_eq!(
                seconds(Duration::from_millis(millis)),
                expected,
                "{millis} ms"
            );
        }
    }
}
