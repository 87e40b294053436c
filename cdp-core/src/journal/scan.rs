//! Reads the frames of a segment from the front, as far as they are whole.

use std::io;

use crate::bounds::{BLOCK, FRAME_RECORDS_MAX};
use crate::format::{Broken, FrameHeader, HEADER_LEN, Record, Salt, table_len};
use crate::point::Seq;
use crate::storage::StorageFile;

/// Tells whether payloads are read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PayloadCheck {
    /// A frame with a payload whose checksum is wrong is not whole.
    Check,
    /// Payloads are not looked at.
    Skip,
}

/// What the frames must fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScanLimits {
    pub(crate) number: u64,
    pub(crate) end: u64,
    /// The segment's salt; that of the first frame if none.
    pub(crate) salt: Option<Salt>,
    /// Number of the first record; that of the first frame if none.
    pub(crate) first_seq: Option<Seq>,
}

/// What a scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// All records of whole frames, in order.
    pub(crate) records: Vec<Record>,
    /// End of the last whole frame, in bytes.
    pub(crate) end: u64,
    /// Why the scan ended before the limit.
    pub(crate) stopped: Option<String>,
}

enum Stop {
    Broken(Broken),
    Payload(Seq),
    Short,
    Io(io::Error),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Stop {
        Stop::Broken(broken)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Stop::Short,
            _ => Stop::Io(error),
        }
    }
}

/// Reads frames up to the first that is not whole, or to the limit.
pub(crate) fn scan(
    file: &dyn StorageFile,
    mut limits: ScanLimits,
    check: PayloadCheck,
) -> io::Result<Scan> {
    let mut found = Scan {
        records: Vec::new(),
        end: HEADER_LEN as u64,
        stopped: None,
    };
    while found.end < limits.end {
        match read_frame(file, &limits, found.end, check) {
            Ok((header, records)) => {
                limits.salt = Some(header.salt);
                limits.first_seq = records.last().map(|record| record.seq.next());
                found.end += header.length;
                found.records.extend_from_slice(&records);
            }
            Err(Stop::Io(error)) => return Err(error),
            Err(stop) => {
                let why = match stop {
                    Stop::Broken(broken) => broken.to_string(),
                    Stop::Payload(seq) => {
                        format!("the checksum of record {seq}'s payload is wrong")
                    }
                    _ => "the file ends within a frame".to_string(),
                };
                found.stopped = Some(format!("at byte {}: {why}", found.end));
                break;
            }
        }
    }
    Ok(found)
}

fn read_frame(
    file: &dyn StorageFile,
    limits: &ScanLimits,
    position: u64,
    check: PayloadCheck,
) -> Result<(FrameHeader, Vec<Record>), Stop> {
    let room = usize::try_from(limits.end - position).unwrap_or(usize::MAX);
    let mut table = vec![0; room.min(table_len(FRAME_RECORDS_MAX)).min(BLOCK)];
    file.read_at(&mut table, position)?;
    let header = FrameHeader::decode(&table)?;
    let fits = header.position == position
        && header.segment == limits.number
        && limits.salt.is_none_or(|salt| salt == header.salt)
        && limits.first_seq.is_none_or(|seq| seq == header.first_seq);
    if !fits {
        return Err(Stop::Broken(Broken::Field("the header of a frame")));
    }
    if header.length > limits.end - position {
        return Err(Stop::Short);
    }
    if table.len() < table_len(header.records) {
        table.resize(table_len(header.records), 0);
        file.read_at(&mut table, position)?;
    }
    let records = header.decode_table(&table)?;
    if check == PayloadCheck::Check {
        check_payloads(file, &records)?;
    }
    Ok((header, records))
}

fn check_payloads(file: &dyn StorageFile, records: &[Record]) -> Result<(), Stop> {
    let mut payload = Vec::new();
    for record in records.iter().filter(|record| record.payload_length > 0) {
        payload.resize(record.payload_length as usize, 0);
        file.read_at(&mut payload, record.payload_position)?;
        if crc32c::crc32c(&payload) != record.payload_crc {
            return Err(Stop::Payload(record.seq));
        }
    }
    Ok(())
}
