//! The room a segment reserves leaves free what is to be kept free.

use std::path::Path;
use std::sync::Arc;

use cdp_core::storage::{SimulatedStorage, Trouble};
use cdp_core::{Harbor, Options};

use crate::harness::{KIB, description};

const MIB: u64 = 1024 * KIB;

/// The length of the first segment on a disk with `used` and `room` MiB.
fn reserved(used: u64, room: u64, kept_free: u64) -> u64 {
    let storage = SimulatedStorage::new(1);
    storage.put(
        Path::new("/d/other"),
        &vec![1; usize::try_from(used * MIB).unwrap()],
    );
    storage.ask_for(Trouble::Full { room: room * MIB });
    let options = Options {
        storage: Arc::new(storage.clone()),
        kept_free: kept_free * MIB,
        ..Options::default()
    };
    let harbor = Harbor::create(Path::new("/d/h"), &description(&[64 * KIB]), options).unwrap();
    let recorder = harbor.record().unwrap();
    let segments = storage.files();
    let segment = segments
        .iter()
        .find(|f| f.parent() == Some(Path::new("/d/h/journal")));
    let length = storage.content(segment.unwrap()).unwrap().len() as u64;
    recorder.close().unwrap();
    length
}

#[test]
fn a_segment_takes_a_quarter_of_what_is_to_spare() {
    let table = [
        // used, room, kept free: expected
        (0, 8, 0, 8 * MIB / 4),
        (12, 8, 1, 7 * MIB / 4),
        // Not more than a tenth of the 20.
        (12, 8, 1024, 6 * MIB / 4),
        // Nothing to spare: only the header.
        (19, 1, 1024, 0),
    ];
    for (used, room, kept_free, expected) in table {
        let found = reserved(used, room, kept_free);
        // What the description takes is not looked at.
        assert!(
            found.abs_diff(expected) < 32 * KIB,
            "{used} {room} {kept_free}: {found}, not {expected}"
        );
    }
}
