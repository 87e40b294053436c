//! Where a machine runs: a libvirt domain, or a QEMU with a plain QMP socket.
//!
//! One small trait over both. A source is asked for a [`Running`] machine each time capture starts; what
//! it hands out (monitor, nodes) is good for one run of QEMU only.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use cdp_core::{VolumeDescription, VolumeId};
use libvirt_driver::{
    Disk, Domain, DomainMonitor, DomainState, ErrorKind, Hypervisor, Verdict as DiskVerdict,
    WhyOff,
    nodes::{NodeError, delete_unplugged, node_for},
    parse_disks,
};
use qemu_hook::{
    attach::{self, Names},
    monitor::{Monitor, MonitorError},
    node::{self, Node, Verdict},
    qmp::QmpSocket,
};
use serde::{Deserialize, Serialize};

use crate::api::{ApiError, ApiErrorKind, ApiResult};
use crate::engine::{
    errors::{from_libvirt, from_monitor, sentence},
    guard,
    quiesce::GuestAgent,
};

/// A machine that runs now.
pub(crate) struct Running {
    /// Its QEMU.
    pub(crate) monitor: Arc<dyn Monitor>,
    /// The node of each volume whose disk it has.
    pub(crate) nodes: Vec<(VolumeId, Node)>,
    /// All its disks.
    pub(crate) disks: Vec<Found>,
}

/// Whether a machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presence {
    /// QEMU runs; the text differs from run to run.
    Running(String),
    /// QEMU is there, and the disks are another one's, or may be: it comes or goes by migration.
    Migrating,
    /// No QEMU.
    Off(Ended),
    /// It cannot be told now; the reason.
    Unknown(String),
}

/// How a machine came to be off, with a sentence for people that may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its QEMU was the last to write to the disks.
    Here(&'static str),
    /// It may run on elsewhere.
    Elsewhere(&'static str),
    /// Its source does not know it any more, and cannot say.
    Forgotten(&'static str),
}

impl Ended {
    /// The sentence.
    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::Here(detail) | Self::Elsewhere(detail) | Self::Forgotten(detail) => detail,
        }
    }
}

/// A disk as it is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plugged {
    /// Its name: libvirt's target, QEMU's device or node.
    pub(crate) target: String,
    /// What differs when it is unplugged and plugged in again.
    pub(crate) plug: String,
}

/// What there is to see of a machine without asking its QEMU for much.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    /// Its definition, where there is one.
    pub(crate) definition: Option<String>,
    /// Its disks, where they can be told apart.
    pub(crate) disks: Option<Vec<Plugged>>,
}

/// A disk found at a running machine.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Its name: libvirt's target, QEMU's device or node.
    pub(crate) target: String,
    /// As [`Plugged::plug`] has it while the disk is captured.
    pub(crate) plug: String,
    /// What can be done with it.
    pub(crate) verdict: Verdict,
}

impl Found {
    /// True where it can be a volume.
    pub(crate) fn can_be_protected(&self) -> bool {
        matches!(self.verdict, Verdict::Protectable(_))
    }

    /// The disk as it is plugged in.
    pub(crate) fn plugged(&self) -> Plugged {
        Plugged {
            target: self.target.clone(),
            plug: self.plug.clone(),
        }
    }

    /// Says why a disk of `machine` is left out that is not among the volumes.
    pub(crate) fn left_out(&self, machine: &str) -> String {
        match &self.verdict {
            Verdict::Protectable(_) => format!(
                "{0}: not protected; 'virt-cdp protect {machine} --disk {0}' takes it in",
                self.target
            ),
            Verdict::LeftOut(reason) | Verdict::Refused(reason) => {
                format!("{}: {reason}", self.target)
            }
        }
    }
}

/// Where a machine runs.
pub(crate) trait Source: Send + Sync {
    /// Whether the machine runs.
    fn presence(&self) -> Presence;
    /// All disks of the running machine, protectable or not.
    fn disks(&self) -> ApiResult<Vec<Found>>;
    /// The running machine's monitor.
    fn monitor(&self) -> ApiResult<Arc<dyn Monitor>>;
    /// The machine as it is now, off or running.
    fn look(&self) -> ApiResult<Look>;
    /// The name it goes by now, where that may change.
    fn name(&self) -> Option<String> {
        None
    }
    /// Clears away what is left of the node of a disk that was unplugged while we held it.
    fn clear_unplugged(&self, _monitor: &dyn Monitor, _node: &str) {}
    /// The running machine's guest agent; none where it cannot have one. Whether it answers is another matter.
    fn agent(&self) -> ApiResult<Option<Arc<dyn GuestAgent>>> {
        Ok(None)
    }
    /// Lets go of whatever others cannot use meanwhile; the next call takes it again.
    fn release(&self) {}
}

/// A domain that libvirt has no record of.
const UNDEFINED: Ended = Ended::Forgotten("the domain is no longer defined in libvirt");

/// Gives the connection to libvirt, making it where there is none.
pub(crate) type Connect = Box<dyn Fn() -> ApiResult<Hypervisor> + Send + Sync>;

/// A libvirt domain.
pub(crate) struct DomainSource {
    connect: Connect,
    /// The domain's UUID: it may be renamed.
    uuid: String,
}

impl DomainSource {
    /// The domain with that UUID.
    pub(crate) fn new(connect: Connect, uuid: String) -> Self {
        Self { connect, uuid }
    }

    fn domain(&self) -> ApiResult<Domain> {
        (self.connect)()?.lookup(&self.uuid).map_err(from_libvirt)
    }

    fn ended(&self, hypervisor: &Hypervisor) -> Ended {
        match hypervisor.lookup(&self.uuid).and_then(|d| d.why_off()) {
            Ok(WhyOff::ShutDown) => Ended::Here("the guest has shut down"),
            Ok(WhyOff::Destroyed) => Ended::Here("the domain was destroyed"),
            Ok(WhyOff::Crashed) => Ended::Here("QEMU or the guest has crashed"),
            Ok(WhyOff::Saved) => Ended::Here("its state was saved; the next start goes on there"),
            Ok(WhyOff::Migrated) => Ended::Elsewhere(
                "it was migrated to another host, where this daemon does not protect it",
            ),
            Ok(WhyOff::Unknown) => Ended::Here(""),
            Err(_) => UNDEFINED,
        }
    }

    /// The number of its source is never used again in a run of QEMU.
    fn plugged(disk: Disk) -> Plugged {
        let alias = disk.alias.unwrap_or_default();
        let source = disk.source_index.map(|n| n.to_string()).unwrap_or_default();
        Plugged {
            target: disk.target,
            plug: format!("{alias}/{source}"),
        }
    }

    fn found(monitor: &dyn Monitor, disk: &Disk) -> ApiResult<Verdict> {
        match &disk.verdict {
            DiskVerdict::Protectable => {}
            DiskVerdict::LeftOut(reason) => return Ok(Verdict::LeftOut(reason.to_string())),
            DiskVerdict::Refused(reason) => return Ok(Verdict::Refused(reason.to_string())),
        }
        match node_for(monitor, disk) {
            Ok(node) => Ok(Verdict::Protectable(Node {
                name: node.node,
                size: node.virtual_size,
                allocated: node.allocated,
                format: node.driver,
                image: disk.source.clone(),
                persistent_bitmaps: node.qcow2_v3,
            })),
            Err(NodeError::Monitor(e)) => Err(from_monitor(&e)),
            Err(e @ NodeError::NoMedium { .. }) => Ok(Verdict::LeftOut(e.to_string())),
            Err(e) => Ok(Verdict::Refused(e.to_string())),
        }
    }
}

impl Source for DomainSource {
    fn presence(&self) -> Presence {
        let hypervisor = match (self.connect)() {
            Ok(hypervisor) => hypervisor,
            Err(e) => return Presence::Unknown(e.what),
        };
        match hypervisor.lookup(&self.uuid).and_then(|d| d.state()) {
            Ok(DomainState::Migrating { .. }) => Presence::Migrating,
            Ok(state) => match state.id() {
                Some(id) => Presence::Running(id.to_string()),
                None => Presence::Off(self.ended(&hypervisor)),
            },
            Err(e) if e.kind == ErrorKind::NoSuchDomain => Presence::Off(UNDEFINED),
            Err(e) => Presence::Unknown(e.to_string()),
        }
    }

    fn name(&self) -> Option<String> {
        Some(self.domain().ok()?.name().to_owned())
    }

    fn clear_unplugged(&self, monitor: &dyn Monitor, node: &str) {
        if let Err(error) = delete_unplugged(monitor, node) {
            tracing::debug!(node, %error, "the node of an unplugged disk is not cleared");
        }
    }

    fn monitor(&self) -> ApiResult<Arc<dyn Monitor>> {
        Ok(Arc::new(
            DomainMonitor::open(&self.domain()?).map_err(from_libvirt)?,
        ))
    }

    fn disks(&self) -> ApiResult<Vec<Found>> {
        let domain = self.domain()?;
        let monitor = DomainMonitor::open(&domain).map_err(from_libvirt)?;
        let mut found = Vec::new();
        for disk in domain.disks().map_err(from_libvirt)? {
            let verdict = Self::found(&monitor, &disk)?;
            let Plugged { target, plug } = Self::plugged(disk);
            found.push(Found {
                target,
                plug,
                verdict,
            });
        }
        Ok(found)
    }

    fn look(&self) -> ApiResult<Look> {
        let xml = self.domain()?.xml_now().map_err(from_libvirt)?;
        let disks = parse_disks(&xml).map_err(from_libvirt)?;
        Ok(Look {
            definition: Some(xml),
            disks: Some(disks.into_iter().map(Self::plugged).collect()),
        })
    }

    fn agent(&self) -> ApiResult<Option<Arc<dyn GuestAgent>>> {
        Ok(Some(Arc::new(self.domain()?)))
    }
}

impl GuestAgent for Domain {
    fn ping(&self, timeout: Duration) -> Result<(), String> {
        self.agent_ping(timeout).map_err(|e| sentence(&e))
    }

    fn freeze(&self, timeout: Duration) -> Result<u64, String> {
        self.agent_freeze(timeout).map_err(|e| sentence(&e))
    }

    fn thaw(&self, timeout: Duration) -> Result<u64, String> {
        self.agent_thaw(timeout).map_err(|e| sentence(&e))
    }
}

/// A QEMU or qemu-storage-daemon with a plain QMP socket.
pub(crate) struct QmpSource {
    /// The socket's path.
    pub(crate) socket: PathBuf,
    /// Nodes the user named; empty: QEMU's own devices.
    pub(crate) nodes: Vec<String>,
    /// The one connection such a socket serves at a time, while it lives, and its number.
    connection: Mutex<(u64, Option<Arc<QmpSocket>>)>,
}

impl QmpSource {
    /// A source at `socket`; nothing is connected yet.
    pub(crate) fn new(socket: PathBuf, nodes: Vec<String>) -> Self {
        Self {
            socket,
            nodes,
            connection: Mutex::default(),
        }
    }

    fn connect(&self) -> Result<(u64, Arc<QmpSocket>), MonitorError> {
        let mut connection = guard(&self.connection);
        let (number, live) = &mut *connection;
        if let Some(live) = live.as_ref().filter(|c| !c.is_lost()) {
            return Ok((*number, Arc::clone(live)));
        }
        *live = None;
        let new = Arc::new(QmpSocket::connect(&self.socket)?);
        *number += 1;
        *live = Some(Arc::clone(&new));
        Ok((*number, new))
    }
}

impl Source for QmpSource {
    fn presence(&self) -> Presence {
        match self.connect() {
            Ok((_, monitor)) if migrates(&*monitor) == Some(true) => Presence::Migrating,
            Ok((number, _)) => Presence::Running(number.to_string()),
            Err(MonitorError::Lost { reason, .. })
                if reason.contains("refused")
                    || reason.contains("No such file")
                    || reason.contains("closed") =>
            {
                Presence::Off(Ended::Here(""))
            }
            Err(e) => Presence::Unknown(e.to_string()),
        }
    }

    fn disks(&self) -> ApiResult<Vec<Found>> {
        let (_, monitor) = self.connect().map_err(|e| {
            from_monitor(&e).hint(format!(
                "is '{}' the QMP socket of a running QEMU, and nobody else connected to it?",
                self.socket.display()
            ))
        })?;
        if !self.nodes.is_empty() {
            let look = |n: &String| {
                let verdict = node::inspect(&*monitor, n).map_err(|e| from_monitor(&e))?;
                Ok(Found {
                    target: n.clone(),
                    plug: String::new(),
                    verdict,
                })
            };
            return self.nodes.iter().map(look).collect();
        }
        match node::devices(&*monitor) {
            Ok(devices) => Ok(devices
                .into_iter()
                .map(|d| Found {
                    target: d.name,
                    plug: OURS.to_owned(),
                    verdict: d.verdict,
                })
                .collect()),
            Err(MonitorError::Refused { class, .. }) if class == "CommandNotFound" => {
                let names = node::names(&*monitor).map_err(|e| from_monitor(&e))?;
                Err(ApiError::new(
                    ApiErrorKind::InvalidArgument,
                    "qemu-storage-daemon has no devices to choose from",
                )
                .hint(format!(
                    "name the nodes with --node; it has: {}",
                    names.join(", ")
                )))
            }
            Err(e) => Err(from_monitor(&e)),
        }
    }

    fn monitor(&self) -> ApiResult<Arc<dyn Monitor>> {
        let (_, monitor) = self.connect().map_err(|e| from_monitor(&e))?;
        Ok(monitor)
    }

    fn look(&self) -> ApiResult<Look> {
        if !self.nodes.is_empty() {
            return Ok(Look::default());
        }
        let (_, monitor) = self.connect().map_err(|e| from_monitor(&e))?;
        let devices = node::plugged(&*monitor).map_err(|e| from_monitor(&e))?;
        // One without a name of its own goes by that of its node, which differs while it is captured.
        let named = devices.iter().all(|(name, node)| name != node);
        let plugged = |(target, node): (String, String)| Plugged {
            plug: if node.starts_with(OURS) {
                OURS.to_owned()
            } else {
                node
            },
            target,
        };
        Ok(Look {
            definition: None,
            disks: named.then(|| devices.into_iter().map(plugged).collect()),
        })
    }

    /// A QMP socket serves one client at a time.
    fn release(&self) {
        guard(&self.connection).1 = None;
    }
}

/// What the names of our pieces inside QEMU begin with.
const OURS: &str = "vcdp-";

/// Tells whether a QEMU waits for its state to come, or has sent it away; none where it does not say.
fn migrates(monitor: &dyn Monitor) -> Option<bool> {
    let status = monitor
        .execute("query-status", serde_json::Value::Null)
        .ok()?;
    let status = status["status"].as_str()?;
    Some(matches!(
        status,
        "inmigrate" | "finish-migrate" | "postmigrate"
    ))
}

/// Clears what an earlier daemon left in the QEMU of the running machine, and looks at its disks.
pub(crate) fn look_closely(
    source: &dyn Source,
    volumes: &[VolumeDescription],
    tag: &str,
) -> ApiResult<(Arc<dyn Monitor>, Vec<Found>)> {
    let monitor = source.monitor()?;
    for volume in volumes {
        attach::clear_leftovers(&*monitor, &Names::new(tag, volume.id.0)).map_err(|e| {
            ApiError::new(
                ApiErrorKind::Unavailable,
                format!("cannot clear what is left in QEMU: {}", sentence(&e)),
            )
        })?;
    }
    let found = source.disks()?;
    Ok((monitor, found))
}

/// The running machine as it is to be captured: `volumes` are fitted to the disks `found`.
pub(crate) fn open(
    monitor: Arc<dyn Monitor>,
    found: Vec<Found>,
    volumes: &[VolumeDescription],
) -> Running {
    let node = |volume: &VolumeDescription| {
        let disk = found.iter().find(|f| f.target == volume.target)?;
        match &disk.verdict {
            Verdict::Protectable(node) => Some((volume.id, node.clone())),
            Verdict::LeftOut(_) | Verdict::Refused(_) => None,
        }
    };
    Running {
        monitor,
        nodes: volumes.iter().filter_map(node).collect(),
        disks: found,
    }
}
