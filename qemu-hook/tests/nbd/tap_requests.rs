//! The tap, request by request, from a client that need not be QEMU.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qemu_hook::nbd::NbdError;
use qemu_hook::tap::{TapConfig, TapEnd, TapHandle, spawn_tap};

use crate::device::Numbers;
use crate::raw::{self, Raw, go_data};
use crate::tap_sink::{Kept, Taken};

const SIZE: u64 = 6 << 30;

fn tap() -> (Raw, TapHandle, Kept) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let kept = Kept::default();
    let config = TapConfig::new("vda ü", SIZE);
    let tap = spawn_tap(ours, config, kept.clone()).unwrap();
    (Raw::open(theirs, "vda ü"), tap, kept)
}

#[test]
fn writes_and_zeroes_are_taken_before_they_are_answered() {
    let (mut raw, tap, kept) = tap();
    raw.request(raw::WRITE, 0, 1, 512, 3);
    raw.send(b"abc");
    assert_eq!(raw.simple(1), 0);
    assert_eq!(kept.taken(), [Taken::Data(512, b"abc".to_vec())]);
    raw.request(raw::ZEROES, 2, 2, 0, u32::MAX);
    assert_eq!(raw.simple(2), 0);
    assert_eq!(kept.taken()[1], Taken::Zero(0, u64::from(u32::MAX)));
    raw.request(raw::WRITE, 1, 3, SIZE - 1, 1);
    raw.send(b"x");
    assert_eq!(raw.simple(3), 0);
    raw.request(raw::WRITE, 0, 4, 0, 32 << 20);
    raw.send(&vec![7; 32 << 20]);
    assert_eq!(raw.simple(4), 0);
    raw.request(raw::FLUSH, 0, 5, 0, 0);
    assert_eq!(raw.simple(5), 0);
    assert_eq!(tap.stats().flushes(), 1);
    raw.request(raw::DISC, 0, 6, 0, 0);
    raw.expect_end();
    assert!(matches!(tap.join(), TapEnd::Disconnected));
    assert_eq!(kept.taken().len(), 4);
}

#[test]
fn a_read_is_refused_and_the_tap_goes_on() {
    let (mut raw, tap, kept) = tap();
    raw.request(raw::READ, 0, 1, 0, 512);
    assert_eq!(raw.simple(1), 95);
    for command in [raw::WRITE, raw::ZEROES] {
        raw.request(command, 0, 2, 0, 0);
        assert_eq!(raw.simple(2), 0);
    }
    drop(raw);
    assert!(matches!(tap.join(), TapEnd::Disconnected));
    assert!(kept.taken().is_empty());
}

#[test]
fn requests_that_qemu_would_never_send_end_the_tap() {
    let requests: &[(u16, u16, u64, u32)] = &[
        (raw::WRITE, 0, SIZE, 1),
        (raw::WRITE, 0, SIZE - 1, 2),
        (raw::WRITE, 0, u64::MAX, 1),
        (raw::WRITE, 0, 0, (32 << 20) + 1),
        (raw::WRITE, 0, 0, u32::MAX),
        (raw::WRITE, 4, 0, 512),
        (raw::ZEROES, 0, u64::MAX, u32::MAX),
        (raw::ZEROES, 0, SIZE, 1),
        (raw::ZEROES, 16, 0, 512), // fast zero was not offered
        (raw::TRIM, 0, 0, 512),
        (raw::STATUS, 0, 0, 512),
        (77, 0, 0, 512),
    ];
    for (command, flags, offset, len) in requests {
        let (mut raw, tap, kept) = tap();
        raw.request(*command, *flags, 1, *offset, *len);
        raw.expect_end();
        assert!(matches!(tap.join(), TapEnd::Protocol(_)), "{offset} {len}");
        assert!(kept.taken().is_empty());
    }
}

#[test]
fn a_write_that_is_cut_off_is_not_taken() {
    let (mut raw, tap, kept) = tap();
    raw.request(raw::WRITE, 0, 1, 0, 4096);
    raw.send(&[1; 4000]);
    drop(raw);
    assert!(matches!(tap.join(), TapEnd::Disconnected));
    assert!(kept.taken().is_empty());
}

#[test]
fn the_name_must_be_the_taps_and_structure_is_declined() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let config = TapConfig::new("vda", SIZE);
    let tap = spawn_tap(ours, config, Kept::default()).unwrap();
    let mut raw = Raw::new(theirs);
    raw.greet();
    raw.option(8, &[]);
    assert_eq!(raw.reply(8).0, raw::ERR_UNSUP);
    raw.option(raw::GO, &go_data("vdb"));
    assert_eq!(raw.reply(raw::GO).0, raw::ERR_UNKNOWN);
    raw.option(raw::GO, &go_data("vda"));
    let (kind, export) = raw.reply(raw::GO);
    assert_eq!((kind, &export[2..10]), (3, &SIZE.to_be_bytes()[..]));
    // HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_WRITE_ZEROES: not read-only, no TRIM.
    assert_eq!(export[10..], 0b0100_1101u16.to_be_bytes());
    drop(raw);
    tap.join();
}

#[test]
fn a_handshake_that_does_not_come_ends_the_tap_at_its_deadline() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let config = TapConfig {
        handshake_deadline: Duration::from_millis(200),
        ..TapConfig::new("vda", SIZE)
    };
    let started = Instant::now();
    let end = spawn_tap(ours, config, Kept::default()).unwrap().join();
    assert!(matches!(end, TapEnd::Protocol(NbdError::TimedOut { .. })));
    assert!(started.elapsed() < Duration::from_secs(2));
    Raw::new(theirs).expect_end();
}

#[test]
fn taps_that_cannot_be_are_refused_at_once() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let long = TapConfig::new("x".repeat(4097), SIZE);
    assert!(spawn_tap(ours.try_clone().unwrap(), long, Kept::default()).is_err());
    let large = TapConfig::new("vda", u64::MAX);
    assert!(spawn_tap(ours, large, Kept::default()).is_err());
}

#[test]
fn noise_ends_a_tap_and_takes_nothing_down() {
    for seed in 1..=60u64 {
        let mut numbers = Numbers(seed << 32 | 0x1234_5677);
        let mut noise = vec![0; 28 + numbers.below(4000) as usize];
        numbers.fill(&mut noise);
        if seed % 2 == 0 {
            noise[..8].copy_from_slice(b"\x25\x60\x95\x13\0\0\0\x06");
        }
        let (mut raw, tap, _) = tap();
        let stats = Arc::clone(tap.stats());
        raw.send(&noise);
        drop(raw);
        let end = tap.join();
        assert!(!matches!(end, TapEnd::Io(_)), "seed {seed}: {end:?}");
        assert!(!stats.owes());
    }
}
