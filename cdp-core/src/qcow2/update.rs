//! Changes an image in place: clusters written, taken away, the volume cut or grown.
//!
//! Which clusters of the file are in use is worked out from the tables when it is opened; the refcounts follow that.
//! Changes are gathered and written in turns: first the refcounts of new clusters and all data, then, behind a sync, the
//! tables that point to them, then, behind another, the entries of new tables. A cluster that is taken away is used
//! again by the next update at the earliest, so no two entries ever point to one. At the end the refcounts are put
//! right, and what is free is given back.
//!
//! Invariant: whatever of it a crash leaves, each entry is the one from before or the new one, and what it points to is
//! counted and there. What may be wrong then is that a cluster is counted and not used; the next update puts that right.
//! An image is not to be trusted between two turns: whoever updates it has it under cover.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::header::Header;
use super::reader::{read_header, read_l1};
use super::{CLUSTER_LEN, COMPRESSED, COPIED, L2_ENTRIES, PLACE, entries, table_bytes};
use crate::bounds::{CLUSTER, LAYER_SYNC, UPDATED_TABLES_MAX};
use crate::error::{HarborError, Result};
use crate::storage::{OpenMode, Storage, StorageFile};

mod refcounts;
mod resize;

use refcounts::Refcounts;

/// Tells whether an image may have been left in the middle of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// It is as its last update has left it.
    Whole,
    /// An update was begun: what of it is there may be so in memory only, and is written again.
    Unfinished,
}

/// Changes an image in place.
#[derive(Debug)]
pub(crate) struct Qcow2Updater {
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    before: Before,
    header: Header,
    l1: Vec<u64>,
    refcounts: Refcounts,
    /// Tables that are changed.
    tables: BTreeMap<usize, Table>,
    unsynced: u64,
}

/// A table in memory.
#[derive(Debug)]
struct Table {
    place: u64,
    entries: Vec<u64>,
    is_new: bool,
    is_changed: bool,
}

impl Qcow2Updater {
    /// Opens an image of ours that stands on no other one.
    ///
    /// # Errors
    /// The storage failed; it is damaged, or not such an image.
    pub(crate) fn open(storage: &dyn Storage, path: &Path, before: Before) -> Result<Qcow2Updater> {
        let failed = |action| move |e| HarborError::storage(action, path, e);
        let file = storage
            .open(path, OpenMode::Write)
            .map_err(failed("open"))?;
        // What is read now is to be what a crash would leave.
        file.sync().map_err(failed("sync"))?;
        let file_len = file.length().map_err(failed("read"))?;
        let header = read_header(path, &*file, file_len)?;
        if header.backing.is_some() || header.has_zstd {
            return Err(HarborError::damaged(
                path,
                "it is no image on its own, or compressed",
            ));
        }
        let l1 = read_l1(path, &*file, file_len, &header)?;
        let mut updater = Qcow2Updater {
            path: path.to_path_buf(),
            refcounts: Refcounts::open(path, &*file, file_len, &header)?,
            file,
            before,
            header,
            l1,
            tables: BTreeMap::new(),
            unsynced: 0,
        };
        updater.find_used()?;
        Ok(updater)
    }

    /// Tells whether `clusters` more can be counted.
    pub(crate) fn has_room_for(&self, clusters: u64) -> bool {
        self.refcounts.has_room_for(clusters)
    }

    /// Writes whole clusters, from number `first` on.
    ///
    /// # Errors
    /// The storage failed; they do not lie within the volume.
    pub(crate) fn put(&mut self, first: u64, data: &[u8]) -> Result<()> {
        self.check(first, (data.len() / CLUSTER) as u64)?;
        let mut parts: Vec<IoSlice<'_>> = Vec::new();
        let mut place = 0;
        for (cluster, bytes) in (first..).zip(data.chunks(CLUSTER)) {
            let next = self.place_for(cluster)?;
            if place + (parts.len() * CLUSTER) as u64 != next {
                self.write(&parts, place)?;
                parts.clear();
                place = next;
            }
            parts.push(IoSlice::new(bytes));
        }
        self.write(&parts, place)?;
        if self.unsynced >= LAYER_SYNC || self.tables.len() >= UPDATED_TABLES_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Takes whole clusters away: they read as zeros.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub(crate) fn zero(&mut self, first: u64, clusters: u64) -> Result<()> {
        self.check(first, clusters)?;
        for cluster in first..first + clusters {
            let number = cluster as usize / L2_ENTRIES;
            if self.is_absent(number) {
                continue;
            }
            let table = self.table(number)?;
            let entry = table.entries.get_mut(cluster as usize % L2_ENTRIES);
            let old = entry.map(std::mem::take).unwrap_or_default();
            table.is_changed |= old != 0;
            self.refcounts.free(old & PLACE);
            if self.tables.len() >= UPDATED_TABLES_MAX {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes everything that is still in memory, and puts the refcounts right; durable on return.
    ///
    /// # Errors
    /// The storage failed.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.flush()?;
        if self.before == Before::Unfinished {
            self.write_l1()?;
            self.write_header()?;
        }
        self.sync()?;
        self.refcounts
            .settle(&*self.file, self.before)
            .map_err(self.failed("write"))?;
        self.sync()
    }

    /// Gives back to the storage what is free, after [`finish`](Self::finish). What is free must be known to nobody who
    /// has just opened the image.
    ///
    /// # Errors
    /// The storage failed.
    pub(crate) fn give_back(mut self) -> Result<()> {
        let (file, before) = (Arc::clone(&self.file), self.before);
        let given = self.refcounts.give_back(&*file, before);
        given.map_err(self.failed("cut"))?;
        self.sync()
    }

    fn check(&self, first: u64, clusters: u64) -> Result<()> {
        match first.checked_add(clusters) {
            Some(end) if end <= self.header.size.div_ceil(CLUSTER_LEN) => Ok(()),
            _ => Err(HarborError::damaged(
                &self.path,
                "it is smaller than what is to go into it",
            )),
        }
    }

    fn is_absent(&self, table: usize) -> bool {
        let entry = self.l1.get(table).copied().unwrap_or_default();
        entry & PLACE == 0 && !self.tables.contains_key(&table)
    }

    /// Returns the place of a cluster, a new one if it has none.
    fn place_for(&mut self, cluster: u64) -> Result<u64> {
        let (number, at) = (cluster as usize / L2_ENTRIES, cluster as usize % L2_ENTRIES);
        let table = self.table(number)?;
        let old = table.entries.get(at).copied().unwrap_or_default();
        let place = match old & PLACE {
            0 => self.take()?,
            place => place,
        };
        let table = self.table(number)?;
        if let Some(entry) = table.entries.get_mut(at) {
            table.is_changed |= *entry != COPIED | place;
            *entry = COPIED | place;
        }
        Ok(place)
    }

    /// Returns a table, to be changed.
    fn table(&mut self, number: usize) -> Result<&mut Table> {
        if !self.tables.contains_key(&number) {
            let table = match self.l1.get(number).copied().unwrap_or_default() & PLACE {
                0 => Table {
                    place: self.take()?,
                    entries: vec![0; L2_ENTRIES],
                    is_new: true,
                    is_changed: true,
                },
                place => Table {
                    place,
                    entries: self.read_table(place)?,
                    is_new: false,
                    is_changed: self.before == Before::Unfinished,
                },
            };
            self.tables.insert(number, table);
        }
        let table = self.tables.get_mut(&number);
        table.ok_or_else(|| HarborError::damaged(&self.path, "a table is missing"))
    }

    fn read_table(&self, place: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; CLUSTER];
        let read = self.file.read_at(&mut bytes, place);
        read.map_err(self.failed("read"))?;
        Ok(entries(&bytes))
    }

    fn take(&mut self) -> Result<u64> {
        self.refcounts
            .take(&*self.file)
            .map_err(self.failed("write"))
    }

    /// Marks all that the tables point to as used.
    fn find_used(&mut self) -> Result<()> {
        let twice =
            |path: &Path| HarborError::damaged(path, "a cluster is used twice, or lies outside");
        let mark = |place: u64, refcounts: &mut Refcounts| match refcounts.mark(place) {
            true => Ok(()),
            false => Err(twice(&self.path)),
        };
        for entry in &self.l1 {
            let place = entry & PLACE;
            if place == 0 {
                continue;
            }
            mark(place, &mut self.refcounts)?;
            let mut bytes = vec![0; CLUSTER];
            let read = self.file.read_at(&mut bytes, place);
            read.map_err(|e| HarborError::storage("read", &self.path, e))?;
            for entry in entries(&bytes) {
                if entry & COMPRESSED != 0 {
                    return Err(HarborError::damaged(
                        &self.path,
                        "it has a compressed cluster",
                    ));
                }
                if entry & PLACE != 0 {
                    mark(entry & PLACE, &mut self.refcounts)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is in memory, in an order in which any part of it may be all that is left.
    fn flush(&mut self) -> Result<()> {
        self.refcounts
            .write(&*self.file)
            .map_err(self.failed("write"))?;
        self.sync()?;
        let tables = std::mem::take(&mut self.tables);
        for table in tables.values().filter(|table| table.is_changed) {
            self.write(&[IoSlice::new(&table_bytes(&table.entries))], table.place)?;
        }
        if tables.values().any(|table| table.is_new) {
            self.sync()?;
        }
        for (number, table) in tables.iter().filter(|(_, table)| table.is_new) {
            let entry = COPIED | table.place;
            if let Some(known) = self.l1.get_mut(*number) {
                *known = entry;
            }
            let place = self.header.l1_place + *number as u64 * 8;
            self.write(&[IoSlice::new(&entry.to_be_bytes())], place)?;
        }
        Ok(())
    }

    fn write_l1(&mut self) -> Result<()> {
        let bytes = table_bytes(&self.l1);
        self.write(&[IoSlice::new(&bytes)], self.header.l1_place)
    }

    fn write_header(&mut self) -> Result<()> {
        let bytes = self.header.encode();
        self.write(&[IoSlice::new(&bytes)], 0)
    }

    fn write(&mut self, parts: &[IoSlice<'_>], place: u64) -> Result<()> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if len > 0 {
            let written = self.file.write_at(parts, place);
            written.map_err(self.failed("write"))?;
            self.unsynced += len;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.unsynced = 0;
        self.file.sync().map_err(self.failed("sync"))
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> HarborError + use<> {
        let path = self.path.clone();
        move |error| HarborError::storage(action, &path, error)
    }
}

#[cfg(test)]
mod tests;
