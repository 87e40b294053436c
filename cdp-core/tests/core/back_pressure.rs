//! The IO buffer is bounded: who wants more waits, and is woken when all is over.

use std::thread;
use std::time::Duration;

use cdp_core::bounds::{BUFFER_BUDGET_MIN, REQUEST_MAX};
use cdp_core::{Ack, Grade, Options, Refused, VolumeId};

use crate::harness::{Chance, machine};

const SIZE: u64 = 64 << 20;

fn small_buffer() -> Options {
    Options {
        buffer_bytes: BUFFER_BUDGET_MIN,
        ..Options::default()
    }
}

#[test]
fn the_buffer_never_exceeds_its_budget() {
    let machine = machine(&[SIZE], small_buffer());
    thread::scope(|scope| {
        for number in 0..4 {
            let volume = machine.recorder.volume(VolumeId(0)).unwrap();
            scope.spawn(move || {
                let mut chance = Chance::new(number);
                for _ in 0..40 {
                    let len = 1 + chance.below(3 << 20);
                    let mut buf = volume.buffer(len as usize).unwrap();
                    buf.as_mut().fill(number as u8);
                    volume.write(chance.below(SIZE - len), buf).unwrap();
                    volume.zero(0, SIZE).unwrap();
                }
            });
        }
        for _ in 0..100 {
            let stats = machine.recorder.stats();
            assert!(stats.buffer_used <= stats.buffer_limit, "{stats:?}");
            thread::sleep(Duration::from_millis(1));
        }
    });
    machine.recorder.sync().unwrap();
    let stats = machine.recorder.stats();
    assert_eq!((stats.buffer_used, stats.writes), (0, 320), "{stats:?}");
    assert!(stats.durable == stats.head && stats.journal_bytes > stats.write_bytes);
}

#[test]
fn a_full_buffer_makes_wait_and_closing_wakes() {
    let machine = machine(&[SIZE], small_buffer());
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    assert!(matches!(
        volume.buffer(REQUEST_MAX + 1),
        Err(Refused::TooLarge { .. })
    ));
    let held = volume.buffer(REQUEST_MAX).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| volume.buffer(4096).map(drop));
        thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        volume.write(0, held).unwrap();
        waiting.join().unwrap().unwrap();
        let held = volume.buffer(REQUEST_MAX).unwrap();
        let waiting = scope.spawn(|| volume.zero(0, 512).and_then(|_| volume.buffer(REQUEST_MAX)));
        thread::sleep(Duration::from_millis(30));
        machine.recorder.close().unwrap();
        assert!(matches!(waiting.join().unwrap(), Err(Refused::Closed)));
        assert!(matches!(volume.write(0, held), Err(Refused::Closed)));
    });
    assert!(machine.recorder.point(Grade::Crash, None).is_err());
    machine.recorder.close().unwrap();
}

#[test]
fn what_lies_outside_is_refused() {
    let machine = machine(&[4096], Options::default());
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    let head = machine.recorder.head();
    for (offset, len) in [(4096, 1), (0, 4097), (u64::MAX, 1), (1, u64::MAX)] {
        assert!(matches!(
            volume.zero(offset, len),
            Err(Refused::OutOfBounds { .. })
        ));
        assert!(matches!(
            volume.resync_zero(offset, len),
            Err(Refused::OutOfBounds { .. })
        ));
    }
    let buf = volume.buffer(512).unwrap();
    assert!(matches!(
        volume.write(4000, buf),
        Err(Refused::OutOfBounds { .. })
    ));
    assert_eq!(volume.zero(0, 0).unwrap(), Ack::Now, "nothing is nothing");
    assert_eq!(machine.recorder.head(), head);
    assert!(machine.recorder.volume(VolumeId(1)).is_err());
}
