//! Time: the moment a record carries, and the door to the machine's clock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment, in nanoseconds since 1970-01-01T00:00:00Z, without leap seconds.
///
/// Displayed and serialized as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns the moment in nanoseconds since 1970.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the moment a duration later, or the last moment there is.
    pub fn saturating_add(self, duration: Duration) -> Timestamp {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(self.0.saturating_add(nanos))
    }

    /// Returns the time passed since an earlier moment; zero if that is not earlier.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Returns the moment as jiff has it; the end of jiff's range if it lies behind that.
    pub fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or(jiff::Timestamp::MAX)
    }

    /// Takes a moment from jiff; 1970 if it lies before that.
    pub fn from_jiff(moment: jiff::Timestamp) -> Timestamp {
        Timestamp(u64::try_from(moment.as_nanosecond().max(0)).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_jiff().fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map(Timestamp::from_jiff)
            .map_err(de::Error::custom)
    }
}

/// The door to the machine's clock.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the moment it is now; it may step back, the core does not.
    fn now(&self) -> Timestamp;
}

/// The machine's real-time clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A clock that is set by hand, for tests.
#[derive(Debug, Default)]
pub struct HandClock(AtomicU64);

impl HandClock {
    /// Makes a clock that shows `now` until it is set.
    pub fn new(now: Timestamp) -> HandClock {
        HandClock(AtomicU64::new(now.0))
    }

    /// Sets the clock, forwards or back.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_survives_its_text() {
        #[derive(Serialize, Deserialize)]
        struct Holder {
            at: Timestamp,
        }
        for nanos in [0, 1, 1_700_000_000_123_456_789] {
            let text = toml::to_string(&Holder {
                at: Timestamp(nanos),
            })
            .unwrap();
            assert_eq!(
                toml::from_str::<Holder>(&text).unwrap().at,
                Timestamp(nanos),
                "{text}"
            );
        }
    }
}
