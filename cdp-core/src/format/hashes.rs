//! The file of hashes beside a layer: its header, and one entry.

use super::{Broken, Field};
use crate::point::Seq;

/// Bytes of the header.
pub const HASHES_HEADER_LEN: usize = 64;
/// Bytes of an entry.
pub const HASHES_ENTRY_LEN: usize = 40;
/// Bytes of a hash: of a cluster's content, and of the whole file at its end.
pub const HASH_LEN: usize = 32;

/// Version of the format of hashes that is written.
const HASHES_VERSION: u32 = 1;
const MAGIC_BYTES: &[u8; 8] = b"VCDPHSH\0";

const MAGIC: Field = Field::first("hashes magic", 8);
const VERSION: Field = MAGIC.then("hashes version", 4);
const LENGTH: Field = VERSION.then("hashes header length", 4);
const SIZE: Field = LENGTH.then("volume size", 8);
const SEQ: Field = SIZE.then("layer seq", 8);
const COUNT: Field = SEQ.then("entries", 8);
const RESERVED: Field = COUNT.fill("hashes reserved", HASHES_HEADER_LEN - 4);
const CRC: Field = RESERVED.then("hashes crc", 4);

/// Fields of the header, in order.
pub const HASHES_FIELDS: &[Field] = &[MAGIC, VERSION, LENGTH, SIZE, SEQ, COUNT, RESERVED, CRC];

const CLUSTER: Field = Field::first("cluster", 8);
const HASH: Field = CLUSTER.then("cluster hash", HASH_LEN);

/// Fields of an entry, in order.
pub const HASHES_ENTRY_FIELDS: &[Field] = &[CLUSTER, HASH];

/// Header of a file of hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashesHeader {
    /// Bytes of the volume.
    pub size: u64,
    /// The last record that the layer has.
    pub seq: Seq,
    /// Entries.
    pub count: u64,
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashesEntry {
    /// Number of the cluster in the volume.
    pub cluster: u64,
    /// Hash of its content, filled up with zeros at the volume's end.
    pub hash: [u8; HASH_LEN],
}

impl HashesHeader {
    /// Returns the header's bytes.
    pub fn encode(&self) -> [u8; HASHES_HEADER_LEN] {
        let mut bytes = [0; HASHES_HEADER_LEN];
        MAGIC.put_bytes(&mut bytes, MAGIC_BYTES);
        VERSION.put(&mut bytes, u64::from(HASHES_VERSION));
        LENGTH.put(&mut bytes, HASHES_HEADER_LEN as u64);
        SIZE.put(&mut bytes, self.size);
        SEQ.put(&mut bytes, self.seq.0);
        COUNT.put(&mut bytes, self.count);
        let crc = crc32c::crc32c(bytes.get(..CRC.at).unwrap_or_default());
        CRC.put(&mut bytes, u64::from(crc));
        bytes
    }

    /// Takes a header from its bytes.
    ///
    /// # Errors
    /// What is broken about them.
    pub fn decode(bytes: &[u8; HASHES_HEADER_LEN]) -> Result<HashesHeader, Broken> {
        if MAGIC.bytes(bytes) != MAGIC_BYTES {
            return Err(Broken::Magic("header of hashes"));
        }
        let covered = bytes.get(..CRC.at).unwrap_or_default();
        if crc32c::crc32c(covered) != CRC.get_u32(bytes) {
            return Err(Broken::Checksum("header of hashes"));
        }
        if VERSION.get_u32(bytes) != HASHES_VERSION {
            return Err(Broken::Version(VERSION.get_u32(bytes)));
        }
        if LENGTH.get_u32(bytes) != HASHES_HEADER_LEN as u32 {
            return Err(Broken::Field("hashes header length"));
        }
        Ok(HashesHeader {
            size: SIZE.get(bytes),
            seq: Seq(SEQ.get(bytes)),
            count: COUNT.get(bytes),
        })
    }
}

impl HashesEntry {
    /// Returns the entry's bytes.
    pub fn encode(&self) -> [u8; HASHES_ENTRY_LEN] {
        let mut bytes = [0; HASHES_ENTRY_LEN];
        CLUSTER.put(&mut bytes, self.cluster);
        HASH.put_bytes(&mut bytes, &self.hash);
        bytes
    }

    /// Takes an entry from its bytes.
    pub fn decode(bytes: &[u8]) -> HashesEntry {
        HashesEntry {
            cluster: CLUSTER.get(bytes),
            hash: HASH.array(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_entry_are_read_as_they_were_written() {
        let header = HashesHeader {
            size: 123 << 20,
            seq: Seq(77),
            count: 5,
        };
        assert_eq!(HashesHeader::decode(&header.encode()), Ok(header));
        for at in 0..HASHES_HEADER_LEN {
            let mut bytes = header.encode();
            bytes[at] ^= 4;
            assert!(HashesHeader::decode(&bytes).is_err(), "byte {at}");
        }
        let entry = HashesEntry {
            cluster: 1 << 29,
            hash: [9; 32],
        };
        assert_eq!(HashesEntry::decode(&entry.encode()), entry);
    }
}
