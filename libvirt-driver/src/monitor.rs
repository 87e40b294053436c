//! A domain's QEMU monitor, over libvirt.
//!
//! How: virDomainQemuMonitorCommand carries the QMP command and returns QEMU's reply as it is, errors included;
//! descriptors go along with virDomainQemuMonitorCommandWithFiles. The monitor belongs to one run of the domain:
//! it holds libvirt's number of that run, and a command after a restart is [`MonitorError::Lost`] and never
//! reaches the new QEMU.

use std::os::fd::BorrowedFd;

use qemu_hook::monitor::{Monitor, MonitorError};
use serde_json::{Value, json};
use virt::domain::Domain as VirtDomain;

use crate::domain::Domain;
use crate::error::{ErrorKind, LibvirtError};
use crate::ffi;

/// The error class of a command that libvirt itself refused, so that QEMU never saw it.
pub const CLASS_LIBVIRT: &str = "LibvirtRefused";
/// The error class of a command that found the domain held by another job of libvirt for 30 s: try again later.
pub const CLASS_BUSY: &str = "LibvirtBusy";

/// The QEMU monitor of one run of a domain.
#[derive(Debug, Clone)]
pub struct DomainMonitor {
    domain: Domain,
    id: u32,
}

impl DomainMonitor {
    /// Opens the monitor of the domain's present run.
    ///
    /// # Errors
    /// [`ErrorKind::DomainOff`] and those of [`Domain::state`].
    pub fn open(domain: &Domain) -> Result<Self, LibvirtError> {
        Ok(Self {
            domain: domain.clone(),
            id: domain.running_id()?,
        })
    }

    /// libvirt's number of the run this monitor belongs to.
    pub fn run_id(&self) -> u32 {
        self.id
    }

    /// Finds the domain, provided that it is still the same run.
    fn virt(&self, command: &str) -> Result<VirtDomain, MonitorError> {
        let found = self
            .domain
            .virt()
            .map_err(|error| translate(command, error))?;
        if found.id() == Some(self.id) {
            return Ok(found);
        }
        let reason = format!("this run of domain {} has ended", self.domain.name());
        Err(MonitorError::Lost {
            command: command.to_owned(),
            reason,
        })
    }

    fn error(&self, command: &str, error: virt::error::Error) -> MonitorError {
        translate(command, self.domain.error("command the QEMU of", error))
    }
}

impl Monitor for DomainMonitor {
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        let domain = self.virt(command)?;
        let reply = domain
            .qemu_monitor_command(&request(command, arguments), 0)
            .map_err(|error| self.error(command, error))?;
        parse_reply(command, &reply)
    }

    fn send_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), MonitorError> {
        let command = "getfd";
        let domain = self.virt(command)?;
        let request = request(command, json!({ "fdname": name }));
        let reply = ffi::monitor_command_with_fd(&domain, &request, fd)
            .map_err(|error| self.error(command, error))?;
        parse_reply(command, &reply).map(drop)
    }
}

fn request(command: &str, arguments: Value) -> String {
    let mut request = json!({ "execute": command });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    request.to_string()
}

/// Takes the `return` member out of QEMU's reply, or its error.
fn parse_reply(command: &str, reply: &str) -> Result<Value, MonitorError> {
    let malformed = |reason: String| MonitorError::Malformed {
        command: command.to_owned(),
        reason,
    };
    let mut reply: Value =
        serde_json::from_str(reply).map_err(|error| malformed(error.to_string()))?;
    if let Some(error) = reply.get("error") {
        let member = |name| {
            error
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned()
        };
        return Err(MonitorError::Refused {
            command: command.to_owned(),
            class: member("class"),
            desc: member("desc"),
        });
    }
    match reply.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(malformed("neither return nor error".to_owned())),
    }
}

/// Says in the monitor's words what libvirt said.
fn translate(command: &str, error: LibvirtError) -> MonitorError {
    let command = command.to_owned();
    let refused = |class: &str| MonitorError::Refused {
        command: command.clone(),
        class: class.to_owned(),
        desc: error.message.clone(),
    };
    match error.kind {
        ErrorKind::NotConnected | ErrorKind::NoSuchDomain | ErrorKind::DomainOff => {
            MonitorError::Lost {
                reason: error.message,
                command,
            }
        }
        ErrorKind::Busy => refused(CLASS_BUSY),
        // QEMU ended while the command was under way.
        _ if error.message.contains("monitor") => MonitorError::Lost {
            reason: error.message,
            command,
        },
        _ => refused(CLASS_LIBVIRT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_taken_apart() {
        let value = parse_reply(
            "query-status",
            r#"{"return":{"status":"running"},"id":"libvirt-9"}"#,
        )
        .unwrap();
        assert_eq!(value, json!({"status": "running"}));

        let refused =
            r#"{"id":"libvirt-9","error":{"class":"DeviceNotFound","desc":"Cannot find node"}}"#;
        match parse_reply("blockdev-del", refused) {
            Err(MonitorError::Refused {
                command,
                class,
                desc,
            }) => {
                assert_eq!(
                    (command.as_str(), class.as_str(), desc.as_str()),
                    ("blockdev-del", "DeviceNotFound", "Cannot find node")
                );
            }
            other => panic!("{other:?}"),
        }
        for reply in ["", "{}", "[1]", "{\"return\""] {
            assert!(
                matches!(
                    parse_reply("stop", reply),
                    Err(MonitorError::Malformed { .. })
                ),
                "{reply}"
            );
        }
    }

    #[test]
    fn requests_leave_out_null_arguments() {
        assert_eq!(
            request("query-block", Value::Null),
            r#"{"execute":"query-block"}"#
        );
        assert_eq!(
            request("getfd", json!({"fdname": "a"})),
            r#"{"arguments":{"fdname":"a"},"execute":"getfd"}"#
        );
    }

    #[test]
    fn libvirts_errors_are_lost_or_refused() {
        let translate =
            |kind, message: &str| translate("stop", LibvirtError::new(kind, "x", message));
        assert!(translate(ErrorKind::DomainOff, "off").is_lost());
        assert!(translate(ErrorKind::NotConnected, "gone").is_lost());
        assert!(
            translate(
                ErrorKind::Refused,
                "Unable to read from monitor: Connection reset by peer"
            )
            .is_lost()
        );
        assert!(!translate(ErrorKind::Busy, "cannot acquire state change lock").is_lost());
        assert!(!translate(ErrorKind::Denied, "no").is_lost());
    }
}
