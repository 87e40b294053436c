//! The sequencer: gives every record its number and time, and hands them to the writer.
//!
//! One mutex per machine. Taking a record means: number it, stamp it, put it in line. The writer
//! thread asks for [`Work`]: a batch of records, a sync, or the end. Whoever needs a record on
//! stable storage registers its number and waits.
//!
//! Invariant: the line is in order of numbers, without holes. Once the phase is `Failed` nothing
//! is taken or handed out any more.
//! A crash loses what is in line, and what is written but not synced: always a tail.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::touched::Touched;
use crate::bounds::{FRAME_LINGER, FRAME_PAYLOAD_TARGET, FRAME_RECORDS_MAX};
use crate::buffer::{Budget, IoBuf};
use crate::clock::{Clock, Timestamp};
use crate::error::{JournalError, Refused};
use crate::format::{Kind, NO_VOLUME, Record};
use crate::machine::VolumeId;
use crate::point::{Gap, GapReason, Grade, GradeRule, Point, PointId, Seq, XmlVersion};

mod work;

pub(crate) use work::Work;

/// A record that waits to be written, with its payload or a mere token of the budget.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) record: Record,
    pub(crate) payload: IoBuf,
}

/// Something the catalog is to learn once its record is on stable storage.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    Point(Point),
    /// A gap, and the last record before it that is known to be valid.
    GapOpen {
        gap: Gap,
        sound: Seq,
    },
    GapClose {
        end: Timestamp,
    },
}

/// Where the sequence goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) last_seq: Seq,
    pub(crate) last_time: Timestamp,
    pub(crate) next_point: PointId,
    pub(crate) open_gap: Option<(Timestamp, GapReason)>,
    pub(crate) written_since_point: bool,
}

/// Numbers of what was taken and written, for the statistics.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) points: u64,
    pub(crate) journal_bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) sync_last: Duration,
    pub(crate) sync_max: Duration,
    pub(crate) head: Seq,
    pub(crate) durable: Seq,
}

#[derive(Debug, Clone)]
enum Phase {
    Running,
    Closing,
    Closed,
    Failed(Arc<JournalError>),
}

type FailureCall = Box<dyn FnOnce(Arc<JournalError>) + Send>;

struct Line {
    phase: Phase,
    last_time: Timestamp,
    next_point: PointId,
    open_gap: Option<(Timestamp, GapReason)>,
    written_since_point: bool,
    touched: HashMap<VolumeId, Touched>,
    waiting: VecDeque<Pending>,
    waiting_bytes: usize,
    waiting_since: Instant,
    sync_targets: BTreeSet<Seq>,
    written: Seq,
    dirty_since: Option<Instant>,
    notices: VecDeque<(Seq, Notice)>,
    counts: Counts,
    failure_calls: Vec<FailureCall>,
}

/// Gives records their numbers; shared by all recorders of a machine and its writer.
pub(crate) struct Sequencer {
    flush_interval: Duration,
    linger: Duration,
    clock: Arc<dyn Clock>,
    budget: Arc<Budget>,
    line: Mutex<Line>,
    work: Condvar,
    done: Condvar,
}

impl std::fmt::Debug for Sequencer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequencer").finish_non_exhaustive()
    }
}

impl Sequencer {
    /// Makes a sequencer that goes on from `start`. With `linger`, a small batch waits a little for
    /// company.
    pub(crate) fn new(
        start: Start,
        clock: Arc<dyn Clock>,
        budget: Arc<Budget>,
        flush_interval: Duration,
        linger: bool,
    ) -> Sequencer {
        let counts = Counts {
            head: start.last_seq,
            durable: start.last_seq,
            ..Counts::default()
        };
        let line = Line {
            phase: Phase::Running,
            last_time: start.last_time,
            next_point: start.next_point,
            open_gap: start.open_gap,
            written_since_point: start.written_since_point,
            touched: HashMap::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_since: Instant::now(),
            sync_targets: BTreeSet::new(),
            written: start.last_seq,
            dirty_since: None,
            notices: VecDeque::new(),
            counts,
            failure_calls: Vec::new(),
        };
        Sequencer {
            flush_interval,
            linger: if linger { FRAME_LINGER } else { Duration::ZERO },
            clock,
            budget,
            line: Mutex::new(line),
            work: Condvar::new(),
            done: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a guest write; `payload` is what it wrote, or a token of the budget for zeros.
    pub(crate) fn take_write(
        &self,
        volume: VolumeId,
        kind: Kind,
        range: Range<u64>,
        payload: IoBuf,
    ) -> Result<Seq, Refused> {
        let mut line = self.lock();
        line.check_running()?;
        line.counts.writes += 1;
        line.counts.write_bytes += payload.len() as u64;
        if let Some(touched) = line.touched.get_mut(&volume) {
            touched.mark(range.clone());
        }
        Ok(self.push_data(&mut line, volume, kind, range, payload))
    }

    /// Takes what was read from the live disk, except where the stream wrote; returns the bytes
    /// taken.
    pub(crate) fn take_resync(
        &self,
        volume: VolumeId,
        kind: Kind,
        range: Range<u64>,
        payload: IoBuf,
    ) -> Result<u64, Refused> {
        let mut line = self.lock();
        line.check_running()?;
        let parts = match line.touched.get(&volume) {
            Some(touched) => touched.untouched(range.clone()),
            None => vec![range.clone()],
        };
        if parts.first() == Some(&range) {
            self.push_data(&mut line, volume, kind, range.clone(), payload);
            return Ok(range.end - range.start);
        }
        for part in &parts {
            let buf = if kind.is_zero() {
                self.budget.force(0)
            } else {
                self.part_of(&payload, part.start - range.start..part.end - range.start)
            };
            self.push_data(&mut line, volume, kind, part.clone(), buf);
        }
        Ok(parts.iter().map(|part| part.end - part.start).sum())
    }

    /// A copy of a part of a resync's payload; past the budget by one piece of a resync at most.
    fn part_of(&self, payload: &IoBuf, range: Range<u64>) -> IoBuf {
        let bytes = payload
            .as_ref()
            .get(range.start as usize..range.end as usize);
        let bytes = bytes.unwrap_or_default();
        let mut buf = self.budget.force(bytes.len());
        buf.as_mut().copy_from_slice(bytes);
        buf
    }

    fn push_data(
        &self,
        line: &mut Line,
        volume: VolumeId,
        kind: Kind,
        range: Range<u64>,
        payload: IoBuf,
    ) -> Seq {
        line.written_since_point = true;
        let length = range.end - range.start;
        self.push(
            line,
            Record {
                offset: range.start,
                length,
                volume,
                kind,
                ..BLANK
            },
            payload,
        )
    }

    /// Numbers a record, stamps it and puts it in line.
    fn push(&self, line: &mut Line, record: Record, payload: IoBuf) -> Seq {
        let seq = line.counts.head.next();
        line.counts.head = seq;
        line.last_time = self
            .clock
            .now()
            .max(Timestamp(line.last_time.0.saturating_add(1)));
        if line.waiting.is_empty() {
            line.waiting_since = Instant::now();
            self.work.notify_one();
        }
        line.waiting_bytes += payload.len();
        line.waiting.push_back(Pending {
            record: Record {
                seq,
                time: line.last_time,
                ..record
            },
            payload,
        });
        if line.is_batch_full() {
            self.work.notify_one();
        }
        seq
    }

    /// Takes a recovery point; none if it is wanted only after writes and there were none.
    pub(crate) fn take_point(
        &self,
        grade: GradeRule,
        label: Option<&str>,
        xml: Option<XmlVersion>,
        always: bool,
    ) -> Result<Option<Point>, Refused> {
        let mut line = self.lock();
        line.check_running()?;
        let grade = grade.grade(line.counts.writes);
        if !always && !line.written_since_point {
            return Ok(None);
        }
        let label = label.filter(|label| !label.is_empty());
        let mut payload = self.budget.force(label.map_or(0, str::len));
        payload
            .as_mut()
            .copy_from_slice(label.unwrap_or_default().as_bytes());
        let id = line.next_point;
        let record = Record {
            offset: id.0,
            length: payload.len() as u64,
            kind: Kind::Point,
            detail: u8::from(grade == Grade::Quiesced),
            xml: xml.map_or(0, |version| version.0),
            ..BLANK
        };
        let seq = self.push(&mut line, record, payload);
        line.next_point = PointId(id.0 + 1);
        line.written_since_point = false;
        line.counts.points += 1;
        let label = label.map(str::to_owned);
        let point = Point {
            id,
            time: line.last_time,
            seq,
            grade,
            label,
            xml,
        };
        line.notices.push_back((seq, Notice::Point(point.clone())));
        Ok(Some(point))
    }

    /// Takes the start of a gap. Nothing while one is open, except that a resync follows on any gap, and any gap on
    /// a resync: then one record ends the first where the second begins.
    ///
    /// `sound` is the last record that is known to be valid; none: all there are. Then the gap cannot begin
    /// before the last of them, whatever the clock says.
    pub(crate) fn take_gap_open(
        &self,
        reason: GapReason,
        start: Timestamp,
        sound: Option<Seq>,
    ) -> Result<Seq, Refused> {
        let mut line = self.lock();
        line.check_running()?;
        let (start, sound) = match (line.open_gap, sound) {
            (Some((_, before)), _) if !before.yields_to(reason) => return Ok(line.counts.head),
            // What the first gap took back stays so: its own record says it.
            (Some(_), _) | (None, None) => (start.max(line.last_time), line.counts.head),
            (None, Some(sound)) => (start.min(line.last_time), sound.min(line.counts.head)),
        };
        let record = Record {
            offset: start.0,
            length: sound.0,
            kind: Kind::GapOpen,
            detail: reason.code(),
            ..BLANK
        };
        let seq = self.push(&mut line, record, self.budget.force(0));
        line.open_gap = Some((start, reason));
        line.notices.push_back((
            seq,
            Notice::GapOpen {
                gap: Gap {
                    start,
                    end: None,
                    reason,
                },
                sound,
            },
        ));
        Ok(seq)
    }

    /// Takes the end of the open gap; nothing if none is open.
    pub(crate) fn take_gap_close(&self) -> Result<Seq, Refused> {
        let mut line = self.lock();
        line.check_running()?;
        let Some((start, reason)) = line.open_gap.take() else {
            return Ok(line.counts.head);
        };
        let record = Record {
            offset: start.0,
            kind: Kind::GapClose,
            detail: reason.code(),
            ..BLANK
        };
        let seq = self.push(&mut line, record, self.budget.force(0));
        let end = line.last_time;
        line.notices.push_back((seq, Notice::GapClose { end }));
        Ok(seq)
    }

    /// Starts or stops to remember what the stream writes to a volume.
    pub(crate) fn remember(&self, volume: VolumeId, remember: Option<Touched>) {
        let mut line = self.lock();
        match remember {
            Some(touched) => line.touched.insert(volume, touched),
            None => line.touched.remove(&volume),
        };
    }

    /// Has the writer put `seq` on stable storage soon, without waiting for it.
    pub(crate) fn want_durable(&self, seq: Seq) {
        let mut line = self.lock();
        if line.counts.durable < seq && line.sync_targets.insert(seq) {
            self.work.notify_one();
        }
    }

    /// Waits until `seq` is on stable storage.
    pub(crate) fn wait_durable(&self, seq: Seq) -> Result<(), Refused> {
        let mut line = self.lock();
        while line.counts.durable < seq {
            match &line.phase {
                Phase::Failed(cause) => return Err(Refused::Failed(Arc::clone(cause))),
                Phase::Closed => return Err(Refused::Closed),
                Phase::Running | Phase::Closing => {}
            }
            if line.sync_targets.insert(seq) {
                self.work.notify_one();
            }
            line = self.done.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Ends the taking of records; the writer goes on until none waits.
    pub(crate) fn close(&self) {
        let mut line = self.lock();
        if matches!(line.phase, Phase::Running) {
            line.phase = Phase::Closing;
        }
        drop(line);
        self.budget.close(Refused::Closed);
        self.work.notify_one();
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(crate) fn failure(&self) -> Option<Arc<JournalError>> {
        match &self.lock().phase {
            Phase::Failed(cause) => Some(Arc::clone(cause)),
            _ => None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.lock().phase, Phase::Running)
    }

    pub(crate) fn on_failure(&self, call: FailureCall) {
        let mut line = self.lock();
        if let Phase::Failed(cause) = &line.phase {
            let cause = Arc::clone(cause);
            drop(line);
            call(cause);
        } else {
            line.failure_calls.push(call);
        }
    }
}

impl Line {
    fn check_running(&self) -> Result<(), Refused> {
        match &self.phase {
            Phase::Running => Ok(()),
            Phase::Closing | Phase::Closed => Err(Refused::Closed),
            Phase::Failed(cause) => Err(Refused::Failed(Arc::clone(cause))),
        }
    }

    fn is_batch_full(&self) -> bool {
        self.waiting.len() >= FRAME_RECORDS_MAX || self.waiting_bytes >= FRAME_PAYLOAD_TARGET
    }

    /// Takes from the line what goes into one frame.
    fn take_batch(&mut self) -> Vec<Pending> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < FRAME_RECORDS_MAX && bytes < FRAME_PAYLOAD_TARGET {
            let Some(pending) = self.waiting.pop_front() else {
                break;
            };
            bytes += pending.payload.len();
            batch.push(pending);
        }
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        self.waiting_since = Instant::now();
        batch
    }
}

/// A record of the whole machine, yet without number, time and kind.
const BLANK: Record = Record {
    seq: Seq(0),
    time: Timestamp(0),
    offset: 0,
    length: 0,
    payload_position: 0,
    payload_length: 0,
    payload_crc: 0,
    volume: NO_VOLUME,
    kind: Kind::Point,
    detail: 0,
    xml: 0,
};
