//! Reading a running disk through QEMU's own NBD server, for the seed and the resync.
//!
//! A listening unix socket is made in a directory only we can enter and its descriptor is given to
//! QEMU (`nbd-server-start`), so QEMU's user need not reach any path. Each volume becomes a read-only
//! export. QEMU has one NBD server per process, shared with libvirt's pull backups and migration: a
//! server that somebody else uses is never stopped, the caller tries again later.

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
    #[error(
        "QEMU's NBD server is in use by another export ('{export}'): a backup or a migration is under way"
    )]
    ServerInUse {
        /// An export that is not ours.
        export: String,
    },
}

/// The running NBD server of a QEMU, with exports of ours.
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
        free_server(monitor)?;
        let (path, addr) = channel::listening(monitor, &format!("vcdp-{tag}-read"), dir)?;
        let started = Self {
            monitor,
            path,
            exports: Vec::new(),
        };
        monitor.execute("nbd-server-start", json!({"addr": addr}))?;
        Ok(started)
    }

    /// Exports `node` read-only under `name` and connects to it.
    ///
    /// # Errors
    /// [`ReadExportError`].
    pub fn open(&mut self, node: &str, name: &str) -> Result<UnixStream, ReadExportError> {
        self.monitor.execute(
            "block-export-add",
            json!({"type": "nbd", "id": name, "node-name": node, "name": name, "writable": false}),
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
        if let Err(error) = free_server(self.monitor) {
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
    if !exports(monitor)?.iter().any(|e| e == name) {
        return Ok(());
    }
    monitor.execute("block-export-del", json!({"id": name, "mode": "hard"}))?;
    // The deletion finishes in the background, once the clients are gone.
    for _ in 0..100 {
        if !exports(monitor)?.iter().any(|e| e == name) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    free_server(monitor).or_else(|e| match e {
        ReadExportError::Monitor(e) => Err(e),
        _ => Ok(()),
    })
}

/// Stops QEMU's NBD server unless it has exports.
fn free_server(monitor: &dyn Monitor) -> Result<(), ReadExportError> {
    let all = monitor.execute("query-block-exports", Value::Null)?;
    let nbd = all
        .as_array()
        .into_iter()
        .flatten()
        .find(|e| e["type"] == "nbd");
    if let Some(other) = nbd {
        return Err(ReadExportError::ServerInUse {
            export: other["id"].as_str().unwrap_or_default().to_owned(),
        });
    }
    match monitor.execute("nbd-server-stop", Value::Null) {
        Ok(_) | Err(MonitorError::Refused { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn exports(monitor: &dyn Monitor) -> Result<Vec<String>, MonitorError> {
    let all = monitor.execute("query-block-exports", Value::Null)?;
    Ok(all
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|e| e["id"].as_str())
        .map(str::to_owned)
        .collect())
}
