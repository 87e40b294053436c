//! What is read from a harbor: the segments of its journal, its description, its base points.
//!
//! The bytes are packed (see [`expand`]), as all of these are mostly zeros.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use cdp_core::bounds::{CHAIN_MAX, CLUSTER, SEGMENT_MIN, VOLUME_SIZE_MAX};
use cdp_core::qcow2::{Chain, Qcow2Writer};
use cdp_core::storage::{OpenMode, SimulatedStorage, Storage};
use cdp_core::{Grade, Harbor, HarborError, MachineDescription, Options, VolumeId};

use crate::sparse::expand;

pub(crate) const DIR: &str = "/harbor";
/// Bytes of the one volume of the harbor whose journal is read.
pub(crate) const SIZE: u64 = 256 * 1024;
pub(crate) const DESCRIPTION: &str = r#"
format_version = 1
name = "fuzz"
machine_id = "fuzz"
point_interval_ms = 1000
created = "2026-01-01T00:00:00Z"
[source]
kind = "qmp"
socket = "/run/qmp"
[[volumes]]
id = 0
target = "vda"
size = 262144
"#;

pub(crate) fn options(storage: &SimulatedStorage) -> Options {
    Options {
        storage: Arc::new(storage.clone()),
        // The room that a segment reserves is memory here, and takes a second to be had.
        segment_bytes: SEGMENT_MIN,
        ..Options::default()
    }
}

/// Makes a harbor with an empty base point, of the description and the segments that are given.
pub(crate) fn harbor(description: &[u8], segments: &[Vec<u8>]) -> SimulatedStorage {
    let storage = SimulatedStorage::new(1);
    let put = |name: &str, bytes: &[u8]| storage.put(&Path::new(DIR).join(name), bytes);
    put("LOCK", b"");
    put("xml/000001.xml", b"<domain/>");
    for (number, bytes) in segments.iter().enumerate() {
        put(&format!("journal/{:012}.seg", number + 1), bytes);
    }
    put("journal/any.part", b"");
    put(
        "base/vol-00000/full-00000000000000000000.qcow2",
        empty_base(),
    );
    put("machine.toml", description);
    storage
}

fn empty_base() -> &'static [u8] {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    BASE.get_or_init(make_empty_base)
}

fn make_empty_base() -> Vec<u8> {
    let storage = SimulatedStorage::new(1);
    let path = Path::new("/base");
    let file = storage.open(path, OpenMode::New).expect("a new file");
    Qcow2Writer::new(file, SIZE).finish().expect("an image");
    storage.content(path).expect("the image")
}

/// One or two segments. The first byte says whether checksums are put right, so that what lies behind
/// them is reached too; the next two, how long the first segment is.
pub(crate) fn segment(input: &[u8]) {
    let [choice, low, high, packed @ ..] = input else {
        return;
    };
    let cut = usize::from(u16::from_le_bytes([*low, *high]));
    let (first, second) = packed.split_at(cut.min(packed.len()));
    let mut segments: Vec<Vec<u8>> = [first, second].into_iter().map(expand).collect();
    segments.retain(|bytes| !bytes.is_empty());
    if choice % 2 == 1 {
        segments.iter_mut().for_each(|bytes| put_right(bytes));
    }
    let storage = harbor(DESCRIPTION.as_bytes(), &segments);
    let Ok((harbor, _)) = Harbor::open(Path::new(DIR), options(&storage)) else {
        return;
    };
    let points = harbor.points();
    assert!(points.is_sorted_by(|a, b| a.seq < b.seq), "{points:?}");
    for point in points.iter().take(4) {
        let Ok(view) = harbor.view(point.id) else {
            continue;
        };
        // Damage is an answer.
        let _ = view.read_at(VolumeId(0), &mut vec![0; SIZE as usize], 0);
        let extents = view.extents(VolumeId(0), 0, SIZE);
        let told: u64 = extents.iter().flatten().map(|extent| extent.len).sum();
        assert!(extents.is_err() || told == SIZE);
    }
    let gaps = harbor.gaps();
    drop(harbor);
    let (harbor, again) =
        Harbor::open(Path::new(DIR), options(&storage)).expect("what opened once");
    assert!(again.cut.is_none(), "cut twice: {again:?}");
    assert!(
        harbor.points() == points && harbor.gaps() == gaps,
        "another harbor"
    );
    // It can be worked with: what is written now is there.
    let Ok(recorder) = harbor.record() else {
        return;
    };
    let volume = recorder.volume(VolumeId(0)).expect("the volume");
    let Ok(mut buf) = volume.buffer(4096) else {
        return;
    };
    buf.as_mut().fill(0x5a);
    if volume.write(8192, buf).is_ok() && harbor.gaps().iter().all(|gap| gap.end.is_some()) {
        let Ok(point) = recorder.point(Grade::Crash, None) else {
            return;
        };
        if let Ok(view) = harbor.view(point.id) {
            let mut bytes = [0; 4096];
            match view.read_at(VolumeId(0), &mut bytes, 8192) {
                // What lies underneath cannot be told, in a segment of before.
                Err(HarborError::Damaged { .. }) => {}
                read => {
                    read.expect("what was just written");
                    assert_eq!(bytes, [0x5a; 4096]);
                }
            }
        }
    }
}

fn le(bytes: &[u8], at: usize, len: usize) -> usize {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    let value = bytes
        .iter()
        .rev()
        .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Writes the CRC-32C of `from..to`, and of `more`, at `at`, where all of that is there.
fn sum(bytes: &mut [u8], from: usize, to: usize, more: std::ops::Range<usize>, at: usize) {
    let (Some(first), Some(rest)) = (bytes.get(from..to), bytes.get(more)) else {
        return;
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(first), rest);
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// Puts the checksums of a segment right: header, frames with their records and payloads, index, footer.
fn put_right(bytes: &mut [u8]) {
    sum(bytes, 0, 4092, 0..0, 4092);
    let mut at = 4096;
    while at + 4096 <= bytes.len() {
        if bytes[at..].starts_with(b"FRAM") {
            let records = le(bytes, at + 4, 4).min(256);
            for record in (0..records).map(|number| at + 64 + number * 64) {
                let (place, len) = (le(bytes, record + 32, 8), le(bytes, record + 40, 4));
                if let Some(end) = place.checked_add(len) {
                    sum(bytes, place, end, 0..0, record + 44);
                }
                sum(bytes, record, record + 60, 0..0, record + 60);
            }
            sum(bytes, at, at + 60, at + 64..at + 64 + records * 64, at + 60);
        }
        at += 4096;
    }
    let footer = bytes.len().saturating_sub(4096);
    if bytes[footer..].starts_with(b"VCDPEND\0") {
        let index = le(bytes, footer + 40, 8);
        let records = le(bytes, footer + 48, 8).saturating_add(le(bytes, footer + 56, 8));
        for record in (0..records.min(4096)).map(|number| index.saturating_add(number * 64)) {
            sum(
                bytes,
                record,
                record.saturating_add(60),
                0..0,
                record.saturating_add(60),
            );
        }
        let end = index.saturating_add(records.saturating_mul(64));
        sum(bytes, index, end, 0..0, footer + 96);
        sum(bytes, footer, footer + 4092, 0..0, footer + 4092);
    }
}

/// A harbor's `machine.toml`, as it is.
pub(crate) fn description(input: &[u8]) {
    let storage = harbor(input, &[]);
    let open = || Harbor::open(Path::new(DIR), options(&storage));
    let Ok((harbor, _)) = open() else {
        return;
    };
    let read: MachineDescription = harbor.description();
    read.validate().expect("what was taken is valid");
    harbor
        .set_description(read.clone())
        .expect("what was taken can be kept");
    drop(harbor);
    let (harbor, _) = open().expect("what was kept can be read");
    let kept = harbor.description();
    // The version is written as what the rest needs: the lowest that knows it.
    let format_version = kept.format_version;
    assert_eq!(
        kept,
        MachineDescription {
            format_version,
            ..read
        }
    );
}

/// A base point, which may stand on itself or on an image that is all 0x5a.
pub(crate) fn qcow2(input: &[u8]) {
    let (storage, path) = (SimulatedStorage::new(1), Path::new("/image"));
    storage.put(path, &expand(input));
    storage.put(Path::new("/below"), below());
    let Ok(chain) = Chain::open(&storage, path) else {
        return;
    };
    assert!((1..=CHAIN_MAX).contains(&chain.layers()));
    let size = chain.size();
    assert!(size <= VOLUME_SIZE_MAX);
    let mut at = 0;
    for _ in 0..64 {
        let Ok(run) = chain.run(at, u64::MAX - at) else {
            break;
        };
        assert!(run.len > 0);
        at = at.saturating_add(run.len);
        if at >= size {
            break;
        }
    }
    let mut bytes = vec![0; size.min(1 << 20) as usize];
    if chain.read_at(&mut bytes, 0).is_err() || size > 1 << 20 {
        let _ = chain.read_at(&mut [0; 512], size.saturating_sub(256));
        return;
    }
    // What can be read whole says the same when it is written anew.
    let copy = Path::new("/copy");
    let file = storage.open(copy, OpenMode::New).expect("a new file");
    let mut writer = Qcow2Writer::new(file, size);
    writer.write(0, &bytes).expect("what lies within");
    writer.finish().expect("an image");
    let chain = Chain::open(&storage, copy).expect("our own image");
    let mut again = vec![0xee; bytes.len()];
    chain.read_at(&mut again, 0).expect("our own image");
    assert_eq!(again, bytes);
}

/// An image of one cluster for others to stand on.
fn below() -> &'static [u8] {
    static BELOW: OnceLock<Vec<u8>> = OnceLock::new();
    BELOW.get_or_init(|| {
        let storage = SimulatedStorage::new(1);
        let path = Path::new("/below");
        let file = storage.open(path, OpenMode::New).expect("a new file");
        let mut writer = Qcow2Writer::new(file, CLUSTER as u64);
        writer.write(0, &[0x5a; CLUSTER]).expect("what lies within");
        writer.finish().expect("an image");
        storage.content(path).expect("the image")
    })
}
