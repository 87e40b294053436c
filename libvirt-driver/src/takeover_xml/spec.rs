//! What a takeover shall look like, and what came out of the edit.

use std::path::PathBuf;

/// What the machine of that time becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeoverSpec {
    /// The new domain's name.
    pub name: String,
    /// The new domain's UUID; see [`crate::takeover::new_uuid`]. New MAC addresses are made from it.
    pub uuid: String,
    /// The number of vCPUs, or as it was.
    pub vcpus: Option<u32>,
    /// The memory in KiB, or as it was.
    pub memory_kib: Option<u64>,
    /// What its network cards are plugged into.
    pub network: NetworkChoice,
    /// The addresses of its network cards.
    pub mac: MacChoice,
    /// The bus of all protected disks (`virtio`, `scsi`, `sata`, `ide`, `usb`), or as they were.
    pub disk_bus: Option<String>,
    /// The disks that come along, by their targets in the XML; at least one.
    pub disks: Vec<TakeoverDisk>,
    /// The copy of the UEFI variables for this domain; needed where the machine has any.
    pub nvram: Option<PathBuf>,
    /// A file that gets what the guest writes to its first serial port (one is added where there is none).
    pub console_log: Option<PathBuf>,
}

impl TakeoverSpec {
    /// Tells whether nothing of it is to be reached from the host but through libvirt.
    pub(super) fn is_isolated(&self) -> bool {
        matches!(self.network, NetworkChoice::Loose { .. })
    }
}

/// What the network cards are plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkChoice {
    /// What they were plugged into.
    Keep,
    /// There are none.
    None,
    /// This libvirt network, all of them.
    Named(String),
    /// Nothing: each has a device of the host that is in no bridge, for whoever starts it to put where it belongs.
    Loose {
        /// Cards whose link is down, by their number.
        down: Vec<usize>,
    },
}

/// The addresses of the network cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacChoice {
    /// As they were: for an isolated network, or where the original is gone.
    Keep,
    /// New ones in 52:54:00.
    New,
}

/// A protected disk and what stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeoverDisk {
    /// Its target in the XML of that time, such as `vda`.
    pub target: String,
    /// The qcow2 image that takes the takeover's writes.
    pub overlay: PathBuf,
    /// The view below the overlay; none where the image holds everything.
    pub backing: Option<NbdBacking>,
}

/// A view that is served over NBD on a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdBacking {
    /// The socket's path.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
    /// For how long QEMU waits for a lost server before reads fail (and the VM is paused), in seconds.
    pub reconnect_delay_s: u32,
}

/// The new domain's XML, and what it cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The XML to define.
    pub xml: String,
    /// One sentence for each thing of the machine that did not come along or is another one now, for people.
    pub dropped: Vec<String>,
    /// The targets of the protected disks, in the order of the spec.
    pub targets: Vec<RenamedTarget>,
}

/// A network card of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its address; empty where libvirt chooses one.
    pub mac: String,
    /// What it is plugged into: the name of a libvirt network, a bridge, or a device of the host.
    pub was_in: String,
    /// True where [`Card::was_in`] is a libvirt network.
    pub is_network: bool,
}

/// A protected disk's target in the XML of that time and in the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenamedTarget {
    /// In the XML of that time.
    pub then: String,
    /// In the new XML: libvirt's calls on the takeover go by this one.
    pub now: String,
}
