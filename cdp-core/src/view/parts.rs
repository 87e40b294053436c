//! One volume at one record, worked out part by part: the memory does not grow with the journal.
//!
//! Opening looks at no record. A [`Part`] is worked out when a byte of it is first asked for: the fences of all segments
//! tell how crowded it is there, and so how long it may be ([`gathering`](super::gathering)); then of each segment's
//! index that is read which can reach into it. Parts are held in a [`PartCache`].
//!
//! Invariant: what an image shows never changes, and does not depend on which parts are held. Damage that a
//! gathering comes upon fails the read that needs it, and names the segment.

use std::ops::Range;
use std::sync::Arc;

use super::ViewExtent;
use super::cache::PartCache;
use super::gathering::{Crowd, Gathering, Placed, visible};
use super::image::{OpenSegment, Plan, segments_between};
use super::part::{Part, Source};
use crate::base::layer_seq;
use crate::bounds::{
    PART_RECORDS_AIM, PART_RECORDS_AIM_PER_SEGMENT, PART_RECORDS_MAX, READING_PARTS_MAX,
};
use crate::error::{HarborError, Result};
use crate::format::Record;
use crate::harbor::shared::Shared;
use crate::journal::lookup::Lookups;
use crate::point::Seq;
use crate::verify::Lost;

/// One volume at one record, of which only some parts are worked out at a time.
#[derive(Debug)]
pub(crate) struct Parts {
    plan: Plan,
    up_to: Seq,
    segments: Arc<Vec<OpenSegment>>,
    lookups: Arc<Lookups>,
    cache: Arc<PartCache>,
    most: usize,
}

impl Parts {
    /// Opens what a volume at record `up_to` is made of, to be read from front to back.
    pub(crate) fn open(shared: &Shared, plan: Plan, up_to: Seq) -> Result<Parts> {
        let cache = PartCache::new(READING_PARTS_MAX);
        let volume = plan.volume;
        let mut all = Parts::open_all(shared, vec![plan], up_to, cache)?;
        all.pop().ok_or(HarborError::NoSuchVolume(volume))
    }

    /// Opens what several volumes at record `up_to` are made of; they have one cache.
    pub(crate) fn open_all(
        shared: &Shared,
        plans: Vec<Plan>,
        up_to: Seq,
        cache: PartCache,
    ) -> Result<Vec<Parts>> {
        let _kept = shared.keep_segments();
        let lowest = plans.iter().map(|plan| plan.after).min().unwrap_or(up_to);
        let segments = Arc::new(segments_between(shared, &plans, lowest, up_to)?);
        let cache = Arc::new(cache);
        let open = |plan| Parts {
            plan,
            up_to,
            segments: Arc::clone(&segments),
            lookups: Arc::clone(&shared.lookups),
            cache: Arc::clone(&cache),
            most: PART_RECORDS_MAX,
        };
        Ok(plans.into_iter().map(open).collect())
    }

    /// Returns the bytes of the volume.
    pub(crate) fn size(&self) -> u64 {
        self.plan.size
    }

    /// Fills `buf` from byte `offset`.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.plan.check(offset, buf.len() as u64)?;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let part = self.part(at)?;
            let len = (part.range.end - at).min(rest.len() as u64);
            let (bytes, behind) = rest.split_at_mut(len as usize);
            part.read_at(bytes, at, self.source())?;
            at += len;
            rest = behind;
        }
        Ok(())
    }

    /// Returns what a range consists of, as far as the first `most` extents.
    pub(crate) fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<ViewExtent>> {
        self.plan.check(offset, len)?;
        let mut extents: Vec<ViewExtent> = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end && extents.len() <= most {
            let part = self.part(at)?;
            let stop = part.range.end.min(end);
            for piece in part.pieces(at..stop) {
                match piece.record {
                    Some(record) => {
                        push(&mut extents, piece.end - piece.start, part.is_zero(record));
                    }
                    None => self.add_base(&mut extents, piece.start, piece.end, most)?,
                }
                if extents.len() > most {
                    break;
                }
            }
            at = stop;
        }
        // The last one may be longer than what was seen of it, but only those behind it are left out.
        extents.truncate(most);
        Ok(extents)
    }

    /// Adds what lies underneath.
    fn add_base(
        &self,
        extents: &mut Vec<ViewExtent>,
        start: u64,
        end: u64,
        most: usize,
    ) -> Result<()> {
        let Some(base) = &self.plan.base else {
            push(extents, end - start, true);
            return Ok(());
        };
        let mut at = start;
        while at < end && extents.len() <= most {
            let run = base.run(at, end - at)?;
            push(extents, run.len, run.place.is_none());
            at += run.len;
        }
        Ok(())
    }

    /// Returns the part in which byte `at` lies, which is within the volume.
    pub(crate) fn part(&self, at: u64) -> Result<Arc<Part>> {
        let volume = self.plan.volume;
        if let Some(part) = self.cache.find(volume, at) {
            return Ok(part);
        }
        let _turn = self.cache.turn(volume, at);
        if let Some(part) = self.cache.find(volume, at) {
            return Ok(part);
        }
        let part = Arc::new(self.gather(at)?);
        self.cache.hold(volume, &part);
        Ok(part)
    }

    /// Lets go of the parts; they are worked out again when they are asked for.
    pub(crate) fn let_go(&self) {
        self.cache.let_go();
    }

    /// Returns what a range is shown from. All records that reach into it are looked at at once: it is to be short.
    pub(crate) fn shown_from(&self, range: Range<u64>) -> Result<Vec<Lost>> {
        self.plan.check(range.start, range.end - range.start)?;
        let volume = self.plan.volume;
        let mut placed = Vec::new();
        for (number, open) in self.segments() {
            let add = |record: &Record| {
                if record.seq > self.plan.after && record.seq <= self.up_to {
                    placed.push(Placed::new(record, number));
                }
            };
            open.segment
                .for_each_reaching(&*open.file, &self.lookups, volume, &range, add)?;
        }
        let (spans, records) = visible(&placed, &range);
        let mut shown = Vec::new();
        let mut at = range.start;
        for span in spans {
            self.base_shown_from(at..span.start, &mut shown)?;
            if let Some(record) = records.get(span.source as usize) {
                shown.push(Lost::Record {
                    volume,
                    seq: record.seq,
                    offset: span.start,
                    length: span.end - span.start,
                });
            }
            at = span.end;
        }
        self.base_shown_from(at..range.end, &mut shown)?;
        Ok(shown)
    }

    fn base_shown_from(&self, range: Range<u64>, shown: &mut Vec<Lost>) -> Result<()> {
        let Some(base) = &self.plan.base else {
            return Ok(());
        };
        let mut at = range.start;
        while at < range.end {
            let (length, name) = base.holder(at, range.end - at)?;
            shown.push(Lost::Area {
                volume: self.plan.volume,
                layer: layer_seq(&name).unwrap_or(self.plan.after),
                offset: at,
                length,
            });
            at += length;
        }
        Ok(())
    }

    fn source(&self) -> Source<'_> {
        Source {
            plan: &self.plan,
            segments: &self.segments,
            lookups: &self.lookups,
        }
    }

    /// Works out the part in which byte `at` lies.
    fn gather(&self, at: u64) -> Result<Part> {
        let (volume, size) = (self.plan.volume, self.plan.size);
        let mut crowd = Crowd::new(at);
        let mut segments = 0;
        for (_, open) in self.segments() {
            segments += 1;
            let range = crowd.range(size);
            let add = |from, records| crowd.add(from, records);
            open.segment
                .for_each_beginning(&*open.file, &self.lookups, volume, &range, add)?;
        }
        let aim = PART_RECORDS_AIM.max(segments * PART_RECORDS_AIM_PER_SEGMENT);
        let aim = aim.min(self.most / 2);
        let mut gathering = Gathering::new(&crowd, size, aim, self.most);
        for (number, open) in self.segments() {
            let range = gathering.range();
            let add = |record: &Record| {
                if record.seq > self.plan.after && record.seq <= self.up_to {
                    gathering.add(Placed::new(record, number));
                }
            };
            open.segment
                .for_each_reaching(&*open.file, &self.lookups, volume, &range, add)?;
        }
        Part::new(gathering.finish(), &self.segments)
    }

    /// Returns the segments that have records of this image, with their numbers.
    fn segments(&self) -> impl Iterator<Item = (u32, &OpenSegment)> {
        let has_some = |(_, open): &(u32, &OpenSegment)| {
            open.segment.first_seq <= self.up_to && open.segment.last_seq() > self.plan.after
        };
        (0..).zip(self.segments.iter()).filter(has_some)
    }
}

/// Adds an extent, which becomes one with the last of its kind.
fn push(extents: &mut Vec<ViewExtent>, len: u64, zero: bool) {
    match extents.last_mut() {
        Some(last) if last.zero == zero => last.len += len,
        _ => extents.push(ViewExtent { len, zero }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tempfile::TempDir;

    use super::*;
    use crate::chance::Chance;
    use crate::machine::{FORMAT_VERSION_OLDEST, Mode};
    use crate::{
        Grade, Harbor, MachineDescription, MachineSource, Options, Point, Recorder, Timestamp,
        View, VolumeDescription, VolumeId,
    };

    const SIZES: [u64; 2] = [3 << 20, 700_416];
    /// Small, so that parts come and go all the time.
    const CACHE: usize = 16 << 10;
    const MOST: usize = 50;

    fn description() -> MachineDescription {
        let volume = |(size, number)| VolumeDescription::new(VolumeId(number), "vd", size);
        let mut volumes: Vec<_> = SIZES.into_iter().zip(0..).map(volume).collect();
        volumes
            .iter_mut()
            .for_each(|v| v.target += &v.id.to_string());
        MachineDescription {
            format_version: FORMAT_VERSION_OLDEST,
            name: "parts".into(),
            machine_id: "parts".into(),
            point_interval_ms: 1000,
            created: Timestamp(0),
            mode: Mode::Active,
            ack: None,
            flush_interval_ms: None,
            policy: None,
            source: MachineSource::Qmp {
                socket: "/nowhere".into(),
            },
            volumes,
        }
    }

    /// Writes, zeros that are short or reach over everything, of all alignments.
    fn write_some(recorder: &Recorder, disks: &mut [Vec<u8>], chance: &mut Chance, count: u64) {
        for _ in 0..count {
            let number = chance.below(2) as u16;
            let disk = &mut disks[usize::from(number)];
            let size = disk.len() as u64;
            let volume = recorder.volume(VolumeId(number)).unwrap();
            let grain = if chance.once_in(8) { 1 } else { 512 };
            let offset = chance.below(size) / grain * grain;
            let zero = chance.once_in(6);
            let most = if zero && chance.once_in(20) {
                size
            } else {
                8000
            };
            let len = ((1 + chance.below(most) / grain) * grain).min(size - offset);
            let range = &mut disk[offset as usize..(offset + len) as usize];
            if zero {
                range.fill(0);
                volume.zero(offset, len).unwrap();
            } else {
                chance.fill(range);
                volume.write_copy(offset, range).unwrap();
            }
        }
    }

    fn view_of(harbor: &Harbor, point: &Point) -> View {
        let mut view = harbor.view(point.id).unwrap();
        let cache = Arc::new(PartCache::new(CACHE));
        for parts in view.images.values_mut() {
            parts.cache = Arc::clone(&cache);
            parts.most = MOST;
        }
        view
    }

    fn check_bounds(view: &View) {
        let parts = &view.images[&VolumeId(0)];
        let held = parts.cache.parts();
        let bytes: usize = held.iter().map(|part| part.cost()).sum();
        assert!(bytes <= CACHE, "{bytes} bytes are held");
        assert!(held.iter().all(|part| part.records() <= MOST));
    }

    /// Compares a piece of a view, and what it tells of it.
    fn compare(view: &View, disks: &[Vec<u8>], chance: &mut Chance) {
        let number = chance.below(2) as u16;
        let (volume, disk) = (VolumeId(number), &disks[usize::from(number)]);
        let offset = chance.below(disk.len() as u64);
        let len = (1 + chance.below(100_000)).min(disk.len() as u64 - offset);
        let expected = &disk[offset as usize..(offset + len) as usize];
        let mut found = vec![0xee; len as usize];
        view.read_at(volume, &mut found, offset).unwrap();
        assert!(
            found == expected,
            "{len} bytes at {offset} of volume {volume}"
        );
        let extents = view.extents(volume, offset, len).unwrap();
        assert!(extents.windows(2).all(|pair| pair[0].zero != pair[1].zero));
        let few = chance.below(4) as usize;
        let first = view.first_extents(volume, offset, len, few).unwrap();
        assert_eq!(first, extents[..few.min(extents.len())]);
        let mut rest = expected;
        for extent in extents {
            let (bytes, behind) = rest.split_at(extent.len as usize);
            assert!(!extent.zero || bytes.iter().all(|byte| *byte == 0));
            rest = behind;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn views_stay_as_they_are_and_within_their_bounds_while_recording_goes_on() {
        let home = TempDir::new().unwrap();
        let options = Options {
            segment_bytes: 256 << 10,
            ..Options::default()
        };
        let harbor = Harbor::create(&home.path().join("h"), &description(), options).unwrap();
        let recorder = harbor.record().unwrap();
        for number in 0..2 {
            let seed = harbor.seed(VolumeId(number)).unwrap();
            seed.finish(recorder.sync().unwrap()).unwrap();
        }
        let mut chance = Chance::new(11);
        let mut disks = SIZES.map(|size| vec![0; size as usize]);
        let mut views = Vec::new();
        let done = AtomicBool::new(false);
        for _ in 0..4 {
            write_some(&recorder, &mut disks, &mut chance, 700);
            let point = recorder.point(Grade::Crash, None).unwrap();
            // Opened while its last segment is recorded to; read when that is sealed and others have followed.
            let view = view_of(&harbor, &point);
            compare(&view, &disks, &mut chance);
            views.push((view, disks.clone()));
        }
        std::thread::scope(|scope| {
            for (number, (view, disks)) in views.iter().enumerate() {
                for reader in 0..2 {
                    let (done, number) = (&done, number as u64);
                    scope.spawn(move || {
                        let mut chance = Chance::new(number * 2 + reader);
                        let mut rounds = 0;
                        while rounds < 60 || !done.load(Ordering::Relaxed) {
                            compare(view, disks, &mut chance);
                            check_bounds(view);
                            rounds += 1;
                        }
                    });
                }
            }
            write_some(&recorder, &mut disks, &mut chance, 2000);
            recorder.sync().unwrap();
            done.store(true, Ordering::Relaxed);
        });
        recorder.close().unwrap();
        for (view, disks) in &views {
            (0..60).for_each(|_| compare(view, disks, &mut chance));
            check_bounds(view);
        }
    }
}
