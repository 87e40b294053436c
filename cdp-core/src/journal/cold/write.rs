//! Writes one cold segment, from front to back.
//!
//! Payloads follow each other at whole sectors, cut into blocks that are compressed one by one, or stored as they are where
//! that is not longer. A crash leaves a file without footer, which the caller keeps under another name until then.

use std::io::{self, IoSlice};

use super::file::Entry;
use crate::bounds::{COLD_BLOCK, COLD_LEVEL, COPY_PIECE, SECTOR};
use crate::format::{ColdFooter, ColdHeader, Record};
use crate::storage::StorageFile;

/// Writes a cold segment.
pub(super) struct ColdWriter<'a> {
    file: &'a dyn StorageFile,
    compressor: zstd::bulk::Compressor<'static>,
    hasher: blake3::Hasher,
    /// What is to be written next, and where.
    out: Vec<u8>,
    position: u64,
    /// The block in the making, and the bytes of all before it.
    block: Vec<u8>,
    space: u64,
    table: Vec<u8>,
}

impl<'a> ColdWriter<'a> {
    /// Begins in an empty file.
    pub(super) fn new(file: &'a dyn StorageFile, header: &ColdHeader) -> io::Result<Self> {
        Ok(ColdWriter {
            file,
            compressor: zstd::bulk::Compressor::new(COLD_LEVEL)?,
            hasher: blake3::Hasher::new(),
            out: header.encode(),
            position: 0,
            // No payload is at byte 0, which says that there is none.
            block: vec![0; SECTOR],
            space: 0,
            table: Vec::new(),
        })
    }

    /// Adds a payload; returns its place in the payload space.
    pub(super) fn add(&mut self, payload: &[u8]) -> io::Result<u64> {
        let gap = self.block.len().next_multiple_of(SECTOR) - self.block.len();
        self.put(&[0; SECTOR][..gap.min(SECTOR)])?;
        let place = self.space + self.block.len() as u64;
        self.put(payload)?;
        Ok(place)
    }

    /// Writes what is left, table, index and footer, of which the rest is given; durable on return.
    pub(super) fn finish(
        mut self,
        records: &[Record],
        mut footer: ColdFooter,
    ) -> io::Result<ColdFooter> {
        // Every block is whole: so one can be shown to a tool that knows clusters of qcow2 images.
        self.block.resize(COLD_BLOCK, 0);
        self.end_block()?;
        footer.space = self.space;
        footer.table = self.position + self.out.len() as u64;
        footer.table_crc = crc32c::crc32c(&self.table);
        let table = std::mem::take(&mut self.table);
        self.push(&table)?;
        footer.index = self.position + self.out.len() as u64;
        let mut crc = 0;
        for record in records {
            let bytes = record.encode();
            crc = crc32c::crc32c_append(crc, &bytes);
            self.push(&bytes)?;
        }
        footer.index_crc = crc;
        self.flush()?;
        self.hasher.update(&footer.encode_head());
        footer.hash = *self.hasher.finalize().as_bytes();
        self.file
            .write_at(&[IoSlice::new(&footer.encode())], self.position)?;
        self.file.sync()?;
        Ok(footer)
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = (COLD_BLOCK - self.block.len()).min(bytes.len());
            let (now, rest) = bytes.split_at(room);
            self.block.extend_from_slice(now);
            bytes = rest;
            if self.block.len() == COLD_BLOCK {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let mut block = std::mem::take(&mut self.block);
        let compressed = self.compressor.compress(&block)?;
        let stored = match compressed.len() < block.len() {
            true => &compressed,
            false => &block,
        };
        let entry = Entry {
            position: self.position + self.out.len() as u64,
            len: stored.len() as u32,
            crc: crc32c::crc32c(stored),
        };
        self.table.extend_from_slice(&entry.encode());
        self.space += block.len() as u64;
        self.push(stored)?;
        block.clear();
        self.block = block;
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.extend_from_slice(bytes);
        match self.out.len() >= COPY_PIECE {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.out);
        self.file
            .write_at(&[IoSlice::new(&self.out)], self.position)?;
        self.position += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }
}
