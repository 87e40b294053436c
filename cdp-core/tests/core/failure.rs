//! The first failed write or sync ends a recording; what was there stays.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use cdp_core::storage::{Fault, FaultyStorage};
use cdp_core::{AckRule, Grade, Harbor, HarborError, Options, Refused, VolumeId};

use crate::harness::{KIB, check_volume, machine, write};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn fail_and_open_again(fault: Fault, ack_rule: AckRule) {
    let context = format!("{fault:?}, {ack_rule:?}");
    let storage = Arc::new(FaultyStorage::new());
    let options = Options {
        ack_rule,
        storage: Arc::clone(&storage) as _,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options.clone());
    machine.write(0, 0, &[1; 4096]);
    let good = machine
        .recorder
        .point(Grade::Crash, Some("before"))
        .unwrap();
    let (tell, told) = mpsc::channel();
    machine
        .recorder
        .on_failure(move |cause| tell.send(cause.to_string()).unwrap());

    storage.inject(fault);
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    let mut buf = volume.buffer(4096).unwrap();
    buf.as_mut().fill(2);
    let taken = volume.write(0, buf).and_then(|ack| volume.wait(ack));
    assert_eq!(
        taken.is_ok(),
        ack_rule == AckRule::Buffered,
        "{context}: {taken:?}"
    );
    let point = machine.recorder.point(Grade::Crash, None);
    assert!(
        matches!(point, Err(HarborError::JournalFailed(_))),
        "{context}: {point:?}"
    );
    let words = told.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(words.contains("000000000001.seg"), "{context}: {words}");
    assert!(!storage.is_armed() && machine.recorder.failure().is_some());

    let counts = (storage.writes(), storage.syncs());
    assert!(
        matches!(volume.buffer(1), Err(Refused::Failed(_))),
        "{context}"
    );
    assert!(
        matches!(volume.zero(0, 512), Err(Refused::Failed(_))),
        "{context}"
    );
    assert!(matches!(
        machine.recorder.sync(),
        Err(HarborError::JournalFailed(_))
    ));
    assert!(matches!(
        machine.harbor.record(),
        Err(HarborError::JournalFailed(_))
    ));
    assert!(matches!(
        machine.recorder.close(),
        Err(HarborError::JournalFailed(_))
    ));
    assert_eq!(
        (storage.writes(), storage.syncs()),
        counts,
        "{context}: nothing is written"
    );
    assert_eq!(
        machine.recorder.stats().buffer_used,
        0,
        "{context}: all buffers are given back"
    );
    assert_eq!(
        machine.harbor.points(),
        std::slice::from_ref(&good),
        "{context}"
    );

    let dir = machine.dir();
    let home = machine.home;
    drop((machine.harbor, machine.recorder, volume));
    let (harbor, report) = Harbor::open(&dir, options).unwrap();
    assert!(
        report.cut.is_some() && report.damage.is_empty(),
        "{context}: {report:?}"
    );
    let mut expected = vec![0; 64 * KIB as usize];
    expected[..4096].fill(1);
    check_volume(
        &harbor.view(good.id).unwrap(),
        VolumeId(0),
        &expected,
        &context,
    );
    let recorder = harbor.record().unwrap();
    write(&recorder, 0, 0, &[3; 4096]);
    recorder.point(Grade::Crash, None).unwrap();
    drop(home);
}

#[test]
fn a_failed_write_or_sync_poisons() {
    for ack_rule in [AckRule::Buffered, AckRule::Durable] {
        for torn in [0, 100, 512, 4096, 5000] {
            fail_and_open_again(
                Fault::Write {
                    after: 0,
                    torn,
                    errno: ENOSPC,
                },
                ack_rule,
            );
        }
        fail_and_open_again(
            Fault::Sync {
                after: 0,
                errno: EIO,
            },
            ack_rule,
        );
    }
}

#[test]
fn a_full_disk_is_told_as_that() {
    let storage = Arc::new(FaultyStorage::new());
    let options = Options {
        storage: Arc::clone(&storage) as _,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    machine.recorder.close().unwrap();
    storage.inject(Fault::Write {
        after: 0,
        torn: 0,
        errno: ENOSPC,
    });
    assert!(matches!(
        machine.harbor.record(),
        Err(HarborError::NoSpace { .. })
    ));
    storage.inject(Fault::Write {
        after: 0,
        torn: 0,
        errno: ENOSPC,
    });
    assert!(matches!(
        machine.harbor.record_xml("<domain/>"),
        Err(HarborError::NoSpace { .. })
    ));
    let recorder = machine.harbor.record().unwrap();
    write(&recorder, 0, 0, b"space again");
    recorder.sync().unwrap();
}

#[test]
fn a_failed_journal_is_put_right_in_place() {
    let storage = Arc::new(FaultyStorage::new());
    let options = Options {
        storage: Arc::clone(&storage) as _,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    assert!(matches!(
        machine.harbor.recover(),
        Err(HarborError::Busy(_))
    ));
    machine.write(0, 0, b"kept");
    let good = machine.recorder.point(Grade::Crash, None).unwrap();
    storage.inject(Fault::Write {
        after: 0,
        torn: 400,
        errno: ENOSPC,
    });
    machine.write(0, 0, b"lost");
    assert!(machine.recorder.sync().is_err());
    assert!(machine.harbor.record().is_err() && machine.harbor.failure().is_some());
    let report = machine.harbor.recover().unwrap();
    assert!(
        report.cut.is_some() && report.head == good.seq,
        "{report:?}"
    );
    // The handle on the failed recording is still there, and stays failed.
    let recorder = machine.harbor.record().unwrap();
    assert!(machine.recorder.sync().is_err());
    write(&recorder, 0, 0, b"next");
    let next = recorder.point(Grade::Crash, None).unwrap();
    assert_eq!(machine.harbor.points(), [good, next]);
}
