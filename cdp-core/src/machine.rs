//! The machine as the user knows it: its name, where it runs, its volumes.
//!
//! Kept as `machine.toml` in the harbor, replaced as a whole. Validated once, at the door
//! ([`MachineDescription::validate`]); everything behind it may rely on the rules.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bounds::{MACHINE_ID_MAX, SECTOR, VOLUME_SIZE_MAX, VOLUMES_MAX};
use crate::clock::Timestamp;
use crate::error::{HarborError, Result};

/// Version of `machine.toml` and of the harbor's layout that this program writes.
pub const FORMAT_VERSION: u32 = 1;

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
    /// Version of the harbor's format: [`FORMAT_VERSION`].
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

/// Describes a protected disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDescription {
    /// Its number.
    pub id: VolumeId,
    /// Name of the disk in the guest's definition (`vda`), or of its node.
    pub target: String,
    /// Bytes.
    pub size: u64,
    /// Block node of QEMU, where the user named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Format of the original image, for information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_format: Option<String>,
    /// Path of the original image, for information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_path: Option<String>,
}

impl MachineDescription {
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
        if self.format_version != FORMAT_VERSION {
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
        if self.volumes.len() > VOLUMES_MAX {
            return broken(format!("more than {VOLUMES_MAX} volumes"));
        }
        let mut seen = HashSet::new();
        for volume in &self.volumes {
            if !seen.insert(volume.id) || volume.id.0 == u16::MAX {
                return broken(format!("volume id {} is taken or reserved", volume.id));
            }
            if volume.size == 0 || volume.size > VOLUME_SIZE_MAX {
                return broken(format!("volume {} has {} bytes", volume.id, volume.size));
            }
            if !volume.size.is_multiple_of(SECTOR as u64) {
                return broken(format!(
                    "volume {} has no whole number of sectors",
                    volume.id
                ));
            }
        }
        Ok(())
    }
}
