//! Recovery of cold segments, and of what they stand for.
//!
//! A cold segment has its name only when it is whole and on stable storage. Segments within its range that are still there
//! were about to be removed, and are removed now; but where it cannot be read, those that are there are taken, and it
//! is left as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Recovery;
use crate::error::{HarborError, Result};
use crate::format::{Broken, COLD_VERSION, ColdFooter, ColdHeader};
use crate::journal::catalog::{segment_number, segment_path};
use crate::journal::cold::{cold_path, cold_range, read_ends};
use crate::journal::segment::Segment;
use crate::point::Seq;
use crate::storage::replace::remove_if_there;
use crate::storage::{OpenMode, Storage};

/// A file of the journal.
#[derive(Debug)]
pub(super) enum Found {
    Segment(u64),
    Cold(Box<(ColdHeader, ColdFooter)>),
}

impl Found {
    fn first(&self) -> u64 {
        match self {
            Found::Segment(number) => *number,
            Found::Cold(ends) => ends.0.first,
        }
    }
}

impl Recovery<'_> {
    /// Finds the files of the journal, in order, and removes those that others stand for.
    pub(super) fn find(&mut self, dir: &Path) -> Result<Vec<Found>> {
        let names = self
            .storage
            .list(dir)
            .map_err(|e| HarborError::storage("list", dir, e))?;
        let mut ranges: Vec<(u64, u64)> =
            names.iter().filter_map(|name| cold_range(name)).collect();
        // The one that stands for most comes first.
        ranges.sort_unstable_by_key(|(first, last)| (*first, u64::MAX - *last));
        let mut found: Vec<Found> = Vec::new();
        let mut stood_for: Vec<(u64, u64)> = Vec::new();
        for (first, last) in ranges {
            let path = cold_path(dir, first, last);
            if stood_for
                .iter()
                .any(|(from, to)| *from <= first && last <= *to)
            {
                self.remove(&path)?;
                continue;
            }
            match cold_ends(self.storage, &path, (first, last))? {
                Ok(ends) => {
                    stood_for.push((first, last));
                    found.push(Found::Cold(Box::new(ends)));
                }
                Err(broken) => self.damage(&path, broken.to_string()),
            }
        }
        for number in names.iter().filter_map(|name| segment_number(name)) {
            let within = |(from, to): &(u64, u64)| *from <= number && number <= *to;
            match stood_for.iter().any(within) {
                true => self.remove(&segment_path(dir, number))?,
                false => found.push(Found::Segment(number)),
            }
        }
        if !self.report.removed.is_empty() {
            // For good, before what stands for them may go.
            self.storage
                .sync_dir(dir)
                .map_err(|e| HarborError::storage("sync", dir, e))?;
        }
        found.sort_unstable_by_key(Found::first);
        Ok(found)
    }

    fn remove(&mut self, path: &Path) -> Result<()> {
        remove_if_there(self.storage, path).map_err(|e| HarborError::storage("remove", path, e))?;
        let name = path.file_name().unwrap_or_default();
        self.report
            .removed
            .push(format!("journal/{}", name.to_string_lossy()));
        Ok(())
    }

    /// Takes a cold segment into the catalog.
    pub(super) fn cold(&mut self, dir: &Path, ends: &(ColdHeader, ColdFooter)) -> Result<()> {
        let (header, footer) = ends;
        let path: PathBuf = cold_path(dir, footer.first, footer.last);
        if header.machine_id != self.machine_id {
            self.damage(
                &path,
                format!("it belongs to machine {}", header.machine_id),
            );
        }
        self.check_place(&path, footer.first, &footer.previous);
        let cache = Arc::clone(&self.catalog.cache);
        let segment = Segment::cold_one(path.clone(), *footer, cache);
        let expected = self.catalog.end.last_seq.next();
        self.check_numbers(&segment, expected, &path);
        self.chain = Some(footer.chain);
        self.catalog.end.hash = footer.chain;
        let mut others = Vec::new();
        let read = segment.open(self.storage).and_then(|file| {
            segment.for_each_other(&*file, |record| others.push(*record))?;
            Ok(file)
        });
        match read {
            Ok(file) => {
                others.sort_unstable_by_key(|record| record.seq);
                self.learn(&path, &*file, &others);
            }
            Err(HarborError::Damaged { what, .. }) => self.damage(&path, what),
            Err(error) => return Err(error),
        }
        let before = Seq(footer.first_seq.0.saturating_sub(1));
        self.raise_end(
            footer.last_seq.max(before),
            footer.last_time,
            footer.next_point,
        );
        self.catalog.end.next_segment = footer.last + 1;
        self.catalog.segments.push(Arc::new(segment));
        Ok(())
    }
}

/// Reads the ends of a cold segment.
fn cold_ends(
    storage: &dyn Storage,
    path: &Path,
    range: (u64, u64),
) -> Result<Result<(ColdHeader, ColdFooter), Broken>> {
    let file = storage
        .open(path, OpenMode::Read)
        .map_err(|e| HarborError::storage("open", path, e))?;
    let ends = read_ends(&*file).map_err(|e| HarborError::storage("read", path, e))?;
    match ends {
        Err(Broken::Version(found)) => Err(HarborError::UnknownVersion {
            path: path.to_path_buf(),
            found,
            known: COLD_VERSION,
        }),
        Ok((header, _)) if (header.first, header.last) != range => {
            Ok(Err(Broken::Field("the range of a cold segment")))
        }
        other => Ok(other),
    }
}
