//! Cold segments: what stands for sealed segments behind the newest base point.
//!
//! A cold segment holds the records of one or more segments, without those that no kept point shows, and their
//! payloads in order of volume and offset, compressed block by block. [`ColdFile`] is the door through which it is read:
//! it shows the payloads, and behind them the index, as if they had never been compressed, so whoever reads a
//! segment need not know. [`compact`] makes one out of others: [`choose`] says of which, [`thin`] which records are
//! left out, [`write`] puts it on the disk. [`estimate`] says beforehand what that would free.
//!
//! Invariant: a cold segment never changes. It shows every kept point as the segments did that it stands for.
//! A crash leaves an unfinished `.part`, or, once it has its name, some of the files that it stands for; both are
//! removed when the harbor is opened.

pub(crate) mod compact;
pub(crate) mod estimate;

mod choose;
mod file;
mod thin;
mod write;

pub(crate) use file::{BlockCache, ColdFile, Entry};

use std::io;
use std::path::{Path, PathBuf};

use crate::format::{Broken, COLD_END_LEN, ColdFooter, ColdHeader, Footer, SEGMENT_VERSION, Salt};
use crate::storage::StorageFile;

/// Returns the path of a cold segment that stands for segments `first` to `last`.
pub(crate) fn cold_path(journal_dir: &Path, first: u64, last: u64) -> PathBuf {
    journal_dir.join(format!("{first:012}-{last:012}.cold"))
}

/// Returns the numbers of the first and last segment that the file of that name stands for.
pub(crate) fn cold_range(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.strip_suffix(".cold")?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let is_name = format!("{first:012}-{last:012}.cold") == name;
    (is_name && 0 < first && first <= last).then_some((first, last))
}

/// Reads both ends of a cold segment.
///
/// # Errors
/// The storage failed, or says inside what is broken.
pub(crate) fn read_ends(
    file: &dyn StorageFile,
) -> io::Result<Result<(ColdHeader, ColdFooter), Broken>> {
    let len = file.length()?;
    if len < 2 * COLD_END_LEN as u64 {
        return Ok(Err(Broken::Field("the length of a cold segment")));
    }
    let mut bytes = vec![0; COLD_END_LEN];
    file.read_at(&mut bytes, 0)?;
    let header = match ColdHeader::decode(&bytes) {
        Ok(header) => header,
        Err(broken) => return Ok(Err(broken)),
    };
    file.read_at(&mut bytes, len - COLD_END_LEN as u64)?;
    Ok(ColdFooter::decode(&bytes, len).and_then(|footer| {
        match (header.first, header.last) == (footer.first, footer.last) {
            true => Ok((header, footer)),
            false => Err(Broken::Field("the range of a cold segment")),
        }
    }))
}

/// Returns the footer that a segment would have that looks as [`ColdFile`] shows a cold one.
pub(crate) fn shown_footer(footer: &ColdFooter) -> Footer {
    Footer {
        version: SEGMENT_VERSION,
        salt: Salt::default(),
        segment: footer.first,
        index_position: footer.space,
        data_records: footer.data_records,
        other_records: footer.other_records,
        first_seq: footer.first_seq,
        last_seq: footer.last_seq,
        next_point: footer.next_point,
        last_time: footer.last_time,
        index_crc: footer.index_crc,
        hash: footer.chain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_taken_only_as_they_are_written() {
        for (name, range) in [
            ("000000000001-000000000001.cold", Some((1, 1))),
            ("000000000003-000000000012.cold", Some((3, 12))),
            ("000000000012-000000000003.cold", None),
            ("000000000000-000000000003.cold", None),
            ("1-3.cold", None),
            ("000000000001-000000000001.cold.part", None),
        ] {
            assert_eq!(cold_range(name), range, "{name}");
        }
        assert!(cold_path(Path::new("j"), 1, 2).ends_with("000000000001-000000000002.cold"));
    }
}
