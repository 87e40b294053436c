//! Reads a qcow2 image as the writer beside it makes them; refuses every other kind.
//!
//! The L1 table is read at the start, an L2 table when first needed; both stay in memory. Every
//! place in the file is checked before it is used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::{
    CLUSTER_LEN, COMPRESSED, HEADER_LEN, L2_SPAN, MAGIC, PLACE, READS_ZERO, VERSION, place_of,
};
use crate::bounds::{CLUSTER, VOLUME_SIZE_MAX};
use crate::error::{HarborError, Result};
use crate::storage::{OpenMode, Storage, StorageFile};

/// A qcow2 image, open for reading.
#[derive(Debug)]
pub struct Qcow2Reader {
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    file_len: u64,
    size: u64,
    l1: Vec<u64>,
    tables: Vec<OnceLock<Box<[u64]>>>,
}

/// A stretch of the volume that is in the file in one piece, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Where it is in the file; none if it reads as zeros.
    pub place: Option<u64>,
}

impl Qcow2Reader {
    /// Opens an image.
    ///
    /// # Errors
    /// The storage failed; it is damaged, or of another kind than this reader knows.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Qcow2Reader> {
        let failed = |action| move |e| HarborError::storage(action, path, e);
        let file = storage.open(path, OpenMode::Read).map_err(failed("open"))?;
        let file_len = file.length().map_err(failed("read"))?;
        let mut header = [0; HEADER_LEN];
        file.read_at(&mut header, 0).map_err(failed("read"))?;
        let (size, l1_len, l1_place) =
            check_header(&header).map_err(|what| HarborError::damaged(path, what))?;
        if l1_place
            .checked_add(l1_len as u64 * 8)
            .is_none_or(|end| end > file_len)
        {
            return Err(HarborError::damaged(path, "its L1 table lies outside"));
        }
        let mut bytes = vec![0; l1_len * 8];
        file.read_at(&mut bytes, l1_place).map_err(failed("read"))?;
        let l1 = entries(&bytes);
        let tables = (0..l1_len).map(|_| OnceLock::new()).collect();
        Ok(Qcow2Reader {
            path: path.to_path_buf(),
            file,
            file_len,
            size,
            l1,
            tables,
        })
    }

    /// Returns the bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the stretch at byte `offset`, of at most `max` bytes. Behind the end are zeros.
    ///
    /// # Errors
    /// The storage failed; a table is damaged.
    pub fn run(&self, offset: u64, max: u64) -> Result<Run> {
        let mut run = self.run_in_cluster(offset)?;
        while run.len < max {
            let next = self.run_in_cluster(offset + run.len)?;
            let continues = match (run.place, next.place) {
                (None, None) => true,
                (Some(place), Some(next)) => place + run.len == next,
                _ => false,
            };
            if !continues {
                break;
            }
            run.len += next.len;
        }
        run.len = run.len.min(max);
        Ok(run)
    }

    /// Fills `buf` from byte `offset`. Behind the end are zeros.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut rest = buf;
        let mut position = offset;
        while !rest.is_empty() {
            let run = self.run(position, rest.len() as u64)?;
            let (bytes, behind) = rest.split_at_mut(run.len as usize);
            match run.place {
                Some(place) => self
                    .file
                    .read_at(bytes, place)
                    .map_err(|e| HarborError::storage("read", &self.path, e))?,
                None => bytes.fill(0),
            }
            position += run.len;
            rest = behind;
        }
        Ok(())
    }

    fn run_in_cluster(&self, offset: u64) -> Result<Run> {
        let (table, entry) = place_of(offset);
        let left = CLUSTER_LEN - offset % CLUSTER_LEN;
        let Some(l1_entry) = self.l1.get(table).filter(|_| offset < self.size) else {
            return Ok(Run {
                len: u64::MAX - offset,
                place: None,
            });
        };
        if l1_entry & PLACE == 0 {
            return Ok(Run {
                len: L2_SPAN - offset % L2_SPAN,
                place: None,
            });
        }
        let entries = self.table(table, *l1_entry)?;
        let entry = entries.get(entry).copied().unwrap_or_default();
        if entry & COMPRESSED != 0 {
            return Err(HarborError::damaged(
                &self.path,
                "it has a compressed cluster",
            ));
        }
        if entry & READS_ZERO != 0 || entry & PLACE == 0 {
            return Ok(Run {
                len: left,
                place: None,
            });
        }
        let place = self.check_place(entry)?;
        Ok(Run {
            len: left,
            place: Some(place + offset % CLUSTER_LEN),
        })
    }

    fn table(&self, number: usize, l1_entry: u64) -> Result<&[u64]> {
        let Some(slot) = self.tables.get(number) else {
            return Ok(&[]);
        };
        if let Some(entries) = slot.get() {
            return Ok(entries);
        }
        let place = self.check_place(l1_entry)?;
        let mut bytes = vec![0; CLUSTER];
        self.file
            .read_at(&mut bytes, place)
            .map_err(|e| HarborError::storage("read", &self.path, e))?;
        Ok(slot.get_or_init(|| entries(&bytes).into_boxed_slice()))
    }

    fn check_place(&self, entry: u64) -> Result<u64> {
        let place = entry & PLACE;
        if !place.is_multiple_of(CLUSTER_LEN) || place + CLUSTER_LEN > self.file_len {
            return Err(HarborError::damaged(
                &self.path,
                "a table points outside the file",
            ));
        }
        Ok(place)
    }
}

fn entries(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

/// Checks a header; returns the volume's bytes, and the length and place of the L1 table.
fn check_header(header: &[u8; HEADER_LEN]) -> Result<(u64, usize, u64), &'static str> {
    let u32_at = |at: usize| {
        let bytes = header.get(at..).and_then(|bytes| bytes.first_chunk());
        u32::from_be_bytes(bytes.copied().unwrap_or_default())
    };
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    let rules = [
        (
            u32_at(0) == MAGIC && u32_at(4) == VERSION,
            "it is no qcow2 image of version 3",
        ),
        (u64_at(8) == 0, "it has a backing file"),
        (
            1_u64.checked_shl(u32_at(20)) == Some(CLUSTER_LEN),
            "its clusters are not of 64 KiB",
        ),
        (u32_at(32) == 0, "it is encrypted"),
        (u64_at(72) == 0, "it needs features that are not known"),
    ];
    for (kept, what) in rules {
        if !kept {
            return Err(what);
        }
    }
    let (size, l1_len) = (u64_at(24), u32_at(36) as usize);
    if size > VOLUME_SIZE_MAX || l1_len as u64 != size.div_ceil(L2_SPAN) {
        return Err("its size is impossible");
    }
    Ok((size, l1_len, u64_at(40)))
}
