//! Writes a qcow2 image whose clusters arrive in any order.
//!
//! Data clusters are placed behind each other as they arrive; the tables are kept in memory and
//! written at the end, the header last. Memory: 4 bytes for each cluster in every touched span of
//! 512 MiB, 64 MiB per TiB.
//!
//! Invariant: a cluster that is not placed reads as zeros, and all bytes of a placed cluster that
//! were not written do too.
//! A crash leaves a file without header, which the caller keeps under another name until then.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::header::Header;
use super::{CLUSTER_LEN, COPIED, L2_ENTRIES, L2_SPAN, REFCOUNTS, ZEROS, is_zero, place_of};
use crate::bounds::CLUSTER;
use crate::storage::StorageFile;

/// Writes a qcow2 image.
#[derive(Debug)]
pub struct Qcow2Writer {
    file: Arc<dyn StorageFile>,
    size: u64,
    /// For each L2 table the places of its clusters, in clusters; 0 where there is none.
    tables: Vec<Option<Box<[u32]>>>,
    next: u32,
}

impl Qcow2Writer {
    /// Begins an image of `size` bytes in an empty file.
    pub fn new(file: Arc<dyn StorageFile>, size: u64) -> Qcow2Writer {
        let tables = size.div_ceil(L2_SPAN) as usize;
        let next = 1 + l1_clusters(tables);
        Qcow2Writer {
            file,
            size,
            tables: vec![None; tables],
            next,
        }
    }

    /// Writes bytes of the volume, which must lie within it.
    ///
    /// # Errors
    /// As the storage says; `InvalidInput` if they do not lie within the volume.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        let mut run = Run {
            from: 0,
            to: 0,
            place: 0,
        };
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let in_cluster = position % CLUSTER_LEN;
            let len = (CLUSTER - in_cluster as usize).min(data.len() - at);
            let piece = data.get(at..at + len).unwrap_or_default();
            if let Some(cluster) = self.place(position, is_zero(piece)) {
                let place = u64::from(cluster) * CLUSTER_LEN + in_cluster;
                if run.to != at || run.place + (run.to - run.from) as u64 != place {
                    run.flush(&*self.file, data)?;
                    run = Run {
                        from: at,
                        to: at,
                        place,
                    };
                }
                run.to = at + len;
            }
            at += len;
        }
        run.flush(&*self.file, data)
    }

    /// Writes zeros, which take no space where nothing was written.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        let end = offset + len;
        let mut position = offset;
        while position < end {
            let (table, _) = place_of(position);
            if self.tables.get(table).is_none_or(Option::is_none) {
                position = end.min((position / L2_SPAN + 1) * L2_SPAN);
                continue;
            }
            let stop = end.min((position / CLUSTER_LEN + 1) * CLUSTER_LEN);
            if let Some(cluster) = self.place(position, true) {
                let place = u64::from(cluster) * CLUSTER_LEN + position % CLUSTER_LEN;
                let zeros = ZEROS.get(..(stop - position) as usize).unwrap_or_default();
                self.file.write_at(&[IoSlice::new(zeros)], place)?;
            }
            position = stop;
        }
        Ok(())
    }

    /// Returns every cluster of the volume that has a place, in order, and the place.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (u64, u64)> {
        let tables = (0..).zip(&self.tables);
        let there = tables.filter_map(|(table, clusters)| Some((table, clusters.as_ref()?)));
        there.flat_map(|(table, clusters)| {
            let first: u64 = table * L2_ENTRIES as u64;
            let placed = (first..).zip(clusters.iter());
            placed.filter_map(|(cluster, place)| {
                (*place != 0).then_some((cluster, u64::from(*place) * CLUSTER_LEN))
            })
        })
    }

    /// Makes the file as long as what is placed in it, so that all of that can be read.
    ///
    /// # Errors
    /// As the storage says.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let len = u64::from(self.next) * CLUSTER_LEN;
        if self.file.length()? < len {
            self.file.set_len(len)?;
        }
        Ok(())
    }

    /// Returns the image's file.
    pub(crate) fn file(&self) -> &Arc<dyn StorageFile> {
        &self.file
    }

    /// Writes tables and header and puts the image on stable storage.
    ///
    /// # Errors
    /// As the storage says.
    pub fn finish(mut self) -> io::Result<()> {
        let l1 = self.write_tables()?;
        self.file.write_at(&[IoSlice::new(&l1)], CLUSTER_LEN)?;
        let (refcounts, refcount_clusters) = self.write_refcounts()?;
        self.file.set_len(u64::from(self.next) * CLUSTER_LEN)?;
        self.file.sync()?;
        let header = self.header(refcounts, refcount_clusters);
        self.file.write_at(&[IoSlice::new(&header)], 0)?;
        self.file.sync()
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Returns the place of a cluster, in clusters; none if it has none and `zero` needs none.
    fn place(&mut self, position: u64, zero: bool) -> Option<u32> {
        let (table, entry) = place_of(position);
        let slot = self.tables.get_mut(table)?;
        if slot.is_none() && zero {
            return None;
        }
        let entries = slot.get_or_insert_with(|| vec![0; L2_ENTRIES].into_boxed_slice());
        let cluster = entries.get_mut(entry)?;
        if *cluster == 0 {
            if zero {
                return None;
            }
            *cluster = self.next;
            self.next += 1;
        }
        Some(*cluster)
    }

    fn write_tables(&mut self) -> io::Result<Vec<u8>> {
        let mut l1 = Vec::with_capacity(self.tables.len() * 8);
        for table in &self.tables {
            let Some(clusters) = table else {
                l1.extend_from_slice(&[0; 8]);
                continue;
            };
            let mut l2 = Vec::with_capacity(CLUSTER);
            for cluster in clusters {
                l2.extend_from_slice(&entry(*cluster).to_be_bytes());
            }
            self.file
                .write_at(&[IoSlice::new(&l2)], u64::from(self.next) * CLUSTER_LEN)?;
            l1.extend_from_slice(&entry(self.next).to_be_bytes());
            self.next += 1;
        }
        Ok(l1)
    }

    /// Writes the refcounts, all 1 up to the end, their own clusters included; returns the place of
    /// their table, and its clusters.
    fn write_refcounts(&mut self) -> io::Result<(u64, u32)> {
        let used = u64::from(self.next);
        let (mut blocks, mut table_clusters) = (0, 0);
        // The table has room for all of the volume, so that clusters can be added later.
        let most = (self.size / CLUSTER_LEN + self.size / L2_SPAN).div_ceil(REFCOUNTS) + 2;
        loop {
            let total = used + blocks + table_clusters;
            let more = total.div_ceil(REFCOUNTS);
            let more_table = (more.max(most) * 8).div_ceil(CLUSTER_LEN);
            if (more, more_table) == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (more, more_table);
        }
        let total = used + blocks + table_clusters;
        let mut table = Vec::new();
        for block in 0..blocks {
            let counted = (total - block * REFCOUNTS).min(REFCOUNTS) as usize;
            let mut counts = [0, 1].repeat(counted);
            counts.resize(CLUSTER, 0);
            let place = (used + block) * CLUSTER_LEN;
            self.file.write_at(&[IoSlice::new(&counts)], place)?;
            table.extend_from_slice(&place.to_be_bytes());
        }
        table.resize((table_clusters * CLUSTER_LEN) as usize, 0);
        let place = (used + blocks) * CLUSTER_LEN;
        self.file.write_at(&[IoSlice::new(&table)], place)?;
        self.next =
            u32::try_from(total).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok((place, table_clusters as u32))
    }

    fn header(&self, refcount_place: u64, refcount_clusters: u32) -> Vec<u8> {
        let header = Header {
            size: self.size,
            l1_len: self.tables.len(),
            l1_place: CLUSTER_LEN,
            refcount_place,
            refcount_clusters,
            backing: None,
            has_zstd: false,
        };
        header.encode()
    }
}

/// A stretch of data that goes to one place of the file.
struct Run {
    from: usize,
    to: usize,
    place: u64,
}

impl Run {
    fn flush(&self, file: &dyn StorageFile, data: &[u8]) -> io::Result<()> {
        match data.get(self.from..self.to) {
            Some(bytes) if !bytes.is_empty() => file.write_at(&[IoSlice::new(bytes)], self.place),
            _ => Ok(()),
        }
    }
}

fn l1_clusters(tables: usize) -> u32 {
    (tables * 8).div_ceil(CLUSTER) as u32
}

/// Table entry for a cluster; 0 for none.
fn entry(cluster: u32) -> u64 {
    if cluster == 0 {
        0
    } else {
        COPIED | (u64::from(cluster) * CLUSTER_LEN)
    }
}
