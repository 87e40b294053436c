//! The state behind a simulated storage: files, names, and what is uncertain of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::content::Content;
use super::trouble::{Armed, Operation, Trouble};
use super::{Left, OpenMode, Space};
use crate::bounds::SECTOR;
use crate::chance::Chance;

const ENOSPC: i32 = 28;
/// Bytes of a storage that is not told to be full.
const CAPACITY: u64 = 1 << 40;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Directory,
    File(u64),
}

type Names = BTreeMap<PathBuf, Entry>;

/// A change of the names in one directory that is not synced, all of it or nothing.
#[derive(Debug, Clone)]
struct Change {
    directory: PathBuf,
    sets: Vec<(PathBuf, Option<Entry>)>,
}

#[derive(Debug)]
pub(super) struct Disk {
    chance: Chance,
    pub(super) epoch: u64,
    pub(super) is_cut: bool,
    is_cut_behind_write: bool,
    pub(super) lies: bool,
    pub(super) changes: u64,
    troubles: Vec<Armed>,
    /// Most bytes of all files.
    capacity: Option<u64>,
    files: HashMap<u64, Content>,
    next_file: u64,
    names: Names,
    durable_names: Names,
    unsynced: Vec<Change>,
    locks: HashSet<PathBuf>,
}

impl Disk {
    pub(super) fn new(seed: u64) -> Disk {
        let names = Names::from([(PathBuf::from("/"), Entry::Directory)]);
        Disk {
            chance: Chance::new(seed),
            epoch: 0,
            is_cut: false,
            is_cut_behind_write: false,
            lies: false,
            changes: 0,
            troubles: Vec::new(),
            capacity: None,
            files: HashMap::new(),
            next_file: 1,
            durable_names: names.clone(),
            names,
            unsynced: Vec::new(),
            locks: HashSet::new(),
        }
    }

    pub(super) fn fork(&self, seed: u64) -> Disk {
        Disk {
            chance: Chance::new(seed),
            epoch: self.epoch + 1,
            is_cut: false,
            is_cut_behind_write: false,
            lies: self.lies,
            changes: 0,
            troubles: Vec::new(),
            capacity: None,
            files: self.files.clone(),
            next_file: self.next_file,
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            unsynced: self.unsynced.clone(),
            locks: HashSet::new(),
        }
    }

    pub(super) fn ask_for(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Full { room } => self.capacity = Some(self.used() + room),
            _ => self.troubles.push(Armed::new(trouble)),
        }
    }

    pub(super) fn forget_troubles(&mut self) {
        self.troubles.clear();
        self.capacity = None;
    }

    pub(super) fn is_trouble_ahead(&self) -> bool {
        !self.troubles.is_empty() || self.capacity.is_some()
    }

    /// Takes the first trouble that `fits` and is due out of the line.
    fn due(&mut self, fits: impl Fn(&Trouble) -> bool) -> Option<Trouble> {
        let mut due = None;
        for (at, armed) in self.troubles.iter_mut().enumerate() {
            if fits(&armed.trouble) && armed.is_due() && due.is_none() {
                due = Some(at);
            }
        }
        due.map(|at| self.troubles.remove(at).trouble)
    }

    /// Returns how long an operation is to take.
    pub(super) fn slowness(&mut self, met: Operation) -> Option<Duration> {
        let fits = |trouble: &Trouble| matches!(trouble, Trouble::Slow { operation, .. } if *operation == met);
        match self.due(fits)? {
            Trouble::Slow { pause, .. } => Some(pause),
            _ => None,
        }
    }

    /// Meets what is to happen with an operation; a write that fails is met by [`write`](Self::write).
    pub(super) fn meet(&mut self, met: Operation) -> io::Result<()> {
        self.check_power()?;
        if met.is_change() {
            self.changes += 1;
            if self
                .due(|t| matches!(t, Trouble::PowerCut { .. }))
                .is_some()
            {
                // A write that was just begun goes into what is uncertain; all else has not happened.
                self.is_cut = met != Operation::Write;
                self.is_cut_behind_write = met == Operation::Write;
            }
        }
        self.check_power()?;
        if met == Operation::Write {
            return Ok(());
        }
        self.error_due(met).map_or(Ok(()), Err)
    }

    fn error_due(&mut self, met: Operation) -> Option<io::Error> {
        let fits = |trouble: &Trouble| matches!(trouble, Trouble::Error { operation, .. } if *operation == met);
        match self.due(fits)? {
            Trouble::Error { errno, .. } => Some(io::Error::from_raw_os_error(errno)),
            _ => None,
        }
    }

    fn check_power(&self) -> io::Result<()> {
        if self.is_cut {
            return Err(io::Error::other("the power is cut"));
        }
        Ok(())
    }

    /// Cuts the power behind a write during which that was due.
    fn end_of_write(&mut self) -> io::Result<()> {
        self.is_cut |= std::mem::take(&mut self.is_cut_behind_write);
        self.check_power()
    }

    pub(super) fn power_up(&mut self, left: Left) {
        self.epoch += 1;
        self.is_cut = false;
        self.locks.clear();
        self.forget_troubles();
        if left == Left::Everything {
            return;
        }
        self.settle_names(left);
        let named: HashSet<u64> = self.names.values().filter_map(file_number).collect();
        let stale = self.stale_bytes(&named);
        self.files.retain(|number, _| named.contains(number));
        let mut numbers: Vec<u64> = named.into_iter().collect();
        numbers.sort_unstable();
        for number in numbers {
            let Some(file) = self.files.get_mut(&number) else {
                continue;
            };
            match left {
                Left::Nothing => file.keep_nothing(),
                _ => {
                    let stale = stale.as_deref().filter(|_| self.chance.once_in(3));
                    file.keep_by_chance(&mut self.chance, stale);
                }
            }
        }
    }

    /// Bytes that were on the disk before, of a file that is gone if there is one.
    fn stale_bytes(&mut self, named: &HashSet<u64>) -> Option<Vec<u8>> {
        let mut numbers: Vec<u64> = self.files.keys().copied().collect();
        numbers.sort_unstable();
        let gone: Vec<u64> = numbers
            .iter()
            .filter(|n| !named.contains(n))
            .copied()
            .collect();
        let from = if gone.is_empty() { &numbers } else { &gone };
        let number = self.chance.pick(from)?;
        self.files.get(number).map(|file| file.current().to_vec())
    }

    fn settle_names(&mut self, left: Left) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let in_order = self.chance.once_in(2);
        let kept = self.chance.below(unsynced.len() as u64 + 1);
        for (number, change) in unsynced.into_iter().enumerate() {
            let stays = match left {
                Left::Nothing => false,
                _ if in_order => (number as u64) < kept,
                _ => self.chance.once_in(2),
            };
            if stays {
                apply(&mut self.durable_names, change);
            }
        }
        // What lies in a directory that is not there is not there.
        let all = self.durable_names.clone();
        let has_home = |path: &Path| {
            path.ancestors()
                .skip(1)
                .all(|above| all.get(above) == Some(&Entry::Directory))
        };
        self.durable_names.retain(|path, _| has_home(path));
        self.names = self.durable_names.clone();
    }

    fn change(&mut self, path: &Path, sets: Vec<(PathBuf, Option<Entry>)>) {
        let directory = path.parent().unwrap_or(path).to_path_buf();
        let change = Change { directory, sets };
        apply(&mut self.names, change.clone());
        self.unsynced.push(change);
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent().and_then(|parent| self.names.get(parent)) {
            Some(Entry::Directory) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<u64> {
        self.check_parent(path)?;
        match (self.names.get(path), mode) {
            (Some(_), OpenMode::New | OpenMode::NewDirect) => {
                Err(io::ErrorKind::AlreadyExists.into())
            }
            (Some(Entry::File(number)), _) => Ok(*number),
            (Some(Entry::Directory), _) => Err(io::ErrorKind::IsADirectory.into()),
            (None, OpenMode::New | OpenMode::NewDirect) => Ok(self.make(path)),
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn make(&mut self, path: &Path) -> u64 {
        let number = self.next_file;
        self.next_file += 1;
        self.files.insert(number, Content::default());
        self.change(path, vec![(path.to_path_buf(), Some(Entry::File(number)))]);
        number
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        if self.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.check_parent(path)?;
        self.change(path, vec![(path.to_path_buf(), Some(Entry::Directory))]);
        Ok(())
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.check_parent(&dir.join("any"))?;
        let inside = self.names.keys().filter(|path| path.parent() == Some(dir));
        let names =
            inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(names.collect())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = *self.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        self.check_parent(to)?;
        if from.parent() != to.parent() || entry == Entry::Directory {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let sets = vec![(to.to_path_buf(), Some(entry)), (from.to_path_buf(), None)];
        self.change(from, sets);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        match self.names.get(path) {
            Some(Entry::File(_)) => {
                self.change(path, vec![(path.to_path_buf(), None)]);
                Ok(())
            }
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.check_parent(&dir.join("any"))?;
        if self.lies {
            return Ok(());
        }
        let (synced, rest) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition(|change| change.directory == dir);
        self.unsynced = rest;
        let synced: Vec<Change> = synced;
        synced
            .into_iter()
            .for_each(|change| apply(&mut self.durable_names, change));
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<bool> {
        self.check_parent(path)?;
        if !self.names.contains_key(path) {
            self.make(path);
        }
        Ok(self.locks.insert(path.to_path_buf()))
    }

    pub(super) fn unlock(&mut self, path: &Path, epoch: u64) {
        if epoch == self.epoch {
            self.locks.remove(path);
        }
    }

    pub(super) fn numbered(&mut self, number: u64) -> io::Result<&mut Content> {
        self.files
            .get_mut(&number)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn write(&mut self, number: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let failure = self.error_due(Operation::Write);
        let len = self.numbered(number)?.current().len();
        let room = self
            .capacity
            .map(|most| most.saturating_sub(self.used()) as usize);
        let growth = (start + bytes.len()).saturating_sub(len);
        let mut written = bytes;
        let mut outcome = Ok(());
        if let Some(room) = room.filter(|room| *room < growth) {
            let fits = bytes.len().saturating_sub(growth - room);
            written = bytes.get(..fits).unwrap_or_default();
            outcome = Err(io::Error::from_raw_os_error(ENOSPC));
        }
        if let Some(error) = failure {
            let part = self.chance.below(written.len() as u64 + 1) as usize;
            written = written.get(..part).unwrap_or_default();
            outcome = Err(error);
        }
        let mut place = start;
        if self
            .due(|t| matches!(t, Trouble::Misdirected { .. }))
            .is_some()
        {
            let sectors = (len / SECTOR) as u64 + 8;
            place = self.chance.below(sectors) as usize * SECTOR;
        }
        self.numbered(number)?.write(written, place);
        self.end_of_write()?;
        outcome
    }

    pub(super) fn set_len(&mut self, number: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if let Some(error) = self.error_due(Operation::Write) {
            return Err(error);
        }
        let growth = len.saturating_sub(self.numbered(number)?.current().len()) as u64;
        if self
            .capacity
            .is_some_and(|most| self.used() + growth > most)
            && growth > 0
        {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        self.numbered(number)?.set_len(len);
        self.end_of_write()
    }

    pub(super) fn preallocate(&mut self, number: u64, len: u64) -> io::Result<()> {
        let before = self.numbered(number)?.current().len() as u64;
        self.set_len(number, len.max(before))
    }

    pub(super) fn sync(&mut self, number: u64) -> io::Result<()> {
        if self.lies {
            return Ok(());
        }
        if let Some(Trouble::LosingSync { errno, .. }) =
            self.due(|t| matches!(t, Trouble::LosingSync { .. }))
        {
            let mut chance = self.chance.split();
            self.numbered(number)?.lose_sync(&mut chance);
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.numbered(number)?.sync();
        Ok(())
    }

    pub(super) fn space(&self) -> Space {
        let total = self.capacity.unwrap_or(CAPACITY);
        Space {
            free: total.saturating_sub(self.used()),
            total,
        }
    }

    fn used(&self) -> u64 {
        let named = self.names.values().filter_map(file_number);
        let files = named.filter_map(|number| self.files.get(&number));
        files.map(|file| file.current().len() as u64).sum()
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let files = self
            .names
            .iter()
            .filter(|(_, entry)| file_number(entry).is_some());
        files.map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn file(&self, path: &Path) -> Option<&Content> {
        self.files.get(&file_number(self.names.get(path)?)?)
    }

    pub(super) fn file_mut(&mut self, path: &Path) -> Option<&mut Content> {
        self.files.get_mut(&file_number(self.names.get(path)?)?)
    }

    pub(super) fn put(&mut self, path: &Path, bytes: &[u8]) {
        let number = self.next_file;
        self.next_file += 1;
        self.files.insert(number, Content::synced(bytes));
        for names in [&mut self.names, &mut self.durable_names] {
            for above in path.ancestors().skip(1) {
                names.insert(above.to_path_buf(), Entry::Directory);
            }
            names.insert(path.to_path_buf(), Entry::File(number));
        }
    }
}

fn file_number(entry: &Entry) -> Option<u64> {
    match entry {
        Entry::File(number) => Some(*number),
        Entry::Directory => None,
    }
}

fn apply(names: &mut Names, change: Change) {
    for (path, entry) in change.sets {
        match entry {
            Some(entry) => names.insert(path, entry),
            None => names.remove(&path),
        };
    }
}
