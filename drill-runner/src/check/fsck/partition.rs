//! The partitions of a disk and what is in them, read with `sfdisk` and `blkid`.
//!
//! A disk without a partition table is one partition.

use serde_json::Value;

use super::{Trouble, overlay::Window};
use crate::{
    check::{Place, bound::Bound, process::Program, seen::quote},
    stage::Volume,
};

/// A partition, or a whole disk without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// `vda1`, or `vda`.
    pub(super) name: String,
    /// Where it begins, bytes.
    pub(super) offset: u64,
    /// Its size, bytes.
    pub(super) size: u64,
    /// What is in it, as `blkid` has it (`ext4`, `swap`, `LVM2_member`); none where it knows of nothing.
    pub(super) content: Option<String>,
}

/// Finds the partitions of a disk.
pub(super) fn find(
    disk: &Window,
    volume: &Volume,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Result<Vec<Partition>, Trouble> {
    let program = Program::new("sfdisk", place).with(|command| {
        command.arg("--json").arg(disk.path());
    });
    let ended = program.run(true, bound)?;
    let mut parts = match ended.code() {
        None => return Err(Trouble::Stopped),
        Some(0) => read(&ended.plain, volume)?,
        // It has no table.
        Some(_) => Vec::new(),
    };
    if parts.is_empty() {
        parts.push(Partition {
            name: volume.target.clone(),
            offset: 0,
            size: volume.size_bytes,
            content: None,
        });
    }
    for part in &mut parts {
        part.content = content(disk, part, place, bound)?;
    }
    Ok(parts)
}

/// Reads what `sfdisk` has printed. A partition that reaches beyond the disk ends with it.
fn read(json: &str, volume: &Volume) -> Result<Vec<Partition>, String> {
    let nonsense = || format!("sfdisk printed what is no table: {}", quote(json));
    let all: Value = serde_json::from_str(json).map_err(|_| nonsense())?;
    let table = all.get("partitiontable").ok_or_else(nonsense)?;
    let sector = table
        .get("sectorsize")
        .and_then(Value::as_u64)
        .unwrap_or(512);
    let mut parts = Vec::new();
    let list = table.get("partitions").and_then(Value::as_array);
    for (index, one) in list.into_iter().flatten().enumerate() {
        let bytes = |member: &str| {
            let sectors = one.get(member).and_then(Value::as_u64)?;
            sectors.checked_mul(sector)
        };
        let (Some(offset), Some(size)) = (bytes("start"), bytes("size")) else {
            return Err(nonsense());
        };
        // An extended partition holds others, which are listed, too.
        let is_extended = matches!(
            one.get("type").and_then(Value::as_str),
            Some("5" | "f" | "85")
        );
        let size = size.min(volume.size_bytes.saturating_sub(offset));
        if is_extended || size == 0 {
            continue;
        }
        let number = node_number(one).unwrap_or(index as u64 + 1);
        parts.push(Partition {
            name: format!("{}{number}", volume.target),
            offset,
            size,
            content: None,
        });
    }
    Ok(parts)
}

/// The number at the end of a partition's name.
fn node_number(partition: &Value) -> Option<u64> {
    let node = partition.get("node").and_then(Value::as_str)?;
    let name = node.trim_end_matches(|letter: char| letter.is_ascii_digit());
    node.get(name.len()..)?.parse().ok()
}

/// What is in a partition.
fn content(
    disk: &Window,
    part: &Partition,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Result<Option<String>, Trouble> {
    let program = Program::new("blkid", place).with(|command| {
        command
            .args(["-p", "-o", "export", "-O", &part.offset.to_string()])
            .args(["-S", &part.size.to_string()])
            .arg(disk.path());
    });
    let ended = program.run(true, bound)?;
    match ended.code() {
        None => Err(Trouble::Stopped),
        Some(0) => Ok(ended
            .plain
            .lines()
            .find_map(|line| line.strip_prefix("TYPE="))
            .map(str::to_owned)),
        Some(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_and_kept_within_the_disk() {
        let volume = Volume {
            target: "vda".into(),
            size_bytes: 10 << 20,
            uri: String::new(),
        };
        let json = r#"{"partitiontable": {"label":"dos","sectorsize":512,"partitions":[
            {"node":"/x/window1","start":2048,"size":2048,"type":"83"},
            {"node":"/x/window2","start":4096,"size":99999999,"type":"5"},
            {"node":"/x/window5","start":6144,"size":99999999,"type":"83"},
            {"node":"/x/window6","start":99999999,"size":5,"type":"83"}]}}"#;
        let parts = read(json, &volume).unwrap();
        let facts: Vec<_> = parts
            .iter()
            .map(|one| (one.name.as_str(), one.offset, one.size))
            .collect();
        assert_eq!(
            facts,
            [("vda1", 1 << 20, 1 << 20), ("vda5", 3 << 20, 7 << 20)]
        );
        assert!(read("{}", &volume).is_err());
    }
}
