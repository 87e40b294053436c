//! Where a machine runs: a libvirt domain, or a QEMU with a plain QMP socket.
//!
//! One small trait over both. A source is asked for a [`Running`] machine each time capture starts; what
//! it hands out (monitor, nodes) is good for one run of QEMU only.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use cdp_core::{VolumeDescription, VolumeId};
use libvirt_driver::{ErrorKind, Hypervisor, Verdict as DiskVerdict};
use qemu_hook::{
    monitor::{Monitor, MonitorError},
    node::{self, Node, Verdict},
    qmp::QmpSocket,
};

use crate::api::{ApiError, ApiErrorKind, ApiResult};
use crate::engine::{
    errors::{from_libvirt, from_monitor},
    guard,
};

/// A machine that runs now.
pub(crate) struct Running {
    /// Its QEMU.
    pub(crate) monitor: Arc<dyn Monitor>,
    /// The node of each volume asked for.
    pub(crate) nodes: Vec<(VolumeId, Node)>,
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

/// Where a machine runs.
pub(crate) trait Source: Send + Sync {
    /// Whether the machine runs.
    fn presence(&self) -> Presence;
    /// All disks of the running machine, protectable or not.
    fn disks(&self) -> ApiResult<Vec<Found>>;
    /// Opens the running machine for the capture of `volumes`.
    fn open(&self, volumes: &[VolumeDescription]) -> ApiResult<Running>;
    /// The machine's definition as it is now, where there is one.
    fn definition(&self) -> ApiResult<Option<String>>;
}

/// A libvirt domain.
pub(crate) struct DomainSource {
    /// The connection.
    pub(crate) hypervisor: Hypervisor,
    /// The domain's UUID: it may be renamed.
    pub(crate) uuid: String,
}

impl Source for DomainSource {
    fn presence(&self) -> Presence {
        match self.hypervisor.lookup(&self.uuid).and_then(|d| d.state()) {
            Ok(state) => state.id().map_or(Presence::Off, |id| Presence::Running(id.to_string())),
            Err(e) if e.kind == ErrorKind::NoSuchDomain => Presence::Off,
            Err(e) => Presence::Unknown(e.to_string()),
        }
    }

    fn disks(&self) -> ApiResult<Vec<Found>> {
        let domain = self.hypervisor.lookup(&self.uuid).map_err(from_libvirt)?;
        let monitor = domain.monitor();
        let mut found = Vec::new();
        for disk in domain.disks().map_err(from_libvirt)? {
            let verdict = match &disk.verdict {
                DiskVerdict::Protectable => libvirt_driver::node_for(&monitor, &disk).map_err(from_libvirt)?,
                DiskVerdict::LeftOut(reason) => Verdict::LeftOut(reason.clone()),
                DiskVerdict::Refused(reason) => Verdict::Refused(reason.clone()),
            };
            found.push(Found { target: disk.target.clone(), verdict });
        }
        Ok(found)
    }

    fn open(&self, volumes: &[VolumeDescription]) -> ApiResult<Running> {
        let domain = self.hypervisor.lookup(&self.uuid).map_err(from_libvirt)?;
        let found = self.disks()?;
        let nodes = volumes.iter().map(|v| pick(&found, v)).collect::<ApiResult<_>>()?;
        Ok(Running { monitor: Arc::new(domain.monitor()), nodes })
    }

    fn definition(&self) -> ApiResult<Option<String>> {
        let domain = self.hypervisor.lookup(&self.uuid).map_err(from_libvirt)?;
        domain.xml_now().map(Some).map_err(from_libvirt)
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
        Self { socket, nodes, connection: Mutex::default() }
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
                if reason.contains("refused") || reason.contains("No such file") || reason.contains("closed") =>
            {
                Presence::Off
            }
            Err(e) => Presence::Unknown(e.to_string()),
        }
    }

    fn disks(&self) -> ApiResult<Vec<Found>> {
        let (_, monitor) = self.connect().map_err(|e| from_monitor(&e).hint(format!(
            "is '{}' the QMP socket of a running QEMU, and nobody else connected to it?", self.socket.display()
        )))?;
        if !self.nodes.is_empty() {
            let look = |n: &String| {
                let verdict = node::inspect(&*monitor, n).map_err(|e| from_monitor(&e))?;
                Ok(Found { target: n.clone(), verdict })
            };
            return self.nodes.iter().map(look).collect();
        }
        match node::devices(&*monitor) {
            Ok(devices) => Ok(devices.into_iter().map(|d| Found { target: d.name, verdict: d.verdict }).collect()),
            Err(MonitorError::Refused { class, .. }) if class == "CommandNotFound" => {
                let names = node::names(&*monitor).map_err(|e| from_monitor(&e))?;
                Err(ApiError::new(ApiErrorKind::InvalidArgument, "qemu-storage-daemon has no devices to choose from")
                    .hint(format!("name the nodes with --node; it has: {}", names.join(", "))))
            }
            Err(e) => Err(from_monitor(&e)),
        }
    }

    fn open(&self, volumes: &[VolumeDescription]) -> ApiResult<Running> {
        let found = self.disks()?;
        let nodes = volumes.iter().map(|v| pick(&found, v)).collect::<ApiResult<_>>()?;
        let (_, monitor) = self.connect().map_err(|e| from_monitor(&e))?;
        Ok(Running { monitor, nodes })
    }

    fn definition(&self) -> ApiResult<Option<String>> {
        Ok(None)
    }
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
        Verdict::LeftOut(reason) | Verdict::Refused(reason) => failed(format!("disk {}: {reason}", volume.target)),
    }
}
