//! What is known of the marks outside: kept over restarts, and never trusted where something is amiss.

use cdp_core::{Harbor, Marks, Options, VolumeId, VolumeMarks};

use crate::harness::{KIB, machine, segments};

fn marks() -> Marks {
    let volume = |id, rest: Option<&str>| VolumeMarks {
        id: VolumeId(id),
        image: "/images/a b.qcow2".into(),
        size: 64 * KIB,
        epochs: vec!["0123".into(), "4567".into()],
        rest: rest.map(str::to_owned),
    };
    Marks {
        volumes: vec![
            volume(0, None),
            volume(3, Some("1:18446744073709551615:2:3")),
        ],
    }
}

#[test]
fn marks_survive_a_restart_and_are_nothing_when_they_cannot_be_read() {
    let machine = machine(&[64 * KIB], Options::default());
    let dir = machine.dir();
    assert_eq!(machine.harbor.marks(), Marks::default());
    machine.harbor.set_marks(&marks()).unwrap();
    drop((machine.recorder, machine.harbor));
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(harbor.marks(), marks());
    for text in ["[[volumes]]\nid = 0", "\u{0}", "volumes = 7"] {
        std::fs::write(dir.join("marks.toml"), text).unwrap();
        assert_eq!(harbor.marks(), Marks::default(), "{text:?}");
    }
}

#[test]
fn a_damaged_journal_leaves_no_marks_that_are_trusted() {
    let machine = machine(&[64 * KIB], Options::default());
    let dir = machine.dir();
    machine.write(0, 0, &[1; 4096]);
    machine.recorder.close().unwrap();
    machine.harbor.set_marks(&marks()).unwrap();
    drop((machine.recorder, machine.harbor));
    let (harbor, _) = Harbor::open(&dir, Options::default()).unwrap();
    drop(harbor.record().unwrap());
    drop(harbor);
    assert_eq!(
        Harbor::open(&dir, Options::default()).unwrap().0.marks(),
        marks()
    );
    let first = &segments(&dir)[0];
    let mut bytes = std::fs::read(first).unwrap();
    bytes[100] ^= 1;
    std::fs::write(first, bytes).unwrap();
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(!report.damage.is_empty(), "{report:?}");
    assert_eq!(harbor.marks(), Marks::default());
}
