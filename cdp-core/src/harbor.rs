//! The harbor: the directory in which everything kept of one machine lives.
//!
//! [`Harbor`] is a handle; the state behind it is shared with recorder, writer and seeds. The layout
//! of the directory is in `FORMAT.md`.
//!
//! Invariant: one process at a time has a harbor open, by a lock on a file in it, until the last
//! handle, recorder and seed is dropped.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{self, BasePoint, Merged, Progress, SeedWriter};
use crate::bounds::VIEW_PARTS_MAX;
use crate::clock::Timestamp;
use crate::error::{HarborError, JournalError, Result};
use crate::journal::cold::compact::compact;
use crate::machine::{MachineDescription, VolumeId};
use crate::point::{Gap, Point, PointId, Seq, XmlVersion};
use crate::qcow2::Clusters;
use crate::recorder::Recorder;
use crate::storage::RealStorage;
use crate::view::cache::PartCache;
use crate::view::image::Plan;
use crate::view::parts::Parts;
use crate::view::{LatestImage, View};

mod options;
pub(crate) mod report;

pub(crate) mod checked;
pub(crate) mod damage;
mod facts;
mod keeping;
mod layers;
mod layout;
mod marks;
mod mend;
pub(crate) mod pace;
mod pins;
mod scrub;
pub(crate) mod shared;
mod space;
pub(crate) mod suspects;
mod xml;

pub use crate::journal::cold::compact::Compacted;
pub use marks::{Marks, VolumeMarks};
pub use mend::LiveCluster;
pub use options::{AckRule, Options};
pub use pins::Pin;
pub use report::{Cut, RecoveryReport, Usage};
use shared::Shared;
pub use space::{Freed, JournalSpace, LayerSpace, SpaceTaken};

/// The directory in which everything kept of one machine lives; a handle that can be cloned.
#[derive(Debug, Clone)]
pub struct Harbor {
    shared: Arc<Shared>,
}

impl Harbor {
    /// Makes a harbor in `dir`, which must not exist or be empty, and opens it.
    ///
    /// # Errors
    /// [`HarborError::AlreadyExists`]; the description or an option is not valid; the storage
    /// failed.
    pub fn create(dir: &Path, desc: &MachineDescription, options: Options) -> Result<Harbor> {
        options.validate()?;
        desc.validate()?;
        layout::create(&*options.storage, dir, desc)?;
        Harbor::open(dir, options).map(|(harbor, _)| harbor)
    }

    /// Opens a harbor for this process alone, after recovering what a crash left.
    ///
    /// # Errors
    /// Not a harbor, of a newer version, in use by another process; the storage failed.
    pub fn open(dir: &Path, options: Options) -> Result<(Harbor, RecoveryReport)> {
        options.validate()?;
        let mut report = RecoveryReport::default();
        let shared = Arc::new(Shared::open(dir, options, &mut report)?);
        let harbor = Harbor { shared };
        report.points = harbor.points().len() as u64;
        Ok((harbor, report))
    }

    /// Reads a harbor's description without opening it.
    ///
    /// # Errors
    /// Not a harbor, or of a newer version.
    pub fn peek(dir: &Path) -> Result<MachineDescription> {
        layout::read_description(&RealStorage, dir)
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Returns the machine's description.
    pub fn description(&self) -> MachineDescription {
        self.shared.description()
    }

    /// Returns when a write may be acknowledged: as the description says, else the options.
    pub fn ack_rule(&self) -> AckRule {
        self.shared.pace.ack_rule()
    }

    /// Returns the longest time a buffered write waits for its sync: as the description says, else the options.
    pub fn flush_interval(&self) -> Duration {
        self.shared.pace.flush_interval()
    }

    /// Replaces the machine's description, durable on return. A recording that runs keeps to its ack rule and flush
    /// interval from then on.
    ///
    /// # Errors
    /// It is not valid, or has another machine id; the storage failed.
    pub fn set_description(&self, desc: MachineDescription) -> Result<()> {
        self.shared.set_description(desc)
    }

    /// Changes the machine's description as it is at that moment, otherwise as
    /// [`set_description`](Self::set_description): what others change meanwhile is not undone.
    ///
    /// # Errors
    /// As [`set_description`](Self::set_description).
    pub fn update_description(&self, change: impl FnOnce(&mut MachineDescription)) -> Result<()> {
        self.shared.update_description(change)
    }

    /// Returns the bytes kept.
    ///
    /// # Errors
    /// The storage failed.
    pub fn usage(&self) -> Result<Usage> {
        self.shared.usage()
    }

    /// Returns the bytes of [`usage`](Self::usage) that are room for what will be recorded next, and hold nothing yet.
    ///
    /// # Errors
    /// The storage failed.
    pub fn unwritten_bytes(&self) -> Result<u64> {
        self.shared.unwritten_bytes()
    }

    /// Tells whether there are points to go on from: every volume that was there from the beginning has a base
    /// point.
    pub fn is_seeded(&self) -> bool {
        self.shared.first_valid().is_some()
    }

    /// Tells whether a volume has a base point.
    pub fn has_base(&self, volume: VolumeId) -> bool {
        self.shared.bases().iter().any(|base| base.volume == volume)
    }

    /// Returns the last record taken, by the recording that runs or else in the journal.
    pub fn head(&self) -> Seq {
        self.shared.head()
    }

    /// Returns the base points of a volume, oldest first.
    pub fn base_points(&self, volume: VolumeId) -> Vec<BasePoint> {
        self.shared
            .bases()
            .iter()
            .filter(|base| base.volume == volume)
            .cloned()
            .collect()
    }

    /// Returns all points that can be viewed, oldest first.
    pub fn points(&self) -> Vec<Point> {
        self.points_between(None, None, usize::MAX)
    }

    /// Returns the newest `limit` points from `from` to `to`, both included, oldest first.
    pub fn points_between(
        &self,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        limit: usize,
    ) -> Vec<Point> {
        self.select(|points| {
            let from = from.map_or(0, |from| points.partition_point(|point| point.time < from));
            let to = to.map_or(points.len(), |to| {
                points.partition_point(|point| point.time <= to)
            });
            let from = from.max(to.saturating_sub(limit));
            points.get(from..to).unwrap_or_default().to_vec()
        })
        .unwrap_or_default()
    }

    /// Returns the number of points that can be viewed.
    pub fn point_count(&self) -> usize {
        self.select(<[Point]>::len).unwrap_or_default()
    }

    /// Returns since when the base points in use are: the time of the first point that the newest of each volume
    /// serves, and of those the oldest. None before there is one.
    pub fn base_time(&self) -> Option<Timestamp> {
        let newest = self.shared.newest_bases();
        self.select(|points| {
            let first = |seq| {
                let at = points.partition_point(|point| point.seq < seq);
                points.get(at).map(|point| point.time)
            };
            newest.into_iter().filter_map(first).min()
        })?
    }

    /// Returns the hash of the journal's chain behind what a record is in, or where that is not sealed yet, before it: it
    /// stands for everything journaled until then. None where no segment of that time is left.
    pub fn chain_hash(&self, seq: Seq) -> Option<[u8; 32]> {
        let catalog = self.shared.catalog();
        let mut until = catalog
            .segments
            .iter()
            .rev()
            .filter(|one| one.first_seq <= seq);
        until.find_map(|segment| segment.chain_hash())
    }

    /// Returns the newest point.
    pub fn newest_point(&self) -> Option<Point> {
        self.select(|points| points.last().cloned())?
    }

    /// Returns the point of that number, if it can be viewed.
    pub fn point(&self, id: PointId) -> Option<Point> {
        self.select(|points| {
            let at = points.binary_search_by_key(&id, |point| point.id).ok()?;
            points.get(at).cloned()
        })?
    }

    /// Returns the newest point not later than `time`.
    pub fn point_at(&self, time: Timestamp) -> Option<Point> {
        self.select(|points| {
            let behind = points.partition_point(|point| point.time <= time);
            points.get(behind.checked_sub(1)?).cloned()
        })?
    }

    /// Returns the gaps, oldest first.
    pub fn gaps(&self) -> Vec<Gap> {
        self.shared.catalog().gaps.clone()
    }

    /// Keeps a domain XML if it differs from the last one kept; later points carry its version.
    ///
    /// # Errors
    /// It is too long; the storage failed.
    pub fn record_xml(&self, text: &str) -> Result<XmlVersion> {
        self.shared.record_xml(text)
    }

    /// Returns a domain XML that was kept.
    ///
    /// # Errors
    /// [`HarborError::NoSuchXml`]; the storage failed.
    pub fn xml(&self, version: XmlVersion) -> Result<String> {
        xml::read(
            &*self.shared.options.storage,
            &self.shared.xml_dir(),
            version,
        )
    }

    /// Returns the last record of the journal; while a recording runs, as of its beginning or its last seal.
    pub fn last_record(&self) -> Seq {
        self.shared.catalog().end.last_seq
    }

    /// Returns what is known of the marks outside the harbor; nothing if that cannot be told.
    pub fn marks(&self) -> Marks {
        marks::read(&*self.shared.options.storage, &self.shared.dir)
    }

    /// Replaces what is known of the marks outside the harbor, durable on return.
    ///
    /// # Errors
    /// The storage failed.
    pub fn set_marks(&self, marks: &Marks) -> Result<()> {
        marks::write(&*self.shared.options.storage, &self.shared.dir, marks)
    }

    /// Returns the failure that ended a recording, until [`recover`](Self::recover) has put the journal right.
    pub fn failure(&self) -> Option<Arc<JournalError>> {
        self.shared.catalog().failure.clone()
    }

    /// Puts the journal right after a recording has failed, as [`open`](Self::open) does after a crash.
    ///
    /// # Errors
    /// [`HarborError::Busy`] while a recording runs; the storage fails still.
    pub fn recover(&self) -> Result<RecoveryReport> {
        let mut report = self.shared.recover()?;
        report.points = self.points().len() as u64;
        Ok(report)
    }

    /// Starts a recording, in a new segment, with a writer thread of its own; one at a time.
    ///
    /// # Errors
    /// [`HarborError::Busy`]; an earlier recording failed (see [`recover`](Self::recover)); the storage
    /// failed.
    pub fn record(&self) -> Result<Recorder> {
        Recorder::start(&self.shared)
    }

    /// Starts a new full base point of a volume; what is given to it must be read after this call,
    /// while the recording takes the volume's writes.
    ///
    /// # Errors
    /// [`HarborError::Busy`]; no such volume; the storage failed.
    pub fn seed(&self, volume: VolumeId) -> Result<SeedWriter> {
        SeedWriter::start(Arc::clone(&self.shared), volume)
    }

    /// Builds a layer of every volume that the machine had at a point, of what changed since its newest one, and returns
    /// those that were made. A volume that has one of that point keeps it: so what was called off can be gone on with.
    ///
    /// `control` is told of each piece that was read or written, and may slow the work down, or call it off.
    ///
    /// # Errors
    /// [`HarborError::NoSuchPoint`]; [`HarborError::BehindBase`]; [`HarborError::TooManyLayers`]; [`HarborError::Busy`];
    /// [`HarborError::Cancelled`]; records are missing or damaged; the storage failed.
    pub fn build_base(
        &self,
        point: PointId,
        control: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<BasePoint>> {
        let point = self.point(point).ok_or(HarborError::NoSuchPoint(point))?;
        base::build::build(&self.shared, &point, control)
    }

    /// Merges the layers of every volume until it has at most [`LAYERS_MAX`](crate::bounds::LAYERS_MAX), and finishes
    /// what a crash left of an earlier merging. No point before record `first_kept` is kept, locked or viewed: those
    /// may not be offered any more afterwards. Increments that become one are written as `clusters` says.
    ///
    /// `control` as in [`build_base`](Self::build_base).
    ///
    /// # Errors
    /// [`HarborError::Busy`]; [`HarborError::Cancelled`]; a layer is damaged; the storage failed.
    pub fn merge_bases(
        &self,
        first_kept: Seq,
        clusters: Clusters,
        control: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<Merged>> {
        base::merge::merge(&self.shared, first_kept, clusters, control)
    }

    /// Returns the merges that were begun and not finished: the volume, and the record of the layer that is to be its
    /// oldest. The next merging finishes them; until then a volume has no points before that record.
    pub fn unfinished_merges(&self) -> Vec<(VolumeId, Seq)> {
        self.shared.unfinished_merges()
    }

    /// Returns the bytes of the segments with records behind the newest base points, up to a record; none before every
    /// volume has one. 0: nothing was recorded since.
    pub fn journal_behind_base(&self, up_to: Seq) -> Option<u64> {
        let base = self.shared.newest_common_base()?;
        if up_to <= base {
            return Some(0);
        }
        let segments = self.shared.catalog().segments.clone();
        let behind = segments.iter().filter(|one| one.last_seq() > base);
        let storage = &*self.shared.options.storage;
        Some(
            behind
                .filter_map(|one| one.stored_bytes(storage).ok())
                .sum(),
        )
    }

    /// Removes the segments that no base point needs any more, the oldest first.
    pub fn remove_needless_segments(&self) {
        self.shared.remove_segments_before_bases();
    }

    /// Makes one cold segment of those behind the newest base points that are worth it, the oldest first; none if
    /// there are none. `control` gets the bytes read since the last call, and ends the work by breaking.
    ///
    /// # Errors
    /// [`HarborError::Busy`] while a layer is built or merged; [`HarborError::Cancelled`]; a source is damaged, and
    /// stays as it is; the storage failed.
    pub fn compact(
        &self,
        control: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<Compacted>> {
        compact(&self.shared, control)
    }

    /// Opens a view of the machine at a point: the volumes that were there, each as large as it was. How long that takes
    /// does not depend on the number of records: they are looked at when they are needed.
    ///
    /// # Errors
    /// [`HarborError::NoSuchPoint`]; [`HarborError::PointDamaged`]; records are missing; the storage failed.
    pub fn view(&self, point: PointId) -> Result<View> {
        match self.point(point) {
            Some(found) if found.damaged => Err(HarborError::PointDamaged(point)),
            _ => self.view_damaged(point),
        }
    }

    /// The same, also of a point that is known to be damaged: reading what is damaged fails, the rest can be had.
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub fn view_damaged(&self, point: PointId) -> Result<View> {
        let pin = self.pin(point)?;
        let point = self.point(point).ok_or(HarborError::NoSuchPoint(point))?;
        let description = self.shared.description();
        let there = description.volumes.iter().filter_map(|volume| {
            let size = volume.size_at(point.seq)?;
            Some(self.shared.plan(volume.id, size, point.seq))
        });
        let plans: Vec<Plan> = there.collect::<Result<_>>()?;
        let ids: Vec<VolumeId> = plans.iter().map(|plan| plan.volume).collect();
        let cache = PartCache::new(VIEW_PARTS_MAX);
        let images = Parts::open_all(&self.shared, plans, point.seq, cache)?;
        let storage = Arc::clone(&self.shared.options.storage);
        Ok(View::new(
            (point, pin),
            ids.into_iter().zip(images).collect(),
            (storage, Arc::clone(&self.shared.suspects)),
        ))
    }

    /// Opens a volume as of the last record in the journal at this moment, as large as it is now.
    ///
    /// # Errors
    /// [`HarborError::NotSeeded`]; otherwise as [`view`](Self::view).
    pub fn latest_image(&self, volume: VolumeId) -> Result<LatestImage> {
        let seq = self.shared.sync()?;
        let description = self.shared.description();
        let volume = description
            .volume(volume)
            .ok_or(HarborError::NoSuchVolume(volume))?;
        let plan = self.shared.plan(volume.id, volume.size, seq)?;
        let parts = Parts::open(&self.shared, plan, seq)?;
        let suspects = Arc::clone(&self.shared.suspects);
        Ok(LatestImage::new(seq, parts, suspects))
    }

    /// Answers a question about the points that can be viewed; none if there are none.
    fn select<T>(&self, question: impl FnOnce(&[Point]) -> T) -> Option<T> {
        let first = self.shared.first_valid()?;
        self.shared.judge_new_points();
        let catalog = self.shared.catalog();
        let from = catalog.points.partition_point(|point| point.seq < first);
        Some(question(catalog.points.get(from..).unwrap_or_default()))
    }
}
