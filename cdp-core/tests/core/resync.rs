//! A resync: what is read from the live disk never overwrites what the stream wrote since.

use cdp_core::error::Refused;
use cdp_core::{Harbor, Options, VolumeId};

use crate::harness::{Chance, KIB, crash_image, machine, write};

const SIZE: u64 = 512 * KIB;

fn latest(harbor: &Harbor) -> Vec<u8> {
    let image = harbor.latest_image(VolumeId(0)).unwrap();
    let mut bytes = vec![0xee; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn the_stream_wins_over_the_resync() {
    for seed in 0..8 {
        let mut chance = Chance::new(seed + 5);
        let machine = machine(&[SIZE], Options::default());
        let volume = machine.recorder.volume(VolumeId(0)).unwrap();
        machine.write(0, 0, &vec![1; SIZE as usize]);
        volume.announce(0..SIZE);
        let mut expected = vec![1_u8; SIZE as usize];
        let mut streamed = vec![false; SIZE as usize];
        let mut kept = 0;
        for step in 0..120_u64 {
            let grain = [1, 512, 4096][chance.below(3) as usize];
            let offset = chance.below(SIZE / grain) * grain;
            let len = (grain * (1 + chance.below(20_000 / grain))).min(SIZE - offset);
            let range = offset as usize..(offset + len) as usize;
            let value = 2 + step as u8;
            match chance.below(6) {
                0 => {
                    volume.zero(offset, len).unwrap();
                    expected[range.clone()].fill(0);
                    streamed[range].fill(true);
                }
                1 | 2 => {
                    write(&machine.recorder, 0, offset, &vec![value; len as usize]);
                    expected[range.clone()].fill(value);
                    streamed[range].fill(true);
                }
                kind => {
                    let zero = kind == 3;
                    let value = if zero { 0 } else { value };
                    let mut count = 0;
                    for at in range.clone().filter(|at| !streamed[*at]) {
                        expected[at] = value;
                        count += 1;
                    }
                    let taken = if zero {
                        volume.resync_zero(offset, len)
                    } else {
                        volume.resync_data(offset, &vec![value; len as usize])
                    };
                    assert_eq!(taken.unwrap(), count, "seed {seed}, step {step}");
                    kept += count;
                }
            }
        }
        assert!(kept > 0);
        volume.end_resync();
        assert!(latest(&machine.harbor) == expected, "seed {seed}");
        let late = volume.resync_data(0, &[5; 512]);
        assert!(matches!(late, Err(Refused::NotAnnounced)), "{late:?}");
    }
}

#[test]
fn a_resync_takes_only_what_it_announced_and_forgets_what_is_read() {
    let machine = machine(&[SIZE], Options::default());
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    let refused = |offset, len: usize| {
        let taken = volume.resync_data(offset, &vec![9; len]);
        assert!(matches!(taken, Err(Refused::NotAnnounced)), "{taken:?}");
    };
    refused(0, 512);
    // Written before the part is announced: the disk has it, and so has what is read of it.
    write(&machine.recorder, 0, 0, &[1; 512]);
    volume.announce(0..64 * KIB);
    assert_eq!(volume.resync_data(0, &[1; 512]).unwrap(), 512);
    write(&machine.recorder, 0, 512, &[2; 512]);
    // A write over the border counts on this side of it, and is not known any more on the other.
    write(&machine.recorder, 0, 64 * KIB - 512, &[3; 1024]);
    assert_eq!(volume.resync_data(0, &[1; 1024]).unwrap(), 512);
    assert_eq!(
        volume.resync_data(64 * KIB - 1024, &[1; 1024]).unwrap(),
        512
    );
    refused(64 * KIB - 512, 1024);
    refused(64 * KIB, 512);
    volume.announce(64 * KIB..128 * KIB);
    refused(0, 512);
    assert_eq!(volume.resync_data(64 * KIB, &[3; 512]).unwrap(), 512);
    volume.end_resync();
    refused(64 * KIB, 512);
    let now = latest(&machine.harbor);
    let expected = [
        (0, 1),
        (512, 2),
        (64 * KIB - 1024, 1),
        (64 * KIB - 512, 3),
        (64 * KIB, 3),
    ];
    for (offset, value) in expected {
        let sector = &now[offset as usize..offset as usize + 512];
        assert!(sector.iter().all(|byte| *byte == value), "at {offset}");
    }
}

#[test]
fn after_a_crash_the_latest_image_is_what_reached_the_journal() {
    let machine = machine(&[SIZE], Options::default());
    machine.write(0, 4096, b"kept");
    machine.recorder.sync().unwrap();
    let crashed = machine.home.path().join("crashed");
    crash_image(&machine.dir(), &crashed);
    machine.write(0, 4096, b"lost");
    machine.recorder.sync().unwrap();
    assert_eq!(latest(&machine.harbor)[4096..4100], *b"lost");

    let (harbor, report) = Harbor::open(&crashed, Options::default()).unwrap();
    assert_eq!(report.cut.unwrap().bytes, 0);
    assert_eq!(latest(&harbor)[4096..4100], *b"kept");
    let recorder = harbor.record().unwrap();
    let image = harbor.latest_image(VolumeId(0)).unwrap();
    write(&recorder, 0, 4096, b"more");
    let mut bytes = [0; 4];
    image.read_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, *b"kept", "an image stays as it was");
    assert_eq!(latest(&harbor)[4096..4100], *b"more");
}

#[test]
fn more_records_than_a_part_may_have_are_all_there_and_lie_over_a_seed() {
    const SECTORS: u64 = 100_000;
    let machine = machine(&[SECTORS * 512], Options::default());
    let volume = machine.recorder.volume(VolumeId(0)).unwrap();
    let seed = machine.harbor.seed(VolumeId(0)).unwrap();
    let mut expected = vec![0; (SECTORS * 512) as usize];
    // Every second sector, in an order that goes up and down, some of them twice.
    for number in 0..3 * SECTORS / 4 {
        let sector = number * 70_001 % (SECTORS / 2) * 2;
        let offset = sector as usize * 512;
        expected[offset..offset + 512].fill(number as u8 | 1);
        volume
            .write_copy(offset as u64, &expected[offset..offset + 512])
            .unwrap();
    }
    assert!(latest(&machine.harbor) == expected);
    let image = machine.harbor.latest_image(VolumeId(0)).unwrap();
    // Backwards, and over the borders of parts.
    for mib in (0..(SECTORS * 512) >> 20).rev() {
        let offset = mib << 20;
        let len = (3 << 19).min(SECTORS * 512 - offset);
        let mut piece = vec![0; len as usize];
        image.read_at(&mut piece, offset).unwrap();
        let range = offset as usize..(offset + len) as usize;
        assert!(piece == expected[range], "at {offset}");
        let extents = image.extents(offset, len).unwrap();
        assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), len);
    }
    let barrier = machine.recorder.sync().unwrap();
    let base = seed.finish(barrier).unwrap();
    assert_eq!(base.seq, barrier);
    assert!(latest(&machine.harbor) == expected, "from the base point");
}
