//! Ack rule and flush interval of a machine's own: kept with it, and switched while it is recorded.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cdp_core::{Ack, AckRule, Harbor, Options, VolumeId, VolumeRecorder};

use crate::harness::{KIB, Machine, machine};

const NEVER: Duration = Duration::from_secs(60);

fn pace(machine: &Machine, ack: Option<AckRule>, flush_interval_ms: Option<u64>) {
    let mut description = machine.harbor.description();
    description.ack = ack;
    description.flush_interval_ms = flush_interval_ms;
    machine.harbor.set_description(description).unwrap();
}

fn written(volume: &VolumeRecorder) -> Ack {
    volume.write_copy(0, &[7; 512]).unwrap()
}

#[test]
fn writes_after_a_switch_are_acknowledged_by_the_new_rule() {
    let options = Options {
        flush_interval: NEVER,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    // The same handle all the while, as a tap has it.
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    assert_eq!(written(&volume), Ack::Now);
    pace(&machine, Some(AckRule::Durable), None);
    let Ack::Durable(seq) = written(&volume) else {
        panic!("acknowledged before it is durable");
    };
    volume.wait(Ack::Durable(seq)).unwrap();
    assert!(machine.recorder.stats().durable >= seq);
    pace(&machine, Some(AckRule::Buffered), None);
    assert_eq!(written(&volume), Ack::Now);
    pace(&machine, None, None);
    assert_eq!(written(&volume), Ack::Now, "as the options say");
    assert_eq!(machine.harbor.gaps(), []);
}

#[test]
fn a_shorter_flush_interval_counts_for_what_waits_already() {
    let options = Options {
        flush_interval: NEVER,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options);
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    let synced = || machine.recorder.stats().durable >= machine.recorder.head();
    written(&volume);
    thread::sleep(Duration::from_millis(300));
    assert!(!synced(), "nobody asked for it");
    let switched = Instant::now();
    pace(&machine, None, Some(50));
    while !synced() {
        assert!(switched.elapsed() < NEVER / 6, "it still waits");
        thread::sleep(Duration::from_millis(1));
    }
    written(&volume);
    thread::sleep(Duration::from_millis(1000));
    assert!(synced(), "and the next by itself");
    pace(&machine, None, None);
    written(&volume);
    thread::sleep(Duration::from_millis(300));
    assert!(!synced(), "back to the options");
}

#[test]
fn it_is_kept_with_the_machine_and_absent_as_long_as_nobody_chose() {
    let options = || Options {
        ack_rule: AckRule::Durable,
        flush_interval: NEVER,
        ..Options::default()
    };
    let machine = machine(&[64 * KIB], options());
    let toml = machine.dir().join("machine.toml");
    let before = fs::read_to_string(&toml).unwrap();
    assert!(
        !before.contains("ack") && !before.contains("flush"),
        "{before}"
    );
    let of = |harbor: &Harbor| (harbor.ack_rule(), harbor.flush_interval());
    assert_eq!(of(&machine.harbor), (AckRule::Durable, NEVER));
    pace(&machine, Some(AckRule::Buffered), Some(50));
    let mine = (AckRule::Buffered, Duration::from_millis(50));
    assert_eq!(of(&machine.harbor), mine);
    let text = fs::read_to_string(&toml).unwrap();
    assert!(
        text.contains("ack = \"buffered\"") && text.contains("flush_interval_ms = 50"),
        "{text}"
    );

    let (dir, home) = (machine.dir(), machine.home);
    drop((machine.recorder, machine.harbor));
    let (harbor, _) = Harbor::open(&dir, options()).unwrap();
    assert_eq!(of(&harbor), mine, "it outlives the program");
    let recorder = harbor.record().unwrap();
    assert_eq!(
        written(&recorder.volume(VolumeId(0)).unwrap()),
        Ack::Now,
        "and counts for the next recording"
    );
    drop(home);
}
