//! One segment, as it is known in memory.
//!
//! The segment that is recorded to keeps its records in memory; a sealed one keeps its footer and reads the
//! index when asked. Files are opened when a view needs them, and shared between views.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::scan::{PayloadCheck, ScanLimits, scan};
use crate::error::{HarborError, Result};
use crate::format::{Footer, RECORD_LEN, Record};
use crate::point::Seq;
use crate::storage::{OpenMode, Storage, StorageFile};

/// One segment of the journal.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) first_seq: Seq,
    body: RwLock<Body>,
    file: Mutex<Option<Weak<dyn StorageFile>>>,
}

#[derive(Debug)]
enum Body {
    /// Records in memory: the segment is recorded to, or too damaged to be read by its index.
    Memory(Vec<Record>),
    /// Records in the index.
    Sealed(Box<Footer>),
}

impl Segment {
    /// Makes a segment whose records are in memory.
    pub(crate) fn in_memory(
        number: u64,
        path: PathBuf,
        first_seq: Seq,
        records: Vec<Record>,
    ) -> Segment {
        let body = RwLock::new(Body::Memory(records));
        Segment {
            number,
            path,
            first_seq,
            body,
            file: Mutex::new(None),
        }
    }

    /// Makes a sealed segment.
    pub(crate) fn sealed(number: u64, path: PathBuf, footer: Footer) -> Segment {
        let body = RwLock::new(Body::Sealed(Box::new(footer)));
        Segment {
            number,
            path,
            first_seq: footer.first_seq,
            body,
            file: Mutex::new(None),
        }
    }

    /// Returns the number of its last record, or the one before its first.
    pub(crate) fn last_seq(&self) -> Seq {
        match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(records) => match records.last() {
                Some(record) => record.seq,
                None => Seq(self.first_seq.0.saturating_sub(1)),
            },
            Body::Sealed(footer) => footer.last_seq,
        }
    }

    /// Returns where the last payload of a segment that is recorded to ends.
    pub(crate) fn payloads_end(&self) -> u64 {
        match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(records) => {
                let last = records.iter().rfind(|record| record.payload_length > 0);
                last.map_or(0, |record| {
                    let length = u64::from(record.payload_length);
                    record.payload_position.saturating_add(length)
                })
            }
            Body::Sealed(_) => 0,
        }
    }

    /// Adds records that were written.
    pub(crate) fn publish(&self, added: &[Record]) {
        let mut body = self.body.write().unwrap_or_else(PoisonError::into_inner);
        if let Body::Memory(records) = &mut *body {
            records.extend_from_slice(added);
        }
    }

    /// Returns all records in memory, in order; none of a sealed segment.
    pub(crate) fn records_in_memory(&self) -> Vec<Record> {
        match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(records) => records.clone(),
            Body::Sealed(_) => Vec::new(),
        }
    }

    /// Turns it into a sealed segment.
    pub(crate) fn set_sealed(&self, footer: Footer) {
        *self.body.write().unwrap_or_else(PoisonError::into_inner) = Body::Sealed(Box::new(footer));
    }

    /// Tells whether it is sealed.
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(
            &*self.body.read().unwrap_or_else(PoisonError::into_inner),
            Body::Sealed(_)
        )
    }

    /// Returns the segment's file, open for reading.
    pub(crate) fn open(&self, storage: &dyn Storage) -> Result<Arc<dyn StorageFile>> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = slot.as_ref().and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = storage
            .open(&self.path, OpenMode::Read)
            .map_err(|e| HarborError::storage("open", &self.path, e))?;
        *slot = Some(Arc::downgrade(&file));
        Ok(file)
    }

    /// Calls `each` with every record that changes a volume, in any order.
    pub(crate) fn for_each_data(
        &self,
        file: &dyn StorageFile,
        mut each: impl FnMut(&Record),
    ) -> Result<()> {
        let footer = match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(records) => {
                records
                    .iter()
                    .filter(|record| record.kind.is_data())
                    .for_each(each);
                return Ok(());
            }
            Body::Sealed(footer) => **footer,
        };
        let index = read_index(&self.path, file, &footer)?;
        let data_len = footer.data_records as usize * RECORD_LEN;
        if crc32c::crc32c(&index) == footer.index_crc {
            for bytes in index
                .get(..data_len)
                .unwrap_or_default()
                .chunks_exact(RECORD_LEN)
            {
                let record = Record::decode(bytes)
                    .map_err(|broken| HarborError::damaged(&self.path, broken.to_string()))?;
                each(&record);
            }
            return Ok(());
        }
        tracing::warn!(segment = %self.path.display(), "the index is damaged, reading all frames");
        for record in self.scan_frames(file, &footer)? {
            if record.kind.is_data() {
                each(&record);
            }
        }
        Ok(())
    }

    /// Reads the records of a sealed segment from its frames.
    fn scan_frames(&self, file: &dyn StorageFile, footer: &Footer) -> Result<Vec<Record>> {
        let limits = ScanLimits {
            number: self.number,
            end: footer.index_position,
            salt: Some(footer.salt),
            first_seq: Some(footer.first_seq),
        };
        let found = scan(file, limits, PayloadCheck::Skip)
            .map_err(|e| HarborError::storage("read", &self.path, e))?;
        match found.stopped {
            Some(why) => Err(HarborError::damaged(&self.path, why)),
            None => Ok(found.records),
        }
    }
}

/// Reads all of an index, without padding.
pub(crate) fn read_index(path: &Path, file: &dyn StorageFile, footer: &Footer) -> Result<Vec<u8>> {
    let mut index = vec![0; footer.index_len() as usize];
    file.read_at(&mut index, footer.index_position)
        .map_err(|e| HarborError::storage("read", path, e))?;
    Ok(index)
}
