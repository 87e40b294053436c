//! A record: what happened, where, and where its payload lies.

use super::{Broken, Field};
use crate::bounds::{REQUEST_MAX, SECTOR};
use crate::clock::Timestamp;
use crate::machine::VolumeId;
use crate::point::Seq;

/// Bytes of a record.
pub const RECORD_LEN: usize = 64;

/// The volume of a record that belongs to the whole machine.
pub const NO_VOLUME: VolumeId = VolumeId(u16::MAX);

const SEQ: Field = Field::first("seq", 8);
const TIME: Field = SEQ.then("time", 8);
const OFFSET: Field = TIME.then("offset", 8);
const LENGTH: Field = OFFSET.then("length", 8);
const PAYLOAD_POSITION: Field = LENGTH.then("payload position", 8);
const PAYLOAD_LENGTH: Field = PAYLOAD_POSITION.then("payload length", 4);
const PAYLOAD_CRC: Field = PAYLOAD_LENGTH.then("payload crc", 4);
const VOLUME: Field = PAYLOAD_CRC.then("volume", 2);
const KIND: Field = VOLUME.then("kind", 1);
const DETAIL: Field = KIND.then("detail", 1);
const XML: Field = DETAIL.then("xml", 4);
const RESERVED: Field = XML.then("record reserved", 4);
const CRC: Field = RESERVED.then("record crc", 4);

/// Fields of a record, in order.
pub const RECORD_FIELDS: &[Field] = &[
    SEQ,
    TIME,
    OFFSET,
    LENGTH,
    PAYLOAD_POSITION,
    PAYLOAD_LENGTH,
    PAYLOAD_CRC,
    VOLUME,
    KIND,
    DETAIL,
    XML,
    RESERVED,
    CRC,
];

/// What a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The guest wrote the payload.
    Write,
    /// The guest wrote zeros.
    Zero,
    /// A recovery point.
    Point,
    /// The payload was read from the live disk after a gap.
    ResyncData,
    /// Zeros were read from the live disk after a gap.
    ResyncZero,
    /// Writes may be missing from here.
    GapOpen,
    /// They were made up for.
    GapClose,
}

impl Kind {
    /// Returns the kind's code.
    pub fn code(self) -> u8 {
        match self {
            Kind::Write => 1,
            Kind::Zero => 2,
            Kind::Point => 3,
            Kind::ResyncData => 4,
            Kind::ResyncZero => 5,
            Kind::GapOpen => 6,
            Kind::GapClose => 7,
        }
    }

    /// Returns the kind of a code.
    pub fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::Write,
            2 => Kind::Zero,
            3 => Kind::Point,
            4 => Kind::ResyncData,
            5 => Kind::ResyncZero,
            6 => Kind::GapOpen,
            7 => Kind::GapClose,
            _ => return None,
        })
    }

    /// Tells whether a record of this kind changes a volume.
    pub fn is_data(self) -> bool {
        matches!(
            self,
            Kind::Write | Kind::Zero | Kind::ResyncData | Kind::ResyncZero
        )
    }

    /// Tells whether a record of this kind fills a range with zeros.
    pub fn is_zero(self) -> bool {
        matches!(self, Kind::Zero | Kind::ResyncZero)
    }

    fn has_payload(self) -> bool {
        matches!(self, Kind::Write | Kind::ResyncData | Kind::Point)
    }
}

/// A record, as in a frame's table and in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// Bytes from the volume's start; a point's number; the start of a gap.
    pub offset: u64,
    /// Bytes covered in the volume, or of the label.
    pub length: u64,
    /// Bytes from the segment's start, 0 without payload.
    pub payload_position: u64,
    /// Bytes of the payload.
    pub payload_length: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// The volume, or [`NO_VOLUME`].
    pub volume: VolumeId,
    /// What it tells.
    pub kind: Kind,
    /// A point's grade, a gap's reason.
    pub detail: u8,
    /// A point's domain XML, 0 if none.
    pub xml: u32,
}

impl Record {
    /// Returns the record's bytes.
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        SEQ.put(&mut bytes, self.seq.0);
        TIME.put(&mut bytes, self.time.0);
        OFFSET.put(&mut bytes, self.offset);
        LENGTH.put(&mut bytes, self.length);
        PAYLOAD_POSITION.put(&mut bytes, self.payload_position);
        PAYLOAD_LENGTH.put(&mut bytes, u64::from(self.payload_length));
        PAYLOAD_CRC.put(&mut bytes, u64::from(self.payload_crc));
        VOLUME.put(&mut bytes, u64::from(self.volume.0));
        KIND.put(&mut bytes, u64::from(self.kind.code()));
        DETAIL.put(&mut bytes, u64::from(self.detail));
        XML.put(&mut bytes, u64::from(self.xml));
        let crc = crc32c::crc32c(bytes.get(..CRC.at).unwrap_or_default());
        CRC.put(&mut bytes, u64::from(crc));
        bytes
    }

    /// Takes a record from its bytes.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode(bytes: &[u8]) -> Result<Record, Broken> {
        let covered = bytes.get(..CRC.at).unwrap_or_default();
        if bytes.len() != RECORD_LEN || crc32c::crc32c(covered) != CRC.get_u32(bytes) {
            return Err(Broken::Checksum("record"));
        }
        let [code] = KIND.array(bytes);
        let [detail] = DETAIL.array(bytes);
        let record = Record {
            seq: Seq(SEQ.get(bytes)),
            time: Timestamp(TIME.get(bytes)),
            offset: OFFSET.get(bytes),
            length: LENGTH.get(bytes),
            payload_position: PAYLOAD_POSITION.get(bytes),
            payload_length: PAYLOAD_LENGTH.get_u32(bytes),
            payload_crc: PAYLOAD_CRC.get_u32(bytes),
            volume: VolumeId(u16::from_le_bytes(VOLUME.array(bytes))),
            kind: Kind::from_code(code).ok_or(Broken::Field("the kind of a record"))?,
            detail,
            xml: XML.get_u32(bytes),
        };
        record.check()?;
        Ok(record)
    }

    /// Returns volume, number, first byte and length of a record that is known to be right, from its bytes.
    pub(crate) fn place(bytes: &[u8]) -> (VolumeId, Seq, u64, u64) {
        let volume = VolumeId(u16::from_le_bytes(VOLUME.array(bytes)));
        (
            volume,
            Seq(SEQ.get(bytes)),
            OFFSET.get(bytes),
            LENGTH.get(bytes),
        )
    }

    fn check(&self) -> Result<(), Broken> {
        let payload = u64::from(self.payload_length);
        let payload_fits = if self.kind.has_payload() {
            payload == self.length && payload <= REQUEST_MAX as u64
        } else {
            payload == 0
        };
        if !payload_fits || (payload == 0) != (self.payload_position == 0) {
            return Err(Broken::Field("the payload length of a record"));
        }
        if !self.payload_position.is_multiple_of(SECTOR as u64) {
            return Err(Broken::Field("the payload position of a record"));
        }
        if self.kind.is_data() && (self.length == 0 || self.end().is_none()) {
            return Err(Broken::Field("the range of a record"));
        }
        if self.seq == Seq(0) {
            return Err(Broken::Field("the number of a record"));
        }
        Ok(())
    }

    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_bytes_and_every_flipped_bit_is_noticed() {
        let record = Record {
            seq: Seq(7),
            time: Timestamp(8),
            offset: 4096,
            length: 512,
            payload_position: 8192,
            payload_length: 512,
            payload_crc: 0xdead_beef,
            volume: VolumeId(3),
            kind: Kind::ResyncData,
            detail: 0,
            xml: 0,
        };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Ok(record));
        for bit in 0..RECORD_LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn impossible_records_are_refused() {
        let good = Record {
            seq: Seq(1),
            time: Timestamp(1),
            offset: 0,
            length: 512,
            payload_position: 4608,
            payload_length: 512,
            payload_crc: 0,
            volume: VolumeId(0),
            kind: Kind::Write,
            detail: 0,
            xml: 0,
        };
        let bad = [
            Record {
                payload_length: 511,
                ..good
            },
            Record {
                payload_position: 4609,
                ..good
            },
            Record {
                payload_position: 0,
                ..good
            },
            Record {
                kind: Kind::Zero,
                ..good
            },
            Record {
                offset: u64::MAX - 10,
                ..good
            },
            Record {
                seq: Seq(0),
                ..good
            },
        ];
        assert_eq!(Record::decode(&good.encode()), Ok(good));
        for record in bad {
            assert!(Record::decode(&record.encode()).is_err(), "{record:?}");
        }
    }
}
