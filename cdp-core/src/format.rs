//! The bytes of a segment, and of the hashes beside a layer, as `FORMAT.md` has them.
//!
//! Each structure is a chain of [`Field`]s; a test ties every chain to its table in the document.
//! Encoding cannot fail; decoding takes foreign bytes and says what is [`Broken`] about them.

use std::fmt;

mod field;

mod cold;
mod footer;
mod frame;
mod hashes;
mod header;
mod record;

pub use cold::{
    COLD_END_LEN, COLD_ENTRY_LEN, COLD_FOOTER_FIELDS, COLD_HEADER_FIELDS, COLD_VERSION, ColdFooter,
    ColdHeader,
};
pub use field::Field;
pub use footer::{FOOTER_FIELDS, FOOTER_LEN, Footer};
pub use frame::{FRAME_FIELDS, FRAME_HEADER_LEN, FrameHeader, table_len};
pub use hashes::{
    HASH_LEN, HASHES_ENTRY_FIELDS, HASHES_ENTRY_LEN, HASHES_FIELDS, HASHES_HEADER_LEN, HashesEntry,
    HashesHeader,
};
pub use header::{HEADER_FIELDS, HEADER_LEN, SegmentHeader};
pub use record::{Kind, NO_VOLUME, RECORD_FIELDS, RECORD_LEN, Record};

/// Version of the segment format that is written; older ones are read.
pub const SEGMENT_VERSION: u32 = 2;
/// Version whose footer's hash covers all bytes of the segment, payloads among them.
pub const SEGMENT_VERSION_ALL_HASHED: u32 = 1;

/// Tells whether a version of the segment format is known.
fn is_known(version: u32) -> bool {
    (SEGMENT_VERSION_ALL_HASHED..=SEGMENT_VERSION).contains(&version)
}

/// Random bytes that bind header, frames and footer of a segment together.
pub type Salt = [u8; 16];

/// Tells what is wrong with bytes that should have been a structure of the format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// They do not start as such a structure does.
    Magic(&'static str),
    /// They are of a version that is not known.
    Version(u32),
    /// Their checksum is wrong.
    Checksum(&'static str),
    /// A field has a value that it cannot have there.
    Field(&'static str),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Magic(what) => write!(f, "there is no {what}"),
            Broken::Version(version) => write!(f, "version {version} is not known"),
            Broken::Checksum(what) => write!(f, "the checksum of the {what} is wrong"),
            Broken::Field(what) => write!(f, "{what} has an impossible value"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows `(offset, bytes, name)` of the table that follows a marker in `FORMAT.md`.
    fn table(marker: &str) -> Vec<(usize, usize, String)> {
        let text = include_str!("../FORMAT.md");
        let marker = format!("<!-- layout: {marker} -->");
        let lines = text.lines().skip_while(|line| *line != marker).skip(4);
        lines
            .take_while(|line| line.starts_with('|'))
            .map(|line| {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                (
                    cells[1].parse().unwrap(),
                    cells[2].parse().unwrap(),
                    cells[3].to_string(),
                )
            })
            .collect()
    }

    #[test]
    fn the_document_and_the_program_have_the_same_bytes() {
        let layouts: [(&str, &[Field], usize); 8] = [
            ("segment header", HEADER_FIELDS, HEADER_LEN),
            ("frame header", FRAME_FIELDS, FRAME_HEADER_LEN),
            ("record", RECORD_FIELDS, RECORD_LEN),
            ("footer", FOOTER_FIELDS, FOOTER_LEN),
            ("cold header", COLD_HEADER_FIELDS, COLD_END_LEN),
            ("cold footer", COLD_FOOTER_FIELDS, COLD_END_LEN),
            ("hashes header", HASHES_FIELDS, HASHES_HEADER_LEN),
            ("hashes entry", HASHES_ENTRY_FIELDS, HASHES_ENTRY_LEN),
        ];
        for (name, fields, len) in layouts {
            let program: Vec<_> = fields
                .iter()
                .map(|f| (f.at, f.len, f.name.to_string()))
                .collect();
            assert_eq!(table(name), program, "{name}");
            let last = fields.last().unwrap();
            assert_eq!(last.at + last.len, len, "{name}");
        }
    }

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
