//! What the daemon does with a machine, day by day, and the oracle of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cdp_core::chance::Chance;
use cdp_core::clock::HandClock;
use cdp_core::machine::{FORMAT_VERSION, Mode};
use cdp_core::{
    Clock, Clusters, Harbor, MachineDescription, MachineSource, Options, PointId, Policy, Recorder,
    Timestamp, View, VolumeDescription, VolumeId,
};

use crate::guest::{Guest, Shown};
use crate::promise::promised;

const MINUTE: u64 = 60 * 1_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A Monday, 2026-01-05, at midnight: so that a month ends in between.
const BEGIN: Timestamp = Timestamp(1_767_571_200_000_000_000);
const BASE_INTERVAL: Duration = HOUR;
const BASE_JOURNAL: u64 = 4 << 20;

pub(crate) const POLICY: Policy = Policy {
    all: Duration::from_secs(2 * 3600),
    hourly: Duration::from_secs(24 * 3600),
    daily: Duration::from_secs(7 * 24 * 3600),
    weekly: Duration::from_secs(21 * 24 * 3600),
    monthly: Duration::from_secs(60 * 24 * 3600),
};

/// The machine, and everything that is known of it otherwise.
pub(crate) struct Keeper {
    pub(crate) dir: PathBuf,
    pub(crate) chance: Chance,
    pub(crate) clock: Arc<HandClock>,
    options: Options,
    guest: Guest,
    /// None while the harbor is closed.
    open: Option<(Harbor, Recorder)>,
    /// All points that were ever made.
    pub(crate) made: Vec<(u64, Timestamp)>,
    /// What those show that are kept.
    pub(crate) kept: BTreeMap<u64, Vec<Shown>>,
    pub(crate) locked: BTreeSet<u64>,
    /// Views that are held open, each until some day.
    pub(crate) views: Vec<(View, Vec<Shown>, u64)>,
    pub(crate) deeds: BTreeMap<&'static str, u64>,
}

impl Keeper {
    pub(crate) fn new(dir: &Path, seed: u64) -> Keeper {
        let guest = Guest::new(seed);
        let clock = Arc::new(HandClock::new(BEGIN));
        let options = Options {
            segment_bytes: 1 << 20,
            clock: Arc::clone(&clock) as _,
            ..Options::default()
        };
        let harbor = Harbor::create(dir, &description(&guest.sizes()), options.clone()).unwrap();
        let recorder = harbor.record().unwrap();
        for disk in 0..guest.sizes().len() {
            let mut seed = harbor.seed(VolumeId(disk as u16)).unwrap();
            seed.data(0, guest.bytes(disk)).unwrap();
            seed.finish(recorder.sync().unwrap()).unwrap();
        }
        Keeper {
            dir: dir.to_path_buf(),
            chance: Chance::new(seed ^ 0x6d6f_6e74_6800),
            clock,
            options,
            guest,
            open: Some((harbor, recorder)),
            made: Vec::new(),
            kept: BTreeMap::new(),
            locked: BTreeSet::new(),
            views: Vec::new(),
            deeds: BTreeMap::new(),
        }
    }

    pub(crate) fn harbor(&self) -> &Harbor {
        &self.open.as_ref().unwrap().0
    }

    fn recorder(&self) -> &Recorder {
        &self.open.as_ref().unwrap().1
    }

    pub(crate) fn count(&mut self, deed: &'static str, times: usize) {
        *self.deeds.entry(deed).or_default() += times as u64;
    }

    pub(crate) fn live_a_day(&mut self, day: u64) {
        let until = BEGIN.saturating_add(DAY * (day as u32 + 1));
        match day {
            9 => self.resize(1, 6 << 20),
            20 => self.resize(1, 5 << 20),
            _ => {}
        }
        if day % 4 == 1 {
            self.reopen();
        }
        self.views.retain(|(_, _, until)| *until > day);
        let mut rounds = 0;
        while self.clock.now() < until {
            let step = 3 * MINUTE + self.chance.below(4 * MINUTE);
            self.clock.set(Timestamp(self.clock.now().0 + step));
            let hour = self.clock.now().since(BEGIN).as_secs() / 3600 % 24;
            let (_, recorder) = self.open.as_ref().unwrap();
            self.guest.work(recorder, hour);
            self.make_point();
            rounds += 1;
            if rounds % 3 == 0 {
                self.tidy();
            }
            if self.chance.once_in(200) {
                self.hold(day);
            }
        }
        self.tidy();
    }

    fn make_point(&mut self) {
        if let Some(point) = self.recorder().point_if_written().unwrap() {
            self.made.push((point.id.0, point.time));
            self.kept.insert(point.id.0, self.guest.shown());
        }
    }

    /// Locks a point, unlocks one, or holds a view of one open.
    fn hold(&mut self, day: u64) {
        let ids: Vec<u64> = self.kept.keys().copied().collect();
        let Some(id) = self.chance.pick(&ids).copied() else {
            return;
        };
        match self.chance.below(3) {
            0 => {
                self.harbor().lock_point(PointId(id)).unwrap();
                self.locked.insert(id);
                self.count("locked", 1);
            }
            1 => {
                if let Some(id) = self.locked.pop_first() {
                    self.harbor().unlock_point(PointId(id)).unwrap();
                }
            }
            _ => {
                let view = self.harbor().view(PointId(id)).unwrap();
                let until = day + 1 + self.chance.below(3);
                self.views.push((view, self.kept[&id].clone(), until));
                self.count("views held", 1);
            }
        }
    }

    /// Points that stay whatever the policy says.
    pub(crate) fn held(&self) -> BTreeSet<u64> {
        let pinned = self.views.iter().map(|(view, _, _)| view.point().id.0);
        pinned.chain(self.locked.iter().copied()).collect()
    }

    /// What the daemon does at every interval, in its order.
    fn tidy(&mut self) {
        self.retain();
        self.build();
        self.merge();
        while let Some(done) = self
            .harbor()
            .compact(&mut |_| ControlFlow::Continue(()))
            .unwrap()
        {
            self.count("compactions", 1);
            self.count("records dropped", done.dropped as usize);
        }
    }

    fn retain(&mut self) {
        let now = self.clock.now();
        let went = self.harbor().apply_policy(&POLICY, now).unwrap();
        let (promised, held) = (promised(&self.made, &POLICY, now), self.held());
        for point in went {
            let id = point.id.0;
            assert!(
                !promised.contains(&id),
                "point {id} went, which is promised at {now}"
            );
            assert!(!held.contains(&id), "point {id} went, which is held");
            assert!(self.kept.remove(&id).is_some(), "point {id} went twice");
            self.count("points let go", 1);
        }
        let ids: Vec<u64> = self
            .harbor()
            .points()
            .iter()
            .map(|point| point.id.0)
            .collect();
        let wanted: Vec<u64> = promised.union(&held).copied().collect();
        assert_eq!(ids, wanted, "at {now}");
    }

    fn build(&mut self) {
        let (since, newest) = (self.harbor().base_time(), self.harbor().newest_point());
        let (Some(since), Some(newest)) = (since, newest) else {
            return;
        };
        let behind = self.harbor().journal_behind_base(newest.seq).unwrap();
        let is_old = newest.time.since(since) >= BASE_INTERVAL;
        if behind > 0 && (is_old || behind >= BASE_JOURNAL) {
            let _pin = self.harbor().pin(newest.id).unwrap();
            let built = self
                .harbor()
                .build_base(newest.id, &mut |_| ControlFlow::Continue(()))
                .unwrap();
            self.count("layers built", built.len());
        }
    }

    fn merge(&mut self) {
        let Some(first) = self.harbor().first_kept() else {
            return;
        };
        let merged = self
            .harbor()
            .merge_bases(first, Clusters::Compressed, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap();
        let fulls = self.fulls();
        self.count("layers merged", merged.len());
        self.count(
            "into the full",
            merged
                .iter()
                .filter(|one| fulls.contains(&one.into))
                .count(),
        );
        let before = self.harbor().usage().unwrap().journal_bytes;
        self.harbor().remove_needless_segments();
        let after = self.harbor().usage().unwrap().journal_bytes;
        self.count("needless bytes", (before - after) as usize);
    }

    /// The records of the oldest layers.
    fn fulls(&self) -> Vec<Option<cdp_core::Seq>> {
        let volumes = 0..self.guest.sizes().len() as u16;
        let oldest = |id| {
            self.harbor()
                .base_points(VolumeId(id))
                .first()
                .map(|base| base.seq)
        };
        volumes.map(oldest).collect()
    }

    fn resize(&mut self, disk: usize, size: usize) {
        self.recorder().close().unwrap();
        let head = self.harbor().head();
        let id = VolumeId(disk as u16);
        self.harbor()
            .update_description(|description| {
                let found = description
                    .volumes
                    .iter_mut()
                    .find(|volume| volume.id == id);
                found.unwrap().change(head, Some(size as u64));
            })
            .unwrap();
        self.guest.resize(disk, size);
        let harbor = self.harbor().clone();
        self.open = Some((harbor.clone(), harbor.record().unwrap()));
        self.count("resizes", 1);
    }

    /// Closes the harbor, and opens it again: it has the same.
    pub(crate) fn reopen(&mut self) {
        self.views.clear();
        self.recorder().close().unwrap();
        let before = (self.harbor().points(), self.harbor().usage().unwrap());
        // It is locked until the last handle on it is gone.
        self.open = None;
        let (harbor, report) = Harbor::open(&self.dir, self.options.clone()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert!(
            (harbor.points(), harbor.usage().unwrap()) == before,
            "opened again it is another"
        );
        let recorder = harbor.record().unwrap();
        self.open = Some((harbor, recorder));
        self.count("opened again", 1);
    }

    pub(crate) fn close(&mut self) {
        self.recorder().close().unwrap();
    }

    /// Says what was done, and that a month is long enough for all of it.
    pub(crate) fn say_what_was_done(&self, days: u64) {
        let usage = self.harbor().usage().unwrap();
        println!(
            "month: {} points made, {} kept; {} MiB written, {usage:?}; {:?}",
            self.made.len(),
            self.kept.len(),
            self.guest.written >> 20,
            self.deeds
        );
        let all = [
            "into the full",
            "records dropped",
            "points let go",
            "locked",
            "views held",
        ];
        let missing = |deed: &&&str| !self.deeds.contains_key(**deed);
        assert!(
            days < 30 || all.iter().find(missing).is_none(),
            "not all was done"
        );
        let bytes = usage.journal_bytes + usage.base_bytes;
        assert!(
            days < 30 || bytes < self.guest.written / 2,
            "{bytes} bytes are kept"
        );
    }
}

fn description(sizes: &[u64]) -> MachineDescription {
    let volumes = sizes.iter().enumerate().map(|(number, size)| {
        VolumeDescription::new(VolumeId(number as u16), format!("vd{number}"), *size)
    });
    MachineDescription {
        format_version: FORMAT_VERSION,
        name: "month".into(),
        machine_id: "0b1d7f4e-0000-4000-8000-0000000000aa".into(),
        point_interval_ms: 300_000,
        created: BEGIN,
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
