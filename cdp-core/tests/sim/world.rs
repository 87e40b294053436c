//! The simulated world: a guest with its disks, the harbor on its storage, the clock, and the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cdp_core::bounds::{BUFFER_BUDGET_MIN, FLUSH_INTERVAL_MAX, SECTOR, SEGMENT_MIN};
use cdp_core::chance::Chance;
use cdp_core::clock::HandClock;
use cdp_core::machine::{FORMAT_VERSION, Mode};
use cdp_core::storage::SimulatedStorage;
use cdp_core::{
    AckRule, Harbor, MachineDescription, MachineSource, Options, Recorder, Timestamp, View,
    VolumeDescription, VolumeId, VolumeRecorder,
};

use crate::history::{Disks, History, Told, Untouchable};

/// Where the harbor is.
pub(crate) const DIR: &str = "/harbor";

/// Why a step was not done to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Trouble was asked for, and something failed: as it should be.
    Ended(String),
    /// Something is not as it was promised.
    Wrong(String),
}

pub(crate) type Step<T = ()> = Result<T, Stop>;

pub(crate) fn wrong<T>(what: impl Into<String>) -> Step<T> {
    Err(Stop::Wrong(what.into()))
}

/// A guest, the harbor, the oracle.
pub(crate) struct World {
    pub(crate) chance: Chance,
    pub(crate) storage: SimulatedStorage,
    pub(crate) clock: Arc<HandClock>,
    pub(crate) options: Options,
    /// What the guest sees on its disks.
    pub(crate) live: Vec<Vec<u8>>,
    pub(crate) history: History,
    pub(crate) untouchable: Untouchable,
    /// The guest wrote something that the journal does not have.
    pub(crate) is_missing_writes: bool,
    /// Something was asked to go wrong in this round.
    pub(crate) is_trouble: bool,
    pub(crate) harbor: Option<Harbor>,
    pub(crate) recorder: Option<Recorder>,
    /// Views that are held open, with what they must show.
    pub(crate) views: Vec<(View, Disks)>,
    pub(crate) trace: Vec<String>,
    /// How often the power was cut in the middle of which kind of upkeep.
    pub(crate) cuts: Counts,
    pub(crate) is_cut_counted: bool,
    /// What upkeep has done.
    pub(crate) deeds: Counts,
    /// A life in which little else is done than upkeep.
    pub(crate) is_keeper: bool,
    /// A life in which nothing is compacted, so that segments become needless as they are.
    pub(crate) is_hoarder: bool,
}

/// How often something was done, or the power cut in the middle of it.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

impl World {
    pub(crate) fn new(seed: u64, lies: bool) -> World {
        let mut chance = Chance::new(seed);
        let storage = SimulatedStorage::new(chance.number());
        storage.lie_about_syncs(lies);
        let clock = Arc::new(HandClock::new(Timestamp(1_700_000_000_000_000_000)));
        let sizes: Vec<usize> = (0..1 + chance.below(3))
            .map(|_| (1 + chance.below(400) as usize) * SECTOR)
            .collect();
        let live = sizes.iter().map(|size| {
            let mut disk = vec![0; *size];
            let used = chance.below(*size as u64 + 1) as usize;
            chance.fill(&mut disk[..used]);
            disk
        });
        let live = live.collect();
        let is_durable = chance.once_in(3);
        let (is_keeper, is_hoarder) = (chance.once_in(2), chance.once_in(3));
        let options = Options {
            ack_rule: if is_durable {
                AckRule::Durable
            } else {
                AckRule::Buffered
            },
            // Either never by itself, or all the time.
            flush_interval: if chance.once_in(4) {
                Duration::ZERO
            } else {
                FLUSH_INTERVAL_MAX
            },
            buffer_bytes: BUFFER_BUDGET_MIN,
            segment_bytes: SEGMENT_MIN << chance.below(4),
            kept_free: 0,
            storage: Arc::new(storage.clone()),
            clock: Arc::clone(&clock) as _,
        };
        let mut world = World {
            chance,
            storage,
            clock,
            live,
            untouchable: Untouchable::none(sizes.len()),
            history: History::new(sizes),
            is_missing_writes: false,
            is_trouble: false,
            harbor: None,
            recorder: None,
            views: Vec::new(),
            trace: Vec::new(),
            cuts: Counts::new(),
            is_cut_counted: true,
            deeds: Counts::new(),
            is_keeper,
            is_hoarder,
            options,
        };
        let words = format!(
            "seed {seed}: volumes {:?}, {:?}, segments of {}",
            world.history.sizes, world.options.ack_rule, world.options.segment_bytes
        );
        world.tell(words);
        world
    }

    pub(crate) fn count(&mut self, deed: &'static str, times: u64) {
        *self.deeds.entry(deed).or_default() += times;
    }

    /// Adds to what is printed when this seed fails.
    pub(crate) fn tell(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    pub(crate) fn description(&self) -> MachineDescription {
        let volumes = self.history.sizes.iter().enumerate();
        let volumes = volumes.map(|(number, size)| {
            VolumeDescription::new(VolumeId(number as u16), format!("vd{number}"), *size as u64)
        });
        MachineDescription {
            format_version: FORMAT_VERSION,
            name: "simulated".into(),
            machine_id: "0b1d7f4e-0000-4000-8000-00000000000f".into(),
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

    pub(crate) fn harbor(&self) -> Step<Harbor> {
        self.harbor
            .clone()
            .ok_or(Stop::Wrong("no harbor is open".into()))
    }

    pub(crate) fn recorder(&self) -> Step<Recorder> {
        self.recorder
            .clone()
            .ok_or(Stop::Ended("nothing is recorded".into()))
    }

    pub(crate) fn volume(&self, volume: usize) -> Step<VolumeRecorder> {
        let recorder = self.recorder()?;
        recorder
            .volume(VolumeId(volume as u16))
            .map_err(|error| Stop::Wrong(error.to_string()))
    }

    /// A failure: as it should be if trouble was asked for, and wrong otherwise.
    pub(crate) fn failed(&self, what: &str, error: &dyn std::error::Error) -> Stop {
        let mut words = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            words = format!("{words}: {cause}");
            source = cause.source();
        }
        if self.is_trouble {
            Stop::Ended(words)
        } else {
            Stop::Wrong(format!("without reason: {words}"))
        }
    }

    /// Enters into the history what the recorder took of `told`, some of it or all, since it had `before`.
    pub(crate) fn enter(&mut self, before: u64, told: Vec<Told>, done: bool) -> Step {
        let taken = (self.recorder()?.head().0 - before) as usize;
        if taken > told.len() || (done && taken < told.len()) {
            let count = told.len();
            return wrong(format!(
                "{taken} records were taken where {count} were given"
            ));
        }
        for told in told.into_iter().take(taken) {
            self.history.push(told);
        }
        Ok(())
    }

    /// What everything that was taken so far is worth, once a call said that it is durable.
    pub(crate) fn promise_all(&mut self) {
        let head = self.history.head();
        self.history.promise(head);
    }

    pub(crate) fn snapshot(&self) -> Disks {
        Arc::new(self.live.clone())
    }

    /// A range of a volume, by chance: where it begins and how long it is.
    pub(crate) fn range(&mut self, volume: usize) -> (usize, usize) {
        let size = self.history.sizes[volume] as u64;
        let grain = if self.chance.once_in(5) {
            1
        } else {
            SECTOR as u64
        };
        let most = if self.chance.once_in(8) {
            size
        } else {
            12 * 1024
        };
        let offset = self.chance.below(size) / grain * grain;
        let len = (self.chance.below(most) / grain + 1) * grain;
        (offset as usize, len.min(size - offset) as usize)
    }

    pub(crate) fn any_volume(&mut self) -> usize {
        self.chance.below(self.history.sizes.len() as u64) as usize
    }
}
