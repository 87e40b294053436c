//! A resync: what is read from the live disk never overwrites what the stream wrote since.

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
        volume.begin_resync();
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
        assert_eq!(
            volume.resync_data(0, &[5; 512]).unwrap(),
            512,
            "all is taken after the end"
        );
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
