//! Checks the payloads of a segment while its bytes go by, in whatever order their records are.
//!
//! What lies between payloads is padding, and must be zeros: so every byte is looked at.

use std::ops::Range;

use crate::format::Record;

/// The payloads of a segment, checked from front to back.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// Those that have one, by its place.
    records: Vec<Record>,
    next: usize,
    /// Of the bytes of the next one so far.
    crc: u32,
    /// Some of its bytes could not be had.
    is_torn: bool,
    at: u64,
    /// Whose payload is not what was written.
    pub(super) lost: Vec<Record>,
    /// Where padding is not zeros.
    pub(super) padding: Option<Range<u64>>,
}

impl Sums {
    /// Begins at byte `at`, with all records that are known.
    pub(super) fn new(at: u64, records: &[Record]) -> Sums {
        let mut sums = Sums {
            at,
            ..Sums::default()
        };
        sums.add(records);
        sums
    }

    /// Takes records whose payloads lie ahead, behind those of all taken so far.
    pub(super) fn add(&mut self, records: &[Record]) {
        self.records.drain(..self.next);
        self.next = 0;
        let with_payload = records.iter().filter(|one| one.payload_length > 0);
        self.records.extend(with_payload);
        self.records
            .sort_unstable_by_key(|one| one.payload_position);
    }

    /// Tells whether the next bytes are a payload's, and how many of them are alike.
    pub(super) fn ahead(&self) -> (bool, u64) {
        let Some(next) = self.records.get(self.next) else {
            return (false, u64::MAX);
        };
        let end = next.payload_position + u64::from(next.payload_length);
        match next.payload_position.checked_sub(self.at) {
            None | Some(0) => (true, end.saturating_sub(self.at).max(1)),
            Some(before) => (false, before),
        }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.go_over(bytes.len() as u64, Some(bytes));
    }

    /// Passes over bytes that could not be had.
    pub(super) fn skip(&mut self, len: u64) {
        self.go_over(len, None);
    }

    /// Ends; what was not reached is lost.
    pub(super) fn finish(&mut self) {
        let left = self.records.get(self.next..).unwrap_or_default();
        self.lost.extend_from_slice(left);
        self.next = self.records.len();
    }

    fn go_over(&mut self, len: u64, bytes: Option<&[u8]>) {
        let (from, end) = (self.at, self.at + len);
        while self.at < end {
            let at = self.at;
            let record = self.records.get(self.next).copied();
            let begin = record.map_or(u64::MAX, |one| one.payload_position);
            let stop = match record {
                Some(one) if begin <= at => {
                    begin.saturating_add(u64::from(one.payload_length)).min(end)
                }
                _ => begin.min(end),
            };
            let stop = stop.max(at);
            let part = bytes.map(|bytes| {
                let range = (at - from) as usize..(stop - from) as usize;
                bytes.get(range).unwrap_or_default()
            });
            match (record.filter(|_| begin <= at), part) {
                (Some(one), Some(part)) => {
                    self.crc = crc32c::crc32c_append(self.crc, part);
                    self.end_payload(&one, stop);
                }
                (Some(one), None) => {
                    self.is_torn = true;
                    self.end_payload(&one, stop);
                }
                (None, Some(part)) if part.iter().any(|byte| *byte != 0) => {
                    self.note_padding(at..stop);
                }
                (None, _) => {}
            }
            self.at = stop;
        }
    }

    fn end_payload(&mut self, record: &Record, reached: u64) {
        let end = record.payload_position + u64::from(record.payload_length);
        if reached < end {
            return;
        }
        if self.is_torn || self.crc != record.payload_crc {
            self.lost.push(*record);
        }
        (self.crc, self.is_torn) = (0, false);
        self.next += 1;
        // Two that lie over each other: no segment has that.
        while let Some(next) = self.records.get(self.next)
            && next.payload_position < reached
        {
            self.lost.push(*next);
            self.next += 1;
        }
    }

    fn note_padding(&mut self, range: Range<u64>) {
        self.padding = match self.padding.take() {
            Some(known) => Some(known.start..range.end),
            None => Some(range),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::format::Kind;
    use crate::machine::VolumeId;
    use crate::point::Seq;

    fn record(seq: u64, place: u64, bytes: &[u8]) -> Record {
        Record {
            seq: Seq(seq),
            time: Timestamp(0),
            offset: 0,
            length: bytes.len() as u64,
            payload_position: place,
            payload_length: bytes.len() as u32,
            payload_crc: crc32c::crc32c(bytes),
            volume: VolumeId(0),
            kind: Kind::Write,
            detail: 0,
            xml: 0,
        }
    }

    fn lost(sums: &Sums) -> Vec<u64> {
        sums.lost.iter().map(|one| one.seq.0).collect()
    }

    #[test]
    fn every_byte_belongs_to_a_payload_or_is_zero_however_the_pieces_fall() {
        let mut bytes = vec![0; 4096];
        bytes[512..1100].fill(1);
        bytes[1536..2048].fill(2);
        bytes[2048..2060].fill(3);
        let records = [
            record(3, 2048, &bytes[2048..2060]),
            record(1, 512, &bytes[512..1100]),
            record(2, 1536, &bytes[1536..2048]),
        ];
        let look = |bytes: &[u8], piece: usize| {
            let mut sums = Sums::new(0, &records);
            bytes.chunks(piece).for_each(|piece| sums.feed(piece));
            sums.finish();
            (lost(&sums), sums.padding)
        };
        for piece in [1, 7, 512, 5000] {
            assert_eq!(look(&bytes, piece), (vec![], None), "{piece}");
        }
        for at in 0..4096 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            let expected = match at {
                512..1100 => vec![1],
                1536..2048 => vec![2],
                2048..2060 => vec![3],
                _ => vec![],
            };
            let (lost, padding) = look(&bytes, 1000);
            assert_eq!(lost, expected, "{at}");
            let is_in = padding.is_some_and(|range| range.contains(&(at as u64)));
            assert_eq!(is_in, expected.is_empty(), "{at}");
        }
    }

    #[test]
    fn what_cannot_be_had_costs_what_it_touches() {
        let bytes = [7; 512];
        let records = [0, 512, 1024].map(|at| record(at, at, &bytes));
        let mut sums = Sums::new(0, &records);
        sums.feed(&bytes);
        sums.feed(&bytes[..100]);
        sums.skip(500);
        sums.feed(&[7; 424]);
        sums.finish();
        assert_eq!(lost(&sums), [512, 1024]);
        let mut sums = Sums::new(0, &records);
        sums.feed(&bytes);
        sums.finish();
        assert_eq!(lost(&sums), [512, 1024], "what is behind the end");
    }
}
