//! A volume that is cut or grown in place.
//!
//! Cut: first the entries of all that lies behind the new end go, then, behind a sync, the header has the new size. Grown:
//! first the L1 table has room for it, in a new place where the old one has none, then the header has the new size.

use super::Qcow2Updater;
use crate::error::Result;
use crate::qcow2::header::l1_needed;
use crate::qcow2::{CLUSTER_LEN, L2_ENTRIES, L2_SPAN, PLACE};

impl Qcow2Updater {
    /// Makes the volume as large as `size`; what is new reads as zeros.
    ///
    /// # Errors
    /// The storage failed.
    pub(crate) fn resize(&mut self, size: u64) -> Result<()> {
        if size < self.header.size {
            self.cut(size)?;
        } else if size > self.header.size {
            self.grow(size)?;
        }
        Ok(())
    }

    fn cut(&mut self, size: u64) -> Result<()> {
        let needed = l1_needed(size);
        for number in needed..self.l1.len() {
            let place = self
                .l1
                .get_mut(number)
                .map(std::mem::take)
                .unwrap_or_default()
                & PLACE;
            if place == 0 {
                continue;
            }
            for entry in self.read_table(place)? {
                self.refcounts.free(entry & PLACE);
            }
            self.refcounts.free(place);
        }
        if let Some(last) = needed.checked_sub(1)
            && !size.is_multiple_of(L2_SPAN)
            && !self.is_absent(last)
        {
            let first = (size % L2_SPAN).div_ceil(CLUSTER_LEN) as usize;
            let table = self.table(last)?;
            let cut = table.entries.get_mut(first..L2_ENTRIES).unwrap_or_default();
            let places: Vec<u64> = cut.iter_mut().map(std::mem::take).collect();
            table.is_changed = true;
            for entry in places {
                self.refcounts.free(entry & PLACE);
            }
        }
        self.flush()?;
        self.write_l1()?;
        self.sync()?;
        let (before, after) = (l1_clusters(self.l1.len()), l1_clusters(needed).max(1));
        for cluster in after..before {
            self.refcounts
                .free(self.header.l1_place + cluster * CLUSTER_LEN);
        }
        self.l1.truncate(needed);
        self.header.l1_len = needed;
        self.header.size = size;
        self.write_header()?;
        self.sync()
    }

    fn grow(&mut self, size: u64) -> Result<()> {
        let needed = l1_needed(size);
        let (before, after) = (l1_clusters(self.l1.len()).max(1), l1_clusters(needed));
        let old = self.header.l1_place;
        self.flush()?;
        self.l1.resize(needed.max(self.l1.len()), 0);
        if after > before {
            let taken = self.refcounts.take_row(&*self.file, after);
            self.header.l1_place = taken.map_err(self.failed("write"))?;
            self.refcounts
                .write(&*self.file)
                .map_err(self.failed("write"))?;
        }
        self.write_l1()?;
        self.sync()?;
        self.header.l1_len = self.l1.len();
        self.header.size = size;
        self.write_header()?;
        self.sync()?;
        if after > before {
            for cluster in 0..before {
                self.refcounts.free(old + cluster * CLUSTER_LEN);
            }
        }
        Ok(())
    }
}

fn l1_clusters(entries: usize) -> u64 {
    (entries as u64 * 8).div_ceil(CLUSTER_LEN)
}
