//! The power is cut at every change of building and merging; every point that is kept stays exact.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cdp_core::base::hashes::Hashes;
use cdp_core::bounds::{CLUSTER, LAYERS_MAX};
use cdp_core::qcow2::Chain;
use cdp_core::storage::{Left, Operation, SimulatedStorage, Trouble};
use cdp_core::{Clusters, Grade, Harbor, HarborError, Options, Point, PointId, Seq, VolumeId};

use crate::harness::{KIB, check_volume, description, write};
use crate::layers_check::go_on;

const DIR: &str = "/harbor";
const SIZES: [u64; 2] = [5 * 64 * KIB + 512, 64 * KIB];

fn options(storage: &SimulatedStorage) -> Options {
    Options {
        storage: Arc::new(storage.clone()),
        segment_bytes: 512 * KIB,
        ..Options::default()
    }
}

fn open(storage: &SimulatedStorage, context: &str) -> Harbor {
    let opened = Harbor::open(Path::new(DIR), options(storage));
    let (harbor, report) = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.damage.is_empty(), "{context}: {report:?}");
    harbor
}

/// A harbor on a storage, and what each of its points shows.
struct Past {
    storage: SimulatedStorage,
    points: Vec<(Point, Vec<Vec<u8>>)>,
}

/// Makes a harbor with as many layers as are told; every layer changes some clusters, and makes others zeros.
fn past(layers: u8) -> Past {
    let storage = SimulatedStorage::new(1);
    let harbor = Harbor::create(Path::new(DIR), &description(&SIZES), options(&storage)).unwrap();
    let recorder = harbor.record().unwrap();
    let mut disks: Vec<Vec<u8>> = SIZES.iter().map(|size| vec![0; *size as usize]).collect();
    for (number, disk) in disks.iter_mut().enumerate() {
        disk[..3 * 4096].fill(0xaa);
        let mut seed = harbor.seed(VolumeId(number as u16)).unwrap();
        seed.data(0, disk).unwrap();
        seed.finish(recorder.sync().unwrap()).unwrap();
    }
    let mut points = Vec::new();
    for layer in 1..=layers {
        for step in 0..2 {
            let byte = layer * 2 + step;
            let at = usize::from(byte) % 5 * CLUSTER + 512 * usize::from(byte);
            disks[0][at..at + 1024].fill(byte);
            write(&recorder, 0, at as u64, &vec![byte; 1024]);
            disks[1][..512].fill(byte);
            write(&recorder, 1, 0, &[byte; 512]);
            let zeroed = usize::from(layer + 2) % 5 * CLUSTER;
            disks[0][zeroed..zeroed + CLUSTER].fill(0);
            let volume = recorder.volume(VolumeId(0)).unwrap();
            volume.zero(zeroed as u64, CLUSTER as u64).unwrap();
            let point = recorder.point(Grade::Crash, None).unwrap();
            points.push((point, disks.clone()));
        }
        // In the middle: the last point has records behind the last layer.
        let built = &points[points.len() - 2].0;
        if layer < layers {
            harbor.build_base(built.id, &mut go_on).unwrap();
        }
    }
    recorder.close().unwrap();
    drop((recorder, harbor));
    Past { storage, points }
}

impl Past {
    /// Checks every point from record `first` on, and that no layer has a wrong hash.
    fn check(&self, harbor: &Harbor, first: Seq, context: &str) {
        let offered = harbor.points();
        for (point, disks) in self.points.iter().filter(|(point, _)| point.seq >= first) {
            assert!(offered.contains(point), "{context}: {point:?} is gone");
            let view = harbor.view(point.id).unwrap();
            for (number, disk) in disks.iter().enumerate() {
                let context = format!("{context}: point {}, volume {number}", point.id);
                check_volume(&view, VolumeId(number as u16), disk, &context);
            }
        }
        for (point, disks) in self
            .points
            .iter()
            .filter(|(point, _)| offered.contains(point))
        {
            let view = harbor.view(point.id).unwrap();
            check_volume(&view, VolumeId(0), &disks[0], context);
        }
    }

    /// The content of a layer; as the journal has it, if it is of one of the points.
    fn disk_at(&self, seq: Seq, volume: u16) -> Option<&[u8]> {
        let found = self.points.iter().find(|(point, _)| point.seq == seq);
        found.map(|(_, disks)| &disks[usize::from(volume)][..])
    }

    /// Checks that each layer shows its point, and each hash is that of what shows.
    fn check_layers(&self, storage: &SimulatedStorage, harbor: &Harbor, context: &str) {
        for volume in 0..2 {
            for layer in harbor.base_points(VolumeId(volume)) {
                let context = format!("{context}: {}", layer.path.display());
                let chain = Chain::open(storage, &layer.path).unwrap();
                let mut bytes = vec![0xee; chain.size() as usize];
                chain.read_at(&mut bytes, 0).unwrap();
                if let Some(disk) = self.disk_at(layer.seq, volume) {
                    assert!(bytes == disk, "{context}");
                }
                let mut hashes = Hashes::open(storage, &layer.path).unwrap().unwrap();
                bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
                while let Some((cluster, hash)) = hashes.next_hash().unwrap() {
                    let cluster = &bytes[cluster as usize * CLUSTER..][..CLUSTER];
                    assert_eq!(hash, *blake3::hash(cluster).as_bytes(), "{context}");
                }
            }
        }
    }
}

fn images(storage: &SimulatedStorage) -> Vec<PathBuf> {
    let mut files = storage.files();
    files.retain(|path| path.starts_with("/harbor/base"));
    files
}

/// Has the power cut after each number of changes of some work, and the work done again.
fn cut_everywhere(
    past: &Past,
    first: Seq,
    work: &dyn Fn(&Harbor) -> Result<(), HarborError>,
    finished: &dyn Fn(&Harbor, &str),
) -> u64 {
    for after in 0.. {
        let context = format!("the power is cut after {after} changes");
        let storage = past.storage.fork(after);
        let harbor = open(&storage, &context);
        storage.ask_for(Trouble::PowerCut { after });
        let done = work(&harbor);
        let is_cut = storage.is_cut();
        assert!(is_cut || done.is_ok(), "{context}: {done:?}");
        drop(harbor);
        if !is_cut {
            return after;
        }
        storage.power_up(match after % 4 {
            0 => Left::Everything,
            1 => Left::Nothing,
            _ => Left::ByChance,
        });
        let harbor = open(&storage, &context);
        past.check(&harbor, first, &context);
        past.check_layers(&storage, &harbor, &context);
        work(&harbor).unwrap_or_else(|error| panic!("{context}, again: {error}"));
        past.check(&harbor, first, &context);
        past.check_layers(&storage, &harbor, &context);
        finished(&harbor, &context);
        let files = images(&storage);
        drop(harbor);
        storage.cut_power();
        storage.power_up(Left::Nothing);
        let harbor = open(&storage, &context);
        past.check(&harbor, first, &context);
        past.check_layers(&storage, &harbor, &context);
        assert_eq!(
            images(&storage),
            files,
            "{context}: something was left over"
        );
    }
    unreachable!()
}

#[test]
fn a_power_cut_while_layers_are_built_costs_nothing() {
    let past = past(2);
    let newest = past.points.last().unwrap().0.id;
    let build = |harbor: &Harbor| harbor.build_base(newest, &mut go_on).map(|_| ());
    let finished = |harbor: &Harbor, context: &str| {
        for volume in 0..2 {
            let count = harbor.base_points(VolumeId(volume)).len();
            assert_eq!(count, 3, "{context}");
        }
    };
    let changes = cut_everywhere(&past, Seq(0), &build, &finished);
    assert!(changes > 25, "{changes}");
}

fn is_short(harbor: &Harbor, context: &str) {
    assert_eq!(harbor.unfinished_merges(), [], "{context}");
    for volume in 0..2 {
        let count = harbor.base_points(VolumeId(volume)).len();
        assert!(count <= LAYERS_MAX, "{context}: {count} layers");
    }
}

#[test]
fn a_power_cut_while_an_increment_goes_into_the_full_costs_nothing() {
    let past = past(9);
    let second = past.points[0].0.seq;
    let merge = |harbor: &Harbor| {
        let merged = harbor.merge_bases(second, Clusters::Plain, &mut go_on);
        merged.map(|_| ())
    };
    let changes = cut_everywhere(&past, second, &merge, &|harbor, context| {
        is_short(harbor, context);
        let oldest = harbor.base_points(VolumeId(0))[0].clone();
        assert_eq!(oldest.seq, second, "{context}");
    });
    assert!(changes > 40, "{changes}");
}

#[test]
fn a_power_cut_while_increments_are_joined_costs_nothing() {
    let past = past(9);
    for clusters in [Clusters::Plain, Clusters::Compressed] {
        let merge = |harbor: &Harbor| {
            let merged = harbor.merge_bases(Seq(0), clusters, &mut go_on);
            merged.map(|_| ())
        };
        let changes = cut_everywhere(&past, Seq(0), &merge, &is_short);
        assert!(changes > 25, "{changes}");
    }
}

#[test]
fn a_merge_that_failed_or_was_called_off_is_finished_without_opening_again() {
    let past = past(9);
    let second = past.points[0].0.seq;
    let troubles = |after, seed| {
        let errors = [
            Operation::Read,
            Operation::Write,
            Operation::Name,
            Operation::Sync,
        ];
        let mut troubles = Vec::new();
        // The syncs of the first volume's merge.
        if after < 8 {
            troubles.push(Trouble::LosingSync { after, errno: 5 });
        }
        if seed == 0 {
            troubles.extend(errors.map(|operation| Trouble::Error {
                operation,
                after,
                errno: 5,
            }));
        }
        troubles
    };
    let mut failed = 0;
    for (after, seed) in (0..30).flat_map(|after| (0..12).map(move |seed| (after, seed))) {
        for trouble in troubles(after, seed) {
            let context = format!("{trouble:?}, seed {seed}");
            let storage = past.storage.fork(after * 100 + seed);
            let harbor = open(&storage, &context);
            storage.ask_for(trouble);
            let first = harbor.merge_bases(second, Clusters::Plain, &mut go_on);
            failed += u64::from(first.is_err());
            storage.forget_troubles();
            past.check(&harbor, second, &context);
            harbor
                .merge_bases(second, Clusters::Plain, &mut go_on)
                .unwrap();
            is_short(&harbor, &context);
            past.check(&harbor, second, &context);
            drop(harbor);
            storage.cut_power();
            storage.power_up(Left::Nothing);
            let harbor = open(&storage, &context);
            past.check(&harbor, second, &context);
            past.check_layers(&storage, &harbor, &context);
        }
    }
    assert!(failed > 60, "{failed}");
    // Called off at its first piece: the mark stays, and points before the increment are offered no more.
    let storage = past.storage.fork(1);
    let harbor = open(&storage, "called off");
    let mut pieces = 0;
    let called_off = harbor.merge_bases(second, Clusters::Plain, &mut |_| {
        pieces += 1;
        std::ops::ControlFlow::Break(())
    });
    assert!(matches!(called_off, Err(HarborError::Cancelled)) && pieces == 1);
    assert_eq!(harbor.unfinished_merges(), [(VolumeId(0), second)]);
    past.check(&harbor, second, "called off");
    drop(harbor);
    let harbor = open(&storage, "opened again");
    assert_eq!(harbor.unfinished_merges(), [(VolumeId(0), second)]);
    past.check(&harbor, second, "opened again");
    harbor
        .merge_bases(Seq(0), Clusters::Plain, &mut go_on)
        .unwrap();
    is_short(&harbor, "finished");
    past.check(&harbor, second, "finished");
    assert_eq!(
        harbor.view(PointId(1)).is_ok(),
        past.points[0].0.id == PointId(1)
    );
}
