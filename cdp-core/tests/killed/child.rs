//! The child: does what it says, and says it before and after.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use cdp_core::bounds::{BUFFER_BUDGET_MIN, SEGMENT_MIN};
use cdp_core::chance::Chance;
use cdp_core::machine::{FORMAT_VERSION, Mode};
use cdp_core::{
    Clusters, Grade, Harbor, MachineDescription, MachineSource, Options, Point, PointId, Policy,
    Recorder, Scope, Seq, Timestamp, VolumeDescription, VolumeId,
};

pub(crate) const SIZES: [usize; 2] = [768 * 1024, 300 * 1024 + 512];

pub(crate) fn options() -> Options {
    Options {
        segment_bytes: SEGMENT_MIN,
        buffer_bytes: BUFFER_BUDGET_MIN,
        ..Options::default()
    }
}

/// Makes a harbor whose volumes are seeded empty.
pub(crate) fn create(dir: &Path) {
    let volumes = SIZES.iter().enumerate().map(|(number, size)| {
        VolumeDescription::new(VolumeId(number as u16), format!("vd{number}"), *size as u64)
    });
    let description = MachineDescription {
        format_version: FORMAT_VERSION,
        name: "killed".into(),
        machine_id: "0b1d7f4e-0000-4000-8000-0000000000dd".into(),
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
    };
    let harbor = Harbor::create(dir, &description, options()).unwrap();
    let recorder = harbor.record().unwrap();
    for number in 0..SIZES.len() {
        let seed = harbor.seed(VolumeId(number as u16)).unwrap();
        seed.finish(recorder.sync().unwrap()).unwrap();
    }
    recorder.close().unwrap();
}

/// Writes a line to the pipe, at once and as a whole.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn ids(points: &[u64]) -> String {
    let words: Vec<String> = points.iter().map(u64::to_string).collect();
    words.join(" ")
}

/// The bytes of a write, from its seed.
pub(crate) fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    match seed % 3 {
        0 => bytes.fill(seed as u8),
        _ => Chance::new(seed).fill(&mut bytes),
    }
    bytes
}

struct Life {
    chance: Chance,
    harbor: Harbor,
    recorder: Recorder,
}

/// Lives until it is killed.
pub(crate) fn live(dir: &Path, seed: u64) {
    let (harbor, _) = Harbor::open(dir, options()).unwrap();
    let recorder = harbor.record().unwrap();
    let mut life = Life {
        chance: Chance::new(seed),
        harbor,
        recorder,
    };
    loop {
        for _ in 0..life.chance.below(6) {
            life.write();
        }
        life.point();
        if life.chance.once_in(2) {
            life.work();
        }
    }
}

impl Life {
    fn write(&mut self) {
        let volume = self.chance.below(SIZES.len() as u64) as usize;
        let size = SIZES[volume] as u64;
        let offset = self.chance.below(size / 512) * 512;
        let len = ((1 + self.chance.below(24)) * 512).min(size - offset);
        let seed = self.chance.number();
        say(&format!("write {volume} {offset} {len} {seed}"));
        let recorder = self.recorder.volume(VolumeId(volume as u16)).unwrap();
        match seed % 7 {
            0 => recorder.zero(offset, len).unwrap(),
            _ => recorder
                .write_copy(offset, &bytes_of(seed, len as usize))
                .unwrap(),
        };
    }

    fn point(&mut self) {
        say("begin point");
        let point = self.recorder.point(Grade::Crash, None).unwrap();
        say(&format!("end point {}", point.id));
    }

    fn work(&mut self) {
        let points = self.harbor.points();
        match self.chance.below(11) {
            0..=1 => self.policy(&points),
            2 => self.delete(&points),
            3 => self.lock(&points),
            4..=5 => self.build(),
            6 => self.merge(),
            7 => self.compact(),
            8..=9 => self.verify(),
            _ => {
                say("begin remove");
                self.harbor.remove_needless_segments();
                say("end remove");
            }
        }
    }

    fn policy(&mut self, points: &[Point]) {
        // Everything is younger than a moment, so how old it is taken for is chosen here.
        let newest = points.last().unwrap().time;
        let now = newest.saturating_add(std::time::Duration::from_secs(3600));
        let age = std::time::Duration::from_millis(self.chance.below(800));
        let policy = Policy {
            all: std::time::Duration::from_secs(3600) + age,
            ..Policy::default()
        };
        let going: Vec<u64> = self
            .harbor
            .preview_policy(&policy, now)
            .iter()
            .map(|point| point.id.0)
            .collect();
        say(&format!("begin policy {}", ids(&going)));
        self.harbor.apply_policy(&policy, now).unwrap();
        say("end policy");
    }

    fn delete(&mut self, points: &[Point]) {
        let (_, rest) = points.split_last().unwrap();
        let free = rest.iter().filter(|point| !point.locked);
        let mut chosen: Vec<u64> = free.map(|point| point.id.0).collect();
        chosen.retain(|_| self.chance.once_in(3));
        say(&format!("begin delete {}", ids(&chosen)));
        let points: Vec<PointId> = chosen.iter().copied().map(PointId).collect();
        self.harbor.delete_points(&points).unwrap();
        say("end delete");
    }

    fn lock(&mut self, points: &[Point]) {
        let point = self.chance.pick(points).unwrap();
        let locked = points.iter().filter(|point| point.locked);
        match locked.clone().next() {
            Some(point) if locked.count() > 2 => {
                say(&format!("begin unlock {}", point.id));
                self.harbor.unlock_point(point.id).unwrap();
                say("end unlock");
            }
            _ => {
                say(&format!("begin lock {}", point.id));
                self.harbor.lock_point(point.id).unwrap();
                say("end lock");
            }
        }
    }

    fn build(&mut self) {
        let newest = self.harbor.newest_point().unwrap();
        say("begin build");
        self.harbor
            .build_base(newest.id, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        say("end build");
    }

    fn merge(&mut self) {
        let first = self.harbor.first_kept().unwrap_or(Seq(0));
        let clusters = match self.chance.below(2) {
            0 => Clusters::Plain,
            _ => Clusters::Compressed,
        };
        say("begin merge");
        self.harbor
            .merge_bases(first, clusters, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        say("end merge");
    }

    fn verify(&mut self) {
        say("begin verify");
        let report = self
            .harbor
            .verify(Scope::default(), &mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(report.findings, [], "nothing is damaged");
        say("end verify");
    }

    fn compact(&mut self) {
        say("begin compact");
        self.harbor
            .compact(&mut |_| ControlFlow::Continue(()))
            .unwrap();
        say("end compact");
    }
}
