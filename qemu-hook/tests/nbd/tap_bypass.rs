//! Overdue taps are closed, whatever holds them up; parked ones go on elsewhere without QEMU noticing.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use qemu_hook::tap::{Bypass, TapConfig, TapEnd, TapHandle, resume_tap, spawn_tap};

use crate::device::Numbers;
use crate::peers::wait_until;
use crate::raw::{self, Raw};
use crate::tap_sink::{Kept, Taken};

const SIZE: u64 = 1 << 30;
const DEADLINE: Duration = Duration::from_millis(300);

/// A tap under a bypass, with a descriptor of its socket as a guard would hold one.
fn tap(kept: &Kept) -> (Raw, TapHandle, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guards = ours.try_clone().unwrap();
    let tap = spawn_tap(ours, TapConfig::new("vda", SIZE), kept.clone()).unwrap();
    (Raw::open(theirs, "vda"), tap, guards)
}

#[test]
fn a_tap_whose_sink_is_stuck_is_closed_at_the_deadline_and_its_peer_let_go() {
    let kept = Kept::default();
    let (mut raw, tap, _guards) = tap(&kept);
    let bypass = Bypass::start(DEADLINE, || {}).unwrap();
    bypass.watch(&tap);
    raw.request(raw::WRITE, 0, 1, 0, 512);
    raw.send(&[1; 512]);
    assert_eq!(raw.simple(1), 0);
    // Long idle is not overdue.
    std::thread::sleep(DEADLINE * 2);
    assert!(!tap.is_ended());

    kept.hold(true);
    let begun = Instant::now();
    raw.request(raw::WRITE, 0, 2, 0, 100_000);
    raw.send(&[2; 100_000]);
    raw.expect_end();
    let took = begun.elapsed();
    assert!(took >= DEADLINE && took < DEADLINE * 2, "{took:?}");
    assert!(tap.is_ended() && tap.is_overdue());
    assert_eq!(tap.stats().counts().overdue, 1);
    kept.hold(false);
    assert!(matches!(tap.join(), TapEnd::Overdue));
    assert_eq!(kept.taken().len(), 1);
}

#[test]
fn slow_is_not_overdue_and_a_peer_that_dawdles_is_waited_for() {
    let kept = Kept::default();
    let (mut raw, tap, _guards) = tap(&kept);
    let bypass = Bypass::start(DEADLINE, || {}).unwrap();
    bypass.watch(&tap);
    for cookie in 0..4 {
        kept.hold(true);
        raw.request(raw::WRITE, 0, cookie, 0, 512);
        raw.send(&[1; 512]);
        std::thread::sleep(DEADLINE / 2);
        kept.hold(false);
        assert_eq!(raw.simple(cookie), 0);
    }
    // Half a request: the other half is QEMU's to send.
    raw.request(raw::WRITE, 0, 9, 0, 1000);
    raw.send(&[1; 500]);
    std::thread::sleep(DEADLINE * 2);
    raw.send(&[1; 500]);
    assert_eq!(raw.simple(9), 0);
    assert!(!tap.is_ended());
    assert_eq!(tap.stats().counts().overdue, 0);
}

#[test]
fn a_beat_is_heard_at_every_look() {
    let (send, beats) = std::sync::mpsc::channel();
    let bypass = Bypass::start(DEADLINE, move || {
        let _ = send.send(Instant::now());
    });
    let bypass = bypass.unwrap();
    let first = beats.recv_timeout(DEADLINE).unwrap();
    let second = beats.recv_timeout(DEADLINE).unwrap();
    assert!(second - first < DEADLINE / 2);
    drop(bypass);
    while beats.recv().is_ok() {}
}

#[test]
fn a_parked_tap_is_resumed_in_midstream_and_nothing_is_lost_or_answered_twice() {
    let mut numbers = Numbers(0x5eed_5eed_5eed);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let spare = ours.try_clone().unwrap();
    let kept = Kept::default();
    let mut tap = spawn_tap(ours, TapConfig::new("vda", SIZE), kept.clone()).unwrap();
    let mut raw = Raw::open(theirs, "vda");
    wait_until("the handshake is over", || tap.stats().is_connected());
    let mut sent = Vec::new();
    let mut answered = 0;
    for round in 0..40u64 {
        // Sixteen requests stand in the socket while the tap changes hands.
        for at in 0..16 {
            let cookie = round * 16 + at;
            let offset = 512 * numbers.below(1000);
            if at % 5 == 4 {
                raw.request(raw::ZEROES, 0, cookie, offset, 512);
                sent.push(Taken::Zero(offset, 512));
            } else {
                let mut data = vec![0; 512 + 512 * numbers.below(16) as usize];
                numbers.fill(&mut data);
                raw.request(raw::WRITE, 0, cookie, offset, data.len() as u32);
                raw.send(&data);
                sent.push(Taken::Data(offset, data));
            }
            if at == numbers.below(16) {
                tap.park();
            }
        }
        tap.park();
        let end = tap.join();
        assert!(matches!(end, TapEnd::Parked), "{end:?}");
        let socket = spare.try_clone().unwrap();
        tap = resume_tap(socket, TapConfig::new("vda", SIZE), kept.clone()).unwrap();
        for _ in 0..16 {
            assert_eq!(raw.simple(answered), 0);
            answered += 1;
        }
    }
    assert_eq!(kept.taken(), sent);
    drop(raw);
    assert!(matches!(tap.join(), TapEnd::Disconnected));
}

#[test]
fn an_idle_tap_is_parked_within_moments() {
    let kept = Kept::default();
    let (mut raw, tap, guards) = tap(&kept);
    let begun = Instant::now();
    tap.park();
    assert!(matches!(tap.join(), TapEnd::Parked));
    assert!(begun.elapsed() < Duration::from_millis(500));
    let tap = resume_tap(guards, TapConfig::new("vda", SIZE), kept.clone()).unwrap();
    raw.request(raw::WRITE, 0, 1, 0, 512);
    raw.send(&[1; 512]);
    assert_eq!(raw.simple(1), 0);
    drop(raw);
    tap.join();
}
