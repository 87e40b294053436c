//! A disk's node in QEMU: what a mirror, a bitmap or an export is put on.
//!
//! How: `query-block` is asked which node the guest's device (found by its alias) reads. Where a filter of a block job
//! or of libvirt sits there, the node below it is the one libvirt numbered; `query-named-block-nodes` has the
//! details. Works over any monitor.
//!
//! Invariant: the node returned is never a filter; what sits on top of it is told.

use qemu_hook::monitor::{Monitor, MonitorError};
use serde_json::{Value, json};
use thiserror::Error;

use crate::disks::Disk;

/// A disk's root node: its format node, or its storage node where there is no format layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskNode {
    /// QEMU's node-name, such as `libvirt-1-format`.
    pub node: String,
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// QEMU's driver of the node: `qcow2`, `raw`, or the storage's (`file`, `host_device`, `rbd`, ...), which is raw.
    pub driver: String,
    /// Bytes the image takes on its storage, without its backing images, where QEMU tells.
    pub allocated: Option<u64>,
    /// True for qcow2 with compat 1.1: the image can hold a persistent bitmap.
    pub qcow2_v3: bool,
    /// What sits between the guest and the node.
    pub on_top: Option<OnTop>,
}

/// A filter or a block job of somebody on top of a disk's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnTop {
    /// The filter's node-name, where QEMU shows it.
    pub node: Option<String>,
    /// The block job, where there is one by name.
    pub job: Option<String>,
    /// The filter's driver (`mirror_top`, `copy-before-write`, `throttle`, ...) or the job's type (`mirror`, `commit`, ...).
    pub kind: String,
}

/// Why a disk's node was not found, or cannot be used.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The monitor did not answer.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// QEMU has no such device: the disk was unplugged, or the XML is of another run.
    #[error("disk {target}: QEMU has no device {alias}")]
    NoDevice {
        /// The disk.
        target: String,
        /// Its alias, empty where the XML had none.
        alias: String,
    },
    /// The device is there and has no medium.
    #[error("disk {target}: no medium")]
    NoMedium {
        /// The disk.
        target: String,
    },
    /// The image is encrypted; we would keep its contents in the clear.
    #[error("disk {target}: the image is encrypted")]
    Encrypted {
        /// The disk.
        target: String,
    },
    /// QEMU has the disk read-only.
    #[error("disk {target}: QEMU has it read-only")]
    ReadOnly {
        /// The disk.
        target: String,
    },
    /// A filter is on top, and the node below it has a name we do not know.
    #[error("disk {target}: the node below the filter {filter} is not found")]
    BelowFilter {
        /// The disk.
        target: String,
        /// The filter's node-name.
        filter: String,
    },
    /// QEMU's answer lacks something.
    #[error("disk {target}: QEMU's answer has no {what}")]
    Malformed {
        /// The disk.
        target: String,
        /// What is missing.
        what: &'static str,
    },
}

/// Finds the node of `disk`, whose alias must come from the XML of the present run.
///
/// # Errors
/// [`NodeError`].
pub fn node_for(monitor: &dyn Monitor, disk: &Disk) -> Result<DiskNode, NodeError> {
    let devices = monitor.execute("query-block", Value::Null)?;
    let nodes = monitor.execute("query-named-block-nodes", json!({ "flat": true }))?;
    let jobs = monitor.execute("query-block-jobs", Value::Null)?;
    find_node(&devices, &nodes, &jobs, disk)
}

/// Finds the node in the answers of `query-block`, `query-named-block-nodes` (flat) and `query-block-jobs`.
///
/// # Errors
/// [`NodeError`], never its `Monitor`.
pub fn find_node(
    devices: &Value,
    nodes: &Value,
    jobs: &Value,
    disk: &Disk,
) -> Result<DiskNode, NodeError> {
    let target = || disk.target.clone();
    let alias = disk.alias.as_deref().unwrap_or_default();
    let device = list(devices)
        .find(|device| !alias.is_empty() && is_device(text(device, "qdev"), alias))
        .ok_or_else(|| NodeError::NoDevice {
            target: target(),
            alias: alias.to_owned(),
        })?;
    let top = device
        .get("inserted")
        .ok_or_else(|| NodeError::NoMedium { target: target() })?;
    let top_name = text(top, "node-name");
    let name = if is_filter(text(top, "drv")) {
        below_filter(nodes, disk).ok_or_else(|| NodeError::BelowFilter {
            target: target(),
            filter: top_name.to_owned(),
        })?
    } else {
        top_name.to_owned()
    };
    let node = list(nodes)
        .find(|node| text(node, "node-name") == name)
        .ok_or_else(|| NodeError::Malformed {
            target: target(),
            what: "such node",
        })?;
    if flag(node, "/encrypted") || flag(node, "/image/encrypted") {
        return Err(NodeError::Encrypted { target: target() });
    }
    if flag(node, "/ro") {
        return Err(NodeError::ReadOnly { target: target() });
    }
    let virtual_size = node
        .pointer("/image/virtual-size")
        .and_then(Value::as_u64)
        .ok_or_else(|| NodeError::Malformed {
            target: target(),
            what: "virtual-size",
        })?;
    let driver = text(node, "drv").to_owned();
    let compat = node
        .pointer("/image/format-specific/data/compat")
        .and_then(Value::as_str);
    let qcow2_v3 = driver == "qcow2" && compat.is_some_and(|compat| compat != "0.10");
    Ok(DiskNode {
        on_top: on_top(top, &name, jobs, disk),
        node: name,
        virtual_size,
        allocated: node.pointer("/image/actual-size").and_then(Value::as_u64),
        driver,
        qcow2_v3,
    })
}

/// Deletes what libvirt could not delete of a disk that was unplugged while somebody held its node `name`.
///
/// libvirt's nodes of one source are `libvirt-N-format` and what is below; N is never used again in that run.
/// What others still use stays.
///
/// # Errors
/// [`MonitorError`], but for a refusal.
pub fn delete_unplugged(monitor: &dyn Monitor, name: &str) -> Result<(), MonitorError> {
    let Some(source) = name
        .strip_prefix("libvirt-")
        .and_then(|rest| rest.split('-').next())
        .filter(|number| number.parse::<u32>().is_ok())
    else {
        return Ok(());
    };
    let nodes = monitor.execute("query-named-block-nodes", json!({ "flat": true }))?;
    for layer in ["format", "slice-sto", "storage"] {
        let node = format!("libvirt-{source}-{layer}");
        if !list(&nodes).any(|one| text(one, "node-name") == node) {
            continue;
        }
        match monitor.execute("blockdev-del", json!({ "node-name": node })) {
            Ok(_) => {}
            Err(error @ MonitorError::Refused { .. }) => {
                tracing::warn!(node, %error, "a node of an unplugged disk stays in QEMU");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The device's QOM path or ID belongs to the alias; virtio-blk's backend is a child of the device.
fn is_device(qdev: &str, alias: &str) -> bool {
    let id = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    id == alias
        || id
            .strip_prefix(alias)
            .is_some_and(|rest| rest.starts_with('/'))
}

fn is_filter(driver: &str) -> bool {
    const FILTERS: [&str; 9] = [
        "mirror_top",
        "commit_top",
        "copy-before-write",
        "copy-on-read",
        "throttle",
        "blkdebug",
        "blklogwrites",
        "preallocate",
        "compress",
    ];
    FILTERS.contains(&driver)
}

/// The topmost of the nodes libvirt made for the disk's source.
fn below_filter(nodes: &Value, disk: &Disk) -> Option<String> {
    let index = disk.source_index?;
    ["format", "storage"]
        .iter()
        .map(|layer| format!("libvirt-{index}-{layer}"))
        .find(|name| list(nodes).any(|node| text(node, "node-name") == name))
}

/// The filter the guest's device reads, or libvirt's own block job on this disk, whose filter QEMU hides.
fn on_top(top: &Value, node: &str, jobs: &Value, disk: &Disk) -> Option<OnTop> {
    // libvirt names its jobs KIND-TARGET-NODE, as in copy-vda-libvirt-2-format.
    let job = list(jobs).find(|job| text(job, "device").contains(&format!("-{}-", disk.target)));
    let job_name = job.map(|job| text(job, "device").to_owned());
    let top_name = text(top, "node-name");
    if top_name != node {
        return Some(OnTop {
            node: Some(top_name.to_owned()),
            job: job_name,
            kind: text(top, "drv").to_owned(),
        });
    }
    job.map(|job| OnTop {
        node: None,
        job: job_name,
        kind: text(job, "type").to_owned(),
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value
        .get(member)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn flag(value: &Value, pointer: &str) -> bool {
    value
        .pointer(pointer)
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
