//! What a takeover shall look like: the domain XML of that time, and what the user wants to be other.

use cdp_core::{Harbor, MachineDescription, MachineSource, Point};
use libvirt_driver::{
    Hypervisor, TakeoverSpec,
    takeover::StartMode,
    takeover_xml::{MacChoice, NbdBacking, NetworkChoice, TakeoverDisk},
};

use super::record::Record;
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::errors::{from_harbor, from_libvirt},
};

/// How long a takeover's QEMU waits for a view that is away, seconds: a restart of the daemon fits.
const RECONNECT_DELAY_S: u32 = 300;

/// The domain XML as it was at a point.
pub(super) fn xml_of(
    harbor: &Harbor,
    description: &MachineDescription,
    point: &Point,
) -> ApiResult<String> {
    match (&description.source, point.xml) {
        (MachineSource::Libvirt { .. }, Some(version)) => harbor.xml(version).map_err(from_harbor),
        (MachineSource::Libvirt { .. }, None) => {
            Err(ApiError::new(ApiErrorKind::FailedPrecondition, format!("no domain XML was kept for point {}", point.id))
                .hint("use export, and define a domain on the images yourself"))
        }
        (MachineSource::Qmp { .. }, _) => Err(ApiError::new(
            ApiErrorKind::FailedPrecondition,
            format!("'{}' is protected over a plain QMP socket: there is no domain XML to start a VM from", description.name),
        )
        .hint("use view-open or export, and start QEMU on that yourself")),
    }
}

/// What shall be other than it was.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Shape {
    /// The new domain's name; none: made of the machine's and the point's.
    pub(in crate::engine) name: Option<String>,
    pub(in crate::engine) vcpus: Option<u32>,
    pub(in crate::engine) memory_kib: Option<u64>,
    pub(in crate::engine) network: NetworkChoice,
    pub(in crate::engine) mac: MacChoice,
    pub(in crate::engine) disk_bus: Option<String>,
    pub(in crate::engine) mode: StartMode,
    /// Disks that do not come along, by target.
    pub(in crate::engine) leave_out: Vec<String>,
    /// Whether what the guest writes to its console is kept.
    pub(in crate::engine) console: bool,
    /// The drill it is made for.
    pub(in crate::engine) drill: Option<String>,
}

/// What a user asks for.
pub(in crate::engine) fn asked(
    request: &v1::TakeoverRequest,
    hypervisor: &Hypervisor,
) -> ApiResult<Shape> {
    let invalid = |what: String, hint: &str| {
        Err(ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint))
    };
    let network = match request.network.as_str() {
        "" => NetworkChoice::Keep,
        "none" => NetworkChoice::None,
        name => {
            hypervisor.require_network(name).map_err(from_libvirt)?;
            NetworkChoice::Named(name.to_owned())
        }
    };
    let mac = match request.mac.as_str() {
        "keep" => MacChoice::Keep,
        "new" | "" => MacChoice::New,
        other => return invalid(format!("--mac {other:?} is not known"), "use keep or new"),
    };
    let memory_kib = match request.memory_bytes {
        0 => None,
        bytes if bytes < 1 << 20 => {
            return invalid(
                format!("{bytes} bytes of memory are too few"),
                "give a size such as 512M or 2G",
            );
        }
        bytes => Some(bytes / 1024),
    };
    Ok(Shape {
        name: (!request.new_name.is_empty()).then(|| request.new_name.clone()),
        vcpus: (request.vcpus > 0).then_some(request.vcpus),
        memory_kib,
        network,
        mac,
        disk_bus: (!request.disk_bus.is_empty()).then(|| request.disk_bus.clone()),
        mode: match request.paused {
            true => StartMode::Paused,
            false => StartMode::Running,
        },
        leave_out: Vec::new(),
        console: false,
        drill: None,
    })
}

/// What the takeover shall look like.
pub(super) fn spec(record: &Record, shape: &Shape) -> TakeoverSpec {
    let disks = record.disks.iter().map(|d| TakeoverDisk {
        target: d.target.clone(),
        overlay: d.overlay.clone(),
        backing: Some(NbdBacking {
            socket: record.socket.clone(),
            export: d.target.clone(),
            reconnect_delay_s: RECONNECT_DELAY_S,
        }),
    });
    TakeoverSpec {
        name: record.name.clone(),
        uuid: record.uuid.clone(),
        vcpus: shape.vcpus,
        memory_kib: shape.memory_kib,
        network: shape.network.clone(),
        mac: shape.mac,
        disk_bus: shape.disk_bus.clone(),
        disks: disks.collect(),
        nvram: None,
        console_log: record.console.clone(),
    }
}
