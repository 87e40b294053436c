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
    Disk, Domain, DomainMonitor, ErrorKind, Hypervisor, Verdict as DiskVerdict,
    nodes::{NodeError, node_for},
};
use qemu_hook::{
    attach::{self, Names},
    monitor::{Monitor, MonitorError},
    node::{self, Node, Verdict},
    qmp::QmpSocket,
};

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
    /// The node of each volume asked for.
    pub(crate) nodes: Vec<(VolumeId, Node)>,
    /// The other disks, each with the reason why it is left out.
    pub(crate) left_out: Vec<String>,
}

/// Whether a machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presence {
    /// QEMU runs; the text differs from run to run.
    Running(String),
    /// No QEMU.
    Off,
    /// It cannot be told now; the reason.
    Unknown(String),
}

/// A disk found at a machine when it is about to be protected.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Its name: libvirt's target, QEMU's device or node.
    pub(crate) target: String,
    /// What can be done with it.
    pub(crate) verdict: Verdict,
}

impl Found {
    /// Says why a disk is left out that is not among the volumes.
    pub(crate) fn left_out(&self) -> String {
        match &self.verdict {
            Verdict::Protectable(_) => format!("{}: not chosen", self.target),
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
    /// The machine's definition as it is now, where there is one.
    fn definition(&self) -> ApiResult<Option<String>>;
    /// The running machine's guest agent; none where it cannot have one. Whether it answers is another matter.
    fn agent(&self) -> ApiResult<Option<Arc<dyn GuestAgent>>> {
        Ok(None)
    }
    /// Lets go of whatever others cannot use meanwhile; the next call takes it again.
    fn release(&self) {}
}

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
            Ok(state) => state
                .id()
                .map_or(Presence::Off, |id| Presence::Running(id.to_string())),
            Err(e) if e.kind == ErrorKind::NoSuchDomain => Presence::Off,
            Err(e) => Presence::Unknown(e.to_string()),
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
            found.push(Found {
                target: disk.target,
                verdict,
            });
        }
        Ok(found)
    }

    fn definition(&self) -> ApiResult<Option<String>> {
        self.domain()?.xml_now().map(Some).map_err(from_libvirt)
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
            Ok((number, _)) => Presence::Running(number.to_string()),
            Err(MonitorError::Lost { reason, .. })
                if reason.contains("refused")
                    || reason.contains("No such file")
                    || reason.contains("closed") =>
            {
                Presence::Off
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

    fn definition(&self) -> ApiResult<Option<String>> {
        Ok(None)
    }

    /// A QMP socket serves one client at a time.
    fn release(&self) {
        guard(&self.connection).1 = None;
    }
}

/// Opens the running machine for the capture of `volumes`, after clearing what an earlier daemon left in its QEMU.
pub(crate) fn open(
    source: &dyn Source,
    volumes: &[VolumeDescription],
    tag: &str,
) -> ApiResult<Running> {
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
    let nodes = volumes
        .iter()
        .map(|v| pick(&found, v))
        .collect::<ApiResult<_>>()?;
    let others = found
        .iter()
        .filter(|f| !volumes.iter().any(|v| v.target == f.target));
    let left_out = others.map(Found::left_out).collect();
    Ok(Running {
        monitor,
        nodes,
        left_out,
    })
}

/// Finds the node of a volume among the disks of the machine as it runs now.
fn pick(found: &[Found], volume: &VolumeDescription) -> ApiResult<(VolumeId, Node)> {
    let failed = |what: String| Err(ApiError::new(ApiErrorKind::FailedPrecondition, what));
    let Some(disk) = found.iter().find(|f| f.target == volume.target) else {
        return failed(format!("disk {} is no longer there", volume.target));
    };
    match &disk.verdict {
        Verdict::Protectable(node) if node.size == volume.size => Ok((volume.id, node.clone())),
        Verdict::Protectable(node) => failed(format!(
            "disk {} has {} bytes now, {} when it was protected",
            volume.target, node.size, volume.size
        )),
        Verdict::LeftOut(reason) | Verdict::Refused(reason) => {
            failed(format!("disk {}: {reason}", volume.target))
        }
    }
}
