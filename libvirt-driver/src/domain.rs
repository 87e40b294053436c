//! A domain: found by name or UUID, asked for its state and its XML.
//!
//! How: a [`Domain`] keeps the UUID and looks the domain up at each call, so it stays good when libvirtd
//! restarts and when the domain stops and starts. It is never wrong about which domain it means, and never older
//! than the call.

use std::fmt;

use virt::domain::Domain as VirtDomain;
use virt_sys as sys;

use crate::connection::Hypervisor;
use crate::disks::{Disk, parse_disks};
use crate::error::{ErrorKind, LibvirtError, Result};
use crate::ffi;
use crate::xml_tree::Tree;

/// One domain of a hypervisor, running or not.
#[derive(Clone)]
pub struct Domain {
    hypervisor: Hypervisor,
    uuid: String,
    name: String,
}

/// What a domain does now. `id` is libvirt's number of this run: another id is another QEMU process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainState {
    /// There is no QEMU process.
    Off,
    /// The guest runs (or is just shutting down).
    Running {
        /// libvirt's number of this run.
        id: u32,
    },
    /// The CPUs stand still.
    Paused {
        /// libvirt's number of this run.
        id: u32,
        /// True where a failed disk stopped them.
        io_error: bool,
    },
    /// The CPUs stand still for a migration: the disks are another QEMU's now, or still.
    Migrating {
        /// libvirt's number of this run.
        id: u32,
    },
    /// The guest put itself to sleep (ACPI S3).
    Asleep {
        /// libvirt's number of this run.
        id: u32,
    },
    /// The guest crashed and QEMU was told to stay (`on_crash` preserve).
    Crashed {
        /// libvirt's number of this run.
        id: u32,
    },
}

/// How a domain came to be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyOff {
    /// The guest shut down.
    ShutDown,
    /// Somebody destroyed it.
    Destroyed,
    /// QEMU or the guest crashed.
    Crashed,
    /// It was migrated to another host, and may run there.
    Migrated,
    /// Its state was saved; the next start goes on from there.
    Saved,
    /// It runs, was never started, or libvirt does not tell.
    Unknown,
}

impl DomainState {
    /// libvirt's number of this run, or none when the domain is off.
    pub fn id(&self) -> Option<u32> {
        match *self {
            Self::Off => None,
            Self::Running { id }
            | Self::Paused { id, .. }
            | Self::Migrating { id }
            | Self::Asleep { id }
            | Self::Crashed { id } => Some(id),
        }
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("name", &self.name)
            .field("uuid", &self.uuid)
            .finish()
    }
}

impl Domain {
    pub(crate) fn lookup(hypervisor: &Hypervisor, name_or_uuid: &str) -> Result<Self> {
        let connect = hypervisor.connection()?;
        let by_uuid = is_uuid(name_or_uuid)
            .then(|| connect.lookup_domain_by_uuid_string(name_or_uuid).ok())
            .flatten();
        let found = match by_uuid {
            Some(found) => Ok(found),
            None => connect.lookup_domain_by_name(name_or_uuid),
        };
        let found = found
            .map_err(|error| hypervisor.error(format!("find domain {name_or_uuid}"), error))?;
        Self::from_virt(hypervisor, &found)
    }

    pub(crate) fn list(hypervisor: &Hypervisor) -> Result<Vec<Self>> {
        let connect = hypervisor.connection()?;
        let all = connect
            .list_all_domains(0)
            .map_err(|error| hypervisor.error("list the domains", error))?;
        let mut domains = all
            .iter()
            .map(|one| Self::from_virt(hypervisor, one))
            .collect::<Result<Vec<_>>>()?;
        domains.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(domains)
    }

    pub(crate) fn from_virt(hypervisor: &Hypervisor, domain: &VirtDomain) -> Result<Self> {
        let error = |error| hypervisor.error("read a domain's name", error);
        let (uuid, name) = (
            domain.uuid_string().map_err(error)?,
            domain.name().map_err(error)?,
        );
        Ok(Self {
            hypervisor: hypervisor.clone(),
            uuid,
            name,
        })
    }

    /// The name the domain had when it was looked up.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UUID, in its usual form with dashes, lower case.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The hypervisor it belongs to.
    pub fn hypervisor(&self) -> &Hypervisor {
        &self.hypervisor
    }

    /// Tells what the domain does now.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDomain`] when it was undefined meanwhile; [`ErrorKind::NotConnected`].
    pub fn state(&self) -> Result<DomainState> {
        let domain = self.virt()?;
        let (state, reason) =
            ffi::state(&domain).map_err(|error| self.error("read the state of", error))?;
        let id = domain.id();
        Ok(state_of(state, reason, id))
    }

    /// Tells how the domain came to be off.
    ///
    /// # Errors
    /// Those of [`Domain::state`].
    pub fn why_off(&self) -> Result<WhyOff> {
        let (state, reason) =
            ffi::state(&self.virt()?).map_err(|error| self.error("read the state of", error))?;
        Ok(why_off(state, reason))
    }

    /// Returns libvirt's number of the present run.
    ///
    /// # Errors
    /// [`ErrorKind::DomainOff`], and those of [`Domain::state`].
    pub fn running_id(&self) -> Result<u32> {
        self.state()?.id().ok_or_else(|| self.off("use"))
    }

    /// Returns the XML of the machine as it is now: of the present run if there is one, with device aliases and chosen
    /// addresses, else of the configuration. Secrets (graphics passwords) are not in it.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDomain`], [`ErrorKind::NotConnected`], [`ErrorKind::Busy`].
    pub fn xml_now(&self) -> Result<String> {
        // Not VIR_DOMAIN_XML_MIGRATABLE: it leaves out the aliases, and the passwords it does not leave out.
        self.virt()?
            .xml_desc(0)
            .map_err(|error| self.error("read the XML of", error))
    }

    /// Returns the XML of the configuration, which the next start will use.
    ///
    /// # Errors
    /// Those of [`Domain::xml_now`].
    pub fn xml_configured(&self) -> Result<String> {
        self.virt()?
            .xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)
            .map_err(|error| self.error("read the XML of", error))
    }

    /// Lists the disks of [`Domain::xml_now`], each with the verdict whether it can be protected.
    ///
    /// # Errors
    /// Those of [`Domain::xml_now`]; [`ErrorKind::BadXml`] if libvirt's XML is not understood.
    pub fn disks(&self) -> Result<Vec<Disk>> {
        parse_disks(&self.xml_now()?)
    }

    /// Lists the devices of the host behind its network cards: MAC address in lower case, and name.
    ///
    /// # Errors
    /// Those of [`Domain::xml_now`]; [`ErrorKind::BadXml`].
    pub fn card_devices(&self) -> Result<Vec<(String, String)>> {
        let root = crate::xml_tree::parse_domain(&self.xml_now()?)?;
        let devices = root.get_child("devices");
        let cards = devices.into_iter().flat_map(|devices| devices.elements());
        let cards = cards.filter(|device| device.name == "interface");
        let device = cards.filter_map(|card| {
            let mac = card.child_attr("mac", "address")?.to_ascii_lowercase();
            Some((mac, card.child_attr("target", "dev")?.to_owned()))
        });
        Ok(device.collect())
    }

    /// Tells whether the machine has a channel for a guest agent.
    ///
    /// # Errors
    /// Those of [`Domain::card_devices`].
    pub fn has_agent_channel(&self) -> Result<bool> {
        let root = crate::xml_tree::parse_domain(&self.xml_now()?)?;
        let devices = root.get_child("devices");
        let mut all = devices.into_iter().flat_map(|devices| devices.elements());
        Ok(all.any(|device| {
            device.name == "channel"
                && device.child_attr("target", "name") == Some("org.qemu.guest_agent.0")
        }))
    }

    /// Returns its vCPUs and its memory in bytes, as they are now.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDomain`], [`ErrorKind::NotConnected`].
    pub fn size(&self) -> Result<(u32, u64)> {
        let info = self.virt()?.info();
        let info = info.map_err(|error| self.error("read the size of", error))?;
        Ok((info.nr_virt_cpu, info.memory.saturating_mul(1024)))
    }

    /// Returns how many bytes it has read of all of its disks; none where its kernel is not on one of them, but the host's.
    ///
    /// # Errors
    /// Those of [`Domain::disks`]; [`ErrorKind::DomainOff`].
    pub fn disk_reads(&self) -> Result<Option<u64>> {
        let xml = self.xml_now()?;
        let root = crate::xml_tree::parse_domain(&xml)?;
        if root
            .get_child("os")
            .is_some_and(|os| os.get_child("kernel").is_some())
        {
            return Ok(None);
        }
        let mut sum = 0_u64;
        for disk in parse_disks(&xml)? {
            let stats = self.virt()?.block_stats(&disk.target);
            let stats =
                stats.map_err(|error| self.error("read the counters of the disks of", error))?;
            sum = sum.saturating_add(u64::try_from(stats.rd_bytes).unwrap_or(0));
        }
        Ok(Some(sum))
    }

    /// Returns how much memory of the host its process has, in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::DomainOff`], [`ErrorKind::NoSuchDomain`], [`ErrorKind::NotConnected`]; libvirt does not tell.
    pub fn resident(&self) -> Result<u64> {
        let all = self.virt()?.memory_stats(0);
        let all = all.map_err(|error| self.error("read the memory of", error))?;
        let mut resident = all
            .iter()
            .filter(|one| one.tag == virt::sys::VIR_DOMAIN_MEMORY_STAT_RSS);
        let kib = resident.next().map(|one| one.val);
        kib.map(|kib| kib.saturating_mul(1024))
            .ok_or_else(|| self.off("read the memory of"))
    }

    /// Looks the domain up in libvirt.
    pub(crate) fn virt(&self) -> Result<VirtDomain> {
        let connect = self.hypervisor.connection()?;
        connect
            .lookup_domain_by_uuid_string(&self.uuid)
            .map_err(|error| self.error("find", error))
    }

    /// Wraps libvirt's error about this domain; `verb` as in `start`.
    pub(crate) fn error(&self, verb: &str, error: virt::error::Error) -> LibvirtError {
        self.hypervisor
            .error(format!("{verb} domain {}", self.name), error)
    }

    pub(crate) fn off(&self, verb: &str) -> LibvirtError {
        LibvirtError::new(
            ErrorKind::DomainOff,
            format!("{verb} domain {}", self.name),
            "the domain is not running",
        )
    }
}

fn state_of(state: u32, reason: u32, id: Option<u32>) -> DomainState {
    let Some(id) = id else {
        return DomainState::Off;
    };
    match state {
        sys::VIR_DOMAIN_SHUTOFF => DomainState::Off,
        sys::VIR_DOMAIN_PAUSED if reason == sys::VIR_DOMAIN_PAUSED_MIGRATION => {
            DomainState::Migrating { id }
        }
        sys::VIR_DOMAIN_PAUSED => DomainState::Paused {
            id,
            io_error: reason == sys::VIR_DOMAIN_PAUSED_IOERROR,
        },
        sys::VIR_DOMAIN_PMSUSPENDED => DomainState::Asleep { id },
        sys::VIR_DOMAIN_CRASHED => DomainState::Crashed { id },
        // NOSTATE and BLOCKED are a running guest for QEMU; SHUTDOWN is one that has not ended yet.
        _ => DomainState::Running { id },
    }
}

fn why_off(state: u32, reason: u32) -> WhyOff {
    if state != sys::VIR_DOMAIN_SHUTOFF {
        return WhyOff::Unknown;
    }
    match reason {
        sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => WhyOff::ShutDown,
        sys::VIR_DOMAIN_SHUTOFF_DESTROYED => WhyOff::Destroyed,
        sys::VIR_DOMAIN_SHUTOFF_CRASHED => WhyOff::Crashed,
        sys::VIR_DOMAIN_SHUTOFF_MIGRATED => WhyOff::Migrated,
        sys::VIR_DOMAIN_SHUTOFF_SAVED => WhyOff::Saved,
        _ => WhyOff::Unknown,
    }
}

fn is_uuid(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    digits == 32
        && text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_libvirts_numbers() {
        let id = 7;
        let table = [
            (1, 1, Some(id), DomainState::Running { id }),
            (
                3,
                1,
                Some(id),
                DomainState::Paused {
                    id,
                    io_error: false,
                },
            ),
            (3, 5, Some(id), DomainState::Paused { id, io_error: true }),
            (3, 2, Some(id), DomainState::Migrating { id }),
            (4, 1, Some(id), DomainState::Running { id }),
            (5, 2, None, DomainState::Off),
            (6, 1, None, DomainState::Off),
            (6, 1, Some(id), DomainState::Crashed { id }),
            (7, 0, Some(id), DomainState::Asleep { id }),
        ];
        for (state, reason, id, expected) in table {
            assert_eq!(
                state_of(state, reason, id),
                expected,
                "state {state} reason {reason}"
            );
        }
    }

    #[test]
    fn why_a_domain_is_off_follows_libvirts_numbers() {
        let table = [
            (5, 1, WhyOff::ShutDown),
            (5, 2, WhyOff::Destroyed),
            (5, 3, WhyOff::Crashed),
            (5, 4, WhyOff::Migrated),
            (5, 5, WhyOff::Saved),
            (5, 0, WhyOff::Unknown),
            (1, 4, WhyOff::Unknown),
        ];
        for (state, reason, expected) in table {
            assert_eq!(
                why_off(state, reason),
                expected,
                "state {state} reason {reason}"
            );
        }
    }

    #[test]
    fn uuids_are_told_from_names() {
        assert!(is_uuid("fe4fac2d-bf00-471d-afd7-0eed98d6464c"));
        assert!(is_uuid("FE4FAC2DBF00471DAFD70EED98D6464C"));
        assert!(!is_uuid("web1"));
        assert!(!is_uuid("fe4fac2d-bf00-471d-afd7-0eed98d6464c-copy"));
    }
}
