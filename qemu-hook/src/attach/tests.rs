//! Attaching to a QEMU that does not get on.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use super::*;
use crate::sink::{Ack, SinkClosed};

struct Nothing;

impl WriteSink for Nothing {
    type Buffer = Vec<u8>;

    fn buffer(&self, len: usize) -> Result<Vec<u8>, SinkClosed> {
        Ok(vec![0; len])
    }

    fn write(&self, _: u64, _: Vec<u8>) -> Result<Ack, SinkClosed> {
        Ok(Ack::Now)
    }

    fn zero(&self, _: u64, _: u64) -> Result<Ack, SinkClosed> {
        Ok(Ack::Now)
    }
}

/// A QEMU that begins a handshake when it is told to open the tap, and never ends it.
struct Stuck {
    end: Mutex<Option<OwnedFd>>,
    watched: AtomicBool,
    opened_watched: AtomicBool,
}

impl Monitor for Stuck {
    fn execute(&self, command: &str, _: Value) -> Result<Value, MonitorError> {
        if command == "blockdev-add" {
            self.opened_watched.store(self.watched.load(SeqCst), SeqCst);
            return Err(MonitorError::Refused {
                command: command.into(),
                class: "GenericError".into(),
                desc: "the socket was closed".into(),
            });
        }
        Ok(json!([]))
    }

    fn send_fd(&self, _: &str, fd: BorrowedFd<'_>) -> Result<(), MonitorError> {
        *self.end.lock().unwrap() = Some(fd.try_clone_to_owned().unwrap());
        Ok(())
    }
}

#[test]
fn a_tap_is_watched_before_qemu_waits_for_its_handshake() {
    let qemu = Stuck {
        end: Mutex::new(None),
        watched: AtomicBool::new(false),
        opened_watched: AtomicBool::new(false),
    };
    let node = Node {
        name: "node".into(),
        size: 1 << 20,
        format: "raw".into(),
        image: "image".into(),
        allocated: None,
        persistent_bitmaps: false,
    };
    let names = Names::new("01234567", 0);
    let watch = |_: &TapHandle| {
        qemu.watched.store(true, SeqCst);
        Ok(())
    };
    let refused = attach(&qemu, &node, &names, Path::new("/nowhere"), Nothing, watch);
    assert!(matches!(
        refused,
        Err(AttachError::Monitor(MonitorError::Refused { .. }))
    ));
    assert!(
        qemu.opened_watched.load(SeqCst),
        "a daemon that stops now holds all of QEMU up"
    );
    // Our end is closed: QEMU reads to the end.
    let end = UnixStream::from(qemu.end.lock().unwrap().take().unwrap());
    let mut rest = Vec::new();
    io::Read::read_to_end(&mut &end, &mut rest).unwrap();
}

/// A QEMU with one mirror, which ends when it is cancelled; it keeps what it was told.
struct Mirroring {
    synced: bool,
    job: AtomicBool,
    told: Mutex<Vec<String>>,
}

impl Monitor for Mirroring {
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        if command == "query-block-jobs" {
            let job = json!({"device": "m", "status": "standby", "actively-synced": self.synced});
            return Ok(match self.job.load(SeqCst) {
                true => json!([job]),
                false => json!([]),
            });
        }
        if command == "block-job-cancel" {
            self.job.store(false, SeqCst);
        }
        let force = arguments["force"].as_bool();
        let told = force.map_or(command.to_owned(), |force| format!("{command} {force}"));
        self.told.lock().unwrap().push(told);
        Ok(json!({}))
    }

    fn send_fd(&self, _: &str, _: BorrowedFd<'_>) -> Result<(), MonitorError> {
        Ok(())
    }
}

#[test]
fn a_mirror_that_failed_is_given_up_as_it_stands_and_one_that_stands_is_ended_in_order() {
    for (synced, expected) in [
        (false, &["transaction", "block-job-cancel true"][..]),
        (
            true,
            &["transaction", "block-job-resume", "block-job-cancel false"],
        ),
    ] {
        let qemu = Mirroring {
            synced,
            job: AtomicBool::new(true),
            told: Mutex::default(),
        };
        let names = [Names {
            job: "m".into(),
            ..Names::new("01234567", 0)
        }];
        assert_eq!(mirrors_stand(&qemu, &names).unwrap(), synced);
        end_job(&qemu, "m").unwrap();
        assert_eq!(*qemu.told.lock().unwrap(), expected);
        assert!(!mirrors_stand(&qemu, &names).unwrap());
    }
}
