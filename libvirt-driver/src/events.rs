//! What libvirt tells by itself: domains that start, stop, reboot, change, and a connection that comes and goes.
//!
//! How: the connection registers one closure for each kind of event ([`crate::ffi`]); the closures translate
//! and publish to every subscriber. A subscriber that dropped its receiver is forgotten at the next event.
//!
//! Invariant: nothing is published twice, and nothing between `ConnectionLost` and `ConnectionBack` is known:
//! after `ConnectionBack` a subscriber must look at every domain it cares about again.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use virt_sys as sys;

use crate::ffi::RawEvent;

/// One thing that happened to a domain, or to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainEvent {
    /// The domain's UUID in its usual form; empty where the event is the connection's.
    pub uuid: String,
    /// The domain's name; empty where the event is the connection's.
    pub name: String,
    /// What happened.
    pub kind: DomainEventKind,
    /// How it came about, in one word: `booted`, `migrated`, `restored`, `destroyed`, `shutdown`, `saved`, `failed`,
    /// `ioerror`, ...; for device events the device's alias; may be empty.
    pub detail: String,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainEventKind {
    /// QEMU runs (detail `migrated`: it came from another host).
    Started,
    /// QEMU ended in order (detail `migrated`: it went to another host).
    Stopped,
    /// QEMU or the guest crashed.
    Crashed,
    /// The CPUs stand still (detail `ioerror`: a disk failed).
    Suspended,
    /// The CPUs run again.
    Resumed,
    /// The domain's configuration was written.
    Defined,
    /// The domain's configuration was removed.
    Undefined,
    /// The guest rebooted; QEMU is the same process.
    Rebooted,
    /// A device was plugged in; the detail is its alias.
    DeviceAdded,
    /// A device was unplugged; the detail is its alias.
    DeviceRemoved,
    /// libvirt no longer answers: events are missed from now on.
    ConnectionLost,
    /// libvirt answers again, and events come again.
    ConnectionBack,
}

/// Those who want to know.
#[derive(Debug, Default)]
pub(crate) struct Subscribers(Mutex<Vec<Sender<DomainEvent>>>);

impl Subscribers {
    /// Adds a subscriber.
    pub(crate) fn subscribe(&self) -> Receiver<DomainEvent> {
        let (sender, receiver) = channel();
        self.lock().push(sender);
        receiver
    }

    /// Gives everybody a copy.
    pub(crate) fn publish(&self, event: DomainEvent) {
        tracing::debug!(name = event.name, kind = ?event.kind, detail = event.detail, "libvirt event");
        self.lock()
            .retain(|sender| sender.send(event.clone()).is_ok());
    }

    /// Publishes an event of the connection.
    pub(crate) fn publish_connection(&self, kind: DomainEventKind) {
        self.publish(DomainEvent {
            uuid: String::new(),
            name: String::new(),
            kind,
            detail: String::new(),
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sender<DomainEvent>>> {
        // A list of senders is whole at every moment: a panic elsewhere leaves nothing half done.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Translates libvirt's event; `None` for what nobody acts upon.
pub(crate) fn translate(event: RawEvent<'_>) -> Option<(DomainEventKind, &str)> {
    match event {
        RawEvent::Reboot => Some((DomainEventKind::Rebooted, "")),
        RawEvent::DeviceAdded(alias) => Some((DomainEventKind::DeviceAdded, alias)),
        RawEvent::DeviceRemoved(alias) => Some((DomainEventKind::DeviceRemoved, alias)),
        RawEvent::Lifecycle(event, detail) => lifecycle(event as u32, detail as u32),
    }
}

fn lifecycle(event: u32, detail: u32) -> Option<(DomainEventKind, &'static str)> {
    // The words stand in the order of libvirt's enumerations virDomainEvent...DetailType.
    const DEFINED: &[&str] = &["added", "updated", "renamed", "from-snapshot"];
    const UNDEFINED: &[&str] = &["removed", "renamed"];
    const STARTED: &[&str] = &[
        "booted",
        "migrated",
        "restored",
        "from-snapshot",
        "wakeup",
        "recovered",
    ];
    const SUSPENDED: &[&str] = &[
        "paused",
        "migrated",
        "ioerror",
        "watchdog",
        "restored",
        "from-snapshot",
        "api-error",
        "postcopy",
        "postcopy-failed",
    ];
    const RESUMED: &[&str] = &[
        "unpaused",
        "migrated",
        "from-snapshot",
        "postcopy",
        "postcopy-failed",
    ];
    const STOPPED: &[&str] = &[
        "shutdown",
        "destroyed",
        "crashed",
        "migrated",
        "saved",
        "failed",
        "from-snapshot",
        "recreated",
    ];
    const ASLEEP: &[&str] = &["guest-suspended", "guest-hibernated"];
    const CRASHED: &[&str] = &["panicked", "crashloaded"];
    let (kind, words) = match event {
        sys::VIR_DOMAIN_EVENT_DEFINED => (DomainEventKind::Defined, DEFINED),
        sys::VIR_DOMAIN_EVENT_UNDEFINED => (DomainEventKind::Undefined, UNDEFINED),
        sys::VIR_DOMAIN_EVENT_STARTED => (DomainEventKind::Started, STARTED),
        sys::VIR_DOMAIN_EVENT_SUSPENDED => (DomainEventKind::Suspended, SUSPENDED),
        sys::VIR_DOMAIN_EVENT_RESUMED => (DomainEventKind::Resumed, RESUMED),
        sys::VIR_DOMAIN_EVENT_STOPPED if detail == sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => {
            (DomainEventKind::Crashed, STOPPED)
        }
        sys::VIR_DOMAIN_EVENT_STOPPED => (DomainEventKind::Stopped, STOPPED),
        sys::VIR_DOMAIN_EVENT_PMSUSPENDED => (DomainEventKind::Suspended, ASLEEP),
        sys::VIR_DOMAIN_EVENT_CRASHED => (DomainEventKind::Crashed, CRASHED),
        // SHUTDOWN is followed by STOPPED.
        _ => return None,
    };
    Some((kind, words.get(detail as usize).copied().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifecycle_numbers_become_words() {
        let table = [
            (2, 0, Some((DomainEventKind::Started, "booted"))),
            (2, 1, Some((DomainEventKind::Started, "migrated"))),
            (3, 2, Some((DomainEventKind::Suspended, "ioerror"))),
            (4, 0, Some((DomainEventKind::Resumed, "unpaused"))),
            (5, 1, Some((DomainEventKind::Stopped, "destroyed"))),
            (5, 2, Some((DomainEventKind::Crashed, "crashed"))),
            (5, 99, Some((DomainEventKind::Stopped, ""))),
            (6, 0, None),
            (8, 0, Some((DomainEventKind::Crashed, "panicked"))),
            (99, 0, None),
        ];
        for (event, detail, expected) in table {
            assert_eq!(
                lifecycle(event, detail),
                expected,
                "event {event} detail {detail}"
            );
        }
    }

    #[test]
    fn a_subscriber_that_left_is_forgotten() {
        let subscribers = Subscribers::default();
        let stays = subscribers.subscribe();
        drop(subscribers.subscribe());
        subscribers.publish_connection(DomainEventKind::ConnectionLost);
        assert_eq!(stays.recv().unwrap().kind, DomainEventKind::ConnectionLost);
        assert_eq!(subscribers.lock().len(), 1);
    }
}
