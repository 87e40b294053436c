//! The state behind a harbor, shared by its handles, the recorder, the writer and seeds.
//!
//! Each part has its own lock, held for moments; none is held while another is asked for, but for
//! the claim on the recording, which is taken first.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};

use super::damage::{self, Damage};
use super::facts::{self, Facts};
use super::layers::Layers;
use super::layout::{lock_path, read_description, write_description};
use super::marks;
use super::options::Options;
use super::pace::Pace;
use super::pins::Pins;
use super::report::{RecoveryReport, Usage};
use super::scrub::Scrub;
use super::suspects::Suspects;
use super::xml;
use crate::base::{self, BasePoint, Found};
use crate::error::{HarborError, Result};
use crate::journal::catalog::Catalog;
use crate::journal::lookup::Lookups;
use crate::journal::recovery;
use crate::journal::segment::Segment;
use crate::machine::{FORMAT_VERSION, MachineDescription, VolumeId};
use crate::point::{Seq, XmlVersion};
use crate::recorder::{Recording, end_earlier};
use crate::storage::replace::remove_if_there;
use crate::storage::{OpenMode, Storage};

/// The state behind a harbor.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    /// Of the description and the options.
    pub(crate) pace: Arc<Pace>,
    description: Mutex<MachineDescription>,
    catalog: Mutex<Catalog>,
    /// What was said of points after they were made; the catalog's points have it.
    facts: Mutex<Facts>,
    pub(crate) pins: Arc<Pins>,
    /// What is known to be damaged; the catalog's points have it.
    damage: Mutex<Damage>,
    /// What was verified when.
    scrub: Mutex<Scrub>,
    /// In what a reader came upon damage.
    pub(crate) suspects: Arc<Suspects>,
    /// Held while it is found out what damage costs, and while that changes.
    judging: Mutex<()>,
    bases: Mutex<Vec<BasePoint>>,
    /// Of all segments that were looked through.
    pub(crate) lookups: Arc<Lookups>,
    pub(super) layers: Layers,
    xml: Mutex<Option<XmlVersion>>,
    /// Held while a description, an XML or what is said of points is written: what is in force can be asked for meanwhile.
    writing: Mutex<()>,
    recording: Mutex<Weak<Recording>>,
    seeding: Mutex<HashSet<VolumeId>>,
    /// Held for reading while segments are opened, for writing while they are removed.
    removal: RwLock<()>,
    _lock: Box<dyn Any + Send + Sync>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Locks a harbor and recovers what is in it.
    pub(crate) fn open(
        dir: &Path,
        options: Options,
        report: &mut RecoveryReport,
    ) -> Result<Shared> {
        let storage = &*options.storage;
        read_description(storage, dir)?;
        let lock = storage
            .lock(&lock_path(dir))
            .map_err(|e| HarborError::storage("lock", &lock_path(dir), e))?
            .ok_or_else(|| HarborError::Locked {
                dir: dir.to_path_buf(),
            })?;
        let mut description = read_description(storage, dir)?;
        if description.format_version != FORMAT_VERSION {
            // Before anything of the present version is written to it.
            description.format_version = FORMAT_VERSION;
            write_description(storage, dir, &description)?;
        }
        for folder in ["", "journal", "xml"] {
            let folder = dir.join(folder);
            remove_parts(storage, &folder, report)?;
            // What has its name may have it in memory only.
            storage
                .sync_dir(&folder)
                .map_err(|e| HarborError::storage("sync", &folder, e))?;
        }
        let Found { bases, merging } = base::find(storage, &dir.join("base"), &mut report.removed)?;
        let mut catalog = recover(storage, dir, &description.machine_id, &bases, report)?;
        forget_marks_if_damaged(storage, dir, report)?;
        let facts = take_facts(storage, dir, &mut catalog, report)?;
        let (damage, scrub) = damage::take(storage, dir, &mut catalog, &mut report.damage)?;
        let xml = xml::newest(storage, &dir.join("xml"))?;
        Ok(Shared {
            dir: dir.to_path_buf(),
            pace: Arc::new(Pace::new(&options, &description)),
            description: Mutex::new(description),
            catalog: Mutex::new(catalog),
            facts: Mutex::new(facts),
            pins: Arc::default(),
            damage: Mutex::new(damage),
            scrub: Mutex::new(scrub),
            suspects: Arc::default(),
            judging: Mutex::default(),
            bases: Mutex::new(bases),
            lookups: Arc::default(),
            layers: Layers::new(merging),
            xml: Mutex::new(xml),
            writing: Mutex::default(),
            recording: Mutex::default(),
            seeding: Mutex::default(),
            removal: RwLock::default(),
            options,
            _lock: lock,
        })
    }

    /// Recovers the journal again, after a recording has failed.
    pub(crate) fn recover(&self) -> Result<RecoveryReport> {
        end_earlier(self)?;
        let recording = self.recording();
        if recording.upgrade().is_some_and(|one| one.is_running()) {
            return Err(HarborError::Busy("a recording"));
        }
        let _turn = self.turn_to_write();
        let _judging = self.judging();
        let _no_removal = self.keep_segments();
        let mut report = RecoveryReport::default();
        let (storage, bases) = (&*self.options.storage, self.bases().clone());
        // Nothing in it was promised, and its room may be needed.
        remove_parts(storage, &self.journal_dir(), &mut report)?;
        let id = self.machine_id();
        let mut catalog = recover(storage, &self.dir, &id, &bases, &mut report)?;
        forget_marks_if_damaged(storage, &self.dir, &report)?;
        let facts = take_facts(storage, &self.dir, &mut catalog, &mut report)?;
        self.take_recovered(&mut catalog)?;
        *self.facts() = facts;
        *self.catalog() = catalog;
        Ok(report)
    }

    pub(crate) fn journal_dir(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub(crate) fn base_dir(&self) -> PathBuf {
        self.dir.join("base")
    }

    pub(crate) fn xml_dir(&self) -> PathBuf {
        self.dir.join("xml")
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        lock(&self.catalog)
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    pub(crate) fn damage(&self) -> MutexGuard<'_, Damage> {
        lock(&self.damage)
    }

    pub(crate) fn scrub(&self) -> MutexGuard<'_, Scrub> {
        lock(&self.scrub)
    }

    /// Waits for the turn to find out what damage costs.
    pub(crate) fn judging(&self) -> MutexGuard<'_, ()> {
        lock(&self.judging)
    }

    /// Waits for the turn to write one of the harbor's small files.
    pub(crate) fn turn_to_write(&self) -> MutexGuard<'_, ()> {
        lock(&self.writing)
    }

    pub(crate) fn bases(&self) -> MutexGuard<'_, Vec<BasePoint>> {
        lock(&self.bases)
    }

    pub(crate) fn seeding(&self) -> MutexGuard<'_, HashSet<VolumeId>> {
        lock(&self.seeding)
    }

    pub(crate) fn recording(&self) -> MutexGuard<'_, Weak<Recording>> {
        lock(&self.recording)
    }

    /// Keeps segments from being removed while the answer lives.
    pub(crate) fn keep_segments(&self) -> RwLockReadGuard<'_, ()> {
        self.removal.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps segments from being opened, for whoever holds it for writing.
    pub(crate) fn removal(&self) -> &RwLock<()> {
        &self.removal
    }

    /// Returns the last record that is in a base point of every volume that the machine has; none before they
    /// are all seeded.
    pub(crate) fn newest_common_base(&self) -> Option<Seq> {
        let description = self.description();
        let bases = self.bases();
        let newest = |id| {
            bases
                .iter()
                .filter(|base| base.volume == id)
                .map(|b| b.seq)
                .max()
        };
        let all = description.plugged().map(|volume| newest(volume.id));
        all.collect::<Option<Vec<Seq>>>()?.into_iter().min()
    }

    pub(crate) fn machine_id(&self) -> String {
        lock(&self.description).machine_id.clone()
    }

    pub(crate) fn description(&self) -> MachineDescription {
        lock(&self.description).clone()
    }

    pub(crate) fn set_description(&self, desc: MachineDescription) -> Result<()> {
        self.update_description(|kept| *kept = desc)
    }

    /// Changes the description as it is at that moment: nobody else changes it meanwhile.
    pub(crate) fn update_description(
        &self,
        change: impl FnOnce(&mut MachineDescription),
    ) -> Result<()> {
        let _turn = self.turn_to_write();
        let mut desc = self.description();
        change(&mut desc);
        desc.format_version = FORMAT_VERSION;
        desc.validate()?;
        if desc.machine_id != self.machine_id() {
            return Err(HarborError::InvalidDescription(
                "machine_id must not change".into(),
            ));
        }
        write_description(&*self.options.storage, &self.dir, &desc)?;
        let changed = self.pace.set(&self.options, &desc);
        *lock(&self.description) = desc;
        let recording = self.recording().upgrade();
        if let Some(recording) = recording.filter(|_| changed) {
            recording.pace_changed();
        }
        Ok(())
    }

    pub(crate) fn xml_version(&self) -> Option<XmlVersion> {
        *lock(&self.xml)
    }

    pub(crate) fn record_xml(&self, text: &str) -> Result<XmlVersion> {
        let _turn = self.turn_to_write();
        let newest = self.xml_version();
        let version = xml::keep(&*self.options.storage, &self.xml_dir(), newest, text)?;
        *lock(&self.xml) = Some(version);
        Ok(version)
    }

    /// Returns the last record taken.
    pub(crate) fn head(&self) -> Seq {
        let recording = self.recording().upgrade();
        let journal = self.catalog().end.last_seq;
        recording.map_or(journal, |recording| recording.head().max(journal))
    }

    /// Puts what is being recorded on stable storage; returns the last record of that.
    pub(crate) fn sync(&self) -> Result<Seq> {
        let recording = self.recording().upgrade();
        if let Some(recording) = recording
            && recording.is_running()
        {
            return recording.sync();
        }
        let catalog = self.catalog();
        match &catalog.failure {
            Some(cause) => Err(HarborError::JournalFailed(Arc::clone(cause))),
            None => Ok(catalog.end.last_seq),
        }
    }

    /// Returns the last record that each volume's oldest base point contains.
    pub(crate) fn oldest_bases(&self) -> BTreeMap<VolumeId, Seq> {
        let mut oldest: BTreeMap<VolumeId, Seq> = BTreeMap::new();
        for base in self.bases().iter() {
            let seq = oldest.entry(base.volume).or_insert(base.seq);
            *seq = base.seq.min(*seq);
        }
        oldest
    }

    /// Returns the first record at which a point can be viewed; none before every volume that was there from
    /// the beginning is seeded. One that came later is in a gap until it is seeded.
    pub(crate) fn first_valid(&self) -> Option<Seq> {
        let oldest = self.oldest_bases();
        let description = lock(&self.description);
        let original = description.volumes.iter().filter(|v| v.is_original());
        let firsts = original.map(|volume| oldest.get(&volume.id).copied());
        firsts.collect::<Option<Vec<Seq>>>()?.into_iter().max()
    }

    /// Takes a base point that is in place. When it completes the first set, the segments of
    /// abandoned seeds before it are removed.
    pub(crate) fn add_base(&self, base: BasePoint) {
        let seeded_before = self.first_valid().is_some();
        {
            let mut bases = self.bases();
            bases.retain(|kept| kept.path != base.path);
            bases.push(base);
            bases.sort_unstable_by_key(|base| (base.volume, base.seq));
        }
        if !seeded_before && self.first_valid().is_some() {
            self.remove_segments_before_bases();
        }
    }

    /// Removes the segments that no base point needs: a point at the very record of one has its own record in a
    /// segment that stays.
    pub(crate) fn remove_segments_before_bases(&self) {
        let Some(lowest) = self.bases().iter().map(|base| base.seq).min() else {
            return;
        };
        let _no_one_opens = self.removal.write().unwrap_or_else(PoisonError::into_inner);
        let (storage, dir) = (&*self.options.storage, self.journal_dir());
        let mut outcome = Ok(());
        while let Some(segment) = self.take_needless(lowest) {
            // One after the other also after a power cut, which may otherwise bring any of them back and leave a hole:
            // what went before, also in an earlier call whose sync failed, is gone for good first.
            outcome = storage
                .sync_dir(&dir)
                .and_then(|()| remove_if_there(storage, &segment.path));
            if outcome.is_err() {
                // Those behind it must not go before it.
                self.catalog().segments.insert(0, segment);
                break;
            }
        }
        if let Err(error) = outcome.and_then(|()| storage.sync_dir(&dir)) {
            tracing::warn!(dir = %dir.display(), %error, "needless segments stay");
        }
    }

    /// Takes the oldest segment out of the catalog if nothing needs it.
    fn take_needless(&self, lowest: Seq) -> Option<Arc<Segment>> {
        let mut catalog = self.catalog();
        let is_needless = catalog
            .segments
            .first()
            .is_some_and(|segment| segment.is_sealed() && segment.last_seq() < lowest);
        is_needless.then(|| catalog.segments.remove(0))
    }

    /// Returns the last record of the newest base point of each volume.
    pub(crate) fn newest_bases(&self) -> Vec<Seq> {
        let mut newest: BTreeMap<VolumeId, Seq> = BTreeMap::new();
        for base in self.bases().iter() {
            let seq = newest.entry(base.volume).or_insert(base.seq);
            *seq = base.seq.max(*seq);
        }
        newest.into_values().collect()
    }

    /// Returns the room of the segment that is recorded to in which nothing stands yet.
    pub(crate) fn unwritten_bytes(&self) -> Result<u64> {
        let last = self.catalog().segments.last().cloned();
        let Some(segment) = last.filter(|segment| !segment.is_sealed()) else {
            return Ok(0);
        };
        let length = total_len(&*self.options.storage, vec![segment.path.clone()])?;
        Ok(length.saturating_sub(segment.payloads_end()))
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let storage = &*self.options.storage;
        let journal = self
            .catalog()
            .segments
            .iter()
            .map(|s| s.path.clone())
            .collect();
        Ok(Usage {
            journal_bytes: total_len(storage, journal)?,
            base_bytes: total_len(storage, self.layer_files()?)?,
        })
    }
}

fn total_len(storage: &dyn Storage, paths: Vec<PathBuf>) -> Result<u64> {
    let mut total = 0;
    for path in paths {
        let len = storage
            .open(&path, OpenMode::Read)
            .and_then(|file| file.length());
        total += len.map_err(|e| HarborError::storage("read", &path, e))?;
    }
    Ok(total)
}

/// A journal that has lost what was promised to be kept lacks more than any marks tell.
fn forget_marks_if_damaged(
    storage: &dyn Storage,
    dir: &Path,
    report: &RecoveryReport,
) -> Result<()> {
    match report.damage.first() {
        Some(_) => marks::forget(storage, dir),
        None => Ok(()),
    }
}

/// Reads what was said of points since they were made, and brings the catalog's to it.
fn take_facts(
    storage: &dyn Storage,
    dir: &Path,
    catalog: &mut Catalog,
    report: &mut RecoveryReport,
) -> Result<Facts> {
    let mut facts = facts::read(storage, dir)?;
    // On the disk before a new point gets such a number.
    if facts.forget_from(catalog.end.next_point) {
        facts::write(storage, dir, &facts)?;
    }
    if let Some(first) = catalog.points.first()
        && report.damage.is_empty()
    {
        facts.forget_before(first.id);
    }
    report.damage.extend(facts.damage());
    facts.apply(&mut catalog.points);
    Ok(facts)
}

/// Removes what unfinished work left in a folder.
fn remove_parts(storage: &dyn Storage, dir: &Path, report: &mut RecoveryReport) -> Result<()> {
    let names = storage
        .list(dir)
        .map_err(|e| HarborError::storage("list", dir, e))?;
    for name in names.into_iter().filter(|name| name.ends_with(".part")) {
        let path = dir.join(&name);
        remove_if_there(storage, &path).map_err(|e| HarborError::storage("remove", &path, e))?;
        report.removed.push(name);
    }
    Ok(())
}

/// Recovers the journal; the sequence goes on behind the newest base point, whatever is missing.
fn recover(
    storage: &dyn Storage,
    dir: &Path,
    machine_id: &str,
    bases: &[BasePoint],
    report: &mut RecoveryReport,
) -> Result<Catalog> {
    let mut catalog = recovery::recover(storage, &dir.join("journal"), machine_id, report)?;
    let newest_base = bases.iter().map(|base| base.seq).max().unwrap_or_default();
    if newest_base > catalog.end.last_seq {
        report.damage.push(format!(
            "records up to {newest_base} are missing from the journal"
        ));
        catalog.end.last_seq = newest_base;
    }
    Ok(catalog)
}
