//! With the durable ack rule, a write that was acknowledged is in the journal's file.

use std::fs;
use std::thread;

use cdp_core::{Ack, AckRule, Options, VolumeId};

use crate::harness::{KIB, machine, segments};

#[test]
fn an_acknowledged_write_is_in_the_file() {
    let options = Options {
        ack_rule: AckRule::Durable,
        // All of it is read again and again.
        segment_bytes: 1 << 20,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    let path = segments(&machine.dir()).pop().unwrap();
    thread::scope(|scope| {
        for thread in 0..4 {
            let volume = machine.recorder.volume(VolumeId(0)).unwrap();
            let (path, recorder) = (&path, &machine.recorder);
            scope.spawn(move || {
                for number in 0..40 {
                    let mark = format!("thread {thread} has written {number:04}");
                    let mut buf = volume.buffer(mark.len()).unwrap();
                    buf.as_mut().copy_from_slice(mark.as_bytes());
                    let Ack::Durable(seq) = volume.write(0, buf).unwrap() else {
                        panic!("acknowledged before it is durable");
                    };
                    volume.wait(Ack::Durable(seq)).unwrap();
                    assert!(recorder.stats().durable >= seq);
                    let file = fs::read(path).unwrap();
                    let found = file
                        .chunks(512)
                        .any(|sector| sector.starts_with(mark.as_bytes()));
                    assert!(found, "{mark}");
                }
            });
        }
    });
    let stats = machine.recorder.stats();
    assert!(
        stats.syncs < 160,
        "commits are shared: {} syncs",
        stats.syncs
    );
}

#[test]
fn a_recording_may_be_let_go_by_what_a_sync_calls() {
    let machine = machine(&[64 * KIB], Options::default());
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    let last = std::sync::Mutex::new(Some(machine.recorder.clone()));
    let (said, heard) = std::sync::mpsc::channel();
    volume.on_durable(move |_| {
        // The last handle there is, by then.
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(last.lock().unwrap().take());
        said.send(()).is_ok()
    });
    volume.zero(0, 512).unwrap();
    drop((volume, machine.recorder));
    let patience = std::time::Duration::from_secs(20);
    heard.recv_timeout(patience).expect("it waits for itself");
}
