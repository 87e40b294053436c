//! Reads the journal an earlier process left, and puts its end in order.
//!
//! Segments are read in order of their number: header, footer, and the points and gaps of the
//! index. Only the last segment may lack its footer: its frames are read, what is not whole is
//! cut off, and it is sealed. Anything else that is not as it was written is reported, and left as
//! it is.
//!
//! Invariant: doing it again finds the same and changes nothing. That also holds after a crash in
//! the middle: the cut comes first, and the footer last. What was found is on stable storage, also
//! where the sync that was to put it there had failed: it is written again and synced.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use super::catalog::{Catalog, JournalEnd, segment_path};
use super::scan::{PayloadCheck, ScanLimits, scan};
use super::seal::{Sealing, rewrite_up_to};
use super::segment::{Segment, read_index};
use crate::bounds::{BLOCK, COPY_PIECE};
use crate::clock::Timestamp;
use crate::error::{HarborError, Result};
use crate::format::{
    Broken, FOOTER_LEN, Footer, HEADER_LEN, Kind, RECORD_LEN, Record, SEGMENT_VERSION,
    SegmentHeader,
};
use crate::harbor::report::{Cut, RecoveryReport};
use crate::point::{Gap, GapReason, Grade, Point, PointId, Seq, XmlVersion};
use crate::storage::{OpenMode, Storage, StorageFile};

mod cold;

use cold::Found;

/// Recovers the journal in `dir`; adds to `report` what was found.
pub(crate) fn recover(
    storage: &dyn Storage,
    dir: &Path,
    machine_id: &str,
    report: &mut RecoveryReport,
) -> Result<Catalog> {
    let catalog = Catalog {
        segments: Vec::new(),
        points: Vec::new(),
        gaps: Vec::new(),
        end: JournalEnd::default(),
        cache: Arc::default(),
        failure: None,
    };
    let mut recovery = Recovery {
        storage,
        machine_id,
        catalog,
        chain: None,
        report,
    };
    // A name may have been given without getting to the disk.
    storage
        .sync_dir(dir)
        .map_err(|e| HarborError::storage("sync", dir, e))?;
    let found = recovery.find(dir)?;
    for (place, one) in found.iter().enumerate() {
        match one {
            Found::Segment(number) => {
                let is_last = place + 1 == found.len();
                recovery.segment(&segment_path(dir, *number), *number, is_last)?;
            }
            Found::Cold(ends) => recovery.cold(dir, ends)?,
        }
    }
    recovery.report.segments = found.len() as u64;
    recovery.report.head = recovery.catalog.end.last_seq;
    Ok(recovery.catalog)
}

struct Recovery<'a> {
    storage: &'a dyn Storage,
    machine_id: &'a str,
    catalog: Catalog,
    /// Hash that the next segment's header must name; none if that cannot be told.
    chain: Option<[u8; 32]>,
    report: &'a mut RecoveryReport,
}

/// A segment's file, with what could be read of its two ends.
struct Ends<'a> {
    path: &'a Path,
    number: u64,
    len: u64,
    file: Arc<dyn StorageFile>,
    /// The header's bytes, as they are.
    head: Vec<u8>,
    header: Result<SegmentHeader, Broken>,
    footer: Result<Footer, Broken>,
}

impl Recovery<'_> {
    fn segment(&mut self, path: &Path, number: u64, is_last: bool) -> Result<()> {
        let ends = read_ends(self.storage, path, number)?;
        self.check_header(&ends);
        let expected = self.catalog.end.last_seq.next();
        let recovered = match (&ends.header, &ends.footer) {
            (_, Ok(footer)) => {
                if is_last {
                    self.confirm_footer(&ends, footer)?;
                }
                self.sealed(&ends, *footer)
            }
            (Ok(header), Err(_)) if is_last => self.unsealed(&ends, header),
            (_, Err(broken)) => {
                self.damage(path, format!("it is not sealed: {broken}"));
                self.unreadable(&ends)
            }
        };
        let (segment, mut others) = recovered?;
        self.check_numbers(&segment, expected, path);
        others.sort_unstable_by_key(|record| record.seq);
        self.learn(path, &*ends.file, &others);
        if let Ok(header) = &ends.header {
            self.raise_end(
                Seq(header.first_seq.0.saturating_sub(1)),
                header.last_time,
                header.next_point,
            );
        }
        self.raise_end(segment.last_seq(), Timestamp(0), PointId(0));
        self.catalog.end.next_segment = number + 1;
        self.catalog.segments.push(Arc::new(segment));
        Ok(())
    }

    /// Checks that a header is there, is this machine's, and continues the chain.
    fn check_header(&mut self, ends: &Ends<'_>) {
        let header = match &ends.header {
            Ok(header) => header,
            Err(broken) => return self.damage(ends.path, broken.to_string()),
        };
        if header.machine_id != self.machine_id {
            self.damage(
                ends.path,
                format!("it belongs to machine {}", header.machine_id),
            );
        }
        self.check_place(ends.path, ends.number, &header.previous);
    }

    /// Checks that a segment follows on the one before it.
    fn check_place(&mut self, path: &Path, number: u64, previous: &[u8; 32]) {
        let missing = self.catalog.end.next_segment;
        if number != missing && !self.catalog.segments.is_empty() {
            self.damage(
                path,
                format!("segments from {missing} on are missing before it"),
            );
        } else if self.chain.is_some_and(|hash| hash != *previous) {
            self.damage(
                path,
                "it does not name the hash of the segment before it".into(),
            );
        }
    }

    fn check_numbers(&mut self, segment: &Segment, expected: Seq, path: &Path) {
        let found = segment.first_seq;
        if self.catalog.segments.is_empty() || found == expected {
            return;
        }
        let what = if found > expected {
            format!(
                "records {expected} to {} are missing before it",
                found.0 - 1
            )
        } else {
            format!("it starts with record {found}, which was there before")
        };
        self.damage(path, what);
    }

    /// Has the footer of the last segment on stable storage: its sync may have failed, and then it can
    /// be read and is not there. All before it was synced before it was written.
    fn confirm_footer(&self, ends: &Ends<'_>, footer: &Footer) -> Result<()> {
        let file = self
            .storage
            .open(ends.path, OpenMode::Write)
            .map_err(ends.failed("open"))?;
        file.write_at(
            &[IoSlice::new(&footer.encode())],
            ends.len - FOOTER_LEN as u64,
        )
        .map_err(ends.failed("write"))?;
        file.sync().map_err(ends.failed("sync"))
    }

    fn sealed(&mut self, ends: &Ends<'_>, footer: Footer) -> Result<(Segment, Vec<Record>)> {
        self.chain = Some(footer.hash);
        self.catalog.end.hash = footer.hash;
        self.raise_end(footer.last_seq, footer.last_time, footer.next_point);
        let segment = Segment::sealed(ends.number, ends.path.to_path_buf(), footer);
        let others = match read_others(ends, &footer) {
            Ok(others) => others,
            Err(HarborError::Damaged { what, .. }) => {
                self.damage(ends.path, format!("in the index: {what}"));
                self.scan_others(ends, footer.index_position)?
            }
            Err(error) => return Err(error),
        };
        Ok((segment, others))
    }

    /// Cuts what is not whole off the last segment and seals it.
    fn unsealed(
        &mut self,
        ends: &Ends<'_>,
        header: &SegmentHeader,
    ) -> Result<(Segment, Vec<Record>)> {
        let limits = ScanLimits {
            number: ends.number,
            end: ends.len,
            salt: Some(header.salt),
            first_seq: Some(header.first_seq),
        };
        let found = scan(&*ends.file, limits, PayloadCheck::Check).map_err(ends.failed("read"))?;
        let written =
            last_written(&*ends.file, found.end, ends.len).map_err(ends.failed("read"))?;
        let file = self
            .storage
            .open(ends.path, OpenMode::Write)
            .map_err(ends.failed("open"))?;
        if found.end < ends.len {
            file.set_len(found.end).map_err(ends.failed("cut"))?;
            file.sync().map_err(ends.failed("sync"))?;
        }
        rewrite_up_to(&*file, found.end).map_err(ends.failed("write"))?;
        let mut points = found
            .records
            .iter()
            .filter(|record| record.kind == Kind::Point);
        let sealing = Sealing {
            number: ends.number,
            salt: header.salt,
            first_seq: header.first_seq,
            next_point: points
                .next_back()
                .map_or(header.next_point, |r| PointId(r.offset + 1)),
            last_time: found
                .records
                .last()
                .map_or(header.last_time, |record| record.time),
            end: found.end,
        };
        let others = found
            .records
            .iter()
            .filter(|r| !r.kind.is_data())
            .copied()
            .collect();
        let seal = sealing.prepare(&ends.head, found.records);
        seal.write(&*file).map_err(ends.failed("seal"))?;
        let footer = seal.footer;
        self.report.cut = Some(Cut {
            segment: ends.number,
            last: footer.last_seq,
            bytes: written - found.end,
            why: found
                .stopped
                .filter(|_| written > found.end)
                .unwrap_or_else(|| "the recording was not closed".into()),
        });
        self.chain = Some(footer.hash);
        self.catalog.end.hash = footer.hash;
        self.raise_end(footer.last_seq, footer.last_time, footer.next_point);
        Ok((
            Segment::sealed(ends.number, ends.path.to_path_buf(), footer),
            others,
        ))
    }

    /// Takes what can be read of a segment that has lost an end, and leaves the file alone.
    fn unreadable(&mut self, ends: &Ends<'_>) -> Result<(Segment, Vec<Record>)> {
        self.chain = None;
        self.catalog.end.hash = [0; 32];
        let header = ends.header.as_ref().ok();
        let limits = ScanLimits {
            number: ends.number,
            end: ends.len,
            salt: header.map(|header| header.salt),
            first_seq: header.map(|header| header.first_seq),
        };
        let found = scan(&*ends.file, limits, PayloadCheck::Skip).map_err(ends.failed("read"))?;
        let first = found.records.first().map(|record| record.seq);
        let first = first.unwrap_or(self.catalog.end.last_seq.next());
        for record in &found.records {
            let next_point = if record.kind == Kind::Point {
                record.offset + 1
            } else {
                0
            };
            self.raise_end(record.seq, record.time, PointId(next_point));
        }
        let others = found
            .records
            .iter()
            .filter(|r| !r.kind.is_data())
            .copied()
            .collect();
        let path = ends.path.to_path_buf();
        Ok((
            Segment::in_memory(ends.number, path, first, found.records),
            others,
        ))
    }

    fn scan_others(&self, ends: &Ends<'_>, end: u64) -> Result<Vec<Record>> {
        let limits = ScanLimits {
            number: ends.number,
            end,
            salt: None,
            first_seq: None,
        };
        let found = scan(&*ends.file, limits, PayloadCheck::Skip).map_err(ends.failed("read"))?;
        Ok(found
            .records
            .into_iter()
            .filter(|record| !record.kind.is_data())
            .collect())
    }

    /// Adds the points and gaps of a segment to the catalog.
    fn learn(&mut self, path: &Path, file: &dyn StorageFile, others: &[Record]) {
        for record in others {
            match record.kind {
                Kind::Point if !self.follows(record) => {
                    let what = format!("point {} is not in order", record.offset);
                    self.damage(path, what);
                }
                Kind::Point => {
                    let label = self.label(path, file, record);
                    self.catalog.add_point(point(record, label));
                }
                Kind::GapOpen => self.catalog.add_gap(gap(record, None), Seq(record.length)),
                Kind::GapClose if self.catalog.open_gap().is_some() => {
                    self.catalog.close_gap(record.time);
                }
                // Its beginning is lost, and with it what it took back.
                Kind::GapClose => self.catalog.gaps.push(gap(record, Some(record.time))),
                _ => {}
            }
        }
    }

    /// Tells whether a point comes behind all points so far: they are looked up by that order.
    fn follows(&self, record: &Record) -> bool {
        self.catalog.points.last().is_none_or(|last| {
            last.id.0 < record.offset && last.seq < record.seq && last.time < record.time
        })
    }

    fn label(&mut self, path: &Path, file: &dyn StorageFile, record: &Record) -> Option<String> {
        if record.payload_length == 0 {
            return None;
        }
        let mut bytes = vec![0; record.payload_length as usize];
        let read = file.read_at(&mut bytes, record.payload_position);
        if read.is_err() || crc32c::crc32c(&bytes) != record.payload_crc {
            self.damage(
                path,
                format!("the label of point {} is lost", record.offset),
            );
            return None;
        }
        String::from_utf8(bytes).ok()
    }

    fn raise_end(&mut self, seq: Seq, time: Timestamp, next_point: PointId) {
        let end = &mut self.catalog.end;
        end.last_seq = end.last_seq.max(seq);
        end.last_time = end.last_time.max(time);
        end.next_point = end.next_point.max(next_point);
    }

    fn damage(&mut self, path: &Path, what: String) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.report.damage.push(format!("segment {name}: {what}"));
    }
}

impl Ends<'_> {
    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> HarborError {
        move |error| HarborError::storage(action, self.path, error)
    }
}

fn point(record: &Record, label: Option<String>) -> Point {
    Point {
        id: PointId(record.offset),
        time: record.time,
        seq: record.seq,
        grade: if record.detail == 1 {
            Grade::Quiesced
        } else {
            Grade::Crash
        },
        label,
        xml: (record.xml > 0).then_some(XmlVersion(record.xml)),
        locked: false,
        damaged: false,
    }
}

fn gap(record: &Record, end: Option<Timestamp>) -> Gap {
    Gap {
        start: Timestamp(record.offset),
        end,
        reason: GapReason::from_code(record.detail),
    }
}

/// Returns where the zeros begin that a file ends with from `from` on: room that was reserved and never written.
fn last_written(file: &dyn StorageFile, from: u64, len: u64) -> io::Result<u64> {
    let mut piece = vec![0; COPY_PIECE];
    let (mut at, mut written) = (from, from);
    while at < len {
        let want = (len - at).min(COPY_PIECE as u64) as usize;
        let bytes = piece.get_mut(..want).unwrap_or_default();
        file.read_at(bytes, at)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            written = (at + last as u64 + 1).next_multiple_of(BLOCK as u64);
        }
        at += want as u64;
    }
    Ok(written.min(len))
}

/// Reads a segment's header and footer.
fn read_ends<'a>(storage: &dyn Storage, path: &'a Path, number: u64) -> Result<Ends<'a>> {
    let failed = |action| move |e| HarborError::storage(action, path, e);
    let file = storage.open(path, OpenMode::Read).map_err(failed("open"))?;
    let len = file.length().map_err(failed("read"))?;
    let (mut head, mut bytes) = (vec![0; HEADER_LEN], vec![0; FOOTER_LEN]);
    let mut header = Err(Broken::Magic("segment header"));
    let mut footer = Err(Broken::Magic("footer"));
    if len >= HEADER_LEN as u64 {
        file.read_at(&mut head, 0).map_err(failed("read"))?;
        header = SegmentHeader::decode(&head);
    }
    if len >= (HEADER_LEN + FOOTER_LEN) as u64 {
        file.read_at(&mut bytes, len - FOOTER_LEN as u64)
            .map_err(failed("read"))?;
        footer = Footer::decode(&bytes, len);
    }
    for broken in [header.as_ref().err(), footer.as_ref().err()] {
        if let Some(Broken::Version(found)) = broken {
            let path = path.to_path_buf();
            return Err(HarborError::UnknownVersion {
                path,
                found: *found,
                known: SEGMENT_VERSION,
            });
        }
    }
    if header.as_ref().is_ok_and(|header| header.number != number) {
        header = Err(Broken::Field("the number of the segment"));
    }
    let salt = header.as_ref().ok().map(|header| header.salt);
    let fits = |f: &Footer| f.segment == number && salt.is_none_or(|salt| salt == f.salt);
    if footer.as_ref().is_ok_and(|footer| !fits(footer)) {
        footer = Err(Broken::Field("the segment of the footer"));
    }
    Ok(Ends {
        path,
        number,
        len,
        file,
        head,
        header,
        footer,
    })
}

/// Reads the part of the index that does not change volumes.
fn read_others(ends: &Ends<'_>, footer: &Footer) -> Result<Vec<Record>> {
    let data_only = Footer {
        other_records: 0,
        ..*footer
    };
    let others_only = Footer {
        data_records: 0,
        index_position: footer.index_position + data_only.index_len(),
        ..*footer
    };
    let bytes = read_index(ends.path, &*ends.file, &others_only)?;
    let within = footer.first_seq..=footer.last_seq;
    let records = bytes.chunks_exact(RECORD_LEN).map(|bytes| {
        let record = Record::decode(bytes)?;
        // An index that was written to a wrong place has good records where others should be.
        match within.contains(&record.seq) && !record.kind.is_data() {
            true => Ok(record),
            false => Err(Broken::Field("the place of a record")),
        }
    });
    let records: Result<Vec<Record>, Broken> = records.collect();
    records.map_err(|broken| HarborError::damaged(ends.path, broken.to_string()))
}
