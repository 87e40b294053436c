//! The dirty bitmaps that say what may be missing after a tap was lost.
//!
//! Two bitmaps on a protected node, 64 KiB a bit. B is active: QEMU marks every write in it. B_prev
//! is made at each rotation from what B held, and dropped once the journal is on stable storage
//! past the rotation. So what may be missing after a crash of ours is always in B or B_prev.
//!
//! A rotation is one `transaction`, which drains the guest's writes first: without the drain a
//! write could be marked (and cleared) whose copy has not reached the tap.

use serde_json::{Value, json};

use crate::monitor::{Monitor, MonitorError};
use crate::node::Node;

/// Bytes that one bit of a bitmap stands for.
pub const GRANULARITY: u64 = 64 << 10;

/// The names of a volume's two bitmaps.
#[derive(Debug, Clone)]
pub struct BitmapNames {
    /// B: marks every write.
    pub current: String,
    /// B_prev: what B held before the last rotation, until the journal is synced past it.
    pub previous: String,
}

impl BitmapNames {
    /// Names the bitmaps of the machine whose tag is `tag`; the image may be moved between hosts,
    /// so the names do not depend on anything of this one.
    pub fn new(tag: &str) -> Self {
        Self {
            current: format!("virt-cdp-{tag}"),
            previous: format!("virt-cdp-{tag}-prev"),
        }
    }
}

/// What a bitmap on a node is like.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    name: String,
    usable: bool,
}

fn find(monitor: &dyn Monitor, node: &str) -> Result<Vec<Found>, MonitorError> {
    let answer = monitor.execute("query-named-block-nodes", json!({"flat": true}))?;
    let node = answer
        .as_array()
        .into_iter()
        .flatten()
        .find(|n| n["node-name"] == node);
    let bitmaps = node.and_then(|n| n["dirty-bitmaps"].as_array());
    Ok(bitmaps
        .into_iter()
        .flatten()
        .map(|b| Found {
            name: b["name"].as_str().unwrap_or_default().to_owned(),
            usable: b["inconsistent"] != true && b["recording"] == true,
        })
        .collect())
}

/// Makes sure that B marks the writes of `node`: keeps a usable one, replaces an inconsistent one.
///
/// # Errors
/// [`MonitorError`].
pub fn ensure(monitor: &dyn Monitor, node: &Node, names: &BitmapNames) -> Result<(), MonitorError> {
    if let Some(b) = find(monitor, &node.name)?
        .iter()
        .find(|b| b.name == names.current)
    {
        if b.usable {
            return Ok(());
        }
        remove_one(monitor, &node.name, &names.current)?;
    }
    let add = |persistent: bool| {
        monitor.execute(
            "block-dirty-bitmap-add",
            json!({"node": node.name, "name": names.current, "granularity": GRANULARITY, "persistent": persistent}),
        )
    };
    match add(node.persistent_bitmaps) {
        Ok(_) => Ok(()),
        Err(MonitorError::Refused { desc, .. }) if node.persistent_bitmaps => {
            tracing::warn!(
                node = node.name,
                reason = desc,
                "the bitmap cannot be stored in the image; kept in memory"
            );
            add(false).map(|_| ())
        }
        Err(e) => Err(e),
    }
}

/// Rotates the bitmaps of all `nodes` in one drained transaction: B_prev takes what B held, B starts anew.
///
/// Afterwards the caller syncs the journal, then calls [`drop_previous`].
///
/// # Errors
/// [`MonitorError`]; a refused rotation changed nothing.
pub fn rotate(
    monitor: &dyn Monitor,
    nodes: &[String],
    names: &BitmapNames,
) -> Result<(), MonitorError> {
    let mut actions = Vec::new();
    for node in nodes {
        if !find(monitor, node)?
            .iter()
            .any(|b| b.name == names.previous)
        {
            actions.push(json!({"type": "block-dirty-bitmap-add", "data": {
                "node": node, "name": names.previous, "granularity": GRANULARITY, "disabled": true}}));
        }
        actions.push(json!({"type": "block-dirty-bitmap-merge", "data": {
            "node": node, "target": names.previous, "bitmaps": [names.current]}}));
        actions.push(json!({"type": "block-dirty-bitmap-clear", "data": {
            "node": node, "name": names.current}}));
    }
    monitor
        .execute("transaction", json!({"actions": actions}))
        .map(|_| ())
}

/// Drops B_prev of all `nodes`: the journal is on stable storage past the last rotation.
///
/// # Errors
/// [`MonitorError`].
pub fn drop_previous(
    monitor: &dyn Monitor,
    nodes: &[String],
    names: &BitmapNames,
) -> Result<(), MonitorError> {
    nodes
        .iter()
        .try_for_each(|node| remove_one(monitor, node, &names.previous))
}

/// Removes both bitmaps of all `nodes`, as when a machine is no longer protected.
///
/// # Errors
/// [`MonitorError`].
pub fn remove(
    monitor: &dyn Monitor,
    nodes: &[String],
    names: &BitmapNames,
) -> Result<(), MonitorError> {
    for node in nodes {
        remove_one(monitor, node, &names.previous)?;
        remove_one(monitor, node, &names.current)?;
    }
    Ok(())
}

fn remove_one(monitor: &dyn Monitor, node: &str, name: &str) -> Result<(), MonitorError> {
    if !find(monitor, node)?.iter().any(|b| b.name == name) {
        return Ok(());
    }
    monitor
        .execute(
            "block-dirty-bitmap-remove",
            json!({"node": node, "name": name}),
        )
        .map(|_| ())
}

/// Waits until every write that QEMU has begun has reached the tap (QMP `transaction` drains).
///
/// # Errors
/// [`MonitorError`].
pub fn drain(monitor: &dyn Monitor) -> Result<(), MonitorError> {
    monitor
        .execute("transaction", json!({"actions": Value::Array(Vec::new())}))
        .map(|_| ())
}
