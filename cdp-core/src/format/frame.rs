//! The header of a frame, and the table of records behind it.

use super::{Broken, Field, RECORD_LEN, Record, Salt};
use crate::bounds::{BLOCK, FRAME_LEN_MAX, FRAME_RECORDS_MAX, SECTOR};
use crate::point::Seq;

/// Bytes of a frame header.
pub const FRAME_HEADER_LEN: usize = 64;

const MAGIC_BYTES: &[u8; 4] = b"FRAM";

const MAGIC: Field = Field::first("frame magic", 4);
const RECORDS: Field = MAGIC.then("records", 4);
const SALT: Field = RECORDS.then("frame salt", 16);
const SEGMENT: Field = SALT.then("frame segment", 8);
const POSITION: Field = SEGMENT.then("position", 8);
const LENGTH: Field = POSITION.then("frame length", 8);
const FIRST_SEQ: Field = LENGTH.then("frame first seq", 8);
const RESERVED: Field = FIRST_SEQ.then("frame reserved", 4);
const CRC: Field = RESERVED.then("frame crc", 4);

/// Fields of a frame header, in order.
pub const FRAME_FIELDS: &[Field] = &[
    MAGIC, RECORDS, SALT, SEGMENT, POSITION, LENGTH, FIRST_SEQ, RESERVED, CRC,
];

/// Returns the bytes of frame header and table for so many records, padded to a sector.
pub const fn table_len(records: usize) -> usize {
    (FRAME_HEADER_LEN + records * RECORD_LEN).next_multiple_of(SECTOR)
}

/// Header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Number of its records.
    pub records: usize,
    /// The segment's salt.
    pub salt: Salt,
    /// Number of the segment.
    pub segment: u64,
    /// Its place in the segment, in bytes.
    pub position: u64,
    /// Its bytes, with all padding.
    pub length: u64,
    /// Number of its first record.
    pub first_seq: Seq,
}

impl FrameHeader {
    /// Returns the bytes of header and table, padded to a sector.
    pub fn encode(&self, records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(table_len(records.len()));
        bytes.resize(FRAME_HEADER_LEN, 0);
        MAGIC.put_bytes(&mut bytes, MAGIC_BYTES);
        RECORDS.put(&mut bytes, self.records as u64);
        SALT.put_bytes(&mut bytes, &self.salt);
        SEGMENT.put(&mut bytes, self.segment);
        POSITION.put(&mut bytes, self.position);
        LENGTH.put(&mut bytes, self.length);
        FIRST_SEQ.put(&mut bytes, self.first_seq.0);
        for record in records {
            bytes.extend_from_slice(&record.encode());
        }
        let crc = checksum(&bytes);
        CRC.put(&mut bytes, u64::from(crc));
        bytes.resize(table_len(records.len()), 0);
        bytes
    }

    /// Takes a header from its bytes, its checksum unchecked as that covers the table.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, Broken> {
        if MAGIC.bytes(bytes) != MAGIC_BYTES {
            return Err(Broken::Magic("frame"));
        }
        let header = FrameHeader {
            records: RECORDS.get_u32(bytes) as usize,
            salt: SALT.array(bytes),
            segment: SEGMENT.get(bytes),
            position: POSITION.get(bytes),
            length: LENGTH.get(bytes),
            first_seq: Seq(FIRST_SEQ.get(bytes)),
        };
        if header.records == 0 || header.records > FRAME_RECORDS_MAX {
            return Err(Broken::Field("the number of records of a frame"));
        }
        let length_min = table_len(header.records) as u64;
        if header.length > FRAME_LEN_MAX as u64
            || header.length < length_min
            || !header.length.is_multiple_of(BLOCK as u64)
        {
            return Err(Broken::Field("the length of a frame"));
        }
        Ok(header)
    }

    /// Takes the records from the bytes of header and table, after checking the checksum.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode_table(&self, bytes: &[u8]) -> Result<Vec<Record>, Broken> {
        let covered = bytes.get(..FRAME_HEADER_LEN + self.records * RECORD_LEN);
        let covered = covered.ok_or(Broken::Field("the number of records of a frame"))?;
        if checksum(covered) != CRC.get_u32(covered) {
            return Err(Broken::Checksum("frame"));
        }
        let mut records = Vec::with_capacity(self.records);
        let mut expected = self.first_seq;
        for bytes in covered
            .get(FRAME_HEADER_LEN..)
            .unwrap_or_default()
            .chunks(RECORD_LEN)
        {
            let record = Record::decode(bytes)?;
            if record.seq != expected {
                return Err(Broken::Field("the number of a record"));
            }
            self.check_payload(&record)?;
            expected = expected.next();
            records.push(record);
        }
        Ok(records)
    }

    fn check_payload(&self, record: &Record) -> Result<(), Broken> {
        if record.payload_length == 0 {
            return Ok(());
        }
        let first = self.position + table_len(self.records) as u64;
        let end = record
            .payload_position
            .checked_add(u64::from(record.payload_length));
        if record.payload_position < first || end.is_none_or(|e| e > self.position + self.length) {
            return Err(Broken::Field("the payload position of a record"));
        }
        Ok(())
    }
}

/// CRC-32C of header and table, without the header's own.
fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(bytes.get(..CRC.at).unwrap_or_default());
    crc32c::crc32c_append(crc, bytes.get(FRAME_HEADER_LEN..).unwrap_or_default())
}
