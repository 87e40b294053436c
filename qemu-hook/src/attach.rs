//! Attaching to a running disk: from here on every write of the guest reaches the sink.
//!
//! In order: what an earlier process of ours left is cleared away; a socket is made, one end given to QEMU, NBD served on the other; QEMU opens it as a node
//! (`blockdev-add`) and mirrors to it (`blockdev-mirror` sync=none, write-blocking). Nobody else can
//! connect (see [`crate::channel`]).
//!
//! Invariant: a tap that fails never reaches the guest (on-target-error=report, reconnect-delay 0): its mirror lets
//! every later write pass. What a crash of ours leaves in QEMU (a job, a node, an export) is found by its name and
//! cleared at the next attach.
//!
//! Invariant: the job of a mirror that stands is paused. Writes are mirrored on the guest's own path; the job itself
//! has nothing to copy. Were it to run, it would end by itself when a write to the tap fails, and QEMU (8.0 to 10.2)
//! frees what the mirrored writes that wait for the disk still use: it crashes, and the guest with it. A paused one
//! ends when it is told to, which is after those writes (see `end_job`).

use std::{
    io,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    bitmap,
    channel::{self, ChannelError, OurEnd},
    monitor::{Monitor, MonitorError},
    nbd::NbdError,
    node::Node,
    read_export,
    sink::WriteSink,
    tap::{TapConfig, TapEnd, TapHandle, TapStats, resume_tap, spawn_tap},
};

/// How long QEMU may take until the mirror is ready, or gone.
const JOB_DEADLINE: Duration = Duration::from_secs(20);
/// How long it may take to end in order before it is given up.
const JOB_ORDER: Duration = Duration::from_secs(10);
/// How often a job's state is asked for while waiting.
const JOB_POLL: Duration = Duration::from_millis(20);
/// The same for one that has just begun: until it is paused, a tap that fails can bring QEMU down.
const START_POLL: Duration = Duration::from_millis(1);
/// How often a tap that is to park is looked at: a guest may wait meanwhile.
const PARK_POLL: Duration = Duration::from_millis(2);
/// Chunks of the mirror, bytes: 64 KiB would make neighbouring writes wait for each other.
const MIRROR_GRANULARITY: u64 = 4096;

/// Why a tap could not be attached or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// QEMU's monitor.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The socket could not be made or passed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The tap's thread could not be made, or QEMU did not connect.
    #[error("cannot make a tap")]
    Io(#[from] io::Error),
    /// The tap could not be served.
    #[error("cannot serve a tap")]
    Tap(#[from] NbdError),
    /// Another block job works on the disk.
    #[error("node {node} is busy with block job '{job}' ({kind})")]
    Busy {
        /// The node.
        node: String,
        /// The job's id.
        job: String,
        /// The job's type.
        kind: String,
    },
    /// The mirror ended or did not come up.
    #[error("QEMU's mirror of {node} {what}")]
    Mirror {
        /// The node.
        node: String,
        /// What happened.
        what: String,
    },
}

/// The names under which a volume's pieces are known inside QEMU.
#[derive(Debug, Clone)]
pub struct Names {
    /// The mirror job.
    pub job: String,
    /// The NBD node over the tap (31 characters at most, as all node names).
    pub tap: String,
    /// The mirror's filter node.
    pub filter: String,
    /// The read-only export for the seed.
    pub export: String,
}

impl Names {
    /// Names for volume `volume` of the machine with the short tag `tag` (8 hexadecimal digits).
    pub fn new(tag: &str, volume: u16) -> Self {
        let base = format!("vcdp-{tag}-{volume}");
        Self {
            job: format!("{base}-mirror"),
            tap: format!("{base}-tap"),
            filter: format!("{base}-filter"),
            export: format!("{base}-read"),
        }
    }
}

/// A live tap on one volume.
pub struct Attachment {
    /// The node that is tapped.
    pub node: Node,
    names: Names,
    tap: TapHandle,
}

/// Attaches a tap to `node`; from its return on, every write of the guest reaches `sink`.
///
/// `watch` is called with the tap, for whoever looks after it, before QEMU can send it a write; where QEMU takes a
/// descriptor also before it opens the tap, because all of QEMU waits for the end of the handshake, the guest with it.
/// `dir` is a directory that nobody else can enter: there the socket is where QEMU takes no descriptor.
///
/// # Errors
/// [`AttachError`]; then nothing of ours is left in QEMU, as far as QEMU still answers.
pub fn attach<S: WriteSink>(
    monitor: &dyn Monitor,
    node: &Node,
    names: &Names,
    dir: &Path,
    sink: S,
    watch: impl FnOnce(&TapHandle) -> io::Result<()>,
) -> Result<Attachment, AttachError> {
    clear_leftovers(monitor, names)?;
    refuse_busy(monitor, node)?;

    let tap = open_tap(monitor, node, names, dir, sink, watch)?;
    let attachment = Attachment {
        node: node.clone(),
        names: names.clone(),
        tap,
    };
    match attachment.start(monitor) {
        Ok(()) => Ok(attachment),
        Err(e) => {
            // The tap serves until the mirror is gone: a running one must not see it fail.
            if let Err(left) = clear_leftovers(monitor, names) {
                tracing::warn!(node = node.name, error = %left, "could not clear a failed tap");
            }
            attachment.tap.close();
            Err(e)
        }
    }
}

/// Has QEMU open a node over a socket and serves the other end.
fn open_tap<S: WriteSink>(
    monitor: &dyn Monitor,
    node: &Node,
    names: &Names,
    dir: &Path,
    sink: S,
    watch: impl FnOnce(&TapHandle) -> io::Result<()>,
) -> Result<TapHandle, AttachError> {
    let (ours, server) = channel::for_qemu(monitor, &names.tap, dir)?;
    let config = TapConfig::new(&*names.tap, node.size);
    let open = || {
        monitor.execute(
            "blockdev-add",
            json!({
                "driver": "nbd", "node-name": names.tap, "reconnect-delay": 0, "server": server, "export": "",
            }),
        )
    };
    // `blockdev-add` returns after the handshake: somebody has to answer meanwhile.
    let (tap, opened) = match ours {
        OurEnd::Connected(stream) => {
            let tap = spawn_tap(stream, config, sink)?;
            let watched = watch(&tap).map_err(AttachError::from);
            (tap, watched.and_then(|()| Ok(open()?)))
        }
        OurEnd::Expected(accepting) => {
            let serving = thread::Builder::new()
                .name("tap-accept".into())
                .spawn(move || {
                    let stream = accepting
                        .join()
                        .map_err(|_| io::Error::other("accepting panicked"))??;
                    Ok::<_, AttachError>(spawn_tap(stream, config, sink)?)
                })?;
            open()?;
            let tap = serving
                .join()
                .map_err(|_| io::Error::other("accepting panicked"))??;
            let watched = watch(&tap).map(|()| Value::Null);
            (tap, watched.map_err(AttachError::from))
        }
    };
    match opened {
        Ok(_) => Ok(tap),
        Err(error) => {
            tap.close();
            if let Err(left) = clear_leftovers(monitor, names) {
                tracing::warn!(node = node.name, error = %left, "could not clear a failed tap");
            }
            Err(error)
        }
    }
}

impl Attachment {
    fn start(&self, monitor: &dyn Monitor) -> Result<(), AttachError> {
        let names = &self.names;
        monitor.execute(
            "blockdev-mirror",
            json!({
                "job-id": names.job, "device": self.node.name, "target": names.tap,
                "sync": "none", "copy-mode": "write-blocking", "granularity": MIRROR_GRANULARITY,
                "on-source-error": "report", "on-target-error": "report",
                "filter-node-name": names.filter,
            }),
        )?;
        let ready = self.wait_status(monitor, "ready")?;
        // A QEMU before 8.2 does not say whether a paused mirror has missed something: there its end has to say so.
        if is_synced(&ready).is_some() {
            monitor.execute("block-job-pause", json!({"device": names.job}))?;
            self.wait_status(monitor, "standby")?;
        }
        Ok(())
    }

    /// Waits until the job has that state.
    fn wait_status(&self, monitor: &dyn Monitor, wanted: &str) -> Result<Value, AttachError> {
        let give_up = Instant::now() + JOB_DEADLINE;
        loop {
            let Some(j) = job(monitor, &self.names.job)? else {
                return Err(self.mirror_error("ended at once".into()));
            };
            match j["status"].as_str() {
                Some(status) if status == wanted => return Ok(j),
                _ if Instant::now() < give_up => thread::sleep(START_POLL),
                status => {
                    let what = format!("does not become {wanted}: {status:?}");
                    return Err(self.mirror_error(what));
                }
            }
        }
    }

    fn mirror_error(&self, what: String) -> AttachError {
        AttachError::Mirror {
            node: self.node.name.clone(),
            what,
        }
    }

    /// Goes on with a tap that an earlier process has parked, on its socket.
    ///
    /// # Errors
    /// [`AttachError::Tap`].
    pub fn resume<S: WriteSink>(
        node: Node,
        names: Names,
        socket: UnixStream,
        sink: S,
    ) -> Result<Self, AttachError> {
        let config = TapConfig::new(&*names.tap, node.size);
        let tap = resume_tap(socket, config, sink)?;
        Ok(Self { node, names, tap })
    }

    /// The tap itself.
    pub fn tap(&self) -> &TapHandle {
        &self.tap
    }

    /// Has the tap park: see [`parked`](Self::parked).
    pub fn park(&self) {
        self.tap.park();
    }

    /// Waits for a tap that is to park; false when it has ended otherwise, or not by `give_up`, and is closed.
    pub fn parked(self, give_up: Instant) -> bool {
        while !self.tap.is_ended() && Instant::now() < give_up {
            thread::sleep(PARK_POLL);
        }
        if !self.tap.is_ended() {
            self.tap.close();
            return false;
        }
        !self.tap.is_overdue() && matches!(self.tap.join(), TapEnd::Parked)
    }

    /// True once the tap has ended, for whatever reason; a lost tap never comes back by itself.
    pub fn is_lost(&self) -> bool {
        self.tap.is_ended()
    }

    /// True once QEMU has let go of the tap in good order: nothing that it wrote is missing.
    pub fn said_goodbye(&self) -> bool {
        self.is_lost() && self.stats().said_goodbye()
    }

    /// Counters of what came through the tap.
    pub fn stats(&self) -> &TapStats {
        self.tap.stats()
    }

    /// The names of the pieces inside QEMU.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Waits until QEMU, which is ending, has hung up: then all it sent is with the sink.
    ///
    /// False when it did not within `deadline`.
    pub fn wait_end(&self, deadline: Duration) -> bool {
        let give_up = Instant::now() + deadline;
        while !self.tap.is_ended() {
            if Instant::now() >= give_up {
                return false;
            }
            thread::sleep(JOB_POLL);
        }
        true
    }

    /// Ends the mirror in good order: all writes begun so far reach the sink first.
    ///
    /// # Errors
    /// [`AttachError`]; the tap is closed all the same.
    pub fn detach(self, monitor: &dyn Monitor) -> Result<(), AttachError> {
        let ended =
            end_job(monitor, &self.names.job).and_then(|()| clear_leftovers(monitor, &self.names));
        self.tap.close();
        tracing::debug!(node = self.node.name, end = ?self.tap.join(), "tap detached");
        ended
    }

    /// Hangs up at once, without a word to QEMU: its mirror fails, the guest goes on.
    pub fn hang_up(&self) {
        self.tap.close();
    }

    /// Closes the tap at once, without a word to QEMU: its mirror fails, the guest goes on.
    pub fn abandon(self) {
        self.tap.close();
        tracing::debug!(node = self.node.name, end = ?self.tap.join(), "tap abandoned");
    }
}

/// Tells whether all the mirrors named are there and have missed nothing. One that somebody cancelled leaves its tap
/// connected and silent; a paused one that has failed is there and lets all writes pass.
///
/// # Errors
/// [`MonitorError`].
pub fn mirrors_stand(monitor: &dyn Monitor, names: &[Names]) -> Result<bool, MonitorError> {
    let jobs = monitor.execute("query-block-jobs", Value::Null)?;
    let jobs: Vec<&Value> = jobs.as_array().into_iter().flatten().collect();
    Ok(names.iter().all(|n| {
        jobs.iter()
            .any(|j| j["device"] == n.job.as_str() && is_synced(j) != Some(false))
    }))
}

/// Tells whether a mirror has had every write since it was ready; none where QEMU does not say so. QEMU takes it back
/// with the first write that fails or passes, before the guest has its answer, and only a running job gives it again.
fn is_synced(job: &Value) -> Option<bool> {
    job["actively-synced"].as_bool()
}

/// Clears what an earlier process of ours, or a failed attach, left inside QEMU.
///
/// # Errors
/// [`AttachError`].
pub fn clear_leftovers(monitor: &dyn Monitor, names: &Names) -> Result<(), AttachError> {
    if job(monitor, &names.job)?.is_some() {
        end_job(monitor, &names.job)?;
    }
    read_export::clear(monitor, &names.export)?;
    if crate::node::names(monitor)?.contains(&names.tap) {
        monitor.execute("blockdev-del", json!({"node-name": names.tap}))?;
    }
    Ok(())
}

fn refuse_busy(monitor: &dyn Monitor, node: &Node) -> Result<(), AttachError> {
    let jobs = monitor.execute("query-block-jobs", Value::Null)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    for j in jobs.as_array().into_iter().flatten() {
        // `device` is the job's own id for node-level jobs; a libvirt job names the disk's job so.
        let on_node = j["device"] == node.name.as_str() || busy_on(monitor, j, &node.name)?;
        if on_node {
            return Err(AttachError::Busy {
                node: node.name.clone(),
                job: text(&j["device"]),
                kind: text(&j["type"]),
            });
        }
    }
    Ok(())
}

/// True when `job`'s filter sits directly above `node`.
fn busy_on(monitor: &dyn Monitor, job: &Value, node: &str) -> Result<bool, MonitorError> {
    let graph = match monitor.execute("x-debug-query-block-graph", Value::Null) {
        Ok(graph) => graph,
        Err(MonitorError::Refused { .. }) => return Ok(false),
        Err(e) => return Err(e),
    };
    let id_of = |kind: &str, name: &Value| {
        graph["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|n| n["type"] == kind && n["name"] == *name)
            .and_then(|n| n["id"].as_u64())
    };
    let (Some(job), Some(node)) = (
        id_of("block-job", &job["device"]),
        id_of("block-driver", &json!(node)),
    ) else {
        return Ok(false);
    };
    let edges = graph["edges"].as_array();
    Ok(edges
        .into_iter()
        .flatten()
        .any(|e| e["parent"] == job && e["child"] == node))
}

fn job(monitor: &dyn Monitor, id: &str) -> Result<Option<Value>, MonitorError> {
    let jobs = monitor.execute("query-block-jobs", Value::Null)?;
    Ok(jobs
        .as_array()
        .into_iter()
        .flatten()
        .find(|j| j["device"] == id)
        .cloned())
}

/// Cancels job `id` and waits until it is gone: with nothing under way that it mirrors, as QEMU frees what that uses.
///
/// A mirror that has failed takes no further writes, so after a drain it has none, and is given up as it stands, paused. One
/// that has not is let go in order: QEMU itself stops all writes for it. For that it has to run, which is a moment
/// in which its tap should not be lost.
fn end_job(monitor: &dyn Monitor, id: &str) -> Result<(), AttachError> {
    bitmap::drain(monitor)?;
    // Refused: it is not paused, or has ended.
    let tell = |command: &str, arguments: Value| match monitor.execute(command, arguments) {
        Ok(_) | Err(MonitorError::Refused { .. }) => Ok(()),
        Err(e) => Err(e),
    };
    let give_up = || tell("block-job-cancel", json!({"device": id, "force": true}));
    let has_failed = |job: Option<Value>| job.is_some_and(|job| is_synced(&job) == Some(false));
    if has_failed(job(monitor, id)?) {
        give_up()?;
    } else {
        // A paused one is not cancelled in order.
        tell("block-job-resume", json!({"device": id}))?;
        tell("block-job-cancel", json!({"device": id, "force": false}))?;
    }
    let begun = Instant::now();
    let mut is_told_again = false;
    while let Some(j) = job(monitor, id)? {
        if begun.elapsed() >= JOB_DEADLINE {
            tell("block-job-pause", json!({"device": id}))?;
            return Err(AttachError::Mirror {
                node: id.to_owned(),
                what: format!("does not end: {}", j["status"]),
            });
        }
        if begun.elapsed() >= JOB_ORDER && !is_told_again && has_failed(Some(j)) {
            is_told_again = true;
            bitmap::drain(monitor)?;
            give_up()?;
        }
        thread::sleep(JOB_POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
