//! Goes over the files of a harbor, and takes down what is found.
//!
//! A file that takes another one's place while it is read is left for the next time: what was found of it may be about
//! neither. Several threads take one file after the other. Layers are looked at once more with nobody merging, before
//! anything bad is said of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::cost::Costing;
use super::layer::Both;
use super::{
    Control, Finding, Found, Lost, Scope, Teller, Telling, Unchecked, VerifyReport, cold, layer,
    segment, small,
};
use crate::base::BasePoint;
use crate::base::hashes::hashes_path;
use crate::bounds::VERIFIERS_MAX;
use crate::error::{HarborError, Result};
use crate::harbor::damage::owner;
use crate::harbor::shared::Shared;
use crate::journal::segment::Segment;
use crate::point::Seq;
use crate::storage::OpenMode;

/// How long it is waited until it is looked again whether layers are being merged.
const PATIENCE: Duration = Duration::from_millis(20);

/// A file to be verified; a layer stands for its hashes, too.
enum Item {
    Segment(Arc<Segment>),
    Layer(BasePoint),
    Small(String),
}

/// A file, by its name in the harbor, and its length.
struct Listed {
    name: String,
    len: u64,
    item: Item,
}

/// What came of one file.
enum Outcome {
    Checked(Vec<Finding>, u64),
    /// Another one took its place, or it went.
    Gone,
}

/// Verifies what `scope` says.
pub(crate) fn verify(shared: &Shared, scope: Scope, control: Control<'_>) -> Result<VerifyReport> {
    let suspects = shared.suspects.all();
    let listed = list(shared)?;
    let all: Vec<String> = listed.iter().map(|one| one.name.clone()).collect();
    let (due, is_everything) = due(shared, listed, scope, &suspects);
    let telling = Mutex::new(Telling::new(control, due.iter().map(|one| one.len).sum()));
    let work = Work {
        shared,
        scope,
        telling,
        due: Mutex::new(due.into()),
        done: Mutex::default(),
    };
    let workers = match scope.bytes {
        None => thread::available_parallelism().map_or(1, |cores| cores.get().min(VERIFIERS_MAX)),
        // Not in a hurry.
        Some(_) => 1,
    };
    thread::scope(|scope| {
        (1..workers).for_each(|_| drop(scope.spawn(|| work.run())));
        work.run();
    });
    let bytes = lock(&work.telling).done();
    let Done {
        mut report,
        mut verified,
        ended,
    } = std::mem::take(&mut *lock(&work.done));
    report.bytes = bytes;
    report.findings.extend(holes(shared));
    report
        .findings
        .sort_by(|a, b| (&a.file, a.from).cmp(&(&b.file, b.from)));
    verified.insert(HOLES.to_string(), 0);
    let points = shared.kept_points();
    let judged = points.last().map(|(id, _)| *id).unwrap_or_default();
    let costing = Costing::new(shared, points);
    for finding in &mut report.findings {
        finding.costs = costing.of(&finding.lost)?;
    }
    let whole = is_everything && report.left == 0 && ended.is_ok();
    let read: BTreeSet<String> = verified.keys().cloned().collect();
    shared.take_verified(
        verified,
        report.findings.clone(),
        whole.then_some(all.clone()),
        judged,
    )?;
    // What is not there any more cannot be looked at.
    shared.suspects.forget(&suspects, |path| {
        let name = owner(&shared.name_of(path));
        read.contains(&name) || !all.contains(&name)
    });
    ended.map(|()| report)
}

/// What several threads work on.
struct Work<'a, 'b> {
    shared: &'a Shared,
    scope: Scope,
    telling: Mutex<Telling<'b>>,
    due: Mutex<VecDeque<Listed>>,
    done: Mutex<Done>,
}

/// What came of the files so far.
struct Done {
    report: VerifyReport,
    verified: BTreeMap<String, u64>,
    ended: Result<()>,
}

impl Default for Done {
    fn default() -> Done {
        Done {
            report: VerifyReport::default(),
            verified: BTreeMap::new(),
            ended: Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work<'_, '_> {
    /// Takes file after file, until there is none, or it has ended.
    fn run(&self) {
        loop {
            let Some(one) = lock(&self.due).pop_front() else {
                return;
            };
            if lock(&self.done).ended.is_err() {
                return;
            }
            let read = lock(&self.telling).done();
            if self.scope.bytes.is_some_and(|most| read >= most) {
                lock(&self.done).report.left += 1;
                continue;
            }
            let outcome = check(self.shared, &one, &mut Teller::new(&self.telling));
            lock(&self.done).take(one, outcome);
        }
    }
}

impl Done {
    fn take(&mut self, one: Listed, outcome: Result<Outcome>) {
        match outcome {
            Ok(Outcome::Checked(findings, unchecked)) => {
                self.report.files += 1;
                self.verified.insert(one.name.clone(), one.len);
                self.report.findings.extend(findings);
                if unchecked > 0 {
                    let (file, clusters) = (one.name, unchecked);
                    self.report.unchecked.push(Unchecked { file, clusters });
                }
            }
            Ok(Outcome::Gone) => self.report.left += 1,
            Err(error) if self.ended.is_ok() => self.ended = Err(error),
            Err(_) => {}
        }
    }
}

/// The name under which missing records are known.
pub(crate) const HOLES: &str = "journal";

/// Returns the files that are due, those that were not verified for longest first; and whether that is all of them.
fn due(
    shared: &Shared,
    listed: Vec<Listed>,
    scope: Scope,
    suspects: &BTreeMap<PathBuf, u64>,
) -> (Vec<Listed>, bool) {
    let suspected: BTreeSet<String> = suspects
        .keys()
        .map(|path| owner(&shared.name_of(path)))
        .collect();
    let scrub = shared.scrub();
    let count = listed.len();
    // What a verification itself writes is new each time: it is read where everything is.
    let is_own = |one: &Listed| matches!(&one.item, Item::Small(name) if small::OWN.contains(&name.as_str()));
    let with_time = listed
        .into_iter()
        .map(|one| (scrub.verified(&one.name, one.len), one));
    let mut due: Vec<_> = with_time
        .filter(|(_, one)| !scope.suspects || suspected.contains(&one.name))
        .filter(|(_, one)| scope.not_since.is_none() || !is_own(one))
        .filter(|(at, _)| {
            scope
                .not_since
                .is_none_or(|since| at.is_none_or(|at| at < since))
        })
        .collect();
    drop(scrub);
    // Of equal age the largest first, so that several threads end together.
    due.sort_by_key(|(at, one)| (*at, Reverse(one.len)));
    let is_everything = scope.not_since.is_none() && due.len() == count;
    (due.into_iter().map(|(_, one)| one).collect(), is_everything)
}

/// Lists all files that can be verified now.
fn list(shared: &Shared) -> Result<Vec<Listed>> {
    let storage = &*shared.options.storage;
    let len_of = |path: &Path| {
        let file = storage.open(path, OpenMode::Read);
        file.and_then(|file| file.length()).unwrap_or_default()
    };
    let mut listed = Vec::new();
    for name in small::names(shared)? {
        let len = len_of(&shared.dir.join(&name));
        let item = Item::Small(name.clone());
        listed.push(Listed { name, len, item });
    }
    let bases = shared.bases().clone();
    for base in bases {
        listed.push(Listed {
            name: shared.name_of(&base.path),
            len: len_of(&base.path) + len_of(&hashes_path(&base.path)),
            item: Item::Layer(base),
        });
    }
    for segment in sealed(shared) {
        listed.push(Listed {
            name: shared.name_of(&segment.path),
            len: len_of(&segment.path),
            item: Item::Segment(segment),
        });
    }
    Ok(listed)
}

/// Returns all segments but those that are recorded to.
fn sealed(shared: &Shared) -> Vec<Arc<Segment>> {
    let recording = shared.recording().upgrade();
    let mut segments = shared.catalog().segments.clone();
    if recording.is_some_and(|one| one.is_running()) {
        while segments.last().is_some_and(|last| !last.is_sealed()) {
            segments.pop();
        }
    }
    segments
}

fn check(shared: &Shared, one: &Listed, teller: &mut Teller<'_, '_>) -> Result<Outcome> {
    match &one.item {
        Item::Small(name) => {
            let mut found = Found::default();
            small::check(shared, name, &mut found)?;
            teller.read(one.len)?;
            Ok(Outcome::Checked(found.findings(name), 0))
        }
        Item::Segment(segment) => check_segment(shared, segment, &one.name, teller),
        Item::Layer(base) => check_layer(shared, base, teller),
    }
}

fn check_segment(
    shared: &Shared,
    segment: &Arc<Segment>,
    name: &str,
    teller: &mut Teller<'_, '_>,
) -> Result<Outcome> {
    let is_there = || {
        let catalog = shared.catalog();
        catalog.segments.iter().any(|one| Arc::ptr_eq(one, segment))
    };
    let storage = &*shared.options.storage;
    let file = {
        let _kept = shared.keep_segments();
        if !is_there() {
            return Ok(Outcome::Gone);
        }
        storage.open(&segment.path, OpenMode::Read)
    };
    let mut found = Found::default();
    let id = shared.machine_id();
    let all = Lost::Records {
        first: segment.first_seq,
        last: segment.last_seq(),
    };
    match file {
        Err(error) => found.add(0..0, &format!("it cannot be opened: {error}"), all),
        Ok(file) => {
            let previous = previous_hash(shared, segment);
            match segment.cold() {
                Some(footer) => {
                    let outside = (id.as_str(), previous);
                    cold::check(&segment.path, &*file, footer, outside, &mut found, teller)?;
                }
                None => {
                    let expected = segment::Expected {
                        number: segment.number,
                        machine_id: id,
                        first: segment.first_seq,
                        last: segment.last_seq(),
                        previous,
                    };
                    segment::check(&segment.path, &*file, &expected, &mut found, teller)?;
                }
            }
        }
    }
    if !is_there() {
        return Ok(Outcome::Gone);
    }
    Ok(Outcome::Checked(found.findings(name), 0))
}

/// Returns the hash of the segment before one; none if that is not known.
fn previous_hash(shared: &Shared, segment: &Segment) -> Option<[u8; 32]> {
    let before = {
        let catalog = shared.catalog();
        let at = catalog
            .segments
            .iter()
            .position(|one| one.number == segment.number)?;
        let before = catalog.segments.get(at.checked_sub(1)?)?.clone();
        (before.last_number() + 1 == segment.number).then_some(before)?
    };
    before.chain_hash()
}

fn check_layer(shared: &Shared, base: &BasePoint, teller: &mut Teller<'_, '_>) -> Result<Outcome> {
    if let Some(outcome) = look_at_layer(shared, base, teller)?
        && matches!(&outcome, Outcome::Checked(findings, _) if findings.is_empty())
    {
        return Ok(outcome);
    }
    // It may have been changed or renamed meanwhile.
    let _turn = loop {
        match shared.claim_layers() {
            Ok(turn) => break turn,
            Err(HarborError::Busy(_)) => {
                teller.read(0)?;
                thread::sleep(PATIENCE);
            }
            Err(other) => return Err(other),
        }
    };
    Ok(look_at_layer(shared, base, teller)?.unwrap_or(Outcome::Gone))
}

/// Verifies a layer once; none if it is not there any more, or was changed.
fn look_at_layer(
    shared: &Shared,
    base: &BasePoint,
    teller: &mut Teller<'_, '_>,
) -> Result<Option<Outcome>> {
    let is_there = || shared.bases().contains(base);
    if !is_there() {
        return Ok(None);
    }
    let below = shared.layers_of(base.volume).into_iter();
    let below = below.filter(|layer| layer.seq < base.seq);
    let below: Vec<String> = below.map(|layer| file_name(&layer.path)).collect();
    // What is being merged is below, and is in no list.
    let is_merging = shared
        .unfinished_merges()
        .contains(&(base.volume, base.seq));
    let (mut image, mut hashes) = (Found::default(), Found::default());
    let mut both = Both {
        image: &mut image,
        hashes: &mut hashes,
        unchecked: 0,
    };
    let storage = &*shared.options.storage;
    let below = (!is_merging).then_some(below.as_slice());
    let done = layer::check(storage, base, below, &mut both, teller);
    let unchecked = both.unchecked;
    if !is_there() {
        return Ok(None);
    }
    match done {
        Ok(()) => {}
        Err(HarborError::Storage { source, .. }) => {
            let lost = Lost::Layer {
                volume: base.volume,
                layer: base.seq,
            };
            image.add(0..0, &format!("it cannot be read: {source}"), lost);
        }
        Err(other) => return Err(other),
    }
    let mut findings = image.findings(&shared.name_of(&base.path));
    findings.extend(hashes.findings(&shared.name_of(&hashes_path(&base.path))));
    Ok(Some(Outcome::Checked(findings, unchecked)))
}

/// Finds the records that no segment has.
fn holes(shared: &Shared) -> Vec<Finding> {
    let mut found = Found::default();
    let oldest = shared.oldest_bases().into_values().min();
    let newest = shared.bases().iter().map(|base| base.seq).max();
    let catalog = shared.catalog();
    let mut next = oldest.map(Seq::next);
    let mut missing = |first: Seq, behind: Seq| {
        let last = Seq(behind.0.saturating_sub(1));
        let what = format!("records {first} to {last} are missing");
        found.add(0..0, &what, Lost::Records { first, last });
    };
    for segment in &catalog.segments {
        if let Some(next) = next.filter(|next| segment.first_seq > *next) {
            missing(next, segment.first_seq);
        }
        next = Some(next.unwrap_or_default().max(segment.last_seq().next()));
    }
    if let (Some(next), Some(newest)) = (next, newest)
        && next <= newest
    {
        missing(next, newest.next());
    }
    drop(catalog);
    found.findings(HOLES)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Shared {
    /// Returns a file's name, from the harbor's directory on.
    pub(crate) fn name_of(&self, path: &Path) -> String {
        let inside = path.strip_prefix(&self.dir).unwrap_or(path);
        inside.to_string_lossy().into_owned()
    }
}
