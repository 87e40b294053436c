//! The disks of a domain, out of its XML, each with the verdict whether it can be protected.
//!
//! Pure: text in, list out. What only QEMU knows (the node, the virtual size) is [`crate::nodes`]' part.

use std::fmt;

use xmltree::Element;

use crate::error::Result;
use crate::xml_tree::{Tree, parse_domain};

/// One `<disk>` of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The name libvirt's calls go by, such as `vda`.
    pub target: String,
    /// `virtio`, `scsi`, `sata`, `ide`, `usb`, ...
    pub bus: String,
    /// The device's alias in a running domain, such as `virtio-disk0`; none in the XML of a configuration.
    pub alias: Option<String>,
    /// For people: the path, or protocol and name; empty for an empty drive.
    pub source: String,
    /// libvirt's number of the source in a running domain: its nodes are `libvirt-N-format` and `libvirt-N-storage`.
    pub source_index: Option<u32>,
    /// `raw`, `qcow2`, ... as libvirt gives it to QEMU.
    pub format: String,
    /// The serial number the guest sees, if one is set.
    pub serial: Option<String>,
    /// Whether it can be protected.
    pub verdict: Verdict,
}

/// Whether a disk can be protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It can.
    Protectable,
    /// It holds nothing of the machine's own: the machine is protected without it.
    LeftOut(LeftOut),
    /// It holds data we cannot capture: the machine is only protected if the user excludes this disk.
    Refused(Refusal),
}

/// Why a disk is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// A CD or DVD drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// There is no medium.
    Empty,
    /// The guest cannot write to it.
    ReadOnly,
}

/// Why a disk is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// `<shareable/>`: others write to it past this domain's QEMU.
    Shareable,
    /// The image is encrypted.
    Encrypted,
    /// `<transient/>`: its writes are thrown away.
    Transient,
    /// Its queues are spread over several iothreads, which QEMU's mirror does not support.
    IothreadMapping,
    /// `device='lun'`: SCSI commands reach the host's device past the block layer.
    Lun,
    /// Neither raw nor qcow2.
    Format(String),
    /// A kind of source whose data does not pass QEMU's block layer, or that cannot be written to like a disk.
    Source(String),
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cdrom => "CD drive",
            Self::Floppy => "floppy drive",
            Self::Empty => "no medium",
            Self::ReadOnly => "read-only",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shareable => f.write_str("shared with other domains"),
            Self::Encrypted => f.write_str("the image is encrypted"),
            Self::Transient => f.write_str("transient: its writes are thrown away"),
            Self::IothreadMapping => f.write_str("its queues are spread over several iothreads"),
            Self::Lun => f.write_str("a passed-through SCSI LUN"),
            Self::Format(format) => write!(f, "format {format} (raw and qcow2 are supported)"),
            Self::Source(kind) => write!(f, "source of type {kind}"),
        }
    }
}

/// Lists the disks of a domain's XML, in its order.
///
/// # Errors
/// [`crate::ErrorKind::BadXml`] when the text is no domain XML.
pub fn parse_disks(xml: &str) -> Result<Vec<Disk>> {
    let domain = parse_domain(xml)?;
    let Some(devices) = domain.get_child("devices") else {
        return Ok(Vec::new());
    };
    Ok(devices
        .elements()
        .filter(|element| element.name == "disk")
        .map(parse_disk)
        .collect())
}

fn parse_disk(disk: &Element) -> Disk {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    Disk {
        target: text(disk.child_attr("target", "dev")),
        bus: text(disk.child_attr("target", "bus")),
        alias: disk.child_attr("alias", "name").map(str::to_owned),
        source: describe_source(disk),
        source_index: disk
            .child_attr("source", "index")
            .and_then(|index| index.parse().ok()),
        format: disk
            .child_attr("driver", "type")
            .unwrap_or("raw")
            .to_owned(),
        serial: disk.child_text("serial"),
        verdict: judge(disk),
    }
}

/// The source for people: a path, `pool/volume`, or `protocol:name`.
pub(crate) fn describe_source(disk: &Element) -> String {
    let Some(source) = disk.get_child("source") else {
        return String::new();
    };
    let attr = |name| source.attr(name).unwrap_or_default();
    match disk.attr("type").unwrap_or("file") {
        "network" => format!("{}:{}", attr("protocol"), attr("name")),
        "volume" => format!("{}/{}", attr("pool"), attr("volume")),
        _ => ["file", "dev", "dir", "path"]
            .iter()
            .find_map(|name| source.attr(name))
            .unwrap_or_default()
            .to_owned(),
    }
}

fn judge(disk: &Element) -> Verdict {
    match disk.attr("device").unwrap_or("disk") {
        "cdrom" => return Verdict::LeftOut(LeftOut::Cdrom),
        "floppy" => return Verdict::LeftOut(LeftOut::Floppy),
        "lun" => return Verdict::Refused(Refusal::Lun),
        _ => {}
    }
    if !disk.has("source") {
        return Verdict::LeftOut(LeftOut::Empty);
    }
    if disk.has("readonly") {
        return Verdict::LeftOut(LeftOut::ReadOnly);
    }
    refusal(disk).map_or(Verdict::Protectable, Verdict::Refused)
}

fn refusal(disk: &Element) -> Option<Refusal> {
    let kind = disk.attr("type").unwrap_or("file");
    if !matches!(kind, "file" | "block" | "network" | "volume") {
        return Some(Refusal::Source(kind.to_owned()));
    }
    if disk.child_attr("source", "protocol") == Some("vxhs") {
        return Some(Refusal::Source("network vxhs".to_owned()));
    }
    if disk.has("shareable") {
        return Some(Refusal::Shareable);
    }
    if disk.has("transient") {
        return Some(Refusal::Transient);
    }
    if disk.has("encryption")
        || disk
            .get_child("source")
            .is_some_and(|source| source.has("encryption"))
    {
        return Some(Refusal::Encrypted);
    }
    if disk
        .get_child("driver")
        .is_some_and(|driver| driver.has("iothreads"))
    {
        return Some(Refusal::IothreadMapping);
    }
    match disk.child_attr("driver", "type").unwrap_or("raw") {
        "raw" | "qcow2" => None,
        format => Some(Refusal::Format(format.to_owned())),
    }
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
