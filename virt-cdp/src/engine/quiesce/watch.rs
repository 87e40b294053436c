//! The watch over a freeze: a process of its own that thaws the guest should the daemon be killed or stopped.
//!
//! How: it is started before the freeze, with a pipe from the daemon, and waits until the pipe is closed or the freeze
//! has lasted too long. If the marker is there still, it thaws as the daemon's next start would, and removes it.
//!
//! Invariant: it holds nothing of the daemon's but that pipe, and does nothing while the daemon keeps to its time.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use cdp_core::MachineSource;
use libvirt_driver::Hypervisor;

use super::marker::{Markers, read};
use crate::engine::{errors::from_libvirt, guard, source::DomainSource};

/// Starts the watch over a freeze that the marker at a path tells of, and that is to be over within a time.
pub(crate) type StartWatch = fn(&Path, Duration) -> io::Result<Option<Watch>>;

/// The watch over one freeze; it ends when this is dropped after the marker was removed.
pub(crate) struct Watch {
    child: Option<Child>,
}

impl Watch {
    /// Starts to watch over a freeze, see [`StartWatch`].
    ///
    /// # Errors
    /// The process cannot be started.
    pub(crate) fn start(path: &Path, limit: Duration) -> io::Result<Option<Self>> {
        // The program this process runs, also if another one lies in its place by now.
        let child = Command::new("/proc/self/exe")
            .arg0("virt-cdp")
            .arg("thaw-watch")
            .arg(path)
            .arg(limit.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Some(Self { child: Some(child) }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        drop(child.stdin.take());
        // It ends by itself; somebody has to be there for it.
        let reaper = thread::Builder::new()
            .name("thaw".into())
            .spawn(move || child.wait());
        if let Err(error) = reaper {
            tracing::debug!(%error, "the watch over a freeze is not waited for");
        }
    }
}

/// Is the watch: waits for the daemon's end of the pipe, at most `limit`, and thaws if the marker is there then.
pub(crate) fn run(path: &Path, limit: Duration) {
    let Ok(owed) = read(path) else {
        return;
    };
    let (closed, wait) = mpsc::channel();
    let reader = thread::Builder::new().spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        let _ = closed.send(());
    });
    if reader.is_err() {
        return;
    }
    let _ = wait.recv_timeout(limit);
    // Another one at its place is of a freeze that has its own watch.
    if !read(path).is_ok_and(|now| now == owed) {
        return;
    }
    let MachineSource::Libvirt { uri, uuid } = owed.source.clone() else {
        return;
    };
    let connection: Mutex<Option<Hypervisor>> = Mutex::default();
    let connect = move || {
        let mut connection = guard(&connection);
        if let Some(known) = connection.as_ref() {
            return Ok(known.clone());
        }
        let new = Hypervisor::connect(&uri).map_err(from_libvirt)?;
        Ok(connection.insert(new).clone())
    };
    let source = Arc::new(DomainSource::new(Box::new(connect), uuid));
    let dir = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    eprintln!(
        "virtcdpd is away while '{}' may be frozen: thawing it",
        owed.name
    );
    Markers::beside(dir)
        .at(path.to_path_buf(), owed, source)
        .settle_here();
}
