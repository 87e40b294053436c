//! The header of a segment.

use super::{Broken, Field, SEGMENT_VERSION, Salt, is_known};
use crate::bounds::{BLOCK, MACHINE_ID_MAX};
use crate::clock::Timestamp;
use crate::point::{PointId, Seq};

/// Bytes of a segment header.
pub const HEADER_LEN: usize = BLOCK;

const MAGIC_BYTES: &[u8; 8] = b"VCDPSEG\0";

const MAGIC: Field = Field::first("magic", 8);
const VERSION: Field = MAGIC.then("version", 4);
const LENGTH: Field = VERSION.then("header length", 4);
const MACHINE_ID: Field = LENGTH.then("machine id", MACHINE_ID_MAX);
const SALT: Field = MACHINE_ID.then("salt", 16);
const NUMBER: Field = SALT.then("segment number", 8);
const FIRST_SEQ: Field = NUMBER.then("first seq", 8);
const NEXT_POINT: Field = FIRST_SEQ.then("next point", 8);
const LAST_TIME: Field = NEXT_POINT.then("last time", 8);
const CREATED: Field = LAST_TIME.then("created", 8);
const PREVIOUS: Field = CREATED.then("previous hash", 32);
const RESERVED: Field = PREVIOUS.fill("reserved", HEADER_LEN - 4);
const CRC: Field = RESERVED.then("header crc", 4);

/// Fields of a segment header, in order.
pub const HEADER_FIELDS: &[Field] = &[
    MAGIC, VERSION, LENGTH, MACHINE_ID, SALT, NUMBER, FIRST_SEQ, NEXT_POINT, LAST_TIME, CREATED,
    PREVIOUS, RESERVED, CRC,
];

/// Header of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Identity of the machine.
    pub machine_id: String,
    /// Random bytes that return in frames and footer.
    pub salt: Salt,
    /// Number of the segment.
    pub number: u64,
    /// Number of its first record.
    pub first_seq: Seq,
    /// Number of the next point.
    pub next_point: PointId,
    /// Time of the last record before it.
    pub last_time: Timestamp,
    /// When it was made.
    pub created: Timestamp,
    /// Hash of the segment before it.
    pub previous: [u8; 32],
}

impl SegmentHeader {
    /// Returns the header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        MAGIC.put_bytes(&mut bytes, MAGIC_BYTES);
        VERSION.put(&mut bytes, u64::from(SEGMENT_VERSION));
        LENGTH.put(&mut bytes, HEADER_LEN as u64);
        MACHINE_ID.put_bytes(&mut bytes, self.machine_id.as_bytes());
        SALT.put_bytes(&mut bytes, &self.salt);
        NUMBER.put(&mut bytes, self.number);
        FIRST_SEQ.put(&mut bytes, self.first_seq.0);
        NEXT_POINT.put(&mut bytes, self.next_point.0);
        LAST_TIME.put(&mut bytes, self.last_time.0);
        CREATED.put(&mut bytes, self.created.0);
        PREVIOUS.put_bytes(&mut bytes, &self.previous);
        let crc = crc32c::crc32c(bytes.get(..CRC.at).unwrap_or_default());
        CRC.put(&mut bytes, u64::from(crc));
        bytes
    }

    /// Takes a header from its bytes.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, Broken> {
        if MAGIC.bytes(bytes) != MAGIC_BYTES {
            return Err(Broken::Magic("segment header"));
        }
        let covered = bytes.get(..CRC.at).unwrap_or_default();
        if bytes.len() != HEADER_LEN || crc32c::crc32c(covered) != CRC.get_u32(bytes) {
            return Err(Broken::Checksum("segment header"));
        }
        if !is_known(VERSION.get_u32(bytes)) {
            return Err(Broken::Version(VERSION.get_u32(bytes)));
        }
        if FIRST_SEQ.get(bytes) == 0 {
            return Err(Broken::Field("the first record of a segment"));
        }
        let id = MACHINE_ID.bytes(bytes);
        let id_len = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        let id = id.get(..id_len).unwrap_or_default();
        let machine_id =
            String::from_utf8(id.to_vec()).map_err(|_| Broken::Field("the machine id"))?;
        Ok(SegmentHeader {
            machine_id,
            salt: SALT.array(bytes),
            number: NUMBER.get(bytes),
            first_seq: Seq(FIRST_SEQ.get(bytes)),
            next_point: PointId(NEXT_POINT.get(bytes)),
            last_time: Timestamp(LAST_TIME.get(bytes)),
            created: Timestamp(CREATED.get(bytes)),
            previous: PREVIOUS.array(bytes),
        })
    }
}
