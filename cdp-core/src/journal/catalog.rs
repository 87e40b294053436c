//! What is known of the journal in memory: segments, points, gaps, and where it goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cold::BlockCache;
use super::segment::Segment;
use super::sequencer::Notice;
use crate::clock::Timestamp;
use crate::error::JournalError;
use crate::point::{Gap, Point, PointId, Seq};

/// What is known of the journal.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// Segments in order of their number.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Points on stable storage, in order, valid or not.
    pub(crate) points: Vec<Point>,
    /// Gaps in order.
    pub(crate) gaps: Vec<Gap>,
    /// Where the journal goes on.
    pub(crate) end: JournalEnd,
    /// Blocks of cold segments that were decompressed.
    pub(crate) cache: Arc<BlockCache>,
    /// Why nothing more may be written.
    pub(crate) failure: Option<Arc<JournalError>>,
}

/// Where the journal goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JournalEnd {
    pub(crate) next_segment: u64,
    pub(crate) last_seq: Seq,
    pub(crate) last_time: Timestamp,
    pub(crate) next_point: PointId,
    /// Hash of the last segment's footer.
    pub(crate) hash: [u8; 32],
}

impl Default for JournalEnd {
    fn default() -> JournalEnd {
        JournalEnd {
            next_segment: 1,
            last_seq: Seq(0),
            last_time: Timestamp(0),
            next_point: PointId(1),
            hash: [0; 32],
        }
    }
}

impl Catalog {
    /// Learns something of the journal that is on stable storage now.
    pub(crate) fn learn(&mut self, notice: Notice) {
        match notice {
            Notice::Point(point) => self.add_point(point),
            Notice::GapOpen { gap, sound } => self.add_gap(gap, sound),
            Notice::GapClose { end } => self.close_gap(end),
        }
    }

    /// Takes a point; one made while a gap is open is never offered.
    pub(crate) fn add_point(&mut self, point: Point) {
        if self.open_gap().is_none() {
            self.points.push(point);
        }
    }

    /// Takes a gap. It may have begun before it was noticed: points behind the last record that is known to be
    /// valid are offered no more, and it begins neither before the last point that is, nor before the end of the
    /// last gap. An open gap ends where the new one begins.
    pub(crate) fn add_gap(&mut self, mut gap: Gap, sound: Seq) {
        self.take_back(sound);
        let last_point = self.points.last().map(|point| point.time);
        let last_gap = self.gaps.last().map(|gap| gap.end.unwrap_or(gap.start));
        let known = last_point.max(last_gap);
        gap.start = gap.start.max(known.unwrap_or_default());
        self.close_gap(gap.start);
        self.gaps.push(gap);
    }

    /// Offers no point any more that is later than the record `sound`.
    pub(crate) fn take_back(&mut self, sound: Seq) {
        let valid = self.points.partition_point(|point| point.seq <= sound);
        self.points.truncate(valid);
    }

    /// Ends the gap that is open, if there is one.
    pub(crate) fn close_gap(&mut self, end: Timestamp) {
        if let Some(gap) = self.gaps.last_mut().filter(|gap| gap.end.is_none()) {
            gap.end = Some(end);
        }
    }

    /// Returns the gap that is open.
    pub(crate) fn open_gap(&self) -> Option<&Gap> {
        self.gaps.last().filter(|gap| gap.end.is_none())
    }

    /// Returns the first range of records after `after`, up to `up_to`, that no segment has.
    pub(crate) fn first_hole(&self, after: Seq, up_to: Seq) -> Option<(Seq, Seq)> {
        let mut next = after.next();
        for segment in &self.segments {
            if next > up_to {
                return None;
            }
            let last = segment.last_seq();
            if last < next {
                continue;
            }
            if segment.first_seq > next {
                return Some((next, up_to.min(Seq(segment.first_seq.0 - 1))));
            }
            next = last.next();
        }
        (next <= up_to).then_some((next, up_to))
    }
}

/// Returns the path of a segment.
pub(crate) fn segment_path(journal_dir: &Path, number: u64) -> PathBuf {
    journal_dir.join(format!("{number:012}.seg"))
}

/// Returns the number of the segment with that file name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let number = digits.parse().ok()?;
    (number > 0 && format!("{number:012}") == digits).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_taken_only_as_they_are_written() {
        for (name, number) in [
            ("000000000001.seg", Some(1)),
            ("1.seg", None),
            ("000000000000.seg", None),
            ("000000000001.seg.part", None),
            ("+00000000001.seg", None),
        ] {
            assert_eq!(segment_number(name), number, "{name}");
        }
        assert!(segment_path(Path::new("j"), 12).ends_with("000000000012.seg"));
    }
}
