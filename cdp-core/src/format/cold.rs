//! Header and footer of a cold segment.

use super::{Broken, Field, RECORD_LEN};
use crate::bounds::{BLOCK, COLD_BLOCK, MACHINE_ID_MAX};
use crate::clock::Timestamp;
use crate::point::{PointId, Seq};

/// Version of the format of cold segments.
pub const COLD_VERSION: u32 = 1;
/// Bytes of the header of a cold segment, and of its footer.
pub const COLD_END_LEN: usize = BLOCK;
/// Bytes of an entry of the table of blocks.
pub const COLD_ENTRY_LEN: usize = 16;

const HEADER_MAGIC: &[u8; 8] = b"VCDPCLD\0";
const FOOTER_MAGIC: &[u8; 8] = b"VCDPCLE\0";

const MAGIC: Field = Field::first("cold magic", 8);
const VERSION: Field = MAGIC.then("cold version", 4);
const LENGTH: Field = VERSION.then("cold header length", 4);
const MACHINE_ID: Field = LENGTH.then("cold machine id", MACHINE_ID_MAX);
const FIRST: Field = MACHINE_ID.then("cold first segment", 8);
const LAST: Field = FIRST.then("cold last segment", 8);
const RESERVED: Field = LAST.fill("cold reserved", COLD_END_LEN - 4);
const CRC: Field = RESERVED.then("cold header crc", 4);

/// Fields of the header of a cold segment, in order.
pub const COLD_HEADER_FIELDS: &[Field] = &[
    MAGIC, VERSION, LENGTH, MACHINE_ID, FIRST, LAST, RESERVED, CRC,
];

const END_MAGIC: Field = Field::first("cold footer magic", 8);
const END_VERSION: Field = END_MAGIC.then("cold footer version", 4);
const END_LENGTH: Field = END_VERSION.then("cold footer length", 4);
const END_FIRST: Field = END_LENGTH.then("cold footer first segment", 8);
const END_LAST: Field = END_FIRST.then("cold footer last segment", 8);
const FIRST_SEQ: Field = END_LAST.then("cold first seq", 8);
const LAST_SEQ: Field = FIRST_SEQ.then("cold last seq", 8);
const NEXT_POINT: Field = LAST_SEQ.then("cold next point", 8);
const LAST_TIME: Field = NEXT_POINT.then("cold last time", 8);
const SPACE: Field = LAST_TIME.then("cold space length", 8);
const TABLE: Field = SPACE.then("cold table position", 8);
const INDEX: Field = TABLE.then("cold index position", 8);
const DATA_RECORDS: Field = INDEX.then("cold data records", 8);
const OTHER_RECORDS: Field = DATA_RECORDS.then("cold other records", 8);
const POINTS: Field = OTHER_RECORDS.then("cold points", 8);
const PREVIOUS: Field = POINTS.then("cold previous hash", 32);
const CHAIN: Field = PREVIOUS.then("cold chain hash", 32);
const TABLE_CRC: Field = CHAIN.then("cold table crc", 4);
const INDEX_CRC: Field = TABLE_CRC.then("cold index crc", 4);
const END_RESERVED: Field = INDEX_CRC.fill("cold footer reserved", COLD_END_LEN - 36);
const HASH: Field = END_RESERVED.then("cold hash", 32);
const END_CRC: Field = HASH.then("cold footer crc", 4);

/// Fields of the footer of a cold segment, in order.
pub const COLD_FOOTER_FIELDS: &[Field] = &[
    END_MAGIC,
    END_VERSION,
    END_LENGTH,
    END_FIRST,
    END_LAST,
    FIRST_SEQ,
    LAST_SEQ,
    NEXT_POINT,
    LAST_TIME,
    SPACE,
    TABLE,
    INDEX,
    DATA_RECORDS,
    OTHER_RECORDS,
    POINTS,
    PREVIOUS,
    CHAIN,
    TABLE_CRC,
    INDEX_CRC,
    END_RESERVED,
    HASH,
    END_CRC,
];

/// Header of a cold segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdHeader {
    /// Identity of the machine.
    pub machine_id: String,
    /// Number of the first segment it stands for.
    pub first: u64,
    /// Number of the last one.
    pub last: u64,
}

impl ColdHeader {
    /// Returns the header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; COLD_END_LEN];
        MAGIC.put_bytes(&mut bytes, HEADER_MAGIC);
        VERSION.put(&mut bytes, u64::from(COLD_VERSION));
        LENGTH.put(&mut bytes, COLD_END_LEN as u64);
        MACHINE_ID.put_bytes(&mut bytes, self.machine_id.as_bytes());
        FIRST.put(&mut bytes, self.first);
        LAST.put(&mut bytes, self.last);
        let crc = crc32c::crc32c(bytes.get(..CRC.at).unwrap_or_default());
        CRC.put(&mut bytes, u64::from(crc));
        bytes
    }

    /// Takes a header from its bytes.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode(bytes: &[u8]) -> Result<ColdHeader, Broken> {
        check_end(bytes, &MAGIC, HEADER_MAGIC, &VERSION, &CRC)?;
        let id = MACHINE_ID.bytes(bytes);
        let len = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        let id = id.get(..len).unwrap_or_default().to_vec();
        Ok(ColdHeader {
            machine_id: String::from_utf8(id).map_err(|_| Broken::Field("the machine id"))?,
            first: FIRST.get(bytes),
            last: LAST.get(bytes),
        })
    }
}

/// Footer of a cold segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdFooter {
    /// Number of the first segment it stands for.
    pub first: u64,
    /// Number of the last one.
    pub last: u64,
    /// Number of the first record those segments had.
    pub first_seq: Seq,
    /// Number of their last record, or of the one before the first if they had none.
    pub last_seq: Seq,
    /// Number of the next point behind them.
    pub next_point: PointId,
    /// Time of the last record up to here.
    pub last_time: Timestamp,
    /// Bytes of the payload space: of what the blocks hold, one after the other.
    pub space: u64,
    /// Place of the table of blocks, in bytes.
    pub table: u64,
    /// Place of the index, in bytes.
    pub index: u64,
    /// Records that change a volume.
    pub data_records: u64,
    /// All other records.
    pub other_records: u64,
    /// Records of points among them.
    pub points: u64,
    /// What the header of the first of the segments named as the hash before it.
    pub previous: [u8; 32],
    /// What the segment behind the last of them names.
    pub chain: [u8; 32],
    /// CRC-32C of the table of blocks.
    pub table_crc: u32,
    /// CRC-32C of the index.
    pub index_crc: u32,
    /// BLAKE3 of all bytes of the file before it.
    pub hash: [u8; 32],
}

impl ColdFooter {
    /// Returns the bytes in front of the hash, which the hash covers too.
    pub fn encode_head(&self) -> Vec<u8> {
        let mut bytes = vec![0; HASH.at];
        END_MAGIC.put_bytes(&mut bytes, FOOTER_MAGIC);
        END_VERSION.put(&mut bytes, u64::from(COLD_VERSION));
        END_LENGTH.put(&mut bytes, COLD_END_LEN as u64);
        END_FIRST.put(&mut bytes, self.first);
        END_LAST.put(&mut bytes, self.last);
        FIRST_SEQ.put(&mut bytes, self.first_seq.0);
        LAST_SEQ.put(&mut bytes, self.last_seq.0);
        NEXT_POINT.put(&mut bytes, self.next_point.0);
        LAST_TIME.put(&mut bytes, self.last_time.0);
        SPACE.put(&mut bytes, self.space);
        TABLE.put(&mut bytes, self.table);
        INDEX.put(&mut bytes, self.index);
        DATA_RECORDS.put(&mut bytes, self.data_records);
        OTHER_RECORDS.put(&mut bytes, self.other_records);
        POINTS.put(&mut bytes, self.points);
        PREVIOUS.put_bytes(&mut bytes, &self.previous);
        CHAIN.put_bytes(&mut bytes, &self.chain);
        TABLE_CRC.put(&mut bytes, u64::from(self.table_crc));
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

    /// Takes a footer from the last bytes of a cold segment of `len` bytes.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode(bytes: &[u8], len: u64) -> Result<ColdFooter, Broken> {
        check_end(bytes, &END_MAGIC, FOOTER_MAGIC, &END_VERSION, &END_CRC)?;
        let footer = ColdFooter {
            first: END_FIRST.get(bytes),
            last: END_LAST.get(bytes),
            first_seq: Seq(FIRST_SEQ.get(bytes)),
            last_seq: Seq(LAST_SEQ.get(bytes)),
            next_point: PointId(NEXT_POINT.get(bytes)),
            last_time: Timestamp(LAST_TIME.get(bytes)),
            space: SPACE.get(bytes),
            table: TABLE.get(bytes),
            index: INDEX.get(bytes),
            data_records: DATA_RECORDS.get(bytes),
            other_records: OTHER_RECORDS.get(bytes),
            points: POINTS.get(bytes),
            previous: PREVIOUS.array(bytes),
            chain: CHAIN.array(bytes),
            table_crc: TABLE_CRC.get_u32(bytes),
            index_crc: INDEX_CRC.get_u32(bytes),
            hash: HASH.array(bytes),
        };
        footer.check(len)?;
        Ok(footer)
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> u64 {
        self.space / COLD_BLOCK as u64
    }

    /// Returns the bytes of the table of blocks.
    pub fn table_len(&self) -> u64 {
        self.blocks().saturating_mul(COLD_ENTRY_LEN as u64)
    }

    /// Returns the bytes of the index.
    pub fn index_len(&self) -> u64 {
        let records = self.data_records.saturating_add(self.other_records);
        records.saturating_mul(RECORD_LEN as u64)
    }

    fn check(&self, len: u64) -> Result<(), Broken> {
        let numbers = self.last_seq.next().0.checked_sub(self.first_seq.0);
        let records = self.data_records.checked_add(self.other_records);
        let few = records.is_some_and(|records| numbers.is_some_and(|most| records <= most));
        if !few || self.points > self.other_records || self.first > self.last {
            return Err(Broken::Field("the number of records of a cold segment"));
        }
        if !self.space.is_multiple_of(COLD_BLOCK as u64) {
            return Err(Broken::Field("the length of the payload space"));
        }
        let index = self.table.checked_add(self.table_len());
        let end = self.index.checked_add(self.index_len());
        let end = end.and_then(|end| end.checked_add(COLD_END_LEN as u64));
        if self.table < COLD_END_LEN as u64 || index != Some(self.index) || end != Some(len) {
            return Err(Broken::Field("the position of the index"));
        }
        Ok(())
    }
}

fn check_end(
    bytes: &[u8],
    magic: &Field,
    expected: &[u8; 8],
    version: &Field,
    crc: &Field,
) -> Result<(), Broken> {
    if magic.bytes(bytes) != expected {
        return Err(Broken::Magic("cold segment"));
    }
    let covered = bytes.get(..crc.at).unwrap_or_default();
    if bytes.len() != COLD_END_LEN || crc32c::crc32c(covered) != crc.get_u32(bytes) {
        return Err(Broken::Checksum("end of a cold segment"));
    }
    match version.get_u32(bytes) {
        COLD_VERSION => Ok(()),
        other => Err(Broken::Version(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> ColdFooter {
        ColdFooter {
            first: 3,
            last: 5,
            first_seq: Seq(10),
            last_seq: Seq(99),
            next_point: PointId(4),
            last_time: Timestamp(77),
            space: 3 * COLD_BLOCK as u64,
            table: 10_000,
            index: 10_000 + 3 * COLD_ENTRY_LEN as u64,
            data_records: 20,
            other_records: 3,
            points: 2,
            previous: [1; 32],
            chain: [2; 32],
            table_crc: 5,
            index_crc: 6,
            hash: [3; 32],
        }
    }

    #[test]
    fn both_ends_survive_their_bytes_and_flipped_bits_are_noticed() {
        let header = ColdHeader {
            machine_id: "m".into(),
            first: 3,
            last: 5,
        };
        assert_eq!(ColdHeader::decode(&header.encode()), Ok(header.clone()));
        let good = footer();
        let len = good.index + good.index_len() + COLD_END_LEN as u64;
        assert_eq!(ColdFooter::decode(&good.encode(), len), Ok(good));
        for bit in (0..COLD_END_LEN * 8).step_by(7) {
            for (bytes, is_footer) in [(header.encode(), false), (good.encode(), true)] {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                let taken = match is_footer {
                    true => ColdFooter::decode(&flipped, len).is_ok(),
                    false => ColdHeader::decode(&flipped).is_ok(),
                };
                assert!(!taken, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_footer_that_cannot_be_is_refused() {
        let good = footer();
        let len = good.index + good.index_len() + COLD_END_LEN as u64;
        let bad = [
            ColdFooter {
                data_records: 88,
                ..good
            },
            ColdFooter { points: 4, ..good },
            ColdFooter { first: 6, ..good },
            ColdFooter {
                table: 9_999,
                ..good
            },
            ColdFooter {
                space: good.space + 512,
                ..good
            },
            ColdFooter {
                space: good.space * 2,
                ..good
            },
            ColdFooter {
                last_seq: Seq(1),
                ..good
            },
        ];
        for footer in bad {
            assert!(
                ColdFooter::decode(&footer.encode(), len).is_err(),
                "{footer:?}"
            );
        }
        assert!(ColdFooter::decode(&good.encode(), len + 1).is_err());
    }
}
