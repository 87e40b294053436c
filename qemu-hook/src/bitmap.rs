//! The dirty bitmaps that say which areas of a disk are in doubt.
//!
//! Two bitmaps on a protected node, 64 KiB a bit. B is active: QEMU marks every write in it. B_prev is not: it
//! holds what B and B_prev held when they were last renewed, and is dropped once the journal is on stable
//! storage past that. So what may be missing after a crash of ours is always in B or B_prev. Where the image
//! can keep bitmaps (qcow2 of version 3) both are persistent and outlive QEMU.
//!
//! Both names carry an epoch, and every renewal gives them a new one: add new ones, merge, remove the old ones,
//! in one `transaction`, which drains the guest's writes first (a write is marked when it has reached the disk,
//! which is before it reaches the tap). A caller that remembers the last epoch finds out by the name when the
//! image is an older copy that was put back: the bitmaps of that copy know nothing of what came after it.
//!
//! Invariant: a renewal loses no mark, also when it is cut short: a transaction happens as a whole or not at all.
//! Bitmaps that are not named after the machine are never touched.

use std::fmt;

use serde_json::{Value, json};

use crate::monitor::{Monitor, MonitorError};

/// Bytes that one bit of a bitmap stands for.
pub const GRANULARITY: u64 = 64 << 10;

/// How the bitmaps of a machine's volumes are named.
#[derive(Debug, Clone)]
pub struct BitmapNames {
    prefix: String,
}

impl BitmapNames {
    /// Names the bitmaps of the machine whose tag is `tag`; the image may be moved between hosts,
    /// so the names do not depend on anything of this one.
    pub fn new(tag: &str) -> Self {
        Self {
            prefix: format!("virt-cdp-{tag}"),
        }
    }

    /// The name of B: marks every write since `epoch` began.
    pub fn current(&self, epoch: &str) -> String {
        format!("{}-{epoch}", self.prefix)
    }

    /// The name of B_prev: what was in doubt when `epoch` began.
    pub fn previous(&self, epoch: &str) -> String {
        format!("{}-{epoch}-prev", self.prefix)
    }

    /// The name of the end mark: see [`end_mark`](crate::end_mark).
    pub fn end(&self) -> String {
        format!("{}-end", self.prefix)
    }

    fn is_ours(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }
}

/// Why the bitmaps of a node do not say what is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// There is none of this machine.
    Missing,
    /// There is one, of an epoch that is not known.
    OtherEpoch,
    /// It was not stored when QEMU ended.
    Inconsistent,
    /// It marks nothing.
    NotRecording,
    /// A bit stands for another number of bytes.
    Granularity,
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "it has no bitmap of ours",
            Self::OtherEpoch => "its bitmap is not the last one: is it an older copy of the image?",
            Self::Inconsistent => "its bitmap is inconsistent: QEMU or the host crashed",
            Self::NotRecording => "its bitmap was stopped",
            Self::Granularity => "its bitmap has another granularity",
        })
    }
}

/// What a bitmap on a node is like.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) name: String,
    inconsistent: bool,
    recording: bool,
    granularity: u64,
    pub(crate) count: u64,
}

impl Found {
    /// False for one that QEMU refuses to merge, or that stands for other areas.
    pub(crate) fn is_usable(&self) -> bool {
        !self.inconsistent && self.granularity == GRANULARITY
    }
}

/// Lists the bitmaps of a node.
pub(crate) fn find(monitor: &dyn Monitor, node: &str) -> Result<Vec<Found>, MonitorError> {
    let answer = monitor.execute("query-named-block-nodes", json!({"flat": true}))?;
    let node = answer
        .as_array()
        .into_iter()
        .flatten()
        .find(|n| n["node-name"] == node);
    let bitmaps = node.and_then(|n| n["dirty-bitmaps"].as_array());
    let found = bitmaps.into_iter().flatten().map(|b| Found {
        name: b["name"].as_str().unwrap_or_default().to_owned(),
        inconsistent: b["inconsistent"] == true,
        recording: b["recording"] == true,
        granularity: b["granularity"].as_u64().unwrap_or(0),
        count: b["count"].as_u64().unwrap_or(0),
    });
    Ok(found.collect())
}

/// Tells whether the bitmaps of `node` say what is in doubt: the epoch in force, which is one of `known`, the
/// newest last.
///
/// # Errors
/// [`MonitorError`].
pub fn judge(
    monitor: &dyn Monitor,
    node: &str,
    names: &BitmapNames,
    known: &[String],
) -> Result<Result<String, Distrust>, MonitorError> {
    let found = find(monitor, node)?;
    let get = |name: &str| found.iter().find(|b| b.name == name);
    let in_force = known
        .iter()
        .rev()
        .find_map(|epoch| Some((epoch, get(&names.current(epoch))?)));
    let Some((epoch, current)) = in_force else {
        let any = found
            .iter()
            .any(|b| names.is_ours(&b.name) && b.name != names.end());
        return Ok(Err(match any {
            true => Distrust::OtherEpoch,
            false => Distrust::Missing,
        }));
    };
    let previous = get(&names.previous(epoch));
    let both = || [Some(current), previous].into_iter().flatten();
    Ok(if both().any(|b| b.inconsistent) {
        Err(Distrust::Inconsistent)
    } else if both().any(|b| b.granularity != GRANULARITY) {
        Err(Distrust::Granularity)
    } else if !current.recording {
        Err(Distrust::NotRecording)
    } else {
        Ok(epoch.clone())
    })
}

/// What is to become of the bitmaps of one node.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// The node.
    pub node: String,
    /// Whether its image can keep bitmaps.
    pub persistent: bool,
    /// The epoch in force, whose marks are kept; none: all bitmaps of the machine are replaced.
    pub from: Option<String>,
}

/// Begins `epoch` on all nodes, in one drained transaction: B_prev takes what B and B_prev held, B starts anew.
///
/// Whatever else is there of the machine is removed, but for the end mark, which B_prev takes, too. A node without marks
/// to keep gets B alone.
///
/// # Errors
/// [`MonitorError`]; a refused renewal has lost no mark of the epochs in force.
pub fn renew(
    monitor: &dyn Monitor,
    renewals: &[Renewal],
    names: &BitmapNames,
    epoch: &str,
) -> Result<(), MonitorError> {
    let mut steps = Vec::new();
    for renewal in renewals {
        let mut kept = Vec::new();
        for bitmap in find(monitor, &renewal.node)? {
            let from = renewal.from.as_deref();
            let in_force = from.is_some_and(|e| {
                bitmap.name == names.current(e) || bitmap.name == names.previous(e)
            });
            let is_end = bitmap.name == names.end() && bitmap.is_usable();
            if in_force || is_end {
                kept.push(bitmap.name);
            } else if names.is_ours(&bitmap.name) {
                remove_one(monitor, &renewal.node, &bitmap.name)?;
            }
        }
        if let Some(from) = &renewal.from
            && !kept.contains(&names.current(from))
        {
            return Err(MonitorError::Malformed {
                command: "query-named-block-nodes".into(),
                reason: format!("{} has lost bitmap {}", renewal.node, names.current(from)),
            });
        }
        steps.push((renewal, kept));
    }
    let actions = |persistent: bool| {
        let each = steps
            .iter()
            .flat_map(|(r, kept)| renewal_actions(r, kept, names, epoch, persistent));
        json!({"actions": each.collect::<Vec<_>>()})
    };
    match monitor.execute("transaction", actions(true)) {
        Err(MonitorError::Refused { desc, .. }) if renewals.iter().any(|r| r.persistent) => {
            monitor.execute("transaction", actions(false))?;
            let reason = desc;
            tracing::warn!(
                reason,
                "the bitmaps cannot be stored in the images; kept in memory"
            );
            Ok(())
        }
        answer => answer.map(|_| ()),
    }
}

fn renewal_actions(
    renewal: &Renewal,
    kept: &[String],
    names: &BitmapNames,
    epoch: &str,
    persistent: bool,
) -> Vec<Value> {
    let node = &renewal.node;
    let persistent = persistent && renewal.persistent;
    let action = |kind: &str, data: Value| json!({"type": format!("block-dirty-bitmap-{kind}"), "data": data});
    let add = |name: String, disabled: bool| {
        action(
            "add",
            json!({"node": node, "name": name, "granularity": GRANULARITY,
                "persistent": persistent, "disabled": disabled}),
        )
    };
    let mut actions = vec![add(names.current(epoch), false)];
    if renewal.from.is_some() {
        let previous = names.previous(epoch);
        actions.push(add(previous.clone(), true));
        actions.push(action(
            "merge",
            json!({"node": node, "target": previous, "bitmaps": kept}),
        ));
        let remove = |name| action("remove", json!({"node": node, "name": name}));
        let goes = |name: &&String| **name != names.end();
        actions.extend(kept.iter().filter(goes).map(remove));
    }
    actions
}

/// Bytes that B marks on a node in `epoch`.
///
/// # Errors
/// [`MonitorError`].
pub fn marked(
    monitor: &dyn Monitor,
    node: &str,
    names: &BitmapNames,
    epoch: &str,
) -> Result<u64, MonitorError> {
    let name = names.current(epoch);
    let found = find(monitor, node)?;
    Ok(found.iter().find(|b| b.name == name).map_or(0, |b| b.count))
}

/// Bytes that were in doubt on a node when `epoch` began.
///
/// # Errors
/// [`MonitorError`].
pub fn doubtful(
    monitor: &dyn Monitor,
    node: &str,
    names: &BitmapNames,
    epoch: &str,
) -> Result<u64, MonitorError> {
    let name = names.previous(epoch);
    let found = find(monitor, node)?;
    Ok(found.iter().find(|b| b.name == name).map_or(0, |b| b.count))
}

/// Drops B_prev of a node: what was in doubt when `epoch` began is on stable storage.
///
/// # Errors
/// [`MonitorError`].
pub fn drop_previous(
    monitor: &dyn Monitor,
    node: &str,
    names: &BitmapNames,
    epoch: &str,
) -> Result<(), MonitorError> {
    remove_one(monitor, node, &names.previous(epoch))
}

/// Removes all bitmaps of the machine from `node`, as when it is no longer protected.
///
/// # Errors
/// [`MonitorError`].
pub fn remove(monitor: &dyn Monitor, node: &str, names: &BitmapNames) -> Result<(), MonitorError> {
    for bitmap in find(monitor, node)? {
        if names.is_ours(&bitmap.name) {
            remove_one(monitor, node, &bitmap.name)?;
        }
    }
    Ok(())
}

pub(crate) fn remove_one(
    monitor: &dyn Monitor,
    node: &str,
    name: &str,
) -> Result<(), MonitorError> {
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
