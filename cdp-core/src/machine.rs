//! The machine as the user knows it: its name, where it runs, its volumes.
//!
//! Kept as `machine.toml` in the harbor, replaced as a whole. Validated once, at the door
//! ([`MachineDescription::validate`]); everything behind it may rely on the rules.
//!
//! A disk may grow, shrink, be unplugged, plugged in again, or come later than the others. What a volume was
//! before is kept as [`Era`]s, each up to a record: a point shows every volume as it was at its record.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bounds::{FLUSH_INTERVAL_MAX, MACHINE_ID_MAX, SECTOR, VOLUME_SIZE_MAX, VOLUMES_MAX};
use crate::clock::Timestamp;
use crate::error::{HarborError, Result};
use crate::harbor::AckRule;
use crate::point::Seq;

/// Version of `machine.toml` and of the harbor's layout that is written.
pub const FORMAT_VERSION: u32 = 3;
/// Oldest version that is read. A harbor gets the present one when it is opened.
pub const FORMAT_VERSION_OLDEST: u32 = 1;

/// Number of a volume within its machine; never used again for another one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct VolumeId(pub u16);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Describes a protected machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDescription {
    /// Version of the harbor's format; always the present one where it is written.
    pub format_version: u32,
    /// Name the user gave.
    pub name: String,
    /// Identity of this protection, like a UUID; every segment carries it.
    pub machine_id: String,
    /// Least time between two recovery points, in milliseconds.
    pub point_interval_ms: u64,
    /// When protection was set up.
    pub created: Timestamp,
    /// Whether the user wants writes to be captured.
    #[serde(default)]
    pub mode: Mode,
    /// When a write is acknowledged; none: as the options say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<AckRule>,
    /// Longest time a buffered write waits for its sync, in milliseconds; none: as the options say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush_interval_ms: Option<u64>,
    /// Name of the policy by which its points are kept; none: as the program is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Where the machine runs.
    pub source: MachineSource,
    /// Its protected disks.
    #[serde(default)]
    pub volumes: Vec<VolumeDescription>,
}

/// Tells what the user wants to happen with the machine's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// They are captured whenever the machine runs.
    #[default]
    Active,
    /// Not for now; the user will resume.
    Suspended,
    /// No longer; what was kept stays.
    Released,
}

/// Tells how the running machine is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MachineSource {
    /// A libvirt domain.
    Libvirt {
        /// Connection URI.
        uri: String,
        /// The domain's UUID.
        uuid: String,
    },
    /// A QEMU process with a QMP socket.
    Qmp {
        /// Path of the socket.
        socket: PathBuf,
    },
}

/// Tells whether the machine has a volume's disk now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plug {
    /// It has.
    #[default]
    In,
    /// It was unplugged; points from before show it.
    Out,
}

impl Plug {
    fn is_in(&self) -> bool {
        *self == Plug::In
    }
}

/// What a volume was up to a record, and since the era before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// The last record of the era.
    pub up_to: Seq,
    /// Bytes; 0 while the machine did not have the disk.
    pub size: u64,
}

/// Describes a protected disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDescription {
    /// Its number.
    pub id: VolumeId,
    /// Name of the disk in the guest's definition (`vda`), or of its node.
    pub target: String,
    /// Bytes it has now, or had when it was unplugged.
    pub size: u64,
    /// Whether the machine has the disk now.
    #[serde(default, skip_serializing_if = "Plug::is_in")]
    pub plug: Plug,
    /// Block node of QEMU, where the user named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Format of the original image, for information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_format: Option<String>,
    /// Path of the original image, for information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_path: Option<String>,
    /// What it was before, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Era>,
}

impl VolumeDescription {
    /// Describes a disk of `size` bytes that is there from the first record on.
    pub fn new(id: VolumeId, target: impl Into<String>, size: u64) -> Self {
        Self {
            id,
            target: target.into(),
            size,
            plug: Plug::In,
            node: None,
            original_format: None,
            original_path: None,
            before: Vec::new(),
        }
    }

    /// Returns the bytes the volume had at record `seq`; none if the machine did not have it then.
    pub fn size_at(&self, seq: Seq) -> Option<u64> {
        match self.before.iter().find(|era| seq <= era.up_to) {
            Some(era) => Some(era.size).filter(|size| *size > 0),
            None => Some(self.size).filter(|_| self.plug == Plug::In),
        }
    }

    /// Tells whether a layer of the volume as of record `layer` has all that may show at record `seq`: what lay behind its
    /// end before does not, and shows again where the volume was cut and has grown since.
    pub(crate) fn layer_suffices(&self, layer: Seq, seq: Seq) -> bool {
        let size = self.size_at(layer).unwrap_or_default();
        self.size_at(seq).is_none_or(|later| later <= size) || self.largest_until(layer) <= size
    }

    /// Tells whether a layer of the volume as of a record lacks what shows at some later one.
    pub(crate) fn hides_more_after(&self, layer: Seq) -> bool {
        let size = self.size_at(layer).unwrap_or_default();
        let later = self.before.iter().filter(|era| era.up_to > layer);
        let largest = later.map(|era| era.size).chain([self.size]).max();
        largest > Some(size) && self.largest_until(layer) > size
    }

    /// Returns the most bytes the volume had up to a record.
    fn largest_until(&self, seq: Seq) -> u64 {
        let passed = self.before.iter().filter(|era| era.up_to < seq);
        let largest = passed.map(|era| era.size).max().unwrap_or_default();
        largest.max(self.size_at(seq).unwrap_or_default())
    }

    /// Tells whether the machine had the disk when its protection began.
    pub fn is_original(&self) -> bool {
        self.before.first().is_none_or(|era| era.size > 0)
    }

    /// Lets the volume be otherwise after record `head`: of `size` bytes, or without its disk if none.
    ///
    /// Nothing changes if it is so already.
    pub fn change(&mut self, head: Seq, size: Option<u64>) {
        let now = Some(self.size).filter(|_| self.plug == Plug::In);
        if now == size {
            return;
        }
        // Where the last change has no record behind it, nothing can show what was in between.
        if self.before.last().is_none_or(|era| era.up_to < head) {
            self.before.push(Era {
                up_to: head,
                size: now.unwrap_or(0),
            });
        }
        self.plug = if size.is_some() { Plug::In } else { Plug::Out };
        self.size = size.unwrap_or(self.size);
    }
}

impl MachineDescription {
    /// Returns the volumes whose disks the machine has now.
    pub fn plugged(&self) -> impl Iterator<Item = &VolumeDescription> {
        self.volumes.iter().filter(|volume| volume.plug.is_in())
    }

    /// Returns the description of a volume.
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeDescription> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// Checks every rule a description has to keep.
    ///
    /// # Errors
    /// [`HarborError::InvalidDescription`] names the rule that is broken.
    pub fn validate(&self) -> Result<()> {
        let broken = |rule: String| Err(HarborError::InvalidDescription(rule));
        if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&self.format_version) {
            return broken(format!("format_version is {}", self.format_version));
        }
        if self.name.is_empty() {
            return broken("the name is empty".into());
        }
        if self.machine_id.is_empty() || self.machine_id.len() > MACHINE_ID_MAX {
            return broken(format!("machine_id must have 1 to {MACHINE_ID_MAX} bytes"));
        }
        if self.machine_id.contains('\0') {
            return broken("machine_id contains a zero byte".into());
        }
        if let Some(ms) = self.flush_interval_ms
            && !(1..=FLUSH_INTERVAL_MAX.as_millis()).contains(&u128::from(ms))
        {
            return broken(format!(
                "flush_interval_ms is {ms}, not 1 to {}",
                FLUSH_INTERVAL_MAX.as_millis()
            ));
        }
        if self.volumes.len() > VOLUMES_MAX {
            return broken(format!("more than {VOLUMES_MAX} volumes"));
        }
        let mut seen = HashSet::new();
        for volume in &self.volumes {
            if !seen.insert(volume.id) || volume.id.0 == u16::MAX {
                return broken(format!("volume id {} is taken or reserved", volume.id));
            }
            if volume.size == 0 {
                return broken(format!("volume {} has 0 bytes", volume.id));
            }
            let eras = volume.before.iter().map(|era| era.size);
            for size in eras.chain([volume.size]) {
                if size > VOLUME_SIZE_MAX {
                    return broken(format!("volume {} has {size} bytes", volume.id));
                }
                if !size.is_multiple_of(SECTOR as u64) {
                    return broken(format!(
                        "volume {} has no whole number of sectors",
                        volume.id
                    ));
                }
            }
            if !volume.before.is_sorted_by(|a, b| a.up_to < b.up_to) {
                return broken(format!("the eras of volume {} are not in order", volume.id));
            }
        }
        Ok(())
    }
}
