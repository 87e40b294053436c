//! A frame in the making: records in order, with what they carry.
//!
//! Small payloads are copied one behind the other into the frame's stage, behind the room that the table will take, so
//! that table and small payloads are one run of bytes in the end; a large payload keeps its buffer. The
//! place of a payload in the segment is known when the frame is closed ([`Draft::place`]).
//!
//! Invariant: every part of a placed frame is a whole number of blocks long and begins at a sector in memory, as direct
//! writes want it. A draft's memory is within what its records took of the budget once it is full.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use crate::bounds::{
    BLOCK, FRAME_PAYLOAD_TARGET, FRAME_RECORDS_MAX, SECTOR, STAGE_LEN, STAGED_BELOW,
};
use crate::buffer::{Budget, IoBuf, Memory, Room};
use crate::format::{FrameHeader, Record, table_len};
use crate::point::Seq;
use crate::storage::append::Parts;

/// What a record carries.
#[derive(Debug)]
pub(crate) enum Payload<'a> {
    /// Nothing.
    None,
    /// Bytes that are copied; fewer than [`STAGED_BELOW`].
    Copied(&'a [u8]),
    /// A buffer that is written as it is.
    Own(IoBuf),
}

impl Payload<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Payload::None => 0,
            Payload::Copied(bytes) => bytes.len(),
            Payload::Own(buf) => buf.len(),
        }
    }
}

/// Bytes of the budget that a record takes whose payload of `len` bytes is copied, or that has none.
pub(crate) const fn record_cost(len: usize) -> usize {
    if len == 0 {
        BLOCK
    } else {
        len.next_multiple_of(BLOCK)
    }
}

/// A frame in the making.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) records: Vec<Record>,
    /// When its first record was taken.
    pub(crate) since: Instant,
    stage: Memory,
    /// Bytes of the stage in use, behind the table's room.
    staged: usize,
    /// Table and small payloads, in the stage, once the frame is placed.
    front: std::ops::Range<usize>,
    own: Vec<(usize, IoBuf)>,
    own_bytes: usize,
    room: Option<Room>,
    budget: Arc<Budget>,
}

/// Where small payloads begin in a stage.
const STAGE_START: usize = table_len(FRAME_RECORDS_MAX) + BLOCK;
const STAGE_MEMORY: usize = STAGE_START + STAGE_LEN + BLOCK;

impl Draft {
    pub(crate) fn new(budget: &Arc<Budget>) -> Draft {
        Draft {
            records: Vec::with_capacity(FRAME_RECORDS_MAX),
            since: Instant::now(),
            stage: budget.memory(STAGE_MEMORY),
            staged: 0,
            front: 0..0,
            own: Vec::new(),
            own_bytes: 0,
            room: None,
            budget: Arc::clone(budget),
        }
    }

    /// Tells whether it takes no further record.
    pub(crate) fn is_full(&self) -> bool {
        self.records.len() >= FRAME_RECORDS_MAX
            || self.staged + self.own_bytes >= FRAME_PAYLOAD_TARGET
    }

    /// Tells whether it takes no record with such a payload.
    pub(crate) fn is_full_for(&self, payload: &Payload<'_>) -> bool {
        let len = payload.len().next_multiple_of(SECTOR);
        self.is_full() || (len <= STAGED_BELOW && self.staged + len > STAGE_LEN)
    }

    /// Adds a record; its payload's room is given back when the frame is written.
    pub(crate) fn push(&mut self, mut record: Record, payload: Payload<'_>, room: Option<Room>) {
        record.payload_length = payload.len() as u32;
        match payload {
            Payload::None => {}
            Payload::Copied(bytes) => record.payload_position = self.copy(bytes),
            Payload::Own(buf) if buf.len() < STAGED_BELOW => {
                record.payload_position = self.copy(buf.as_ref());
                self.absorb(self.budget.force_room(record_cost(buf.len())));
            }
            Payload::Own(buf) => {
                self.own_bytes += buf.padded().len();
                self.own.push((self.records.len(), buf));
            }
        }
        if let Some(room) = room {
            self.absorb(room);
        }
        self.records.push(record);
    }

    /// Copies a payload into the stage; returns its place there, behind the table.
    fn copy(&mut self, bytes: &[u8]) -> u64 {
        let at = self.staged;
        let end = at + bytes.len().next_multiple_of(SECTOR);
        let memory = self
            .stage
            .get_mut()
            .get_mut(STAGE_START + at..STAGE_START + end)
            .unwrap_or_default();
        if let Some((place, padding)) = memory.split_at_mut_checked(bytes.len()) {
            place.copy_from_slice(bytes);
            padding.fill(0);
        }
        self.staged = end;
        at as u64
    }

    fn absorb(&mut self, room: Room) {
        match &mut self.room {
            Some(all) => all.absorb(room),
            None => self.room = Some(room),
        }
    }

    /// Returns the frame's length.
    pub(crate) fn length(&self) -> u64 {
        let front = table_len(self.records.len()) + self.staged;
        (front.next_multiple_of(BLOCK) + self.own_bytes) as u64
    }

    /// Gives every payload its place in a frame with this header, and its checksum, and completes the table; returns
    /// the records.
    pub(crate) fn place(&mut self, header: &FrameHeader) -> Vec<Record> {
        let mut records = std::mem::take(&mut self.records);
        let table = table_len(records.len());
        let front_len = (table + self.staged).next_multiple_of(BLOCK);
        // What fills the front up to a block comes before the payloads: whole blocks of a guest lie in whole blocks then,
        // and are read the faster for it.
        let head = front_len - self.staged;
        let staged = self.stage.get().get(STAGE_START..).unwrap_or_default();
        let mut own = self.own.iter().peekable();
        let mut at = header.position + front_len as u64;
        for (number, record) in records.iter_mut().enumerate() {
            if record.payload_length == 0 {
                continue;
            }
            if let Some((_, buf)) = own.next_if(|(of, _)| *of == number) {
                record.payload_position = at;
                record.payload_crc = crc32c::crc32c(buf.as_ref());
                at += buf.padded().len() as u64;
            } else {
                let from = record.payload_position as usize;
                let bytes = staged.get(from..from + record.payload_length as usize);
                record.payload_crc = crc32c::crc32c(bytes.unwrap_or_default());
                record.payload_position += header.position + head as u64;
            }
        }
        self.front = STAGE_START - head..STAGE_START + self.staged;
        let table_bytes = header.encode(&records);
        let front = self
            .stage
            .get_mut()
            .get_mut(self.front.clone())
            .unwrap_or_default();
        if let Some(place) = front.get_mut(..table) {
            place.copy_from_slice(&table_bytes);
        }
        if let Some(padding) = front.get_mut(table..head) {
            padding.fill(0);
        }
        records
    }

    /// Returns the number of the first record, or of none.
    pub(crate) fn first_seq(&self) -> Seq {
        self.records.first().map_or(Seq(0), |record| record.seq)
    }
}

impl Parts for Draft {
    fn parts(&self) -> Vec<IoSlice<'_>> {
        let front = self.stage.get().get(self.front.clone());
        let mut parts = Vec::with_capacity(1 + self.own.len());
        parts.push(IoSlice::new(front.unwrap_or_default()));
        parts.extend(self.own.iter().map(|(_, buf)| IoSlice::new(buf.padded())));
        parts
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.budget.keep(std::mem::take(&mut self.stage));
    }
}
