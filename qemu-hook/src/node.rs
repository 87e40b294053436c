//! QEMU's block nodes: which disks a QEMU has, and what there is to know of a node.
//!
//! For a plain QMP socket the disks are QEMU's own block devices, or the nodes the user names
//! (qemu-storage-daemon has no block devices). For libvirt domains the `libvirt-driver` finds the
//! node; [`inspect`] serves both.

use serde_json::Value;

use crate::monitor::{Monitor, MonitorError};

/// A block node that can be protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// QEMU's node-name.
    pub name: String,
    /// Virtual size, bytes.
    pub size: u64,
    /// `qcow2`, `raw`, or what else QEMU says.
    pub format: String,
    /// The image, as QEMU names it.
    pub image: String,
    /// Bytes the image takes on its storage, without its backing images, where QEMU tells.
    pub allocated: Option<u64>,
    /// Whether bitmaps on it can be stored in the image: qcow2 of version 3.
    pub persistent_bitmaps: bool,
}

/// Why a node or device is not protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It can be protected.
    Protectable(Node),
    /// Nothing to protect there; the reason, such as `CD-ROM drive without medium`.
    LeftOut(String),
    /// It has data, and it cannot be protected; the reason and the cure.
    Refused(String),
}

/// A block device of QEMU, with what can be done about it.
#[derive(Debug, Clone)]
pub struct Device {
    /// The device's id, or its node where it has none.
    pub name: String,
    /// What can be done.
    pub verdict: Verdict,
}

/// Lists the block devices of a QEMU that runs without libvirt.
///
/// # Errors
/// [`MonitorError`]; qemu-storage-daemon refuses, as it has no devices.
pub fn devices(monitor: &dyn Monitor) -> Result<Vec<Device>, MonitorError> {
    let answer = monitor.execute("query-block", Value::Null)?;
    let mut found = Vec::new();
    for device in answer.as_array().into_iter().flatten() {
        let name = device_name(device);
        found.push(Device {
            verdict: judge_device(monitor, device)?,
            name,
        });
    }
    Ok(found)
}

/// Lists the block devices of a QEMU that runs without libvirt, each with the node on top of it.
///
/// # Errors
/// As [`devices`].
pub fn plugged(monitor: &dyn Monitor) -> Result<Vec<(String, String)>, MonitorError> {
    let answer = monitor.execute("query-block", Value::Null)?;
    let on_top = |device: &Value| {
        let node = device["inserted"]["node-name"].as_str();
        node.unwrap_or_default().to_owned()
    };
    let devices = answer.as_array().into_iter().flatten();
    Ok(devices.map(|d| (device_name(d), on_top(d))).collect())
}

/// Looks at the node `name` and says whether it can be protected.
///
/// # Errors
/// [`MonitorError`].
pub fn inspect(monitor: &dyn Monitor, name: &str) -> Result<Verdict, MonitorError> {
    let answer = monitor.execute("query-named-block-nodes", serde_json::json!({"flat": true}))?;
    let node = answer
        .as_array()
        .into_iter()
        .flatten()
        .find(|n| n["node-name"] == name);
    Ok(node.map_or_else(
        || Verdict::Refused(format!("QEMU has no block node '{name}'")),
        judge_node,
    ))
}

/// Lists the names of all block nodes, for messages.
///
/// # Errors
/// [`MonitorError`].
pub fn names(monitor: &dyn Monitor) -> Result<Vec<String>, MonitorError> {
    let answer = monitor.execute("query-named-block-nodes", serde_json::json!({"flat": true}))?;
    Ok(answer
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|n| n["node-name"].as_str())
        .map(str::to_owned)
        .collect())
}

/// Tells whether the guest has written nothing through QEMU since QEMU runs: true only if QEMU says so.
///
/// `filter` is the node that stands above `node` while it is tapped.
///
/// # Errors
/// [`MonitorError`].
pub fn never_written(
    monitor: &dyn Monitor,
    node: &str,
    filter: &str,
) -> Result<bool, MonitorError> {
    const COUNTERS: [&str; 4] = [
        "wr_operations",
        "failed_wr_operations",
        "unmap_operations",
        "failed_unmap_operations",
    ];
    let devices = monitor.execute("query-blockstats", Value::Null)?;
    let mut on_node = devices
        .as_array()
        .into_iter()
        .flatten()
        .filter(|d| d["node-name"] == node || d["node-name"] == filter)
        .peekable();
    let known = on_node.peek().is_some();
    Ok(known && on_node.all(|d| COUNTERS.iter().all(|name| d["stats"][name] == 0)))
}

fn device_name(device: &Value) -> String {
    let qdev = device["qdev"].as_str().unwrap_or_default();
    let short = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    let short = short.strip_suffix("/virtio-backend").unwrap_or(short);
    let candidates = [device["device"].as_str().unwrap_or_default(), short];
    let named = candidates
        .into_iter()
        .find(|n| !n.is_empty() && !n.starts_with('/'));
    named
        .or_else(|| device["inserted"]["node-name"].as_str())
        .unwrap_or(qdev)
        .to_owned()
}

fn judge_device(monitor: &dyn Monitor, device: &Value) -> Result<Verdict, MonitorError> {
    if device.get("tray_open").is_some() {
        return Ok(Verdict::LeftOut("CD-ROM drive".into()));
    }
    let Some(node) = device["inserted"]["node-name"].as_str() else {
        return Ok(Verdict::LeftOut("no medium in the drive".into()));
    };
    if device["removable"] == true {
        return Ok(Verdict::LeftOut("removable drive".into()));
    }
    if device["inserted"]["ro"] == true {
        return Ok(Verdict::LeftOut("read-only".into()));
    }
    let qdev = device["qdev"].as_str().unwrap_or_default();
    let qdev = qdev.strip_suffix("/virtio-backend").unwrap_or(qdev);
    if property(monitor, qdev, "share-rw")? == Value::Bool(true) {
        return Ok(Verdict::Refused(
            "it is shared with others (share-rw=on): their writes cannot be seen".into(),
        ));
    }
    if property(monitor, qdev, "iothread-vq-mapping")?
        .as_array()
        .is_some_and(|a| !a.is_empty())
    {
        return Ok(Verdict::Refused(
            "it uses iothread-vq-mapping, which QEMU's mirror does not support; use a single iothread".into(),
        ));
    }
    inspect(monitor, node)
}

/// A property of a device; null when the device has no such property.
fn property(monitor: &dyn Monitor, qdev: &str, name: &str) -> Result<Value, MonitorError> {
    if qdev.is_empty() {
        return Ok(Value::Null);
    }
    match monitor.execute(
        "qom-get",
        serde_json::json!({"path": qdev, "property": name}),
    ) {
        Ok(value) => Ok(value),
        Err(MonitorError::Refused { .. }) => Ok(Value::Null),
        Err(e) => Err(e),
    }
}

fn judge_node(node: &Value) -> Verdict {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    if node["ro"] == true {
        return Verdict::LeftOut("read-only".into());
    }
    let image = &node["image"];
    let encrypted = node["encrypted"] == true
        || image["encrypted"] == true
        || node["drv"] == "luks"
        || image["format-specific"]["data"].get("encrypt").is_some();
    if encrypted {
        return Verdict::Refused(
            "it is encrypted by QEMU: what is captured would lie in the harbor in clear; encrypt inside the guest instead".into(),
        );
    }
    let Some(size) = image["virtual-size"].as_u64() else {
        return Verdict::Refused("QEMU does not tell its size".into());
    };
    let format = text(&node["drv"]);
    let compat = image["format-specific"]["data"]["compat"]
        .as_str()
        .unwrap_or_default();
    Verdict::Protectable(Node {
        name: text(&node["node-name"]),
        size,
        persistent_bitmaps: format == "qcow2" && compat != "0.10",
        allocated: image["actual-size"].as_u64(),
        image: text(&image["filename"]),
        format,
    })
}
