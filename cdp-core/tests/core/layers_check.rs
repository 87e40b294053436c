//! What a layer is checked with: our own reading, QEMU's tools, and its hashes.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cdp_core::base::hashes::Hashes;
use cdp_core::bounds::CLUSTER;
use cdp_core::qcow2::Chain;
use cdp_core::storage::RealStorage;
use cdp_core::{Grade, Harbor, Point, Progress, VolumeId};

use crate::harness::{Machine, qemu_img, qemu_img_check, qemu_img_raw};

pub(crate) fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn point(machine: &Machine) -> Point {
    machine.recorder.point(Grade::Crash, None).unwrap()
}

/// The content of an image, as we read it with all it stands on.
pub(crate) fn content(path: &Path) -> Vec<u8> {
    let chain = Chain::open(&RealStorage, path).unwrap();
    let mut bytes = vec![0xee; chain.size() as usize];
    chain.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Checks a layer with every tool there is against what it should show.
pub(crate) fn check_layer(path: &Path, expected: &[u8]) {
    let context = path.display();
    assert!(content(path) == expected, "{context}: as we read it");
    qemu_img_check(path);
    if let Some(raw) = qemu_img_raw(path) {
        assert!(raw == expected, "{context}: as QEMU reads it");
    }
    let raw = path.with_extension("raw");
    fs::write(&raw, expected).unwrap();
    let words = ["compare", "-f", "qcow2", "-F", "raw"].map(|word| word.as_ref());
    if let Some(output) = qemu_img(&[&words[..], &[path.as_ref(), raw.as_ref()]].concat()) {
        assert!(output.status.success(), "{context}: {output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains("size mismatch"), "{context}: {said}");
    }
    fs::remove_file(&raw).unwrap();
    check_map(path, expected);
    check_hashes(path, expected);
}

/// Checks that what `qemu-img map` takes for zeros are zeros, and what it takes for data is all the rest.
fn check_map(path: &Path, expected: &[u8]) {
    let words = ["map", "--output=json", "-f", "qcow2"].map(|word| word.as_ref());
    let Some(output) = qemu_img(&[&words[..], &[path.as_ref()]].concat()) else {
        return;
    };
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |entry: &str, key: &str| -> usize {
        let from = entry.find(key).unwrap() + key.len();
        let digits = entry[from..].trim_start_matches([':', ' ', '"']);
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap();
        digits[..end].parse().unwrap()
    };
    let mut at = 0;
    for entry in text.split('{').skip(1) {
        let (start, len) = (number(entry, "\"start\""), number(entry, "\"length\""));
        assert_eq!(start, at, "{text}");
        at += len;
        if entry.contains("\"zero\": true") {
            assert!(expected[start..at].iter().all(|byte| *byte == 0), "{text}");
        }
    }
    assert_eq!(at, expected.len(), "{text}");
}

/// Checks that every hash beside a layer is that of its content.
fn check_hashes(path: &Path, expected: &[u8]) {
    let hashes = Hashes::open(&RealStorage, path).unwrap();
    let mut hashes = hashes.unwrap_or_else(|| panic!("{} has no hashes", path.display()));
    assert_eq!(hashes.size(), expected.len() as u64);
    while let Some((cluster, hash)) = hashes.next_hash().unwrap() {
        let from = cluster as usize * CLUSTER;
        let mut bytes = expected[from..expected.len().min(from + CLUSTER)].to_vec();
        bytes.resize(CLUSTER, 0);
        let right = blake3::hash(&bytes);
        assert_eq!(hash, *right.as_bytes(), "{}: {cluster}", path.display());
    }
}

/// The clusters of a layer that have a hash.
pub(crate) fn hashed(path: &Path) -> Vec<u64> {
    let mut hashes = Hashes::open(&RealStorage, path).unwrap().unwrap();
    let mut clusters = Vec::new();
    while let Some((cluster, _)) = hashes.next_hash().unwrap() {
        clusters.push(cluster);
    }
    clusters
}

pub(crate) fn layers(harbor: &Harbor, volume: VolumeId) -> Vec<PathBuf> {
    let layers = harbor.base_points(volume);
    layers.into_iter().map(|layer| layer.path).collect()
}

/// Checks that no cluster is in a layer that is the same below.
pub(crate) fn check_is_lean(below: &Path, layer: &Path) {
    let differing = differing(&content(below), layer);
    assert_eq!(hashed(layer), differing, "{}", layer.display());
}

/// Checks that every cluster of a layer that is not the same below has a hash.
pub(crate) fn check_has_hashes(below: Option<&Path>, layer: &Path) {
    let old = below.map(content).unwrap_or_default();
    let (hashed, context) = (hashed(layer), layer.display());
    for cluster in differing(&old, layer) {
        assert!(
            hashed.contains(&cluster),
            "{context}: cluster {cluster} has no hash"
        );
    }
}

/// The clusters of a layer that differ from what is below.
fn differing(old: &[u8], layer: &Path) -> Vec<u64> {
    let new = content(layer);
    let cluster = |bytes: &[u8], number: u64| {
        let from = (number as usize * CLUSTER).min(bytes.len());
        let mut cluster = bytes[from..bytes.len().min(from + CLUSTER)].to_vec();
        cluster.resize(CLUSTER, 0);
        cluster
    };
    (0..new.len().div_ceil(CLUSTER) as u64)
        .filter(|number| cluster(old, *number) != cluster(&new, *number))
        .collect()
}
