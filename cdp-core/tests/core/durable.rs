//! With the durable ack rule, a write that was acknowledged is in the journal's file.

use std::fs;
use std::thread;

use cdp_core::{Ack, AckRule, Options, VolumeId};

use crate::harness::{KIB, machine, segments};

#[test]
fn an_acknowledged_write_is_in_the_file() {
    let options = Options {
        ack_rule: AckRule::Durable,
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
