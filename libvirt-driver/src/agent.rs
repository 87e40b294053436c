//! The guest agent of a domain, over libvirt.
//!
//! An agent that is not there is [`ErrorKind::AgentSilent`], and libvirt then refuses further commands at once until
//! the agent synchronises again; a command the agent refused is [`ErrorKind::Refused`].

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::domain::Domain;
use crate::error::{ErrorKind, LibvirtError, Result};

/// An address of a guest, as its agent tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAddress {
    /// The MAC address of its card, in lower case.
    pub mac: String,
    /// The address.
    pub ip: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
}

/// The addresses in the answer to `guest-network-get-interfaces`; what is not understood is left out.
fn parse_addresses(answer: &Value) -> Vec<GuestAddress> {
    let mut found = Vec::new();
    for card in answer.as_array().into_iter().flatten() {
        let mac = card.get("hardware-address").and_then(Value::as_str);
        let mac = mac.unwrap_or_default().to_ascii_lowercase();
        let list = card.get("ip-addresses").and_then(Value::as_array);
        for one in list.into_iter().flatten() {
            let ip = one.get("ip-address").and_then(Value::as_str);
            let Some(ip) = ip.and_then(|ip| ip.parse::<IpAddr>().ok()) else {
                continue;
            };
            let prefix = one.get("prefix").and_then(Value::as_u64);
            let prefix = prefix.and_then(|prefix| u8::try_from(prefix).ok());
            if !ip.is_loopback() {
                found.push(GuestAddress {
                    mac: mac.clone(),
                    ip,
                    prefix: prefix.unwrap_or(if ip.is_ipv4() { 24 } else { 64 }),
                });
            }
        }
    }
    found
}

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

    /// Asks the guest agent for the addresses of the guest's network cards; those of its loopback are left out.
    ///
    /// # Errors
    /// Those of [`Domain::agent_command`].
    pub fn agent_addresses(&self, timeout: Duration) -> Result<Vec<GuestAddress>> {
        let command = serde_json::json!({ "execute": "guest-network-get-interfaces" });
        Ok(parse_addresses(&self.agent_command(&command, timeout)?))
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
    fn addresses_are_read_from_the_agents_answer() {
        let answer = serde_json::json!([
            {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [
                {"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}]},
            {"name": "eth0", "hardware-address": "52:54:00:AA:00:01", "ip-addresses": [
                {"ip-address-type": "ipv4", "ip-address": "10.1.2.5", "prefix": 23},
                {"ip-address-type": "ipv6", "ip-address": "fe80::1"}]},
            {"name": "eth1"}, 7
        ]);
        let found: Vec<String> = parse_addresses(&answer)
            .iter()
            .map(|one| format!("{} {}/{}", one.mac, one.ip, one.prefix))
            .collect();
        assert_eq!(
            found,
            [
                "52:54:00:aa:00:01 10.1.2.5/23",
                "52:54:00:aa:00:01 fe80::1/64"
            ]
        );
    }

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
