//! Base points and exports as qcow2: a small writer, and a reader for what it writes.
//!
//! Version 3, clusters of 64 KiB, refcounts of 16 bits, no features, no backing file, nothing
//! compressed: any `qemu-img` takes it. Source: QEMU's `docs/interop/qcow2.rst`.

mod reader;
mod writer;

pub use reader::{Qcow2Reader, Run};
pub use writer::Qcow2Writer;

use crate::bounds::CLUSTER;

/// First bytes of an image.
const MAGIC: u32 = 0x5146_49fb;
/// Version of the format.
const VERSION: u32 = 3;
/// Bytes of the header that is written.
const HEADER_LEN: usize = 104;
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

/// Returns the L2 table of a byte of the volume, and the entry in it.
fn place_of(offset: u64) -> (usize, usize) {
    (
        (offset / L2_SPAN) as usize,
        (offset % L2_SPAN / CLUSTER_LEN) as usize,
    )
}
