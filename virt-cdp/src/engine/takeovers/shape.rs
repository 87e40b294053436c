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

/// What the takeover shall look like, as the user asked for it.
pub(super) fn spec(
    record: &Record,
    request: &v1::TakeoverRequest,
    hypervisor: &Hypervisor,
) -> ApiResult<(TakeoverSpec, StartMode)> {
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
    let disks = record.disks.iter().map(|d| TakeoverDisk {
        target: d.target.clone(),
        overlay: d.overlay.clone(),
        backing: Some(NbdBacking {
            socket: record.socket.clone(),
            export: d.target.clone(),
            reconnect_delay_s: RECONNECT_DELAY_S,
        }),
    });
    let spec = TakeoverSpec {
        name: record.name.clone(),
        uuid: record.uuid.clone(),
        vcpus: (request.vcpus > 0).then_some(request.vcpus),
        memory_kib,
        network,
        mac,
        disk_bus: (!request.disk_bus.is_empty()).then(|| request.disk_bus.clone()),
        disks: disks.collect(),
        nvram: None,
        console_log: None,
    };
    Ok((
        spec,
        if request.paused {
            StartMode::Paused
        } else {
            StartMode::Running
        },
    ))
}
