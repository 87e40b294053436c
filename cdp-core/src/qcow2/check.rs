//! Checks the structure of one image: header, tables, and whether each cluster of the file is used as often as its
//! refcount says.
//!
//! Every table is read once. Memory: two bytes for each cluster of the file, that is 32 MiB for each TiB.
//!
//! What is in the image is not looked at: that is known by its hashes.

use std::io;
use std::ops::Range;
use std::path::Path;

use bitvec::vec::BitVec;

use super::header::{HEADER_READ_MAX, HEADER_READ_MIN, Header};
use super::pack::Packed;
use super::{CLUSTER_LEN, COMPRESSED, COPIED, L2_SPAN, PLACE, READS_ZERO, REFCOUNTS, entries};
use crate::bounds::{CLUSTER, IMAGE_FAULTS_MAX};
use crate::error::{HarborError, Result};
use crate::storage::OpenMode;
use crate::storage::{Storage, StorageFile};

/// Bits of a table entry that are zeros but for compressed clusters; those of the place are not.
const RESERVED: u64 = !(COPIED | COMPRESSED | PLACE | READS_ZERO);

/// Something of an image that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// In the file.
    pub(crate) bytes: Range<u64>,
    pub(crate) what: String,
    pub(crate) costs: Costs,
}

/// What a fault costs, by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Costs {
    Nothing,
    /// A range of the volume cannot be read.
    Range(Range<u64>),
    /// The image cannot be opened.
    All,
}

/// What was found of an image's structure.
#[derive(Debug)]
pub(crate) struct Structure {
    /// At most [`IMAGE_FAULTS_MAX`].
    pub(crate) faults: Vec<Fault>,
    /// Clusters of the file that are not used as often as they are counted.
    pub(crate) suspect: BitVec<u64>,
    /// Bytes of the volume, and the image below, if the header can be read.
    pub(crate) header: Option<(u64, Option<String>)>,
}

/// Checks an image; `told` gets the bytes that were read since the last call.
///
/// # Errors
/// The storage failed; whatever `told` says.
pub(crate) fn check(
    storage: &dyn Storage,
    path: &Path,
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Structure> {
    let failed = |e: io::Error| HarborError::storage("read", path, e);
    let file = storage.open(path, OpenMode::Read).map_err(failed)?;
    let len = file.length().map_err(failed)?;
    let clusters = usize::try_from(len / CLUSTER_LEN).unwrap_or(usize::MAX);
    let mut check = Check {
        file: &*file,
        len,
        told,
        faults: Vec::new(),
        counts: vec![0; clusters],
        suspect: BitVec::repeat(false, clusters),
    };
    let header = check.header(path)?;
    if let Some(header) = &header {
        check.tables(header)?;
        check.refcounts(header)?;
    }
    Ok(Structure {
        faults: check.faults,
        suspect: check.suspect,
        header: header.map(|header| (header.size, header.backing)),
    })
}

struct Check<'a> {
    file: &'a dyn StorageFile,
    len: u64,
    told: &'a mut dyn FnMut(u64) -> Result<()>,
    faults: Vec<Fault>,
    /// How often each cluster of the file is used.
    counts: Vec<u16>,
    suspect: BitVec<u64>,
}

impl Check<'_> {
    fn add(&mut self, bytes: Range<u64>, what: &str, costs: Costs) {
        if self.faults.len() < IMAGE_FAULTS_MAX {
            let what = what.to_string();
            self.faults.push(Fault { bytes, what, costs });
        }
    }

    /// Reads some bytes; none, and a fault, if that is not possible.
    fn read(&mut self, place: u64, len: u64, costs: Costs) -> Result<Option<Vec<u8>>> {
        (self.told)(len)?;
        let mut bytes = vec![0; len as usize];
        match self.file.read_at(&mut bytes, place) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) => {
                let what = format!("it cannot be read: {error}");
                self.add(place..place.saturating_add(len), &what, costs);
                Ok(None)
            }
        }
    }

    fn header(&mut self, path: &Path) -> Result<Option<Header>> {
        if self.len < HEADER_READ_MIN as u64 || !self.len.is_multiple_of(CLUSTER_LEN) {
            self.add(
                0..self.len,
                "its length is not that of an image",
                Costs::All,
            );
            return Ok(None);
        }
        let Some(bytes) = self.read(0, HEADER_READ_MAX as u64, Costs::All)? else {
            return Ok(None);
        };
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(what) => {
                self.add(0..CLUSTER_LEN, what, Costs::All);
                return Ok(None);
            }
        };
        // Whatever it does not say is zeros.
        let mut right = header.encode();
        right.resize(bytes.len(), 0);
        if right != bytes {
            let first = right.iter().zip(&bytes).position(|(a, b)| a != b);
            let at = first.unwrap_or_default() as u64;
            self.add(
                at..at + 1,
                "its header is not as it was written",
                Costs::Nothing,
            );
        }
        let l1 = header.l1_place.checked_add(header.l1_len as u64 * 8);
        if l1.is_none_or(|end| end > self.len) {
            let what = format!("{}: its L1 table lies outside", path.display());
            self.add(0..CLUSTER_LEN, &what, Costs::All);
            return Ok(None);
        }
        Ok(Some(header))
    }

    /// Counts one use of a cluster; false if it lies outside.
    fn count(&mut self, place: u64) -> bool {
        let at = usize::try_from(place / CLUSTER_LEN).unwrap_or(usize::MAX);
        match self.counts.get_mut(at) {
            Some(count) => {
                *count = count.saturating_add(1);
                true
            }
            None => false,
        }
    }

    fn count_row(&mut self, place: u64, clusters: u64) -> bool {
        place.is_multiple_of(CLUSTER_LEN)
            && (0..clusters).all(|n| self.count(place.saturating_add(n * CLUSTER_LEN)))
    }

    fn tables(&mut self, header: &Header) -> Result<()> {
        self.count(0);
        let clusters = (header.l1_len as u64 * 8).div_ceil(CLUSTER_LEN);
        if !self.count_row(header.l1_place, clusters) {
            self.add(0..CLUSTER_LEN, "its L1 table lies outside", Costs::Nothing);
        }
        let len = (clusters * CLUSTER_LEN).min(self.len.saturating_sub(header.l1_place));
        let Some(bytes) = self.read(header.l1_place, len, Costs::All)? else {
            return Ok(());
        };
        let l1 = entries(&bytes);
        for (number, entry) in l1.iter().enumerate() {
            let at = header.l1_place + number as u64 * 8;
            let span = number as u64 * L2_SPAN..(number as u64 + 1) * L2_SPAN;
            if number >= header.l1_len {
                if *entry != 0 {
                    self.add(
                        at..at + 8,
                        "padding of its L1 table is not zeros",
                        Costs::Nothing,
                    );
                }
                continue;
            }
            self.l1_entry(*entry, at, span, header)?;
        }
        Ok(())
    }

    fn l1_entry(&mut self, entry: u64, at: u64, span: Range<u64>, header: &Header) -> Result<()> {
        let place = entry & PLACE;
        if entry & !(COPIED | PLACE) != 0 || (place != 0) != (entry & COPIED != 0) {
            self.add(
                at..at + 8,
                "an entry of its L1 table is impossible",
                Costs::Nothing,
            );
        }
        if place == 0 {
            return Ok(());
        }
        if !self.count_row(place, 1) {
            let what = "an entry of its L1 table points outside";
            self.add(at..at + 8, what, Costs::Range(span));
            return Ok(());
        }
        let Some(bytes) = self.read(place, CLUSTER_LEN, Costs::Range(span.clone()))? else {
            return Ok(());
        };
        for (number, entry) in entries(&bytes).into_iter().enumerate() {
            if entry != 0 {
                let from = span.start + number as u64 * CLUSTER_LEN;
                self.l2_entry(entry, place + number as u64 * 8, from, header);
            }
        }
        Ok(())
    }

    fn l2_entry(&mut self, entry: u64, at: u64, from: u64, header: &Header) {
        let cluster = Costs::Range(from..from + CLUSTER_LEN);
        if entry & COMPRESSED != 0 {
            let packed = Packed::of_entry(entry);
            let end = packed.place.saturating_add(packed.len as u64);
            if !header.has_zstd || end > self.len || packed.place == 0 {
                self.add(
                    at..at + 8,
                    "a compressed cluster where there can be none",
                    cluster,
                );
                return;
            }
            if entry & COPIED != 0 {
                self.add(
                    at..at + 8,
                    "an entry of a table is impossible",
                    Costs::Nothing,
                );
            }
            for used in packed.place / CLUSTER_LEN..=(end - 1) / CLUSTER_LEN {
                self.count(used * CLUSTER_LEN);
            }
            return;
        }
        let place = entry & PLACE;
        let is_zeros = entry & READS_ZERO != 0;
        if entry & RESERVED != 0 || (place != 0) != (entry & COPIED != 0) {
            self.add(
                at..at + 8,
                "an entry of a table is impossible",
                Costs::Nothing,
            );
        }
        if place != 0 && !self.count_row(place, 1) && !is_zeros {
            self.add(at..at + 8, "a table points outside", cluster);
        }
    }

    /// Compares the refcounts with how often each cluster is used.
    fn refcounts(&mut self, header: &Header) -> Result<()> {
        let len = u64::from(header.refcount_clusters) * CLUSTER_LEN;
        let end = header.refcount_place.checked_add(len);
        if len == 0
            || end.is_none_or(|end| end > self.len)
            || !self.count_row(header.refcount_place, len / CLUSTER_LEN)
        {
            let what = "its table of refcounts lies outside";
            self.add(0..CLUSTER_LEN, what, Costs::Nothing);
            return Ok(());
        }
        let Some(bytes) = self.read(header.refcount_place, len, Costs::Nothing)? else {
            return Ok(());
        };
        let table = entries(&bytes);
        for (number, place) in table.iter().enumerate().filter(|(_, place)| **place != 0) {
            if !self.count_row(*place, 1) {
                let at = header.refcount_place + number as u64 * 8;
                self.add(
                    at..at + 8,
                    "a block of refcounts lies outside",
                    Costs::Nothing,
                );
            }
        }
        for (number, place) in table.into_iter().enumerate() {
            let first = number * REFCOUNTS as usize;
            let there = place != 0 && place.is_multiple_of(CLUSTER_LEN) && place < self.len;
            if there {
                let Some(bytes) = self.read(place, CLUSTER_LEN, Costs::Nothing)? else {
                    continue;
                };
                self.compare(first, place, &bytes);
            } else if first < self.counts.len() {
                let at = header.refcount_place + number as u64 * 8;
                self.compare(first, at, &[0; CLUSTER]);
            }
        }
        Ok(())
    }

    /// Compares a block of refcounts, which is at `place`.
    fn compare(&mut self, first: usize, place: u64, bytes: &[u8]) {
        for (number, count) in bytes.as_chunks::<2>().0.iter().enumerate() {
            let at = first + number;
            let used = self.counts.get(at).copied().unwrap_or_default();
            let count = u16::from_be_bytes(*count);
            if used == count {
                continue;
            }
            if let Some(mut bit) = self.suspect.get_mut(at) {
                *bit = true;
            }
            let what =
                format!("cluster {at} of the file is used {used} times and counted {count} times");
            let from = place + number as u64 * 2;
            self.add(from..from + 2, &what, Costs::Nothing);
        }
    }
}
