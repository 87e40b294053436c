//! The door to a cold segment's payloads, and the blocks that were decompressed last.
//!
//! A block is read whole, its checksum is compared, then it is decompressed into the cache of its harbor, which holds a
//! bounded number of them. Invariant: what does not fit its checksum or its length is an error, never other bytes.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bounds::{COLD_BLOCK, COLD_CACHE_MAX};
use crate::format::{COLD_ENTRY_LEN, ColdFooter};
use crate::storage::StorageFile;

const BLOCK_LEN: u64 = COLD_BLOCK as u64;

/// A file of this process, and the number of a block in it.
type Key = (u64, u64);

/// The blocks of a harbor's cold segments that were used last.
#[derive(Default)]
pub(crate) struct BlockCache {
    /// By file and number; the last used at the back.
    blocks: Mutex<VecDeque<(Key, Arc<[u8]>)>>,
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache").finish_non_exhaustive()
    }
}

impl BlockCache {
    fn find(&self, key: Key) -> Option<Arc<[u8]>> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let at = blocks.iter().rposition(|(kept, _)| *kept == key)?;
        let found = blocks.remove(at)?;
        let bytes = Arc::clone(&found.1);
        blocks.push_back(found);
        Some(bytes)
    }

    fn keep(&self, key: Key, bytes: Arc<[u8]>) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        while blocks.len() >= COLD_CACHE_MAX / COLD_BLOCK {
            blocks.pop_front();
        }
        blocks.push_back((key, bytes));
    }
}

/// Where a block is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    /// Bytes stored; as many as the block has if it is not compressed.
    pub(crate) len: u32,
    /// CRC-32C of what is stored.
    pub(crate) crc: u32,
}

impl Entry {
    pub(super) fn encode(self) -> [u8; COLD_ENTRY_LEN] {
        let mut bytes = [0; COLD_ENTRY_LEN];
        let (position, rest) = bytes.split_at_mut(8);
        position.copy_from_slice(&self.position.to_le_bytes());
        let (len, crc) = rest.split_at_mut(4);
        len.copy_from_slice(&self.len.to_le_bytes());
        crc.copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: [u8; COLD_ENTRY_LEN]) -> Entry {
        let word = u128::from_le_bytes(bytes);
        Entry {
            position: word as u64,
            len: (word >> 64) as u32,
            crc: (word >> 96) as u32,
        }
    }
}

/// Shows the payloads of a cold segment uncompressed, and its index behind them.
#[derive(Debug)]
pub(crate) struct ColdFile {
    file: Arc<dyn StorageFile>,
    id: u64,
    space: u64,
    table: Vec<Entry>,
    /// Where the index is, and its bytes; it is shown behind the payload space.
    index: u64,
    index_len: u64,
    cache: Arc<BlockCache>,
}

impl ColdFile {
    /// Opens the door to a file with that footer.
    ///
    /// # Errors
    /// The storage failed; `InvalidData` if the table of blocks is damaged.
    pub(crate) fn new(
        file: Arc<dyn StorageFile>,
        footer: &ColdFooter,
        cache: Arc<BlockCache>,
    ) -> io::Result<ColdFile> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut bytes = vec![0; footer.table_len() as usize];
        file.read_at(&mut bytes, footer.table)?;
        if crc32c::crc32c(&bytes) != footer.table_crc {
            return Err(damaged("the table of blocks".into()));
        }
        let (entries, _) = bytes.as_chunks();
        Ok(ColdFile {
            file,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            space: footer.space,
            table: entries.iter().map(|entry| Entry::decode(*entry)).collect(),
            index: footer.index,
            index_len: footer.index_len(),
            cache,
        })
    }

    fn block(&self, number: u64) -> io::Result<Arc<[u8]>> {
        if let Some(block) = self.cache.find((self.id, number)) {
            return Ok(block);
        }
        let block: Arc<[u8]> = self.read_block(number)?.into();
        self.cache.keep((self.id, number), Arc::clone(&block));
        Ok(block)
    }

    /// Reads a block and decompresses it.
    pub(crate) fn read_block(&self, number: u64) -> io::Result<Vec<u8>> {
        let entry = self.table.get(number as usize).ok_or_else(short)?;
        if entry.len as usize > COLD_BLOCK {
            return Err(damaged(format!("the length of block {number}")));
        }
        let mut stored = vec![0; entry.len as usize];
        self.file.read_at(&mut stored, entry.position)?;
        if crc32c::crc32c(&stored) != entry.crc {
            return Err(damaged(format!("block {number}")));
        }
        if stored.len() == COLD_BLOCK {
            return Ok(stored);
        }
        let bytes = zstd::bulk::decompress(&stored, COLD_BLOCK)?;
        match bytes.len() == COLD_BLOCK {
            true => Ok(bytes),
            false => Err(damaged(format!("block {number}"))),
        }
    }
}

fn damaged(what: String) -> io::Error {
    let text = format!("{what} is not what was written");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn short() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl StorageFile for ColdFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.space + self.index_len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or_else(short)?;
        if offset >= self.space {
            return match end <= self.space + self.index_len {
                true => self.file.read_at(buf, self.index + (offset - self.space)),
                false => Err(short()),
            };
        }
        if end > self.space {
            return Err(short());
        }
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let block = self.block(at / BLOCK_LEN)?;
            let from = block.get((at % BLOCK_LEN) as usize..).ok_or_else(short)?;
            let len = from.len().min(rest.len());
            let (bytes, behind) = rest.split_at_mut(len);
            bytes.copy_from_slice(from.get(..len).ok_or_else(short)?);
            at += len as u64;
            rest = behind;
        }
        Ok(())
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn preallocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}
