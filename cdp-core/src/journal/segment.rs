//! One segment, as it is known in memory.
//!
//! The segment that is recorded to keeps its records in memory; a sealed one keeps its footer, and reads of its
//! index what is asked for, as its [`fences`](super::fences) tell. Where the index is damaged, the frames are read, which
//! have the same records. Files are opened when a view needs them, and shared between views.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::cold::compact::Ends;
use super::cold::{BlockCache, ColdFile, shown_footer};
use super::fences::{Block, Fences};
use super::lookup::{Lookup, Lookups};
use super::scan::{PayloadCheck, ScanLimits, scan};
use crate::bounds::INDEX_PIECE;
use crate::error::{HarborError, Result};
use crate::format::{ColdFooter, Footer, HEADER_LEN, RECORD_LEN, Record, SegmentHeader};
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::storage::{OpenMode, Storage, StorageFile};

/// One segment of the journal.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) first_seq: Seq,
    /// Tells it from all others of this process, also from those of the same number.
    identity: u64,
    body: RwLock<Body>,
    file: Mutex<Option<Weak<dyn StorageFile>>>,
    /// Held while its lookup is made: that is done once.
    looking: Mutex<()>,
    cold: Option<Cold>,
}

/// What a cold segment has besides: it stands for several.
#[derive(Debug)]
struct Cold {
    footer: ColdFooter,
    cache: Arc<BlockCache>,
}

/// The identity of the next segment.
static IDENTITY: AtomicU64 = AtomicU64::new(0);

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
        Segment::new(number, path, first_seq, Body::Memory(records))
    }

    /// Makes a sealed segment.
    pub(crate) fn sealed(number: u64, path: PathBuf, footer: Footer) -> Segment {
        let body = Body::Sealed(Box::new(footer));
        Segment::new(number, path, footer.first_seq, body)
    }

    fn new(number: u64, path: PathBuf, first_seq: Seq, body: Body) -> Segment {
        Segment {
            number,
            path,
            first_seq,
            identity: IDENTITY.fetch_add(1, Ordering::Relaxed),
            body: RwLock::new(body),
            file: Mutex::new(None),
            looking: Mutex::default(),
            cold: None,
        }
    }

    /// Makes a cold segment; its number is the first of those it stands for.
    pub(crate) fn cold_one(path: PathBuf, footer: ColdFooter, cache: Arc<BlockCache>) -> Segment {
        Segment {
            cold: Some(Cold { footer, cache }),
            ..Segment::sealed(footer.first, path, shown_footer(&footer))
        }
    }

    /// Returns the footer of a cold segment.
    pub(crate) fn cold(&self) -> Option<&ColdFooter> {
        self.cold.as_ref().map(|cold| &cold.footer)
    }

    /// Returns the number of the last segment it stands for: its own, unless it is cold.
    pub(crate) fn last_number(&self) -> u64 {
        self.cold().map_or(self.number, |footer| footer.last)
    }

    /// Returns the number of its records.
    pub(crate) fn count(&self) -> u64 {
        match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(records) => records.len() as u64,
            Body::Sealed(footer) => footer.data_records + footer.other_records,
        }
    }

    /// Returns what the ends of a sealed segment tell of what comes before and behind.
    pub(crate) fn ends(&self, storage: &dyn Storage) -> Result<Ends> {
        if let Some(footer) = self.cold() {
            return Ok(Ends {
                previous: footer.previous,
                chain: footer.chain,
                next_point: footer.next_point,
                last_time: footer.last_time,
            });
        }
        let footer = self.footer()?;
        let mut head = vec![0; HEADER_LEN];
        self.open(storage)?
            .read_at(&mut head, 0)
            .map_err(|e| HarborError::storage("read", &self.path, e))?;
        let header = SegmentHeader::decode(&head)
            .map_err(|broken| HarborError::damaged(&self.path, broken.to_string()))?;
        Ok(Ends {
            previous: header.previous,
            chain: footer.hash,
            next_point: footer.next_point,
            last_time: footer.last_time,
        })
    }

    /// Returns the bytes of its file.
    pub(crate) fn stored_bytes(&self, storage: &dyn Storage) -> Result<u64> {
        storage
            .open(&self.path, OpenMode::Read)
            .and_then(|file| file.length())
            .map_err(|e| HarborError::storage("read", &self.path, e))
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
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidData => HarborError::damaged(&self.path, e.to_string()),
            _ => HarborError::storage("open", &self.path, e),
        };
        let mut file = storage.open(&self.path, OpenMode::Read).map_err(failed)?;
        if let Some(Cold { footer, cache }) = &self.cold {
            file = Arc::new(ColdFile::new(file, footer, Arc::clone(cache)).map_err(failed)?);
        }
        *slot = Some(Arc::downgrade(&file));
        Ok(file)
    }

    /// Calls `each` with the records that change a volume within a range, in any order; perhaps with one twice.
    pub(crate) fn for_each_reaching(
        &self,
        file: &dyn StorageFile,
        lookups: &Lookups,
        volume: VolumeId,
        range: &Range<u64>,
        mut each: impl FnMut(&Record),
    ) -> Result<()> {
        let mut check = |record: &Record| {
            if reaches(record, volume, range) {
                each(record);
            }
        };
        let footer = match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(records) => {
                records.iter().for_each(check);
                return Ok(());
            }
            Body::Sealed(footer) => **footer,
        };
        let lookup = self.lookup(file, lookups, &footer)?;
        let damage = match &*lookup {
            Lookup::Records(records) => {
                records.iter().for_each(check);
                return Ok(());
            }
            Lookup::Fences(fences) => {
                let blocks = fences.reaching(volume, range);
                match self.read_blocks(file, &footer, blocks, range, &mut check) {
                    Err(HarborError::Damaged { what, .. }) => what,
                    other => return other,
                }
            }
        };
        let records = self.lookup_in_frames(file, lookups, &footer, &damage)?;
        if let Lookup::Records(records) = &*records {
            records.iter().for_each(check);
        }
        Ok(())
    }

    /// Calls `each` with places in a range of a volume, and how many records begin about there: what a gathering of
    /// them has to expect.
    pub(crate) fn for_each_beginning(
        &self,
        file: &dyn StorageFile,
        lookups: &Lookups,
        volume: VolumeId,
        range: &Range<u64>,
        mut each: impl FnMut(u64, usize),
    ) -> Result<()> {
        let one = |record: &Record| {
            if reaches(record, volume, range) && record.offset >= range.start {
                each(record.offset, 1);
            }
        };
        let footer = match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(records) => {
                records.iter().for_each(one);
                return Ok(());
            }
            Body::Sealed(footer) => **footer,
        };
        match &*self.lookup(file, lookups, &footer)? {
            Lookup::Records(records) => records.iter().for_each(one),
            Lookup::Fences(fences) => {
                for (from, records) in fences.beginning(volume, range) {
                    each(from, records);
                }
            }
        }
        Ok(())
    }

    /// Returns how the records of a sealed segment are found.
    fn lookup(
        &self,
        file: &dyn StorageFile,
        lookups: &Lookups,
        footer: &Footer,
    ) -> Result<Arc<Lookup>> {
        if let Some(lookup) = lookups.find(self.identity) {
            return Ok(lookup);
        }
        let turn = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = lookups.find(self.identity) {
            return Ok(lookup);
        }
        let made = match Fences::read(&self.path, file, footer)? {
            Ok(fences) => Arc::new(Lookup::Fences(fences)),
            Err(broken) => {
                drop(turn);
                return self.lookup_in_frames(file, lookups, footer, &broken.to_string());
            }
        };
        lookups.keep(self.identity, &made);
        Ok(made)
    }

    /// The same, of a segment whose index is damaged.
    fn lookup_in_frames(
        &self,
        file: &dyn StorageFile,
        lookups: &Lookups,
        footer: &Footer,
        damage: &str,
    ) -> Result<Arc<Lookup>> {
        let _turn = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = lookups.find(self.identity)
            && matches!(&*lookup, Lookup::Records(_))
        {
            return Ok(lookup);
        }
        tracing::warn!(segment = %self.path.display(), damage, "the index is damaged, reading all frames");
        let mut records = self.scan_frames(file, footer)?;
        records.retain(|record| record.kind.is_data());
        records.shrink_to_fit();
        let made = Arc::new(Lookup::Records(records));
        lookups.keep(self.identity, &made);
        Ok(made)
    }

    /// Calls `each` with the records of some blocks of the index that reach into a range.
    fn read_blocks(
        &self,
        file: &dyn StorageFile,
        footer: &Footer,
        blocks: impl Iterator<Item = Block>,
        range: &Range<u64>,
        each: &mut impl FnMut(&Record),
    ) -> Result<()> {
        let mut blocks = blocks.peekable();
        let mut bytes = Vec::new();
        while let Some(first) = blocks.next() {
            // What lies next to each other is read in one piece.
            let place = first.bytes();
            let mut run = vec![first];
            let mut end = place.end;
            while let Some(next) = blocks.next_if(|next| {
                run.last().is_some_and(|last| last.is_followed_by(next))
                    && next.bytes().end - place.start <= INDEX_PIECE
            }) {
                end = next.bytes().end;
                run.push(next);
            }
            bytes.resize(end - place.start, 0);
            file.read_at(&mut bytes, footer.index_position + place.start as u64)
                .map_err(|e| HarborError::storage("read", &self.path, e))?;
            let mut rest = bytes.as_slice();
            for block in run {
                let (ours, behind) = rest.split_at(block.bytes().len().min(rest.len()));
                rest = behind;
                self.take_block(&block, ours, range, each)?;
            }
        }
        Ok(())
    }

    fn take_block(
        &self,
        block: &Block,
        bytes: &[u8],
        range: &Range<u64>,
        each: &mut impl FnMut(&Record),
    ) -> Result<()> {
        if !block.is_of(bytes) {
            let what = "a block of the index is not what it was before";
            return Err(HarborError::damaged(&self.path, what));
        }
        for bytes in bytes.chunks_exact(RECORD_LEN) {
            let (_, _, offset, length) = Record::place(bytes);
            if offset < range.end && offset.saturating_add(length) > range.start {
                let record = Record::decode(bytes)
                    .map_err(|broken| HarborError::damaged(&self.path, broken.to_string()))?;
                each(&record);
            }
        }
        Ok(())
    }

    /// Calls `each` with every record of a sealed segment that changes no volume, in any order.
    pub(crate) fn for_each_other(
        &self,
        file: &dyn StorageFile,
        each: impl FnMut(&Record),
    ) -> Result<()> {
        let mut footer = self.footer()?;
        footer.index_position += footer.data_records * RECORD_LEN as u64;
        footer.data_records = 0;
        let index = read_index(&self.path, file, &footer)?;
        self.decode_each(&index, |record| !record.kind.is_data(), each)
    }

    /// Calls `each` with every record of a sealed segment, in any order.
    pub(crate) fn for_each(
        &self,
        file: &dyn StorageFile,
        mut each: impl FnMut(&Record),
    ) -> Result<()> {
        let footer = self.footer()?;
        let index = read_index(&self.path, file, &footer)?;
        if crc32c::crc32c(&index) == footer.index_crc {
            return self.decode_each(&index, |_| true, each);
        }
        self.scan_frames(file, &footer)?.iter().for_each(&mut each);
        Ok(())
    }

    fn decode_each(
        &self,
        index: &[u8],
        fits: impl Fn(&Record) -> bool,
        mut each: impl FnMut(&Record),
    ) -> Result<()> {
        for bytes in index.chunks_exact(RECORD_LEN) {
            match Record::decode(bytes) {
                Ok(record) if fits(&record) => each(&record),
                Ok(_) => return Err(HarborError::damaged(&self.path, "the order of its index")),
                Err(broken) => return Err(HarborError::damaged(&self.path, broken.to_string())),
            }
        }
        Ok(())
    }

    /// Returns the hash that the next segment names; none if it is not sealed.
    pub(crate) fn chain_hash(&self) -> Option<[u8; 32]> {
        match self.cold() {
            Some(footer) => Some(footer.chain),
            None => self.footer().ok().map(|footer| footer.hash),
        }
    }

    /// Returns the footer of a sealed segment.
    fn footer(&self) -> Result<Footer> {
        match &*self.body.read().unwrap_or_else(PoisonError::into_inner) {
            Body::Memory(_) => Err(HarborError::damaged(&self.path, "it is not sealed")),
            Body::Sealed(footer) => Ok(**footer),
        }
    }

    /// Reads the records of a sealed segment from its frames.
    fn scan_frames(&self, file: &dyn StorageFile, footer: &Footer) -> Result<Vec<Record>> {
        if self.cold.is_some() {
            return Err(HarborError::damaged(&self.path, "its index is damaged"));
        }
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

/// Tells whether a record changes a volume within a range.
fn reaches(record: &Record, volume: VolumeId, range: &Range<u64>) -> bool {
    record.kind.is_data()
        && record.volume == volume
        && record.offset < range.end
        && record.offset.saturating_add(record.length) > range.start
}

/// Reads all of an index, without padding.
pub(crate) fn read_index(path: &Path, file: &dyn StorageFile, footer: &Footer) -> Result<Vec<u8>> {
    let mut index = vec![0; footer.index_len() as usize];
    file.read_at(&mut index, footer.index_position)
        .map_err(|e| HarborError::storage("read", path, e))?;
    Ok(index)
}
