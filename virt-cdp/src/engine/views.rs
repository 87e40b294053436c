//! Open views: a machine's volumes at a point, each an NBD export on the view's own unix socket.
//!
//! A view is opened for a user, or for a takeover. A takeover's socket has a fixed path, so that its QEMU
//! finds the view again after a restart of the daemon; a user's views end with the daemon.
//! Invariant: what a view shows never changes, and nothing can be written through it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cdp_core::{MachineDescription, Point, Timestamp, View, VolumeId};
use qemu_hook::nbd::{Export, Exports, Extent, ExtentKind, NbdServer};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{errors::sentence, guard, machine::now, messages},
};

/// One volume of a view, as the NBD server has it.
struct VolumeExport {
    view: Arc<View>,
    volume: VolumeId,
    size: u64,
}

impl Export for VolumeExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.view.read_at(self.volume, buf, offset).map_err(|e| {
            tracing::error!(
                error = sentence(&e),
                offset,
                len = buf.len(),
                "a view cannot be read"
            );
            e.into()
        })
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>> {
        let mut merged = Vec::new();
        for extent in self.view.first_extents(self.volume, offset, len, most)? {
            let kind = if extent.zero {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            };
            Extent::push_merged(&mut merged, extent.len, kind);
        }
        Ok(merged)
    }
}

/// Who has a view open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A user, until view-close.
    User,
    /// The takeover of that name.
    Takeover(String),
}

/// Who may connect to a view's socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// Permission bits.
    pub(crate) mode: u32,
    /// User and group id; none: the daemon's own.
    pub(crate) owner: Option<(u32, u32)>,
}

struct OpenView {
    machine: String,
    point: Point,
    opened: Timestamp,
    holder: Holder,
    volumes: Vec<v1::ViewVolume>,
    server: NbdServer,
}

/// All open views.
pub(crate) struct Views {
    dir: PathBuf,
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, OpenView>>,
}

impl Views {
    /// Views whose sockets lie in `dir`, which exists.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            next: AtomicU64::new(1),
            open: Mutex::default(),
        }
    }

    /// The path of the socket of a takeover's view; by its UUID, as names may be longer than such paths.
    pub(crate) fn takeover_socket(&self, uuid: &str) -> PathBuf {
        self.dir.join(format!("takeover-{uuid}.sock"))
    }

    /// Serves `view`; the exports are named after the volumes' targets.
    pub(crate) fn open(
        &self,
        description: &MachineDescription,
        view: View,
        holder: Holder,
        socket: Option<PathBuf>,
        access: Access,
    ) -> ApiResult<v1::View> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let socket = socket.unwrap_or_else(|| self.dir.join(format!("view-{id}.sock")));
        let point = view.point().clone();
        let view = Arc::new(view);
        let failed = |e: &(dyn std::error::Error + 'static)| {
            ApiError::new(
                ApiErrorKind::Internal,
                format!("cannot serve the view: {}", sentence(e)),
            )
        };
        let (mut exports, mut volumes) = (Exports::new(), Vec::new());
        for volume in view.volumes() {
            let size = view.size(volume).map_err(|e| failed(&e))?;
            let target = description
                .volume(volume)
                .map_or_else(|| format!("volume-{volume}"), |v| v.target.clone());
            let about = format!(
                "{} {target}, recovery point {} of {}",
                description.name, point.id, point.time
            );
            let export = VolumeExport {
                view: Arc::clone(&view),
                volume,
                size,
            };
            exports
                .insert(&*target, about, Arc::new(export))
                .map_err(|e| failed(&e))?;
            volumes.push(v1::ViewVolume {
                uri: uri(&socket, &target),
                target,
                size_bytes: size,
            });
        }
        let server = NbdServer::listen_unix(&socket, access.mode, access.owner, exports)
            .map_err(|e| failed(&e))?;
        let opened = OpenView {
            machine: description.name.clone(),
            point,
            opened: now(),
            holder,
            volumes,
            server,
        };
        let message = opened.message(id);
        guard(&self.open).insert(id, opened);
        Ok(message)
    }

    /// Lists the open views.
    pub(crate) fn list(&self) -> Vec<v1::View> {
        guard(&self.open)
            .iter()
            .map(|(id, view)| view.message(*id))
            .collect()
    }

    /// Closes a user's view.
    pub(crate) fn close(&self, id: &str) -> ApiResult<()> {
        let mut open = guard(&self.open);
        let none = || {
            ApiError::new(
                ApiErrorKind::NotFound,
                format!("there is no open view '{id}'"),
            )
            .hint("see view-list; views that a user opened end with the daemon")
        };
        let number = id.parse().map_err(|_| none())?;
        match &open.get(&number).ok_or_else(none)?.holder {
            Holder::User => {}
            Holder::Takeover(name) => {
                return Err(ApiError::new(
                    ApiErrorKind::FailedPrecondition,
                    format!("view {id} carries the takeover '{name}'"),
                )
                .hint("end it with takeover-commit or takeover-discard"));
            }
        }
        let closed = open.remove(&number);
        drop(open);
        drop(closed);
        Ok(())
    }

    /// Closes the view of a takeover, if it is open.
    pub(crate) fn close_takeover(&self, name: &str) {
        let closed: Vec<OpenView> = {
            let mut open = guard(&self.open);
            let holder = Holder::Takeover(name.to_owned());
            let ids: Vec<u64> = open
                .iter()
                .filter(|(_, v)| v.holder == holder)
                .map(|(id, _)| *id)
                .collect();
            ids.iter().filter_map(|id| open.remove(id)).collect()
        };
        drop(closed);
    }

    /// Tells who has views of `machine` open.
    pub(crate) fn holders(&self, machine: &str) -> Vec<String> {
        guard(&self.open)
            .iter()
            .filter(|(_, v)| v.machine == machine)
            .map(|(id, _)| format!("view {id}"))
            .collect()
    }

    /// Closes all views.
    pub(crate) fn close_all(&self) {
        let all = std::mem::take(&mut *guard(&self.open));
        drop(all);
    }
}

impl OpenView {
    fn message(&self, id: u64) -> v1::View {
        v1::View {
            id: id.to_string(),
            machine: self.machine.clone(),
            point: Some(messages::point(&self.point)),
            opened_ns: messages::time(self.opened),
            volumes: self.volumes.clone(),
            connections: u32::try_from(self.server.connections()).unwrap_or(u32::MAX),
            holder: match &self.holder {
                Holder::User => "user".into(),
                Holder::Takeover(name) => format!("takeover {name}"),
            },
        }
    }
}

/// The NBD URI of an export at a socket.
pub(crate) fn uri(socket: &Path, export: &str) -> String {
    libvirt_driver::overlay::nbd_uri(&libvirt_driver::takeover_xml::NbdBacking {
        socket: socket.to_path_buf(),
        export: export.to_owned(),
        reconnect_delay_s: 0,
    })
}
