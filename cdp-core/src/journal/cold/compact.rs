//! Makes one cold segment out of others, and puts it in their place.
//!
//! All records of the sources are read into memory, which is bounded by what [`choose`](super::choose) takes; payloads
//! go through it one at a time, in order of volume and offset, and each is compared with its checksum. The new file is on
//! stable storage before it gets its name, and has its name there before the first source is removed.
//!
//! Invariant: at every moment the catalog has either all sources or what stands for them. Views that are open keep the
//! files of the sources open. A source that is damaged is left as it is.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};

use super::choose::{Candidate, choose};
use super::cold_path;
use super::thin::{Sourced, thin};
use super::write::ColdWriter;
use crate::clock::Timestamp;
use crate::error::{HarborError, Result};
use crate::format::{ColdFooter, ColdHeader, Kind};
use crate::harbor::shared::Shared;
use crate::journal::segment::Segment;
use crate::machine::VolumeId;
use crate::point::{PointId, Seq};
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::storage::{OpenMode, StorageFile};

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Files that are gone.
    pub files: usize,
    /// Bytes they had.
    pub bytes_before: u64,
    /// Bytes of what stands for them now.
    pub bytes_after: u64,
    /// Records of theirs that no kept point shows.
    pub dropped: u64,
}

/// Called with the bytes that were read since the last call; ends the work by breaking.
pub(crate) type Control<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Makes the next cold segment; none if nothing is worth it.
pub(crate) fn compact(shared: &Shared, control: Control<'_>) -> Result<Option<Compacted>> {
    // A layer is built of records that its point shows: that point must not go out from under it.
    let _turn = shared.claim_layers()?;
    let kept = shared.kept_points();
    let Some(sources) = sources(shared, &kept)? else {
        return Ok(None);
    };
    let mut work = Work::open(shared, sources, kept)?;
    let done = work.write(shared, control);
    if !matches!(done, Ok(Some(_))) {
        let part = part_of(&work.path);
        let _ = remove_if_there(&*shared.options.storage, &part);
    }
    done
}

/// Returns the segments to be made into one.
fn sources(shared: &Shared, kept: &[(PointId, Seq)]) -> Result<Option<Vec<Arc<Segment>>>> {
    // A seed lays records over what it reads up to some record that is no kept point.
    if !shared.seeding().is_empty() {
        return Ok(None);
    }
    let segments = shared.catalog().segments.clone();
    let candidates = candidates(shared, &segments, kept, shared.newest_common_base())?;
    let chosen = choose(&candidates).and_then(|run| segments.get(run));
    Ok(chosen.map(<[_]>::to_vec))
}

/// Looks at segments, for points at the records `kept`, in order. Those that have no record behind `behind` are eligible;
/// none without it.
pub(super) fn candidates(
    shared: &Shared,
    segments: &[Arc<Segment>],
    kept: &[(PointId, Seq)],
    behind: Option<Seq>,
) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::with_capacity(segments.len());
    for segment in segments {
        let (first, last) = (segment.first_seq, segment.last_seq());
        // Both are in order, and there may be many.
        let before = kept.partition_point(|(_, seq)| *seq < first);
        let behind_it = kept.partition_point(|(_, seq)| *seq <= last);
        let eligible = segment.is_sealed() && Some(last) <= behind;
        candidates.push(Candidate {
            eligible,
            is_cold: segment.cold().is_some(),
            records: segment.count(),
            bytes: if eligible {
                segment.stored_bytes(&*shared.options.storage)?
            } else {
                0
            },
            points: segment.cold().map_or(0, |footer| footer.points),
            kept: behind_it.saturating_sub(before) as u64,
        });
    }
    Ok(candidates)
}

/// A segment that is made into another one, open.
pub(super) type Source = (Arc<Segment>, Arc<dyn StorageFile>);

/// The records of some segments.
pub(super) struct Records {
    /// Those that change a volume.
    pub(super) data: Vec<Sourced>,
    pub(super) others: Vec<Sourced>,
}

impl Records {
    /// Reads the records of segments that are open.
    pub(super) fn read(sources: &[Source]) -> Result<Records> {
        let (mut data, mut others) = (Vec::new(), Vec::new());
        for (source, (segment, file)) in sources.iter().enumerate() {
            segment.for_each(&**file, |record| {
                let list = match record.kind.is_data() {
                    true => &mut data,
                    false => &mut others,
                };
                list.push(Sourced {
                    record: *record,
                    source,
                });
            })?;
        }
        Ok(Records { data, others })
    }

    /// Leaves out what points at the records `kept` need not, in order; the oldest base points are `oldest`.
    pub(super) fn leave_out(mut self, oldest: &BTreeMap<VolumeId, Seq>, kept: &[Seq]) -> Records {
        // What the oldest base points contain, no point needs.
        self.data.retain(|one| {
            oldest
                .get(&one.record.volume)
                .is_none_or(|seq| one.record.seq > *seq)
        });
        let data = thin(self.data, kept);
        // Points that are not kept go; gaps stay, which the coverage tells.
        self.others.retain(|one| {
            one.record.kind != Kind::Point || kept.binary_search(&one.record.seq).is_ok()
        });
        Records {
            data,
            others: self.others,
        }
    }
}

/// The making of one cold segment.
struct Work {
    sources: Vec<Source>,
    kept: Vec<(PointId, Seq)>,
    header: ColdHeader,
    footer: ColdFooter,
    path: std::path::PathBuf,
    bytes_before: u64,
}

impl Work {
    fn open(
        shared: &Shared,
        segments: Vec<Arc<Segment>>,
        kept: Vec<(PointId, Seq)>,
    ) -> Result<Work> {
        let storage = &*shared.options.storage;
        let none = || HarborError::Busy("the journal");
        let (first, last) = (
            segments.first().ok_or_else(none)?,
            segments.last().ok_or_else(none)?,
        );
        let (from, to) = (first.ends(storage)?, last.ends(storage)?);
        let header = ColdHeader {
            machine_id: shared.machine_id(),
            first: first.number,
            last: last.last_number(),
        };
        let footer = ColdFooter {
            first: header.first,
            last: header.last,
            first_seq: first.first_seq,
            last_seq: last.last_seq(),
            next_point: to.next_point,
            last_time: to.last_time,
            space: 0,
            table: 0,
            index: 0,
            data_records: 0,
            other_records: 0,
            points: 0,
            previous: from.previous,
            chain: to.chain,
            table_crc: 0,
            index_crc: 0,
            hash: [0; 32],
        };
        let path = cold_path(&shared.journal_dir(), header.first, header.last);
        let mut bytes_before = 0;
        let mut sources = Vec::with_capacity(segments.len());
        for segment in segments {
            bytes_before += segment.stored_bytes(storage)?;
            let file = segment.open(storage)?;
            sources.push((segment, file));
        }
        Ok(Work {
            sources,
            kept,
            header,
            footer,
            path,
            bytes_before,
        })
    }

    fn write(&mut self, shared: &Shared, control: Control<'_>) -> Result<Option<Compacted>> {
        let records = Records::read(&self.sources)?;
        let all = records.data.len() + records.others.len();
        let seqs: Vec<Seq> = self.kept.iter().map(|(_, seq)| *seq).collect();
        let Records { data, mut others } = records.leave_out(&shared.oldest_bases(), &seqs);
        others.sort_unstable_by_key(|one| one.record.seq);
        let points = others.iter().filter(|one| one.record.kind == Kind::Point);
        self.footer.points = points.count() as u64;
        self.footer.data_records = data.len() as u64;
        self.footer.other_records = others.len() as u64;
        let dropped = (all - data.len() - others.len()) as u64;

        let storage = &*shared.options.storage;
        let part = part_of(&self.path);
        let failed = |action| {
            let part = part.clone();
            move |e| HarborError::storage(action, &part, e)
        };
        remove_if_there(storage, &part).map_err(failed("remove"))?;
        let file = storage
            .open(&part, OpenMode::New)
            .map_err(failed("create"))?;
        let mut writer = ColdWriter::new(&*file, &self.header).map_err(failed("begin"))?;
        let mut records = Vec::with_capacity(data.len() + others.len());
        let mut payload = Vec::new();
        for one in data.iter().chain(&others) {
            let mut record = one.record;
            if record.payload_length > 0 {
                self.payload(one, &mut payload)?;
                record.payload_position = writer.add(&payload).map_err(failed("write"))?;
            }
            records.push(record);
            if control(u64::from(record.payload_length)).is_break() {
                return Err(HarborError::Cancelled);
            }
        }
        let footer = writer
            .finish(&records, self.footer)
            .map_err(failed("write"))?;
        let bytes_after = file.length().map_err(failed("read"))?;
        drop(file);
        let done = Compacted {
            files: self.sources.len(),
            bytes_before: self.bytes_before,
            bytes_after,
            dropped,
        };
        Ok(self.put_in_place(shared, footer)?.then_some(done))
    }

    /// Reads a payload and compares it with its checksum.
    fn payload(&self, one: &Sourced, payload: &mut Vec<u8>) -> Result<()> {
        let Some((segment, file)) = self.sources.get(one.source) else {
            return Ok(());
        };
        payload.resize(one.record.payload_length as usize, 0);
        file.read_at(payload, one.record.payload_position)
            .map_err(|e| HarborError::storage("read", &segment.path, e))?;
        match crc32c::crc32c(payload) == one.record.payload_crc {
            true => Ok(()),
            false => {
                let what = format!(
                    "the payload of record {} is not what was written",
                    one.record.seq
                );
                Err(HarborError::damaged(&segment.path, what))
            }
        }
    }

    /// Gives the new file its name and puts it in its sources' place; false if they have gone meanwhile.
    fn put_in_place(&self, shared: &Shared, footer: ColdFooter) -> Result<bool> {
        let storage = &*shared.options.storage;
        let is_source = |segment: &Arc<Segment>| {
            self.sources
                .iter()
                .any(|(source, _)| Arc::ptr_eq(source, segment))
        };
        {
            let _no_one_opens = shared
                .removal()
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let there = shared
                .catalog()
                .segments
                .iter()
                .filter(|s| is_source(s))
                .count();
            if there != self.sources.len() {
                return Ok(false);
            }
            put_in_place(storage, &part_of(&self.path), &self.path)
                .map_err(|e| HarborError::storage("rename", &self.path, e))?;
            let mut catalog = shared.catalog();
            let cache = Arc::clone(&catalog.cache);
            let cold = Arc::new(Segment::cold_one(self.path.clone(), footer, cache));
            let at = catalog
                .segments
                .partition_point(|s| s.number < footer.first);
            catalog.segments.retain(|segment| !is_source(segment));
            catalog.segments.insert(at, cold);
        }
        for (segment, _) in &self.sources {
            if segment.path != self.path {
                remove_if_there(storage, &segment.path)
                    .map_err(|e| HarborError::storage("remove", &segment.path, e))?;
            }
        }
        // Or some come back without what stands for them, if that goes and the power is cut just then.
        let dir = shared.journal_dir();
        storage
            .sync_dir(&dir)
            .map_err(|e| HarborError::storage("sync", &dir, e))?;
        Ok(true)
    }
}

/// What the ends of a segment tell that stays true of what stands for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) previous: [u8; 32],
    pub(crate) chain: [u8; 32],
    pub(crate) next_point: PointId,
    pub(crate) last_time: Timestamp,
}
