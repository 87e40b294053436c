//! A sink that says later what is kept: a tap that is parked, left or let down while replies are held back.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qemu_hook::sink::{Ack, KeptCall, SinkClosed, WriteSink};
use qemu_hook::tap::{Bypass, TapConfig, TapEnd, TapHandle, resume_tap, spawn_tap};

use crate::peers::wait_until;
use crate::raw::{self, Raw};

const SIZE: u64 = 1 << 30;
/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(150);

/// Numbers writes; none is kept until the test says so.
#[derive(Clone, Default)]
struct Late(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Offsets of the writes, in order; a write's number is its place, from 1.
    taken: Vec<u64>,
    calls: Vec<KeptCall>,
    /// The write of this number is taken, and before the tap hears of it all is over.
    ends_behind: Option<u64>,
}

impl Late {
    fn taken(&self) -> Vec<u64> {
        self.0.lock().unwrap().taken.clone()
    }

    /// Says that everything up to `number` is kept, or that nothing further will be; returns who wants to hear more.
    fn tell(&self, number: Option<u64>) -> usize {
        let mut state = self.0.lock().unwrap();
        state.calls.retain(|call| call(number));
        state.calls.len()
    }

    fn take(&self, offset: u64) -> Result<Ack, SinkClosed> {
        let mut state = self.0.lock().unwrap();
        state.taken.push(offset);
        let number = state.taken.len() as u64;
        if state.ends_behind == Some(number) {
            state.calls.retain(|call| call(None));
        }
        Ok(Ack::Later(number))
    }
}

impl WriteSink for Late {
    type Buffer = Vec<u8>;

    const COPY_BELOW: usize = 8192;

    fn buffer(&self, len: usize) -> Result<Vec<u8>, SinkClosed> {
        Ok(vec![0; len])
    }

    fn write(&self, offset: u64, _: Vec<u8>) -> Result<Ack, SinkClosed> {
        self.take(offset)
    }

    fn zero(&self, offset: u64, _: u64) -> Result<Ack, SinkClosed> {
        self.take(offset)
    }

    fn on_kept(&self, call: KeptCall) {
        self.0.lock().unwrap().calls.push(call);
    }
}

fn tap() -> (Raw, TapHandle, Late, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let spare = ours.try_clone().unwrap();
    let late = Late::default();
    let tap = spawn_tap(ours, TapConfig::new("vda", SIZE), late.clone()).unwrap();
    (Raw::open(theirs, "vda"), tap, late, spare)
}

/// Sends one request of each kind, the cookies from `first`: small, zeroes, large, and a flush, which waits behind them.
fn four(raw: &mut Raw, first: u64) {
    raw.request(raw::WRITE, 0, first, 512 * first, 512);
    raw.send(&[1; 512]);
    raw.request(raw::ZEROES, 0, first + 1, 512 * (first + 1), 4096);
    raw.request(raw::WRITE, 0, first + 2, 512 * (first + 2), 20_000);
    raw.send(&[2; 20_000]);
    raw.request(raw::FLUSH, 0, first + 3, 0, 0);
}

fn wait_taken(late: &Late, count: usize) {
    wait_until("the sink has taken all", || late.taken().len() == count);
}

/// What is there to be read now.
fn unread(raw: &mut Raw) -> usize {
    let mut bytes = [0; 4096];
    raw.0.set_nonblocking(true).unwrap();
    let got = raw.0.read(&mut bytes).unwrap_or(0);
    raw.0.set_nonblocking(false).unwrap();
    got
}

fn answered(raw: &mut Raw, cookies: std::ops::Range<u64>) {
    for cookie in cookies {
        assert_eq!(raw.simple(cookie), 0);
    }
    assert_eq!(unread(raw), 0, "more was answered");
}

#[test]
fn a_tap_is_parked_when_the_last_of_what_it_took_is_kept_and_takes_no_more() {
    let (mut raw, mut tap, late, spare) = tap();
    for round in 0..20 {
        let first = round * 8;
        let writes = late.taken().len();
        four(&mut raw, first);
        wait_taken(&late, writes + 3);
        tap.park();
        // Two stand behind, whether or not the tap has seen that it is to be parked.
        let behind = first + 4;
        for cookie in [behind, behind + 1] {
            raw.request(raw::WRITE, 0, cookie, 512 * cookie, 512);
            raw.send(&[3; 512]);
        }
        std::thread::sleep(A_WHILE / 5);
        assert!(!tap.is_ended(), "parked while it owes replies");
        assert_eq!(unread(&mut raw), 0, "answered before it was kept");
        late.tell(Some(writes as u64 + 1));
        answered(&mut raw, first..first + 1);
        // All that was taken, also if that was more than was sent before.
        wait_until("what was taken is kept, and the tap parked", || {
            late.tell(Some(late.taken().len() as u64));
            tap.is_ended()
        });
        assert!(matches!(tap.join(), TapEnd::Parked));
        let taken = late.taken().len() - writes;
        assert!((3..=5).contains(&taken), "{taken}");
        let replied = first + 4 + (taken as u64 - 3);
        answered(&mut raw, first + 1..replied);

        let socket = spare.try_clone().unwrap();
        tap = resume_tap(socket, TapConfig::new("vda", SIZE), late.clone()).unwrap();
        wait_taken(&late, writes + 5);
        assert_eq!(late.tell(Some(late.taken().len() as u64)), 1, "only it");
        answered(&mut raw, replied..first + 6);
        let offsets: Vec<u64> = [0, 1, 2, 4, 5].map(|at| 512 * (first + at)).into();
        assert_eq!(late.taken()[writes..], offsets, "each was taken once");
    }
    drop(raw);
    assert!(matches!(tap.join(), TapEnd::Disconnected));
}

#[test]
fn who_says_goodbye_is_answered_what_is_kept_afterwards() {
    let (mut raw, tap, late, _spare) = tap();
    four(&mut raw, 0);
    raw.request(raw::DISC, 0, 9, 0, 0);
    wait_taken(&late, 3);
    std::thread::sleep(A_WHILE);
    assert!(!tap.is_ended());
    late.tell(Some(2));
    answered(&mut raw, 0..2);
    late.tell(Some(3));
    for cookie in 2..4 {
        assert_eq!(raw.simple(cookie), 0);
    }
    raw.expect_end();
    assert!(matches!(tap.join(), TapEnd::Disconnected));
    assert_eq!(late.tell(Some(4)), 0, "a tap that has ended is called");
}

#[test]
fn who_leaves_without_a_word_ends_the_tap_and_is_not_waited_for() {
    for whole in [true, false] {
        let (mut raw, tap, late, _spare) = tap();
        four(&mut raw, 0);
        if !whole {
            raw.request(raw::WRITE, 0, 7, 0, 20_000);
            raw.send(&[7; 100]);
        }
        wait_taken(&late, 3);
        drop(raw);
        // Nothing has been kept yet, and nothing has to be.
        wait_until("the tap has ended", || tap.is_ended());
        assert!(matches!(tap.join(), TapEnd::Disconnected));
        assert_eq!(late.taken().len(), 3, "what was taken stays taken");
        assert_eq!(late.tell(Some(3)), 0, "a tap that has ended is called");
    }
}

#[test]
fn a_tap_that_is_to_be_parked_does_not_wait_for_one_who_has_left() {
    let (mut raw, tap, late, _spare) = tap();
    four(&mut raw, 0);
    wait_taken(&late, 3);
    tap.park();
    std::thread::sleep(A_WHILE);
    drop(raw);
    late.tell(Some(3));
    wait_until("the tap has ended", || tap.is_ended());
    let end = tap.join();
    assert!(matches!(end, TapEnd::Disconnected), "{end:?}");
}

#[test]
fn a_sink_that_fails_answers_nothing_of_what_it_has_not_kept() {
    for parked in [false, true] {
        let (mut raw, tap, late, _spare) = tap();
        four(&mut raw, 0);
        wait_taken(&late, 3);
        if parked {
            tap.park();
            std::thread::sleep(A_WHILE);
        }
        late.tell(Some(1));
        late.tell(None);
        assert_eq!(raw.simple(0), 0);
        let mut rest = Vec::new();
        let _ = raw.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "answered, though it was not kept");
        let end = tap.join();
        assert!(matches!(end, TapEnd::Disconnected), "{end:?}");
    }
}

#[test]
fn a_sink_that_fails_while_a_write_is_taken_does_not_leave_its_client_waiting() {
    let (mut raw, tap, late, _spare) = tap();
    // Nothing is held back yet when the tap is told of the end, and no further request makes it look again.
    late.0.lock().unwrap().ends_behind = Some(1);
    raw.request(raw::WRITE, 0, 0, 0, 512);
    raw.send(&[1; 512]);
    wait_until("the tap has ended", || tap.is_ended());
    let mut rest = Vec::new();
    raw.0.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "answered, though it was not kept");
    assert!(matches!(tap.join(), TapEnd::Disconnected));
}

#[test]
fn replies_held_back_too_long_are_overdue_and_never_sent() {
    let (mut raw, tap, late, _spare) = tap();
    let bypass = Bypass::start(A_WHILE, || {}).unwrap();
    bypass.watch(&tap);
    four(&mut raw, 0);
    wait_taken(&late, 3);
    wait_until("the tap is overdue", || tap.is_overdue());
    late.tell(Some(3));
    let mut rest = Vec::new();
    let _ = raw.0.read_to_end(&mut rest);
    assert!(rest.is_empty(), "answered after it was let go");
    assert!(matches!(tap.join(), TapEnd::Overdue));
}

#[test]
fn a_writes_wait_lasts_from_its_receipt_to_its_reply() {
    let (mut raw, tap, late, _spare) = tap();
    four(&mut raw, 0);
    wait_taken(&late, 3);
    std::thread::sleep(A_WHILE);
    // Nothing is counted before it is answered.
    assert_eq!(tap.stats().counts().latency.requests(), 0);
    late.tell(Some(3));
    answered(&mut raw, 0..4);
    wait_until("all are counted", || {
        tap.stats().counts().latency.requests() == 3
    });
    let counts = tap.stats().counts();
    let waited = Duration::from_nanos(counts.latency.total_ns);
    // The flush is no write; of the three the last came after the first had been read.
    assert!(waited >= A_WHILE * 3, "{waited:?}");
    assert!(waited < A_WHILE * 3 + Duration::from_secs(3), "{waited:?}");
    let least = counts.latency.quantile(0.0);
    assert!(least >= Some(Duration::from_millis(100)), "{least:?}");
    assert_eq!((counts.writes, counts.zeroes), (2, 1));
    assert_eq!((counts.bytes, counts.zero_bytes), (20_512, 4096));
    assert_eq!(counts.overdue, 0);
    // What is answered at once is not held against the time before it came.
    std::thread::sleep(A_WHILE);
    late.tell(Some(4));
    raw.request(raw::WRITE, 0, 4, 512, 512);
    raw.send(&[1; 512]);
    answered(&mut raw, 4..5);
    wait_until("it is counted", || {
        tap.stats().counts().latency.requests() == 4
    });
    let last = tap.stats().counts().latency.since(&counts.latency);
    assert!(last.quantile(1.0) < Some(A_WHILE), "{last:?}");
    tap.close();
}
