//! The keys of what is done with what is kept.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::{Bounds, MIB, duration, put_duration, put_size, size};

const INTERVAL: Bounds<Duration> = Bounds {
    least: Duration::from_secs(1),
    most: Duration::from_secs(3600),
};
const BASE_INTERVAL: Bounds<Duration> = Bounds {
    least: Duration::from_secs(1),
    most: Duration::from_secs(7 * 24 * 3600),
};
const BASE_JOURNAL: Bounds<u64> = Bounds {
    least: MIB,
    most: 1 << 50,
};
const SCRUB_INTERVAL: Bounds<Duration> = Bounds {
    least: Duration::ZERO,
    most: Duration::from_secs(366 * 24 * 3600),
};
const RATE: Bounds<u64> = Bounds {
    least: MIB,
    most: 1 << 40,
};

/// What is done with what is kept, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tidy {
    /// Time between two runs.
    #[serde(serialize_with = "put_duration", deserialize_with = "interval")]
    pub interval: Duration,
    /// The age of the newest base point at which the next is built.
    #[serde(serialize_with = "put_duration", deserialize_with = "base_interval")]
    pub base_interval: Duration,
    /// The bytes of the journal behind the newest base point at which the next is built.
    #[serde(serialize_with = "put_size", deserialize_with = "base_journal")]
    pub base_journal: u64,
    /// The most bytes that are read and written for it in a second, for each machine.
    #[serde(serialize_with = "put_size", deserialize_with = "rate")]
    pub rate: u64,
    /// Whether layers are compressed when they are merged.
    pub compress: bool,
    /// Within so long everything that is kept is verified; zero: never by itself.
    #[serde(serialize_with = "put_duration", deserialize_with = "scrub_interval")]
    pub scrub_interval: Duration,
}

impl Default for Tidy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(60),
            base_interval: Duration::from_secs(3600),
            base_journal: 4096 * MIB,
            rate: 128 * MIB,
            compress: true,
            scrub_interval: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

fn interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &INTERVAL)
}

fn base_interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &BASE_INTERVAL)
}

fn scrub_interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &SCRUB_INTERVAL)
}

fn base_journal<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size(from, &BASE_JOURNAL)
}

fn rate<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size(from, &RATE)
}
