//! A machine to record, a model of what it should hold, and chance from a seed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cdp_core::machine::{FORMAT_VERSION_OLDEST, Mode};
use cdp_core::{
    Grade, Harbor, HarborError, MachineDescription, MachineSource, Options, Point, Recorder,
    RecoveryReport, Timestamp, View, VolumeDescription, VolumeId,
};
use tempfile::TempDir;

pub(crate) const KIB: u64 = 1024;

/// Numbers that look random and are the same for the same seed.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }
}

pub(crate) fn description(sizes: &[u64]) -> MachineDescription {
    let volumes = sizes
        .iter()
        .enumerate()
        .map(|(number, size)| VolumeDescription {
            original_format: Some("qcow2".into()),
            ..VolumeDescription::new(VolumeId(number as u16), format!("vd{number}"), *size)
        });
    MachineDescription {
        format_version: FORMAT_VERSION_OLDEST,
        name: "test".into(),
        machine_id: "0b1d7f4e-0000-4000-8000-000000000001".into(),
        point_interval_ms: 1000,
        created: Timestamp(1_700_000_000_000_000_000),
        mode: Mode::Active,
        ack: None,
        flush_interval_ms: None,
        policy: None,
        source: MachineSource::Qmp {
            socket: "/run/qmp".into(),
        },
        volumes: volumes.collect(),
    }
}

pub(crate) fn small_segments() -> Options {
    Options {
        segment_bytes: 256 * KIB,
        ..Options::default()
    }
}

/// A harbor in a directory that goes away, with the recording that seeded all its volumes empty.
pub(crate) struct Machine {
    pub(crate) home: TempDir,
    pub(crate) harbor: Harbor,
    pub(crate) recorder: Recorder,
}

pub(crate) fn machine(sizes: &[u64], options: Options) -> Machine {
    let home = TempDir::new().unwrap();
    let harbor = Harbor::create(&home.path().join("h"), &description(sizes), options).unwrap();
    let recorder = harbor.record().unwrap();
    for number in 0..sizes.len() {
        let seed = harbor.seed(VolumeId(number as u16)).unwrap();
        seed.finish(recorder.sync().unwrap()).unwrap();
    }
    Machine {
        home,
        harbor,
        recorder,
    }
}

impl Machine {
    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("h")
    }

    pub(crate) fn write(&self, volume: u16, offset: u64, data: &[u8]) {
        write(&self.recorder, volume, offset, data);
    }
}

pub(crate) fn write(recorder: &Recorder, volume: u16, offset: u64, data: &[u8]) {
    let volume = recorder.volume(VolumeId(volume)).unwrap();
    let mut buf = volume.buffer(data.len()).unwrap();
    buf.as_mut().copy_from_slice(data);
    let ack = volume.write(offset, buf).unwrap();
    volume.wait(ack).unwrap();
}

/// What a machine's volumes hold, and held at each point.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) volumes: Vec<Vec<u8>>,
    pub(crate) points: BTreeMap<u64, (Point, Vec<Vec<u8>>)>,
}

impl Model {
    pub(crate) fn new(sizes: &[u64]) -> Model {
        let volumes = sizes.iter().map(|size| vec![0; *size as usize]).collect();
        Model {
            volumes,
            points: BTreeMap::new(),
        }
    }

    /// Does something by chance, to the recorder and to the model alike.
    pub(crate) fn step(&mut self, recorder: &Recorder, chance: &mut Chance) {
        let number = chance.below(self.volumes.len() as u64);
        let volume = &mut self.volumes[number as usize];
        let size = volume.len() as u64;
        let grain = if chance.below(4) == 0 { 1 } else { 512 };
        let offset = chance.below(size) / grain * grain;
        let len = (chance.below(16 * KIB) / grain + 1) * grain;
        let len = len.min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        let handle = recorder.volume(VolumeId(number as u16)).unwrap();
        match chance.below(12) {
            0 => {
                volume[range].fill(0);
                let ack = handle.zero(offset, len).unwrap();
                handle.wait(ack).unwrap();
            }
            1 => {
                let data = vec![chance.below(256) as u8; len as usize];
                volume[range].copy_from_slice(&data);
                handle.announce(offset..offset + len);
                handle.resync_data(offset, &data).unwrap();
            }
            2 => {
                let label = (chance.below(2) == 0).then_some("by chance");
                let point = recorder.point(Grade::Crash, label).unwrap();
                self.points
                    .insert(point.id.0, (point, self.volumes.clone()));
            }
            _ => {
                let data: Vec<u8> = (0..len).map(|_| chance.below(256) as u8).collect();
                volume[range].copy_from_slice(&data);
                write(recorder, number as u16, offset, &data);
            }
        }
    }

    /// Checks that a harbor has exactly these points, and that each view is as it was.
    pub(crate) fn check(&self, harbor: &Harbor, context: &str) {
        let kept: Vec<Point> = self
            .points
            .values()
            .map(|(point, _)| point.clone())
            .collect();
        assert_eq!(harbor.points(), kept, "{context}");
        for (point, volumes) in self.points.values() {
            let view = harbor.view(point.id).unwrap();
            for (number, expected) in volumes.iter().enumerate() {
                let context = format!("{context}: volume {number} at point {}", point.id);
                check_volume(&view, VolumeId(number as u16), expected, &context);
            }
        }
    }
}

/// Checks a volume of a view byte by byte, also read in pieces, and that its zeros are zeros.
pub(crate) fn check_volume(view: &View, volume: VolumeId, expected: &[u8], context: &str) {
    assert_eq!(
        view.size(volume).unwrap(),
        expected.len() as u64,
        "{context}"
    );
    let mut pieces = vec![0xee; expected.len()];
    let mut at = 0;
    for piece in pieces.chunks_mut(7_777) {
        view.read_at(volume, piece, at).unwrap();
        at += piece.len() as u64;
    }
    assert!(pieces == expected, "{context}: read in pieces");
    let mut whole = vec![0xee; expected.len()];
    view.read_at(volume, &mut whole, 0).unwrap();
    assert!(whole == expected, "{context}: read at once");
    let mut at = 0;
    for extent in view.extents(volume, 0, expected.len() as u64).unwrap() {
        let range = at..at + extent.len as usize;
        assert!(
            !extent.zero || expected[range.clone()].iter().all(|b| *b == 0),
            "{context}"
        );
        at = range.end;
    }
    assert_eq!(at, expected.len(), "{context}: extents");
}

/// Copies a directory as a crash at this moment would leave it.
pub(crate) fn crash_image(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            crash_image(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Opens a harbor that was just closed. A program that another test is starting holds the lock, too, until it runs: that
/// may take longer than the harbor waits, where the machine is busy.
pub(crate) fn open_again(dir: &Path, options: Options) -> (Harbor, RecoveryReport) {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        match Harbor::open(dir, options.clone()) {
            Err(HarborError::Locked { .. }) if Instant::now() < patience => {}
            opened => return opened.unwrap(),
        }
    }
}

/// Returns the segments of a harbor, in order.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("journal")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Returns a segment's bytes without the room behind its last frame that was never written.
pub(crate) fn written(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate((last + 1).next_multiple_of(4096));
    bytes
}

/// Runs `qemu-img`; none, said aloud, where there is none.
pub(crate) fn qemu_img(arguments: &[&std::ffi::OsStr]) -> Option<std::process::Output> {
    match std::process::Command::new("qemu-img")
        .args(arguments)
        .output()
    {
        Ok(output) => Some(output),
        Err(error) => {
            drop(writeln!(
                std::io::stderr(),
                "SKIPPED: qemu-img {arguments:?}: {error}"
            ));
            None
        }
    }
}

/// Checks that an image is flawless, without errors and without leaks.
pub(crate) fn qemu_img_check(path: &Path) {
    if let Some(output) = qemu_img(&["check".as_ref(), path.as_ref()]) {
        assert!(output.status.success(), "{}: {output:?}", path.display());
    }
}

/// Returns the content of an image as `qemu-img` sees it.
pub(crate) fn qemu_img_raw(path: &Path) -> Option<Vec<u8>> {
    let raw = path.with_extension("raw");
    let convert = ["convert", "-f", "qcow2", "-O", "raw"].map(|word| word.as_ref());
    let output = qemu_img(&[&convert[..], &[path.as_ref(), raw.as_ref()]].concat())?;
    assert!(output.status.success(), "{}: {output:?}", path.display());
    Some(fs::read(raw).unwrap())
}
