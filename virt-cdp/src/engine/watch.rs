//! Who looks after taps, so that no guest waits for us beyond the bypass deadline, and how they change hands.
//!
//! Every tap is known to the bypass, which closes one that is overdue, and to the guard process, which closes all
//! when this daemon stops or dies. For an upgrade, the guard keeps parked taps for the daemon's successor.

use std::{
    collections::BTreeMap,
    io,
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use cdp_core::{Seq, Timestamp, VolumeId};
use qemu_hook::{
    node::Node,
    tap::{Bypass, TapCounts, TapHandle, TapStats, hang_up},
};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{guard as lock, source::Plugged, upkeep::Confirmed},
    guard::{Held, Link, Orphan},
};

/// The guard's socket in the private directory.
const SOCKET: &str = "guard.sock";

/// Looks after the taps of all machines.
pub(crate) struct TapWatch {
    bypass: Bypass,
    link: Link,
    orphans: Mutex<BTreeMap<String, Vec<Inherited>>>,
    /// By machine and volume.
    meters: Mutex<BTreeMap<(String, VolumeId), Meter>>,
}

/// What came through the taps of a volume, one after the other.
#[derive(Default)]
struct Meter {
    /// Of those that have ended.
    past: TapCounts,
    newest: Option<Arc<TapStats>>,
}

impl Meter {
    fn counts(&self) -> TapCounts {
        let mut all = self.past;
        if let Some(newest) = &self.newest {
            all.add(&newest.counts());
        }
        all
    }
}

/// A parked tap of a machine, from an earlier daemon.
pub(crate) struct Inherited {
    pub(crate) volume: VolumeId,
    pub(crate) socket: UnixStream,
    pub(crate) legacy: Legacy,
}

/// What a daemon leaves its successor with each tap.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Legacy {
    /// Which run of QEMU it is.
    pub(crate) run: String,
    /// All taps of the machine, this one among them.
    pub(crate) volumes: Vec<u16>,
    /// The last record in the journal when the tap was parked.
    pub(crate) head: u64,
    /// When the mirrors were last seen to stand, and the last record then.
    pub(crate) confirmed: (u64, u64),
    /// The machine's disks.
    #[serde(default)]
    pub(crate) disks: Disks,
    node: NodeLegacy,
}

/// A machine's disks as they were when the protected ones were tapped.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Disks {
    /// All of them.
    pub(crate) plugged: Vec<Plugged>,
    /// Those that are not protected, each with the reason.
    pub(crate) left_out: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct NodeLegacy {
    name: String,
    size: u64,
    format: String,
    image: String,
    persistent_bitmaps: bool,
}

impl Legacy {
    /// What is left with the tap on `node`.
    pub(crate) fn new(
        run: &str,
        volumes: &[VolumeId],
        head: Seq,
        confirmed: Confirmed,
        disks: &Disks,
        node: &Node,
    ) -> Self {
        Self {
            run: run.to_owned(),
            volumes: volumes.iter().map(|id| id.0).collect(),
            head: head.0,
            confirmed: (confirmed.time.0, confirmed.head.0),
            disks: disks.clone(),
            node: NodeLegacy {
                name: node.name.clone(),
                size: node.size,
                format: node.format.clone(),
                image: node.image.clone(),
                persistent_bitmaps: node.persistent_bitmaps,
            },
        }
    }

    /// The node that is tapped.
    pub(crate) fn node(&self) -> Node {
        Node {
            name: self.node.name.clone(),
            size: self.node.size,
            format: self.node.format.clone(),
            image: self.node.image.clone(),
            allocated: None,
            persistent_bitmaps: self.node.persistent_bitmaps,
        }
    }

    /// When the mirrors were last seen to stand.
    pub(crate) fn confirmed(&self) -> Confirmed {
        Confirmed {
            time: Timestamp(self.confirmed.0),
            head: Seq(self.confirmed.1),
        }
    }
}

impl TapWatch {
    /// Starts to watch, with a guard in `private_dir` whose executable is `program`.
    ///
    /// # Errors
    /// No thread or no guard can be started.
    pub(crate) fn start(
        private_dir: &Path,
        program: &Path,
        deadline: Duration,
    ) -> io::Result<Arc<Self>> {
        let (link, found) = Link::open(&private_dir.join(SOCKET), program, deadline)?;
        let beat = link.clone();
        let bypass = Bypass::start(deadline, move || beat.beat())?;
        let mut orphans = BTreeMap::<String, Vec<Inherited>>::new();
        for orphan in found {
            match inherit(orphan) {
                Some((machine, tap)) => orphans.entry(machine).or_default().push(tap),
                None => tracing::warn!("an earlier daemon left a tap that is not understood"),
            }
        }
        Ok(Arc::new(Self {
            bypass,
            link,
            orphans: Mutex::new(orphans),
            meters: Mutex::default(),
        }))
    }

    /// Looks after a tap until what is returned is dropped.
    ///
    /// # Errors
    /// The guard cannot be told.
    pub(crate) fn hold(
        &self,
        machine: &str,
        volume: VolumeId,
        tap: &TapHandle,
    ) -> io::Result<Held> {
        let held = self.link.hold(&key(machine, volume), tap)?;
        self.bypass.watch(tap);
        let mut meters = lock(&self.meters);
        let meter = meters.entry((machine.to_owned(), volume)).or_default();
        *meter = Meter {
            past: meter.counts(),
            newest: Some(Arc::clone(tap.stats())),
        };
        Ok(held)
    }

    /// Returns what came through the taps of each volume of a machine since this daemon's start.
    pub(crate) fn taken(&self, machine: &str) -> Vec<(VolumeId, TapCounts)> {
        let meters = lock(&self.meters);
        let from = (machine.to_owned(), VolumeId(0));
        let its = meters
            .range(from..)
            .take_while(|((of, _), _)| of == machine);
        its.map(|((_, volume), meter)| (*volume, meter.counts()))
            .collect()
    }

    /// Forgets what came through a machine's taps: it is gone.
    pub(crate) fn forget(&self, machine: &str) {
        lock(&self.meters).retain(|(of, _), _| of != machine);
    }

    /// Returns how many taps guards have closed.
    pub(crate) fn guard_closings(&self) -> u64 {
        self.link.closed()
    }

    /// Takes what an earlier daemon left of a machine.
    pub(crate) fn inherited(&self, machine: &str) -> Vec<Inherited> {
        lock(&self.orphans).remove(machine).unwrap_or_default()
    }

    /// The machines of which there is something left.
    pub(crate) fn heirs(&self) -> Vec<String> {
        lock(&self.orphans).keys().cloned().collect()
    }

    /// Closes whatever nobody took.
    pub(crate) fn refuse_rest(&self) {
        let rest = std::mem::take(&mut *lock(&self.orphans));
        rest.into_values()
            .flatten()
            .for_each(|tap| hang_up(&tap.socket));
    }

    /// True while there is a guard.
    pub(crate) fn guard_stands(&self) -> bool {
        self.link.stands()
    }

    /// Has the guard keep what was bequeathed until a successor comes.
    ///
    /// # Errors
    /// There is no guard: all taps end with this process.
    pub(crate) fn hand_over(&self) -> io::Result<()> {
        self.link.hand_over()
    }
}

fn key(machine: &str, volume: VolumeId) -> String {
    format!("{machine}/{}", volume.0)
}

fn inherit(orphan: Orphan) -> Option<(String, Inherited)> {
    let parsed = || {
        let (machine, volume) = orphan.key.split_once('/')?;
        let legacy = serde_json::from_str(&orphan.legacy).ok()?;
        Some((machine.to_owned(), VolumeId(volume.parse().ok()?), legacy))
    };
    let Some((machine, volume, legacy)) = parsed() else {
        hang_up(&orphan.socket);
        return None;
    };
    let socket = orphan.socket;
    Some((
        machine,
        Inherited {
            volume,
            socket,
            legacy,
        },
    ))
}
