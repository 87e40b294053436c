//! Reading a running disk through QEMU's own NBD server, for the seed and the resync.
//!
//! A listening unix socket is made in a directory only we can enter and its descriptor is given to
//! QEMU (`nbd-server-start`), so QEMU's user need not reach any path. Each volume becomes a read-only
//! export. QEMU has one NBD server per process, shared with libvirt's pull backups and migration: a
//! server that somebody else started is never stopped, the caller tries again later.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    channel::{self, ChannelError},
    monitor::{Monitor, MonitorError},
};

/// Why a disk could not be opened for reading.
#[derive(Debug, Error)]
pub enum ReadExportError {
    /// QEMU's monitor.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The socket could not be made or passed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The socket could not be connected to.
    #[error("cannot connect to QEMU at {path}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Somebody else uses QEMU's only NBD server.
    #[error("QEMU's only NBD server, through which the disks are read, is in use by {by}")]
    ServerInUse {
        /// Whose it is.
        by: String,
    },
}

/// The object that says, inside QEMU, that its NBD server was started by us.
const MARK: &str = "vcdp-nbd-server";

/// The running NBD server of a QEMU, started by us, with exports of ours.
pub struct ReadExports<'m> {
    monitor: &'m dyn Monitor,
    path: PathBuf,
    exports: Vec<String>,
}

impl<'m> ReadExports<'m> {
    /// Starts QEMU's NBD server on a socket in `dir` (made with mode 0700 by the caller).
    ///
    /// # Errors
    /// [`ReadExportError`].
    pub fn start(monitor: &'m dyn Monitor, dir: &Path, tag: &str) -> Result<Self, ReadExportError> {
        require_free(monitor)?;
        if !set_mark(monitor)? {
            // A process of ours that crashed started the server.
            stop(monitor)?;
        }
        let (path, addr) = channel::listening(monitor, &format!("vcdp-{tag}-read"), dir)?;
        match monitor.execute("nbd-server-start", json!({"addr": addr})) {
            Ok(_) => Ok(Self {
                monitor,
                path,
                exports: Vec::new(),
            }),
            Err(e) => {
                let _ = remove_mark(monitor);
                let _ = fs::remove_file(&path);
                match e {
                    MonitorError::Refused { desc, .. } if desc.contains("already running") => {
                        Err(ReadExportError::ServerInUse {
                            by: "somebody who has exported nothing yet".into(),
                        })
                    }
                    e => Err(e.into()),
                }
            }
        }
    }

    /// Exports `node` read-only under `name`, with what the disabled `bitmap` marks, and connects to it.
    ///
    /// # Errors
    /// [`ReadExportError`].
    pub fn open(
        &mut self,
        node: &str,
        name: &str,
        bitmap: Option<&str>,
    ) -> Result<UnixStream, ReadExportError> {
        let bitmaps: Vec<&str> = bitmap.into_iter().collect();
        self.monitor.execute(
            "block-export-add",
            json!({"type": "nbd", "id": name, "node-name": node, "name": name, "writable": false,
                "bitmaps": bitmaps}),
        )?;
        self.exports.push(name.to_owned());
        UnixStream::connect(&self.path).map_err(|source| ReadExportError::Socket {
            path: self.path.clone(),
            source,
        })
    }
}

impl Drop for ReadExports<'_> {
    fn drop(&mut self) {
        for export in &self.exports {
            if let Err(error) = clear(self.monitor, export) {
                tracing::debug!(export, %error, "the read export is not removed");
            }
        }
        if let Err(error) = stop(self.monitor).and_then(|()| remove_mark(self.monitor)) {
            tracing::debug!(%error, "QEMU's NBD server is left running");
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the export `name` if it is there, with its clients.
///
/// # Errors
/// [`MonitorError`].
pub fn clear(monitor: &dyn Monitor, name: &str) -> Result<(), MonitorError> {
    if !exports(monitor)?.iter().any(|(id, _)| id == name) {
        return Ok(());
    }
    monitor.execute("block-export-del", json!({"id": name, "mode": "hard"}))?;
    // The deletion finishes in the background, once the clients are gone.
    for _ in 0..100 {
        if !exports(monitor)?.iter().any(|(id, _)| id == name) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

/// Refuses a QEMU whose NBD server serves exports of somebody else.
///
/// # Errors
/// [`ReadExportError::ServerInUse`], [`ReadExportError::Monitor`].
pub fn require_free(monitor: &dyn Monitor) -> Result<(), ReadExportError> {
    let foreign = |(id, kind): &(String, String)| kind == "nbd" && !id.starts_with("vcdp-");
    match exports(monitor)?.into_iter().find(foreign) {
        Some((id, _)) => Err(ReadExportError::ServerInUse {
            by: format!("export '{id}'"),
        }),
        None => Ok(()),
    }
}

/// Marks QEMU's NBD server as ours, by an object that lives and dies with the QEMU; false when the mark was there.
fn set_mark(monitor: &dyn Monitor) -> Result<bool, MonitorError> {
    let object = json!({"qom-type": "secret", "id": MARK, "data": "virt-cdp"});
    match monitor.execute("object-add", object) {
        Ok(_) => Ok(true),
        Err(MonitorError::Refused { desc, .. }) if desc.contains("duplicate") => Ok(false),
        Err(e) => Err(e),
    }
}

fn remove_mark(monitor: &dyn Monitor) -> Result<(), MonitorError> {
    monitor
        .execute("object-del", json!({"id": MARK}))
        .map(|_| ())
}

fn stop(monitor: &dyn Monitor) -> Result<(), MonitorError> {
    match monitor.execute("nbd-server-stop", Value::Null) {
        // Refused: it does not run.
        Ok(_) | Err(MonitorError::Refused { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Id and type of every export.
fn exports(monitor: &dyn Monitor) -> Result<Vec<(String, String)>, MonitorError> {
    let all = monitor.execute("query-block-exports", Value::Null)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Ok(all
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| (text(&e["id"]), text(&e["type"])))
        .collect())
}
