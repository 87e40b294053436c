//! Verifies one sealed segment: both ends, the index, every frame and every payload, in one pass from front to back.
//!
//! Records are in the frames and in the index; one of the two suffices to find them. What is broken of both costs the
//! records between them; a payload that is broken costs its record.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::thread;

use super::stream::Stream;
use super::sums::Sums;
use super::{Found, Lost, Teller};
use crate::bounds::{BLOCK, FRAME_RECORDS_MAX};
use crate::error::{HarborError, Result};
use crate::format::{
    FOOTER_LEN, FRAME_HEADER_LEN, Footer, FrameHeader, HEADER_LEN, RECORD_LEN, Record,
    SEGMENT_VERSION_ALL_HASHED, SegmentHeader, table_len,
};
use crate::point::Seq;
use crate::storage::StorageFile;

/// What a segment is expected to be.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) number: u64,
    pub(super) machine_id: String,
    /// Its records, as the catalog has them.
    pub(super) first: Seq,
    pub(super) last: Seq,
    /// The hash its header is to name; none if that is not known.
    pub(super) previous: Option<[u8; 32]>,
}

/// Reads all of a segment; what is wrong goes into `found`.
pub(super) fn check(
    path: &Path,
    file: &dyn StorageFile,
    expected: &Expected,
    found: &mut Found,
    teller: &mut Teller<'_, '_>,
) -> Result<()> {
    let failed = |e: io::Error| HarborError::storage("read", path, e);
    let len = file.length().map_err(failed)?;
    if len < (HEADER_LEN + FOOTER_LEN) as u64 {
        found.add(0..len, "it is too short", expected.all());
        return Ok(());
    }
    let mut check = Check::begin(file, len, expected, found)?;
    thread::scope(|scope| {
        let hashed = len - (FOOTER_LEN - 4060) as u64;
        let mut stream = Stream::new(scope, file, 0..len, hashed);
        let head = stream.look(HEADER_LEN, teller)?.to_vec();
        check.header(&head, found);
        stream.pass(HEADER_LEN as u64, teller)?;
        check.frames(&mut stream, found, teller)?;
        for (range, why) in std::mem::take(&mut stream.unreadable) {
            found.add(range, &format!("it cannot be read: {why}"), Lost::Nothing);
        }
        let hash = stream.finish(teller)?;
        check.end(&head, hash, found);
        Ok(())
    })
}

impl Expected {
    /// All of its records.
    fn all(&self) -> Lost {
        Lost::Records {
            first: self.first,
            last: self.last,
        }
    }
}

struct Check<'a> {
    expected: &'a Expected,
    len: u64,
    footer: Option<Footer>,
    /// Where frames end.
    end: u64,
    /// The index with its padding, if it can be had.
    padded: Vec<u8>,
    /// Its records, by number; none if it is broken.
    index: Option<HashMap<Seq, Record>>,
    sums: Sums,
    salt: Option<[u8; 16]>,
}

impl<'a> Check<'a> {
    /// Reads the footer and the index, which say what the frames are to have.
    fn begin(
        file: &dyn StorageFile,
        len: u64,
        expected: &'a Expected,
        found: &mut Found,
    ) -> Result<Check<'a>> {
        let foot_at = len - FOOTER_LEN as u64;
        let mut bytes = vec![0; FOOTER_LEN];
        let read = file.read_at(&mut bytes, foot_at);
        let footer = read.map_err(|e| e.to_string()).and_then(|()| {
            let footer = Footer::decode(&bytes, len).map_err(|broken| broken.to_string())?;
            match footer.segment == expected.number {
                true => Ok(footer),
                false => Err("it is that of another segment".to_string()),
            }
        });
        let mut check = Check {
            expected,
            len,
            end: footer
                .as_ref()
                .map_or(foot_at, |footer| footer.index_position),
            footer: None,
            padded: Vec::new(),
            index: None,
            sums: Sums::default(),
            salt: None,
        };
        match footer {
            Ok(footer) => {
                check.footer = Some(footer);
                check.salt = Some(footer.salt);
                check.read_index(file, &footer, found);
            }
            Err(why) => found.add(foot_at..len, &format!("its footer: {why}"), Lost::Nothing),
        }
        let records: Vec<Record> = check.index.iter().flatten().map(|(_, one)| *one).collect();
        check.sums = Sums::new(HEADER_LEN as u64, &records);
        Ok(check)
    }

    fn read_index(&mut self, file: &dyn StorageFile, footer: &Footer, found: &mut Found) {
        let place = footer.index_position..self.len - FOOTER_LEN as u64;
        let mut bytes = vec![0; (place.end - place.start) as usize];
        let index_len = footer.index_len() as usize;
        let read = file.read_at(&mut bytes, place.start);
        let records = read.map_err(|e| e.to_string()).and_then(|()| {
            let (index, padding) = bytes.split_at_checked(index_len).unwrap_or_default();
            if padding.iter().any(|byte| *byte != 0) {
                let behind = place.end - padding.len() as u64..place.end;
                found.add(behind, "padding of its index is not zeros", Lost::Nothing);
            }
            if crc32c::crc32c(index) != footer.index_crc {
                return Err("its checksum is wrong".to_string());
            }
            let records = index.chunks_exact(RECORD_LEN).map(Record::decode);
            let records: Result<Vec<Record>, _> = records.collect();
            let records = records.map_err(|broken| broken.to_string())?;
            let key = |one: &Record| {
                let is_data = one.kind.is_data();
                let place = if is_data {
                    (one.volume.0, one.offset)
                } else {
                    (0, 0)
                };
                (!is_data, place, one.seq)
            };
            match records.is_sorted_by_key(key) {
                true => Ok(records),
                false => Err("it is not sorted".to_string()),
            }
        });
        match records {
            Ok(records) => {
                let by_seq = records.into_iter().map(|one| (one.seq, one));
                self.index = Some(by_seq.collect());
            }
            Err(why) => found.add(place, &format!("its index: {why}"), Lost::Nothing),
        }
        self.padded = bytes;
    }

    fn header(&mut self, head: &[u8], found: &mut Found) {
        let header = match SegmentHeader::decode(head) {
            Ok(header) => header,
            Err(broken) => {
                found.add(0..HEADER_LEN as u64, &broken.to_string(), Lost::Nothing);
                return;
            }
        };
        let expected = self.expected;
        let fits = [
            (
                header.number == expected.number,
                "its header is that of another segment",
            ),
            (
                header.machine_id == expected.machine_id,
                "it belongs to another machine",
            ),
            (
                self.salt.is_none_or(|salt| salt == header.salt),
                "its header and its footer do not belong together",
            ),
            (
                expected.previous.is_none_or(|hash| hash == header.previous),
                "it does not name the hash of the segment before it",
            ),
        ];
        for (fits, what) in fits {
            if !fits {
                found.add(0..HEADER_LEN as u64, what, Lost::Nothing);
            }
        }
        self.salt = self.salt.or(Some(header.salt));
    }

    /// Goes over all frames.
    fn frames(
        &mut self,
        stream: &mut Stream<'_>,
        found: &mut Found,
        teller: &mut Teller<'_, '_>,
    ) -> Result<()> {
        let mut next = self.expected.first;
        let mut broken_from = None;
        while stream.at() < self.end {
            // Without a footer it is not said where the index begins: behind the last record.
            if self.footer.is_none() && next > self.expected.last {
                break;
            }
            let at = stream.at();
            match self.frame(stream, at, teller)? {
                Ok((header, records)) => {
                    if let Some(from) = broken_from.take() {
                        self.add_broken(from..at, next, header.first_seq, found);
                    } else if header.first_seq != next {
                        self.add_broken(at..at + BLOCK as u64, next, header.first_seq, found);
                    }
                    next = records.last().map_or(next, |last| last.seq.next());
                    self.compare(at, &records, found);
                    if self.index.is_none() {
                        self.sums.add(&records);
                    }
                    let table = (FRAME_HEADER_LEN + records.len() * RECORD_LEN) as u64;
                    self.sums.skip(table);
                    stream.pass(table, teller)?;
                    self.feed(stream, header.length - table, teller)?;
                }
                Err(why) => {
                    if broken_from.is_none() {
                        let end = at + table_len(1) as u64;
                        found.add(at..end, &format!("a frame: {why}"), Lost::Nothing);
                        broken_from = Some(at);
                    }
                    self.pass_broken(stream, teller)?;
                }
            }
        }
        if let Some(from) = broken_from {
            self.add_broken(from..self.end, next, self.expected.last.next(), found);
        } else if next != self.expected.last.next() && self.footer.is_some() {
            self.add_broken(self.end..self.end, next, self.expected.last.next(), found);
        }
        Ok(())
    }

    /// Looks at a frame's header and table.
    fn frame(
        &self,
        stream: &mut Stream<'_>,
        at: u64,
        teller: &mut Teller<'_, '_>,
    ) -> Result<Result<(FrameHeader, Vec<Record>), String>> {
        let bytes = stream.look(table_len(FRAME_RECORDS_MAX), teller)?;
        let header = match FrameHeader::decode(bytes) {
            Ok(header) => header,
            Err(broken) => return Ok(Err(broken.to_string())),
        };
        let fits = header.position == at
            && header.segment == self.expected.number
            && self.salt.is_none_or(|salt| salt == header.salt)
            && header.length <= self.end - at;
        if !fits {
            return Ok(Err("its header does not belong there".to_string()));
        }
        let records = header.decode_table(bytes);
        Ok(records
            .map(|records| (header, records))
            .map_err(|broken| broken.to_string()))
    }

    /// Takes the rest of a block of a frame that is broken: payloads the index knows of are checked nevertheless.
    fn pass_broken(&mut self, stream: &mut Stream<'_>, teller: &mut Teller<'_, '_>) -> Result<()> {
        let mut left = (BLOCK as u64).min(self.end - stream.at());
        while left > 0 {
            // What no payload has may be part of a table: it is not known how long that is.
            let (is_payload, run) = self.sums.ahead();
            let bytes = stream.take(left.min(run), teller)?;
            let len = bytes.len() as u64;
            if len == 0 {
                break;
            }
            match is_payload {
                true => self.sums.feed(bytes),
                false => self.sums.skip(len),
            }
            left -= len.min(left);
        }
        Ok(())
    }

    fn feed(
        &mut self,
        stream: &mut Stream<'_>,
        len: u64,
        teller: &mut Teller<'_, '_>,
    ) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let bytes = stream.take(left, teller)?;
            if bytes.is_empty() {
                break;
            }
            left -= bytes.len() as u64;
            self.sums.feed(bytes);
        }
        Ok(())
    }

    /// Compares the records of a frame with those of the index.
    fn compare(&mut self, at: u64, records: &[Record], found: &mut Found) {
        let Some(index) = &self.index else {
            return;
        };
        let differs = |one: &&Record| index.get(&one.seq) != Some(one);
        if let Some(record) = records.iter().find(differs) {
            let what = format!("its index and its frames differ in record {}", record.seq);
            let lost = Lost::Records {
                first: record.seq,
                last: record.seq,
            };
            found.add(at..at + BLOCK as u64, &what, lost);
        }
    }

    /// Notes records that no frame has.
    fn add_broken(
        &mut self,
        place: std::ops::Range<u64>,
        first: Seq,
        behind: Seq,
        found: &mut Found,
    ) {
        if self.index.is_some() || first >= behind {
            return;
        }
        // Whoever looks for records here finds neither an index nor all frames.
        let last = Seq(behind.0.saturating_sub(1));
        let what = format!("records {first} to {last} are neither in its index nor in its frames");
        let lost = match self.footer {
            Some(_) => self.expected.all(),
            // Frames are read up to the first that is broken.
            None => Lost::Records {
                first,
                last: self.expected.last,
            },
        };
        found.add(place, &what, lost);
    }

    fn end(&mut self, head: &[u8], hash: [u8; 32], found: &mut Found) {
        self.sums.finish();
        for record in &self.sums.lost {
            found.add_record(record);
        }
        if let Some(range) = self.sums.padding.take() {
            found.add(range, "padding is not zeros", Lost::Nothing);
        }
        let Some(footer) = self.footer else {
            return;
        };
        let (right, what) = match footer.version {
            SEGMENT_VERSION_ALL_HASHED => (hash, "the hash of all its bytes is wrong"),
            _ => (
                footer.chain_hash(head, &self.padded),
                "the hash of its header and its index is wrong",
            ),
        };
        if right != footer.hash && found.is_empty() {
            found.add(self.len - FOOTER_LEN as u64..self.len, what, Lost::Nothing);
        }
    }
}
