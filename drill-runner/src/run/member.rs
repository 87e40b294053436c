//! A machine as the checks see it: what stands behind the door, with the addresses that are known by now.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;

use crate::stage::{Brought, Card, Guest, Life, StageError, Vm, Volume};

/// A machine of a running drill.
pub(super) struct Member {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) domain: String,
    pub(super) vcpus: Option<u32>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) cards: Vec<Card>,
    pub(super) has_agent: bool,
    pub(super) agent_is_expected: bool,
    pub(super) dropped: Vec<String>,
    addresses: Mutex<Vec<Known>>,
}

/// An address of a machine.
#[derive(Debug, Clone, Copy)]
struct Known {
    ip: IpAddr,
    /// Whether it was seen, or is the plan's; else it is what the original had, which the copy need not have.
    is_certain: bool,
}

impl Member {
    pub(super) fn new(brought: Brought) -> Self {
        let known = brought.cards.iter().filter_map(|card| {
            card.segment.as_ref()?;
            card.address.map(|(ip, _, how)| Known {
                ip,
                is_certain: how == "plan",
            })
        });
        Self {
            addresses: Mutex::new(known.collect()),
            vm: brought.vm,
            domain: brought.domain,
            vcpus: brought.vcpus,
            memory_bytes: brought.memory_bytes,
            cards: brought.cards,
            has_agent: brought.has_agent,
            agent_is_expected: brought.agent_is_expected,
            dropped: brought.dropped,
        }
    }

    /// Notes an address that was seen. IPv4 comes first, and what was seen before what is only expected.
    pub(super) fn learn(&self, ip: IpAddr) {
        let mut known = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match known.iter_mut().find(|one| one.ip == ip) {
            Some(one) => one.is_certain = true,
            None => known.push(Known {
                ip,
                is_certain: true,
            }),
        }
        known.sort_by_key(|one| (!one.ip.is_ipv4(), !one.is_certain));
    }

    /// Notes that an address is another machine's.
    pub(super) fn forget(&self, ip: IpAddr) {
        let mut known = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.retain(|one| one.ip != ip);
    }

    /// The card of a MAC address.
    pub(super) fn card(&self, mac: &str) -> Option<&Card> {
        self.cards.iter().find(|card| card.mac == mac)
    }
}

impl Guest for Member {
    fn life(&self) -> Life {
        self.vm.life()
    }

    fn agent(&self, command: &Value, timeout: Duration) -> Result<Value, StageError> {
        self.vm.agent(command, timeout)
    }

    fn screenshot(&self) -> Result<Vec<u8>, StageError> {
        self.vm.screenshot()
    }

    fn screen_text(&self) -> Option<String> {
        self.vm.screen_text()
    }

    fn disk_reads(&self) -> Option<u64> {
        self.vm.disk_reads()
    }

    fn console(&self) -> Option<PathBuf> {
        self.vm.console()
    }

    fn volumes(&self) -> Vec<Volume> {
        self.vm.volumes()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let known = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|one| one.ip).collect()
    }
}
