//! Base points and exports as qcow2: images on their own and in layers, as far as we need them.
//!
//! Version 3, clusters of 64 KiB, refcounts of 16 bits, nothing encrypted, no snapshots; clusters of a layer may be
//! compressed with zstd: any `qemu-img` takes it. Source: QEMU's `docs/interop/qcow2.rst`.
//!
//! - [`Qcow2Writer`] writes an image on its own, of clusters in any order: seeds and exports.
//! - [`layer`] writes a layer over another, of clusters in order: increments, and two of them merged.
//! - [`update`] changes an image of ours in place: the full, when an increment goes into it.
//! - [`reader`] reads one image, [`Chain`] an image and all it stands on; [`check`] looks whether one is sound.

mod cache;
mod header;
mod pack;
pub(crate) mod reader;

mod chain;

pub(crate) mod check;
mod counts;
pub(crate) mod layer;
pub(crate) mod update;
mod writer;

pub use chain::{Chain, Run};
pub use layer::Clusters;
pub use writer::Qcow2Writer;

use crate::bounds::CLUSTER;

/// First bytes of an image.
const MAGIC: u32 = 0x5146_49fb;
/// Version of the format.
const VERSION: u32 = 3;
/// Bytes of a cluster.
const CLUSTER_LEN: u64 = CLUSTER as u64;
/// Entries of an L2 table.
const L2_ENTRIES: usize = CLUSTER / 8;
/// Bytes of the volume that an L2 table stands for.
const L2_SPAN: u64 = L2_ENTRIES as u64 * CLUSTER_LEN;
/// Refcounts in a cluster of them.
const REFCOUNTS: u64 = CLUSTER_LEN / 2;

/// Bit of a table entry: the cluster it points to is used once.
const COPIED: u64 = 1 << 63;
/// Bit of an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit of an L2 entry: the cluster reads as zeros.
const READS_ZERO: u64 = 1;
/// Bits of a table entry that hold a place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

static ZEROS: [u8; CLUSTER] = [0; CLUSTER];

/// Returns the L2 table of a byte of the volume, and the entry in it.
fn place_of(offset: u64) -> (usize, usize) {
    (
        (offset / L2_SPAN) as usize,
        (offset % L2_SPAN / CLUSTER_LEN) as usize,
    )
}

/// Tells whether at most a cluster of bytes are all zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    ZEROS.get(..bytes.len()).is_some_and(|zeros| zeros == bytes)
}

/// Takes the entries of a table from its bytes.
fn entries(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

/// Returns a table's bytes.
fn table_bytes(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect()
}
