//! The sequencer: gives every record its number and time, and hands them to the writer.
//!
//! One mutex per machine. Taking a record means: number it, stamp it, put it into the frame in the making, the last
//! of the line. The writer thread asks for [`Work`]: a frame, a sync, or the end. Whoever needs a record on
//! stable storage says so, and waits or is called.
//!
//! Invariant: the line is in order of numbers, without holes. Once the phase is `Failed` nothing
//! is taken or handed out any more.
//! A crash loses what is in line, and what is written but not synced: always a tail.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::age::Ages;
use super::draft::{Draft, Payload, record_cost};
use super::touched::Window;
use crate::buffer::{Budget, Room};
use crate::clock::{Clock, Timestamp};
use crate::error::{JournalError, Refused};
use crate::format::{Kind, NO_VOLUME, Record};
use crate::harbor::pace::Pace;
use crate::machine::VolumeId;
use crate::point::{Gap, GapReason, Grade, GradeRule, Point, PointId, Seq, XmlVersion};

mod data;
mod work;

use work::Syncing;
pub(crate) use work::Work;

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
    pub(crate) ages: Ages,
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

/// Called with the last record on stable storage, or none when no further one ever will be; false when it is not to be
/// called any more.
pub(crate) type DurableCall = Box<dyn Fn(Option<Seq>) -> bool + Send>;

struct Line {
    phase: Phase,
    last_time: Timestamp,
    next_point: PointId,
    open_gap: Option<(Timestamp, GapReason)>,
    written_since_point: bool,
    /// What a resync reads at the moment.
    windows: HashMap<VolumeId, Window>,
    /// Frames in order; records are added to the last.
    waiting: VecDeque<Draft>,
    /// The first and the last record that somebody waits for to be on stable storage.
    wanted: Option<(Seq, Seq)>,
    written: Seq,
    /// When the oldest record was taken that is written, and that no sync has been begun for.
    dirty_since: Option<Instant>,
    /// The sync under way.
    syncing: Option<Syncing>,
    /// When the last sync was begun.
    sync_began: Option<Instant>,
    /// Why nothing more gets to stable storage, until the writer has learned of it.
    broken: Option<JournalError>,
    /// Writes are under way that the writer has not waited for.
    under_way: bool,
    writer_sleeps: bool,
    notices: VecDeque<(Seq, Notice)>,
    counts: Counts,
    failure_calls: Vec<FailureCall>,
}

/// Gives records their numbers; shared by all recorders of a machine and its writer.
pub(crate) struct Sequencer {
    pace: Arc<Pace>,
    clock: Arc<dyn Clock>,
    budget: Arc<Budget>,
    line: Mutex<Line>,
    durable_calls: Mutex<Vec<DurableCall>>,
    work: Condvar,
    done: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Sequencer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequencer").finish_non_exhaustive()
    }
}

impl Sequencer {
    /// Makes a sequencer that goes on from `start`.
    pub(crate) fn new(
        start: Start,
        clock: Arc<dyn Clock>,
        budget: Arc<Budget>,
        pace: Arc<Pace>,
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
            windows: HashMap::new(),
            waiting: VecDeque::new(),
            wanted: None,
            written: start.last_seq,
            dirty_since: None,
            syncing: None,
            sync_began: None,
            broken: None,
            under_way: false,
            writer_sleeps: false,
            notices: VecDeque::new(),
            counts,
            failure_calls: Vec::new(),
        };
        Sequencer {
            pace,
            clock,
            budget,
            line: Mutex::new(line),
            durable_calls: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    fn push_data(
        &self,
        line: &mut Line,
        volume: VolumeId,
        kind: Kind,
        range: Range<u64>,
        carried: (Payload<'_>, Option<Room>),
    ) -> Seq {
        line.written_since_point = true;
        let length = range.end - range.start;
        let record = Record {
            offset: range.start,
            length,
            volume,
            kind,
            ..BLANK
        };
        self.push(line, record, carried)
    }

    /// Numbers a record, stamps it and puts it in line.
    fn push(
        &self,
        line: &mut Line,
        record: Record,
        (payload, room): (Payload<'_>, Option<Room>),
    ) -> Seq {
        let seq = line.counts.head.next();
        line.counts.head = seq;
        line.last_time = self
            .clock
            .now()
            .max(Timestamp(line.last_time.0.saturating_add(1)));
        let record = Record {
            seq,
            time: line.last_time,
            ..record
        };
        let is_first = line.waiting.is_empty();
        if line
            .waiting
            .back()
            .is_none_or(|last| last.is_full_for(&payload))
        {
            line.waiting.push_back(Draft::new(&self.budget));
        }
        let filled = line.waiting.back_mut().is_some_and(|last| {
            last.push(record, payload, room);
            last.is_full()
        });
        if is_first || filled || line.waiting.len() > 1 {
            self.wake(line);
        }
        seq
    }

    /// Wakes the writer if it sleeps.
    fn wake(&self, line: &mut Line) {
        if line.writer_sleeps {
            line.writer_sleeps = false;
            self.work.notify_one();
        }
    }

    /// Notes that somebody waits for a record to be on stable storage.
    fn want(&self, line: &mut Line, seq: Seq) {
        let (first, last) = line.wanted.unwrap_or((seq, seq));
        line.wanted = Some((first.min(seq), last.max(seq)));
        self.wake(line);
    }

    /// Takes a record that belongs to the whole machine.
    fn push_other(&self, line: &mut Line, record: Record, payload: &[u8]) -> Seq {
        let room = self.budget.force_room(record_cost(payload.len()));
        let payload = if payload.is_empty() {
            Payload::None
        } else {
            Payload::Copied(payload)
        };
        self.push(line, record, (payload, Some(room)))
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
        let payload = label.unwrap_or_default().as_bytes();
        let id = line.next_point;
        let record = Record {
            offset: id.0,
            length: payload.len() as u64,
            kind: Kind::Point,
            detail: u8::from(grade == Grade::Quiesced),
            xml: xml.map_or(0, |version| version.0),
            ..BLANK
        };
        let seq = self.push_other(&mut line, record, payload);
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
            locked: false,
            damaged: false,
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
        let seq = self.push_other(&mut line, record, &[]);
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
        let seq = self.push_other(&mut line, record, &[]);
        let end = line.last_time;
        line.notices.push_back((seq, Notice::GapClose { end }));
        Ok(seq)
    }

    /// Begins to remember what the stream writes to a part of a volume that is about to be read, instead of the one
    /// before; none: stops.
    pub(crate) fn remember(&self, volume: VolumeId, window: Option<Window>) {
        let mut line = self.lock();
        match window {
            Some(window) => line.windows.insert(volume, window),
            None => line.windows.remove(&volume),
        };
    }

    /// Returns the parts of a range that the stream did not write since its window was announced.
    pub(crate) fn untouched(
        &self,
        volume: VolumeId,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>, Refused> {
        let line = self.lock();
        let window = line.windows.get(&volume);
        window
            .and_then(|window| window.untouched(range))
            .ok_or(Refused::NotAnnounced)
    }

    /// Has the writer put `seq` on stable storage soon, without waiting for it.
    pub(crate) fn want_durable(&self, seq: Seq) {
        let mut line = self.lock();
        if line.counts.durable < seq {
            self.want(&mut line, seq);
        }
    }

    /// Waits until `seq` is on stable storage.
    pub(crate) fn wait_durable(&self, seq: Seq) -> Result<(), Refused> {
        let mut line = self.lock();
        while line.counts.durable < seq {
            line.check_syncing()?;
            self.want(&mut line, seq);
            line = self.done.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Waits until `seq` is on stable storage, or until `give_up`; false when it is not there by then.
    pub(crate) fn wait_durable_until(&self, seq: Seq, give_up: Instant) -> Result<bool, Refused> {
        let mut line = self.lock();
        while line.counts.durable < seq {
            line.check_syncing()?;
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.want(&mut line, seq);
            let waited = self.done.wait_timeout(line, left);
            line = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(true)
    }

    /// Has the writer look at the pace again: what it waits for may be due.
    pub(crate) fn pace_changed(&self) {
        self.wake(&mut self.lock());
    }

    /// Ends the taking of records; the writer goes on until none waits.
    pub(crate) fn close(&self) {
        let mut line = self.lock();
        if matches!(line.phase, Phase::Running) {
            line.phase = Phase::Closing;
        }
        line.writer_sleeps = false;
        drop(line);
        self.budget.close(Refused::Closed);
        self.work.notify_one();
    }

    /// Has `call` called by the writer after each sync, and when it fails.
    pub(crate) fn on_durable(&self, call: DurableCall) {
        lock(&self.durable_calls).push(call);
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
    /// Refuses to wait for what will not come any more.
    fn check_syncing(&self) -> Result<(), Refused> {
        match &self.phase {
            Phase::Running | Phase::Closing => Ok(()),
            Phase::Closed => Err(Refused::Closed),
            Phase::Failed(cause) => Err(Refused::Failed(Arc::clone(cause))),
        }
    }

    fn check_running(&self) -> Result<(), Refused> {
        match &self.phase {
            Phase::Running => Ok(()),
            Phase::Closing | Phase::Closed => Err(Refused::Closed),
            Phase::Failed(cause) => Err(Refused::Failed(Arc::clone(cause))),
        }
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
