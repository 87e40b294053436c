//! What was taken, and is on stable storage a little later: for whoever must not wait for a disk that may hang.
//!
//! Invariant: it keeps no recording open, so that dropping it never waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Recorder;
use crate::error::{HarborError, Result};
use crate::journal::sequencer::Sequencer;
use crate::point::{Grade, GradeRule, Point, Seq};

/// A point that has its place in the sequence, and is offered once it is on stable storage.
#[derive(Debug)]
pub struct PointUnderWay {
    sequencer: Arc<Sequencer>,
    point: Point,
}

impl PointUnderWay {
    /// Tells whether the point is on stable storage, after waiting for that for at most `limit`.
    ///
    /// # Errors
    /// The recording was closed or has failed before.
    pub fn is_durable(&self, limit: Duration) -> Result<bool> {
        let give_up = Instant::now() + limit;
        Ok(self.sequencer.wait_durable_until(self.point.seq, give_up)?)
    }

    /// Waits until the point is on stable storage, for at most `limit`.
    ///
    /// # Errors
    /// [`Overdue`](HarborError::Overdue): it is not yet; the recording was closed or has failed before.
    pub fn wait(self, limit: Duration) -> Result<Point> {
        match self.is_durable(limit)? {
            true => Ok(self.point),
            false => Err(HarborError::Overdue { limit }),
        }
    }
}

impl Recorder {
    /// Begins a point as [`point`](Self::point) makes it, without waiting for stable storage.
    ///
    /// # Errors
    /// As [`point`](Self::point).
    pub fn begin_point(&self, grade: Grade, label: Option<&str>) -> Result<PointUnderWay> {
        self.begin(GradeRule::Given(grade), label)
    }

    /// Begins a point as [`point_if_still`](Self::point_if_still) makes it, without waiting for stable storage.
    ///
    /// # Errors
    /// As [`point`](Self::point).
    pub fn begin_point_if_still(&self, writes: u64, label: Option<&str>) -> Result<PointUnderWay> {
        self.begin(GradeRule::QuiescedIfStill { writes }, label)
    }

    /// Ends the open gap as [`close_gap`](Self::close_gap) does, without waiting for stable storage: whatever is taken
    /// later is there later.
    ///
    /// # Errors
    /// As [`close_gap`](Self::close_gap).
    pub fn begin_close_gap(&self) -> Result<Seq> {
        let sequencer = &self.recording.sequencer;
        let seq = sequencer.take_gap_close()?;
        sequencer.want_durable(seq);
        Ok(seq)
    }

    /// Puts everything taken before on stable storage as [`sync`](Self::sync) does, waiting for at most `limit`.
    ///
    /// # Errors
    /// [`Overdue`](HarborError::Overdue); the recording is closed or has failed.
    pub fn sync_within(&self, limit: Duration) -> Result<Seq> {
        let head = self.head();
        let sequencer = &self.recording.sequencer;
        match sequencer.wait_durable_until(head, Instant::now() + limit)? {
            true => Ok(head),
            false => Err(HarborError::Overdue { limit }),
        }
    }

    fn begin(&self, grade: GradeRule, label: Option<&str>) -> Result<PointUnderWay> {
        let point = self.make_point(grade, label, true)?;
        let point = point.ok_or(HarborError::RecordingClosed)?;
        let sequencer = Arc::clone(&self.recording.sequencer);
        sequencer.want_durable(point.seq);
        Ok(PointUnderWay { sequencer, point })
    }
}
