//! The footer, which makes a segment a sealed one.

use super::{Broken, Field, RECORD_LEN, Salt, is_known};
use crate::bounds::BLOCK;
use crate::clock::Timestamp;
use crate::point::{PointId, Seq};

/// Bytes of a footer.
pub const FOOTER_LEN: usize = BLOCK;

const MAGIC_BYTES: &[u8; 8] = b"VCDPEND\0";

const MAGIC: Field = Field::first("footer magic", 8);
const VERSION: Field = MAGIC.then("footer version", 4);
const LENGTH: Field = VERSION.then("footer length", 4);
const SALT: Field = LENGTH.then("footer salt", 16);
const SEGMENT: Field = SALT.then("footer segment", 8);
const INDEX_POSITION: Field = SEGMENT.then("index position", 8);
const DATA_RECORDS: Field = INDEX_POSITION.then("data records", 8);
const OTHER_RECORDS: Field = DATA_RECORDS.then("other records", 8);
const FIRST_SEQ: Field = OTHER_RECORDS.then("footer first seq", 8);
const LAST_SEQ: Field = FIRST_SEQ.then("footer last seq", 8);
const NEXT_POINT: Field = LAST_SEQ.then("footer next point", 8);
const LAST_TIME: Field = NEXT_POINT.then("footer last time", 8);
const INDEX_CRC: Field = LAST_TIME.then("index crc", 4);
const RESERVED: Field = INDEX_CRC.fill("footer reserved", FOOTER_LEN - 36);
const HASH: Field = RESERVED.then("hash", 32);
const CRC: Field = HASH.then("footer crc", 4);

/// Fields of a footer, in order.
pub const FOOTER_FIELDS: &[Field] = &[
    MAGIC,
    VERSION,
    LENGTH,
    SALT,
    SEGMENT,
    INDEX_POSITION,
    DATA_RECORDS,
    OTHER_RECORDS,
    FIRST_SEQ,
    LAST_SEQ,
    NEXT_POINT,
    LAST_TIME,
    INDEX_CRC,
    RESERVED,
    HASH,
    CRC,
];

/// Footer of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Version of the format: what the hash covers.
    pub version: u32,
    /// The segment's salt.
    pub salt: Salt,
    /// Number of the segment.
    pub segment: u64,
    /// Place of the index, in bytes.
    pub index_position: u64,
    /// Records that change a volume.
    pub data_records: u64,
    /// All other records.
    pub other_records: u64,
    /// Number of the first record.
    pub first_seq: Seq,
    /// Number of the last record, or of the one before the first if there is none.
    pub last_seq: Seq,
    /// Number of the next point.
    pub next_point: PointId,
    /// Time of the last record up to here.
    pub last_time: Timestamp,
    /// CRC-32C of the index.
    pub index_crc: u32,
    /// What the next segment names: BLAKE3 of header, index with its padding, and the footer's bytes before it. In
    /// version 1 of all bytes of the file before it.
    pub hash: [u8; 32],
}

impl Footer {
    /// Works out the hash of version 2. The index has the checksums of all payloads: nobody has to read these.
    pub fn chain_hash(&self, header: &[u8], padded_index: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(header).update(padded_index);
        hasher.update(&self.encode_head());
        *hasher.finalize().as_bytes()
    }

    /// Returns the bytes in front of the hash, which the hash covers too.
    pub fn encode_head(&self) -> Vec<u8> {
        let mut bytes = vec![0; HASH.at];
        MAGIC.put_bytes(&mut bytes, MAGIC_BYTES);
        VERSION.put(&mut bytes, u64::from(self.version));
        LENGTH.put(&mut bytes, FOOTER_LEN as u64);
        SALT.put_bytes(&mut bytes, &self.salt);
        SEGMENT.put(&mut bytes, self.segment);
        INDEX_POSITION.put(&mut bytes, self.index_position);
        DATA_RECORDS.put(&mut bytes, self.data_records);
        OTHER_RECORDS.put(&mut bytes, self.other_records);
        FIRST_SEQ.put(&mut bytes, self.first_seq.0);
        LAST_SEQ.put(&mut bytes, self.last_seq.0);
        NEXT_POINT.put(&mut bytes, self.next_point.0);
        LAST_TIME.put(&mut bytes, self.last_time.0);
        INDEX_CRC.put(&mut bytes, u64::from(self.index_crc));
        bytes
    }

    /// Returns the footer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.encode_head();
        bytes.extend_from_slice(&self.hash);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Takes a footer from the last bytes of a segment of `segment_len` bytes.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode(bytes: &[u8], segment_len: u64) -> Result<Footer, Broken> {
        if MAGIC.bytes(bytes) != MAGIC_BYTES {
            return Err(Broken::Magic("footer"));
        }
        let covered = bytes.get(..CRC.at).unwrap_or_default();
        if bytes.len() != FOOTER_LEN || crc32c::crc32c(covered) != CRC.get_u32(bytes) {
            return Err(Broken::Checksum("footer"));
        }
        if !is_known(VERSION.get_u32(bytes)) {
            return Err(Broken::Version(VERSION.get_u32(bytes)));
        }
        let footer = Footer {
            version: VERSION.get_u32(bytes),
            salt: SALT.array(bytes),
            segment: SEGMENT.get(bytes),
            index_position: INDEX_POSITION.get(bytes),
            data_records: DATA_RECORDS.get(bytes),
            other_records: OTHER_RECORDS.get(bytes),
            first_seq: Seq(FIRST_SEQ.get(bytes)),
            last_seq: Seq(LAST_SEQ.get(bytes)),
            next_point: PointId(NEXT_POINT.get(bytes)),
            last_time: Timestamp(LAST_TIME.get(bytes)),
            index_crc: INDEX_CRC.get_u32(bytes),
            hash: HASH.array(bytes),
        };
        footer.check(segment_len)?;
        Ok(footer)
    }

    /// Returns the bytes of the index, without padding.
    pub fn index_len(&self) -> u64 {
        self.data_records
            .saturating_add(self.other_records)
            .saturating_mul(RECORD_LEN as u64)
    }

    fn check(&self, segment_len: u64) -> Result<(), Broken> {
        let records = self.data_records.checked_add(self.other_records);
        let numbers = self.last_seq.next().0.checked_sub(self.first_seq.0);
        if records.is_none() || records != numbers {
            return Err(Broken::Field("the number of records of a segment"));
        }
        let padded = self.index_len().checked_next_multiple_of(BLOCK as u64);
        let end = padded.and_then(|len| self.index_position.checked_add(len));
        if end.and_then(|end| end.checked_add(FOOTER_LEN as u64)) != Some(segment_len) {
            return Err(Broken::Field("the position of the index"));
        }
        Ok(())
    }
}
