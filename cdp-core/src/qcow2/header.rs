//! The header of an image: what is written, and what is taken of what is read.
//!
//! With its extension and the name of the image below it fits into the first sector, so that it is written whole or
//! not at all.

use super::{CLUSTER_LEN, L2_SPAN, MAGIC, VERSION};
use crate::bounds::{BACKING_NAME_MAX, CLUSTER, SECTOR, VOLUME_SIZE_MAX};

/// Bytes of the header without the type of compression.
const SHORT: usize = 104;
/// Bytes of the header with it.
const LONG: usize = 112;
/// Incompatible feature: compressed clusters are not of the type that is usual.
const OTHER_COMPRESSION: u64 = 1 << 3;
/// Type of compression: zstd.
const ZSTD: u8 = 1;
/// Extension that holds the format of the image below.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Format of the image below, the only one that is taken.
const QCOW2: &[u8; 5] = b"qcow2";
/// Refcounts of 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
/// Most bytes of an image that are looked at for its header.
pub(super) const HEADER_READ_MAX: usize = CLUSTER;
/// Fewest bytes that an image has.
pub(super) const HEADER_READ_MIN: usize = SHORT;

/// What the header of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the volume.
    pub(super) size: u64,
    /// Entries of the L1 table.
    pub(super) l1_len: usize,
    pub(super) l1_place: u64,
    pub(super) refcount_place: u64,
    pub(super) refcount_clusters: u32,
    /// Name of the image below, in the same directory.
    pub(super) backing: Option<String>,
    /// Whether compressed clusters are of zstd.
    pub(super) has_zstd: bool,
}

/// Returns the entries that the L1 table of a volume must have.
pub(super) fn l1_needed(size: u64) -> usize {
    size.div_ceil(L2_SPAN) as usize
}

/// Tells whether a name is one of a file in the same directory, and nothing that QEMU takes for something else.
pub(super) fn is_plain_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=BACKING_NAME_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.chars().all(is_plain)
}

impl Header {
    /// Returns the header's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let name = self.backing.as_deref().unwrap_or_default().as_bytes();
        let len = if self.has_zstd { LONG } else { SHORT };
        // The extension, and the end of extensions.
        let behind = len + if name.is_empty() { 8 } else { 24 };
        let name_place = if name.is_empty() { 0 } else { behind as u64 };
        let features = if self.has_zstd { OTHER_COMPRESSION } else { 0 };
        let mut bytes = Vec::with_capacity(SECTOR);
        bytes.extend_from_slice(&MAGIC.to_be_bytes());
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&name_place.to_be_bytes());
        bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&CLUSTER.trailing_zeros().to_be_bytes());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]); // encryption
        bytes.extend_from_slice(&(self.l1_len as u32).to_be_bytes());
        bytes.extend_from_slice(&self.l1_place.to_be_bytes());
        bytes.extend_from_slice(&self.refcount_place.to_be_bytes());
        bytes.extend_from_slice(&self.refcount_clusters.to_be_bytes());
        bytes.extend_from_slice(&[0; 12]); // snapshots: number and place
        bytes.extend_from_slice(&features.to_be_bytes());
        bytes.extend_from_slice(&[0; 16]); // features: compatible, autoclear
        bytes.extend_from_slice(&REFCOUNT_ORDER.to_be_bytes());
        bytes.extend_from_slice(&(len as u32).to_be_bytes());
        if self.has_zstd {
            bytes.extend_from_slice(&[ZSTD, 0, 0, 0, 0, 0, 0, 0]);
        }
        if !name.is_empty() {
            bytes.extend_from_slice(&BACKING_FORMAT.to_be_bytes());
            bytes.extend_from_slice(&(QCOW2.len() as u32).to_be_bytes());
            bytes.extend_from_slice(QCOW2);
            bytes.extend_from_slice(&[0; 3]);
        }
        bytes.extend_from_slice(&[0; 8]); // end of the header's extensions
        bytes.extend_from_slice(name);
        bytes
    }

    /// Takes a header from the first bytes of an image, at most [`HEADER_READ_MAX`].
    ///
    /// # Errors
    /// What is wrong with it, or what of it is not known here.
    pub(super) fn decode(bytes: &[u8]) -> Result<Header, &'static str> {
        let u32_at = |at| be32(bytes, at);
        let u64_at = |at| u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4));
        let features = u64_at(72);
        let has_zstd = features == OTHER_COMPRESSION;
        let len = u32_at(100) as usize;
        let zstd_fits = !has_zstd || (len >= LONG && bytes.get(SHORT) == Some(&ZSTD));
        let rules = [
            (
                u32_at(0) == MAGIC && u32_at(4) == VERSION,
                "it is no qcow2 image of version 3",
            ),
            (
                1_u64.checked_shl(u32_at(20)) == Some(CLUSTER_LEN),
                "its clusters are not of 64 KiB",
            ),
            (u32_at(32) == 0, "it is encrypted"),
            (u32_at(60) == 0, "it has snapshots"),
            (
                features == 0 || has_zstd,
                "it needs features that are not known",
            ),
            (zstd_fits, "its type of compression is not known"),
            (
                u32_at(96) == REFCOUNT_ORDER,
                "its refcounts are not of 16 bits",
            ),
            (
                len >= SHORT && len.is_multiple_of(8) && len <= bytes.len(),
                "its header has an impossible length",
            ),
        ];
        for (kept, what) in rules {
            if !kept {
                return Err(what);
            }
        }
        let (size, l1_len) = (u64_at(24), u32_at(36) as usize);
        if size > VOLUME_SIZE_MAX
            || !(l1_needed(size)..=l1_needed(VOLUME_SIZE_MAX)).contains(&l1_len)
        {
            return Err("its size is impossible");
        }
        Ok(Header {
            size,
            l1_len,
            l1_place: u64_at(40),
            refcount_place: u64_at(48),
            refcount_clusters: u32_at(56),
            backing: backing(bytes, len)?,
            has_zstd,
        })
    }
}

/// Returns the name of the image below; its format must be told, and be qcow2.
fn backing(bytes: &[u8], header_len: usize) -> Result<Option<String>, &'static str> {
    let place = u64::from(be32(bytes, 8)) << 32 | u64::from(be32(bytes, 12));
    let len = be32(bytes, 16) as usize;
    if place == 0 {
        return Ok(None);
    }
    let from = usize::try_from(place).unwrap_or(usize::MAX);
    let name = bytes
        .get(from..from.saturating_add(len))
        .unwrap_or_default();
    let name = std::str::from_utf8(name).unwrap_or_default();
    if !is_plain_name(name) {
        return Err("the name of the image below is none of a file beside it");
    }
    let mut at = header_len;
    while at + 8 <= bytes.len().min(from) {
        let (kind, len) = (be32(bytes, at), be32(bytes, at + 4) as usize);
        match kind {
            0 => break,
            BACKING_FORMAT if bytes.get(at + 8..(at + 8).saturating_add(len)) == Some(QCOW2) => {
                return Ok(Some(name.to_string()));
            }
            BACKING_FORMAT => break,
            _ => at = (at + 8).saturating_add(len).next_multiple_of(8),
        }
    }
    Err("the image below is not said to be qcow2")
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u32::from_be_bytes(bytes.copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            size: 5 << 30,
            l1_len: 10,
            l1_place: CLUSTER_LEN,
            refcount_place: 7 * CLUSTER_LEN,
            refcount_clusters: 1,
            backing: None,
            has_zstd: false,
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_fits_a_sector() {
        let longest = "n".repeat(BACKING_NAME_MAX);
        for backing in [None, Some("full-00.qcow2".to_string()), Some(longest)] {
            for has_zstd in [false, true] {
                let header = Header {
                    backing: backing.clone(),
                    has_zstd,
                    ..header()
                };
                let bytes = header.encode();
                assert!(bytes.len() <= SECTOR);
                assert_eq!(Header::decode(&bytes), Ok(header));
            }
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_taken() {
        let table = [
            ("full-1.qcow2", true),
            ("a", true),
            ("", false),
            (".", false),
            ("..", false),
            (".hidden", false),
            ("../a", false),
            ("/etc/passwd", false),
            ("a/b", false),
            ("ssh:host", false),
            ("json{}", false),
            ("a\0b", false),
        ];
        for (name, is_taken) in table {
            assert_eq!(is_plain_name(name), is_taken, "{name:?}");
            let header = Header {
                backing: Some(name.to_string()),
                ..header()
            };
            if !name.is_empty() {
                assert_eq!(
                    Header::decode(&header.encode()).is_ok(),
                    is_taken,
                    "{name:?}"
                );
            }
        }
    }

    #[test]
    fn an_image_below_without_its_format_is_not_taken() {
        let header = Header {
            backing: Some("below".to_string()),
            ..header()
        };
        let mut bytes = header.encode();
        bytes[SHORT..SHORT + 4].copy_from_slice(&[1, 2, 3, 4]);
        assert!(Header::decode(&bytes).is_err());
        let mut bytes = header.encode();
        bytes[SHORT + 8] = b'r';
        assert!(Header::decode(&bytes).is_err());
    }
}
