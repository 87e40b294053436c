//! Reads one image: what it holds itself, and where; what lies below is not its concern.
//!
//! The L1 table is read at the start; of an L2 table those slices that are asked for, which a cache keeps that all layers of a
//! chain share. Every place in the file is checked before it is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::{SLICE_ENTRIES, SliceCache, SliceKey};
use super::header::{HEADER_READ_MAX, HEADER_READ_MIN, Header};
use super::pack::{Packed, frame_len, unpack};
use super::{CLUSTER_LEN, COMPRESSED, L2_SPAN, PLACE, READS_ZERO, entries, place_of};
use crate::bounds::{CLUSTER, TABLE_SLICE};
use crate::error::{HarborError, Result};
use crate::storage::{OpenMode, Storage, StorageFile};

/// An image, open for reading.
#[derive(Debug)]
pub(crate) struct Qcow2Reader {
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    file_len: u64,
    header: Header,
    l1: Vec<u64>,
    /// Its number in the chain.
    number: u32,
    cache: Arc<SliceCache>,
}

/// What an image holds of a part of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nothing: what lies below shows.
    Nothing,
    /// Zeros, without a place.
    Zeros,
    /// Bytes in one piece, at this place of the file.
    Bytes(u64),
    /// Bytes of one compressed cluster.
    Packed(Packed),
}

/// A part of the volume of which an image holds one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Bytes of the volume.
    pub(crate) len: u64,
    pub(crate) held: Held,
}

impl Qcow2Reader {
    /// Opens an image.
    ///
    /// # Errors
    /// The storage failed; it is damaged, or of another kind than this reader knows.
    pub(crate) fn open(storage: &dyn Storage, path: &Path) -> Result<Qcow2Reader> {
        Self::open_in(storage, path, 0, Arc::new(SliceCache::new()))
    }

    /// Opens an image as number so-and-so of a chain.
    pub(super) fn open_in(
        storage: &dyn Storage,
        path: &Path,
        number: u32,
        cache: Arc<SliceCache>,
    ) -> Result<Qcow2Reader> {
        let failed = |action| move |e| HarborError::storage(action, path, e);
        let file = storage.open(path, OpenMode::Read).map_err(failed("open"))?;
        let file_len = file.length().map_err(failed("read"))?;
        let header = read_header(path, &*file, file_len)?;
        let l1 = read_l1(path, &*file, file_len, &header)?;
        Ok(Qcow2Reader {
            path: path.to_path_buf(),
            file,
            file_len,
            header,
            l1,
            number,
            cache,
        })
    }

    /// Returns the bytes of the volume.
    pub(crate) fn size(&self) -> u64 {
        self.header.size
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name of the file.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Returns the bytes of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Returns the name of the image below, in the same directory.
    pub(crate) fn backing(&self) -> Option<&str> {
        self.header.backing.as_deref()
    }

    /// Returns what it holds at byte `offset`, of one kind, at most `max` bytes; behind its end are zeros.
    ///
    /// # Errors
    /// The storage failed; a table is damaged.
    pub(crate) fn stretch(&self, offset: u64, max: u64) -> Result<Stretch> {
        if offset >= self.header.size {
            let held = Held::Zeros;
            return Ok(Stretch { len: max, held });
        }
        let end = offset.saturating_add(max).min(self.header.size);
        let mut found: Option<Stretch> = None;
        let mut at = offset;
        while at < end {
            match self.extend(&mut found, at, end) {
                Ok(Some(next)) => at = next,
                Ok(None) => break,
                // What comes before the damage can be read.
                Err(_) if found.is_some() => break,
                Err(error) => return Err(error),
            }
        }
        let found = found.unwrap_or(Stretch {
            len: end - offset,
            held: Held::Nothing,
        });
        Ok(Stretch {
            len: found.len.min(end - offset),
            ..found
        })
    }

    /// Lets a stretch go on with what one slice of a table says from byte `at` on; returns where it went on to, none if it
    /// ends there.
    fn extend(&self, found: &mut Option<Stretch>, at: u64, end: u64) -> Result<Option<u64>> {
        let (table, entry) = place_of(at);
        let l1_entry = self.l1.get(table).copied().unwrap_or_default();
        if l1_entry & PLACE == 0 {
            let len = L2_SPAN - at % L2_SPAN;
            let held = Held::Nothing;
            return Ok(grow(found, Stretch { len, held }).then_some(at + len));
        }
        let slice = self.slice(table, entry / SLICE_ENTRIES, l1_entry)?;
        let mut at = at;
        for entry in slice.get(entry % SLICE_ENTRIES..).unwrap_or_default() {
            if at >= end {
                break;
            }
            let within = at % CLUSTER_LEN;
            let held = match self.held(*entry) {
                Err(_) if found.is_some() => return Ok(None),
                other => other?,
            };
            let held = match held {
                Held::Bytes(place) => Held::Bytes(place + within),
                other => other,
            };
            let len = CLUSTER_LEN - within;
            if !grow(found, Stretch { len, held }) {
                return Ok(None);
            }
            at += len;
        }
        Ok(Some(at))
    }

    /// Returns what a table entry stands for.
    fn held(&self, entry: u64) -> Result<Held> {
        if entry & COMPRESSED != 0 {
            let packed = Packed::of_entry(entry);
            if !self.header.has_zstd
                || packed.place.saturating_add(packed.len as u64) > self.file_len
            {
                return Err(self.damaged("it has a compressed cluster where there can be none"));
            }
            return Ok(Held::Packed(packed));
        }
        if entry & READS_ZERO != 0 {
            return Ok(Held::Zeros);
        }
        match entry & PLACE {
            0 => Ok(Held::Nothing),
            place => self.check_place(place).map(Held::Bytes),
        }
    }

    fn slice(&self, table: usize, slice: usize, l1_entry: u64) -> Result<Arc<[u64]>> {
        let key = SliceKey {
            layer: self.number,
            table: table as u32,
            slice: slice as u32,
        };
        self.cache.get(key, || {
            let place = self.check_place(l1_entry & PLACE)? + (slice * TABLE_SLICE) as u64;
            let mut bytes = [0; TABLE_SLICE];
            self.read_file(&mut bytes, place)?;
            Ok(entries(&bytes).into())
        })
    }

    fn check_place(&self, place: u64) -> Result<u64> {
        if !place.is_multiple_of(CLUSTER_LEN) || place + CLUSTER_LEN > self.file_len {
            return Err(self.damaged("a table points outside the file"));
        }
        Ok(place)
    }

    pub(super) fn damaged(&self, what: &str) -> HarborError {
        HarborError::damaged(&self.path, what)
    }

    /// Reads bytes of the file.
    pub(crate) fn read_file(&self, buf: &mut [u8], place: u64) -> Result<()> {
        let read = self.file.read_at(buf, place);
        read.map_err(|e| HarborError::storage("read", &self.path, e))
    }

    /// Reads the compressed bytes of a cluster, without what follows on them.
    pub(crate) fn read_frame(&self, packed: Packed) -> Result<Vec<u8>> {
        let mut bytes = self.read_packed(packed)?;
        let len = frame_len(&bytes).filter(|len| *len <= bytes.len());
        let len = len.ok_or_else(|| self.damaged("a compressed cluster is broken"))?;
        bytes.truncate(len);
        Ok(bytes)
    }

    fn read_packed(&self, packed: Packed) -> Result<Vec<u8>> {
        let mut bytes = vec![0; packed.len];
        self.read_file(&mut bytes, packed.place)?;
        Ok(bytes)
    }

    /// Reads a compressed cluster as it is in the volume.
    pub(crate) fn unpack(&self, packed: Packed) -> Result<Vec<u8>> {
        let mut cluster = vec![0; CLUSTER];
        unpack(&self.read_packed(packed)?, &mut cluster).map_err(|what| self.damaged(what))?;
        Ok(cluster)
    }
}

/// Lets a stretch go on with another if that is of one kind with it.
fn grow(found: &mut Option<Stretch>, next: Stretch) -> bool {
    let Some(stretch) = found else {
        *found = Some(next);
        return true;
    };
    let continues = match (stretch.held, next.held) {
        (Held::Nothing, Held::Nothing) | (Held::Zeros, Held::Zeros) => true,
        (Held::Bytes(place), Held::Bytes(next)) => place + stretch.len == next,
        _ => false,
    };
    if continues {
        stretch.len += next.len;
    }
    continues
}

/// Reads and checks the header of an image.
pub(super) fn read_header(path: &Path, file: &dyn StorageFile, file_len: u64) -> Result<Header> {
    let len = file_len.clamp(HEADER_READ_MIN as u64, HEADER_READ_MAX as u64) as usize;
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)
        .map_err(|e| HarborError::storage("read", path, e))?;
    Header::decode(&bytes).map_err(|what| HarborError::damaged(path, what))
}

/// Reads the L1 table of an image.
pub(super) fn read_l1(
    path: &Path,
    file: &dyn StorageFile,
    file_len: u64,
    header: &Header,
) -> Result<Vec<u64>> {
    let len = header.l1_len * 8;
    let end = header.l1_place.checked_add(len as u64);
    if end.is_none_or(|end| end > file_len) {
        return Err(HarborError::damaged(path, "its L1 table lies outside"));
    }
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, header.l1_place)
        .map_err(|e| HarborError::storage("read", path, e))?;
    Ok(entries(&bytes))
}
