//! Writes an image whose clusters arrive in order: a layer over another one, or one on its own.
//!
//! Clusters are placed behind each other, tables and refcounts as soon as they are complete, the header last. So the
//! memory does not grow with the volume, but for 8 bytes for each 512 MiB. Compressed clusters are packed into extents of
//! their own, with others between them.
//!
//! Invariant: of a layer over another one, a cluster that was not given shows what lies below.
//! A crash leaves a file without header, which the caller keeps under another name until then.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::counts::Counts;
use super::header::{Header, l1_needed};
use super::pack::{Packed, Packer};
use super::{CLUSTER_LEN, COPIED, L2_ENTRIES, READS_ZERO, table_bytes};
use crate::bounds::{CLUSTER, LAYER_SYNC, PACK_EXTENT};
use crate::storage::StorageFile;

/// How clusters are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clusters {
    /// As they are.
    #[default]
    Plain,
    /// Compressed with zstd, each of them that becomes smaller.
    Compressed,
}

/// Writes an image whose clusters arrive in order.
#[derive(Debug)]
pub(crate) struct LayerWriter {
    file: Arc<dyn StorageFile>,
    size: u64,
    below: Option<String>,
    l1: Vec<u64>,
    /// The table that is being filled.
    table: Option<(usize, Vec<u64>)>,
    counts: Counts,
    packer: Option<Packer>,
    extent: Extent,
    has_packed: bool,
    unsynced: u64,
}

/// Room for compressed clusters, and what of it is not written yet.
#[derive(Debug, Default)]
struct Extent {
    /// Place of the first byte in `bytes`.
    place: u64,
    /// Byte of the file behind the last of the room.
    end: u64,
    bytes: Vec<u8>,
}

impl LayerWriter {
    /// Begins an image of `size` bytes in an empty file, over the one that is called `below`.
    pub(crate) fn new(
        file: Arc<dyn StorageFile>,
        size: u64,
        below: Option<String>,
        clusters: Clusters,
    ) -> io::Result<LayerWriter> {
        let l1 = vec![0; l1_needed(size)];
        let mut counts = Counts::default();
        // The header, and the L1 table.
        for _ in 0..1 + l1_clusters(l1.len()) {
            counts.take();
        }
        let packer = match clusters {
            Clusters::Plain => None,
            Clusters::Compressed => Some(Packer::new()?),
        };
        Ok(LayerWriter {
            file,
            size,
            below,
            l1,
            table: None,
            counts,
            packer,
            extent: Extent::default(),
            has_packed: false,
            unsynced: 0,
        })
    }

    /// Writes whole clusters, from number `first` on, which must lie behind all before.
    pub(crate) fn put(&mut self, first: u64, data: &[u8]) -> io::Result<()> {
        let mut parts: Vec<IoSlice<'_>> = Vec::new();
        let mut place = 0;
        for (cluster, bytes) in (first..).zip(data.chunks(CLUSTER)) {
            self.turn_to(cluster)?;
            let packed = match &mut self.packer {
                Some(packer) => packer.pack(bytes)?,
                None => None,
            };
            if let Some(packed) = packed {
                self.put_packed(cluster, &packed)?;
                continue;
            }
            let next = self.counts.take() * CLUSTER_LEN;
            if place + (parts.len() * CLUSTER) as u64 != next {
                self.write(&parts, place)?;
                parts.clear();
                place = next;
            }
            parts.push(IoSlice::new(bytes));
            self.set(cluster, COPIED | next);
        }
        self.write(&parts, place)
    }

    /// Writes a cluster that is compressed already.
    pub(crate) fn put_packed(&mut self, cluster: u64, packed: &[u8]) -> io::Result<()> {
        self.turn_to(cluster)?;
        let len = packed.len() as u64;
        if self.extent.at() + len > self.extent.end {
            let first = self.counts.reserve((PACK_EXTENT / CLUSTER) as u64) * CLUSTER_LEN;
            if first != self.extent.end {
                self.write_extent()?;
                self.extent.place = first;
            }
            self.extent.end = first + PACK_EXTENT as u64;
        }
        let place = self.extent.at();
        self.extent.bytes.extend_from_slice(packed);
        for used in place / CLUSTER_LEN..=(place + len.max(1) - 1) / CLUSTER_LEN {
            self.counts.add(used);
        }
        self.has_packed = true;
        self.set(cluster, Packed::entry(place, packed.len()));
        if self.extent.bytes.len() >= PACK_EXTENT {
            self.write_extent()?;
        }
        Ok(())
    }

    /// Writes zeros over whole clusters, which must lie behind all before. They take no room.
    pub(crate) fn zero(&mut self, first: u64, clusters: u64) -> io::Result<()> {
        // Where nothing lies below, zeros show by themselves.
        if self.below.is_none() {
            return Ok(());
        }
        for cluster in first..first + clusters {
            self.turn_to(cluster)?;
            self.set(cluster, READS_ZERO);
        }
        Ok(())
    }

    /// Writes what is left, and the header, and puts the image on stable storage.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write_extent()?;
        self.end_table()?;
        self.file
            .write_at(&[IoSlice::new(&table_bytes(&self.l1))], CLUSTER_LEN)?;
        let counts = self.counts.finish(&*self.file)?;
        self.file.set_len(counts.clusters * CLUSTER_LEN)?;
        self.file.sync()?;
        let header = Header {
            size: self.size,
            l1_len: self.l1.len(),
            l1_place: CLUSTER_LEN,
            refcount_place: counts.table_place,
            refcount_clusters: counts.table_clusters,
            backing: self.below,
            has_zstd: self.has_packed,
        };
        self.file.write_at(&[IoSlice::new(&header.encode())], 0)?;
        self.file.sync()
    }

    /// Turns to the table of a cluster; the one before it is complete then.
    fn turn_to(&mut self, cluster: u64) -> io::Result<()> {
        let number = cluster as usize / L2_ENTRIES;
        if cluster >= self.size.div_ceil(CLUSTER_LEN) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &self.table {
            Some((open, _)) if *open == number => return Ok(()),
            Some((open, _)) if *open > number => return Err(io::ErrorKind::InvalidInput.into()),
            _ => self.end_table()?,
        }
        self.table = Some((number, vec![0; L2_ENTRIES]));
        // Everything that is still to come is taken behind here, but for what fits into the extent.
        let from = match self.extent.at() / CLUSTER_LEN {
            0 => self.counts.taken(),
            at => at.min(self.counts.taken()),
        };
        self.counts.write_before(&*self.file, from)
    }

    fn end_table(&mut self) -> io::Result<()> {
        let Some((number, entries)) = self.table.take() else {
            return Ok(());
        };
        let place = self.counts.take() * CLUSTER_LEN;
        if let Some(entry) = self.l1.get_mut(number) {
            *entry = COPIED | place;
        }
        self.write(&[IoSlice::new(&table_bytes(&entries))], place)
    }

    fn set(&mut self, cluster: u64, value: u64) {
        let entries = self.table.as_mut().map(|(_, entries)| entries);
        let entry = entries.and_then(|entries| entries.get_mut(cluster as usize % L2_ENTRIES));
        if let Some(entry) = entry {
            *entry = value;
        }
    }

    fn write_extent(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.extent.bytes);
        let place = self.extent.place;
        self.extent.place += bytes.len() as u64;
        self.write(&[IoSlice::new(&bytes)], place)
    }

    fn write(&mut self, parts: &[IoSlice<'_>], place: u64) -> io::Result<()> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if len == 0 {
            return Ok(());
        }
        self.file.write_at(parts, place)?;
        self.unsynced += len;
        if self.unsynced >= LAYER_SYNC {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

impl Extent {
    /// Place of the next byte.
    fn at(&self) -> u64 {
        self.place + self.bytes.len() as u64
    }
}

fn l1_clusters(entries: usize) -> usize {
    (entries * 8).div_ceil(CLUSTER)
}
