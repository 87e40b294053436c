//! The oracle: what a harbor must have after what a child said.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use cdp_core::bounds::CHAIN_MAX;
use cdp_core::{Harbor, PointId, VolumeId};

use crate::child::{SIZES, bytes_of, options};

type Disks = Vec<Vec<u8>>;

/// A write that the journal may have.
#[derive(Debug, Clone)]
struct Write {
    volume: usize,
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// As of the last point that was said to be there.
    disks: Disks,
    /// What was written since.
    since: Vec<Write>,
    points: BTreeMap<u64, Disks>,
    locked: BTreeSet<u64>,
    /// What was begun, word by word, and not said to be done.
    under_way: Vec<String>,
}

impl Oracle {
    pub(crate) fn new() -> Oracle {
        Oracle {
            disks: SIZES.iter().map(|size| vec![0; *size]).collect(),
            ..Oracle::default()
        }
    }

    /// Takes note of a line of the child.
    pub(crate) fn hear(&mut self, line: &str) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match words.first().map(String::as_str) {
            Some("write") => {
                let numbers: Vec<u64> = words.iter().skip(1).map(|w| w.parse().unwrap()).collect();
                let len = numbers[2] as usize;
                let bytes = match numbers[3] % 7 {
                    0 => vec![0; len],
                    _ => bytes_of(numbers[3], len),
                };
                self.since.push(Write {
                    volume: numbers[0] as usize,
                    offset: numbers[1] as usize,
                    bytes,
                });
            }
            Some("begin") => self.under_way = words,
            Some("end") => {
                if let Some(id) = words.get(2) {
                    self.lay(self.since.len());
                    self.points.insert(id.parse().unwrap(), self.disks.clone());
                }
                let done = std::mem::take(&mut self.under_way);
                self.change(&done);
            }
            _ => panic!("the child said: {line}"),
        }
    }

    /// Lays the first writes since the last point over the disks.
    fn lay(&mut self, count: usize) {
        let all = std::mem::take(&mut self.since);
        all.iter()
            .take(count)
            .for_each(|write| write.lay(&mut self.disks));
    }

    /// Carries out what was said of points.
    fn change(&mut self, words: &[String]) {
        let ids = words
            .iter()
            .skip(2)
            .map(|word| word.parse::<u64>().unwrap());
        match words.get(1).map(String::as_str) {
            Some("policy" | "delete") => ids.for_each(|id| {
                self.points.remove(&id);
                self.locked.remove(&id);
            }),
            Some("lock") => self.locked.extend(ids),
            Some("unlock") => ids.for_each(|id| {
                self.locked.remove(&id);
            }),
            _ => {}
        }
    }

    /// Says in the middle of what the child is.
    pub(crate) fn during(&self) -> String {
        self.under_way.get(1).cloned().unwrap_or("nothing".into())
    }

    /// Opens the harbor, and compares all of it.
    pub(crate) fn check(&mut self, dir: &Path, context: &str) {
        let under_way = std::mem::take(&mut self.under_way);
        let context = format!("{context}, killed in {under_way:?}");
        let (harbor, report) = Harbor::open(dir, options()).unwrap();
        assert!(report.damage.is_empty(), "{context}: {report:?}");
        self.settle_disks(&harbor, &context);
        self.settle_points(&harbor, &under_way, &context);
        for (id, disks) in &self.points {
            let view = harbor.view(PointId(*id)).unwrap();
            for (number, expected) in disks.iter().enumerate() {
                let mut found = vec![0xee; expected.len()];
                view.read_at(VolumeId(number as u16), &mut found, 0)
                    .unwrap();
                assert!(
                    found == *expected,
                    "{context}: volume {number} at point {id}"
                );
            }
        }
        check_files(&harbor, dir, &context);
        let before = (harbor.points(), harbor.usage().unwrap());
        drop(harbor);
        let (harbor, report) = Harbor::open(dir, options()).unwrap();
        assert!(report.is_clean(), "{context}: opened again: {report:?}");
        assert!(
            (harbor.points(), harbor.usage().unwrap()) == before,
            "{context}: opened again"
        );
    }

    /// Finds out how many of the last writes the journal has: some of the first, and no others.
    fn settle_disks(&mut self, harbor: &Harbor, context: &str) {
        let found: Disks = (0..SIZES.len())
            .map(|number| {
                let image = harbor.latest_image(VolumeId(number as u16)).unwrap();
                let mut bytes = vec![0xee; SIZES[number]];
                image.read_at(&mut bytes, 0).unwrap();
                bytes
            })
            .collect();
        let mut disks = self.disks.clone();
        let mut count = 0;
        while disks != found {
            let next = self.since.get(count);
            let next =
                next.unwrap_or_else(|| panic!("{context}: the newest content is none that was"));
            next.lay(&mut disks);
            count += 1;
        }
        self.lay(count);
    }

    /// Finds out whether what was under way is done.
    fn settle_points(&mut self, harbor: &Harbor, under_way: &[String], context: &str) {
        let points = harbor.points();
        let found: BTreeSet<u64> = points.iter().map(|point| point.id.0).collect();
        let locked = points
            .iter()
            .filter(|point| point.locked)
            .map(|point| point.id.0);
        let locked: BTreeSet<u64> = locked.collect();
        let is_so = |oracle: &Oracle| {
            oracle.points.keys().copied().collect::<BTreeSet<u64>>() == found
                && oracle.locked == locked
        };
        if is_so(self) {
            return;
        }
        if under_way.get(1).is_some_and(|word| word == "point") {
            let id = points.last().unwrap().id.0;
            assert!(!self.points.contains_key(&id), "{context}: {found:?}");
            self.points.insert(id, self.disks.clone());
        }
        self.change(under_way);
        let kept: Vec<&u64> = self.points.keys().collect();
        assert!(
            is_so(self),
            "{context}: {found:?}, locked {locked:?}, not {kept:?}, {:?}",
            self.locked
        );
    }
}

impl Write {
    fn lay(&self, disks: &mut Disks) {
        disks[self.volume][self.offset..self.offset + self.bytes.len()]
            .copy_from_slice(&self.bytes);
    }
}

/// No file is there that is not counted or is left over, and no chain is longer than can be followed.
fn check_files(harbor: &Harbor, dir: &Path, context: &str) {
    let usage = harbor.usage().unwrap();
    let mut bytes = 0;
    let folders = ["journal", "base/vol-00000", "base/vol-00001"];
    for entry in folders
        .iter()
        .flat_map(|folder| fs::read_dir(dir.join(folder)).unwrap())
    {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(!name.ends_with(".part"), "{context}: {name} is left over");
        // What is known of a merge that is to be finished is no part of the chain yet.
        if !name.starts_with("merge-") {
            bytes += entry.metadata().unwrap().len();
        }
    }
    assert_eq!(
        usage.journal_bytes + usage.base_bytes,
        bytes,
        "{context}: {usage:?}"
    );
    for number in 0..SIZES.len() {
        let count = harbor.base_points(VolumeId(number as u16)).len();
        assert!(count < CHAIN_MAX, "{context}: {count} layers");
    }
}
