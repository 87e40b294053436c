//! Policies as they are written down: `[policy.NAME]` in the configuration, and in `policies.toml`.
//!
//! A policy's keys are the classes of [`cdp_core::retention`], each with the span it reaches back, and a size limit.
//! A key that is absent is a class that is not used; in the policy `default` it has the built-in value.
//! Invariant: a policy that exists uses at least one class.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use cdp_core::retention::{self, Class};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error as _, MapAccess, Visitor},
    ser::SerializeMap,
};

use super::config::{Bounds, HINT_MARK, duration, size};
use crate::units;

mod drill;

pub use drill::{DrillRule, When};

/// The policy of a machine that has none assigned.
pub const DEFAULT: &str = "default";
/// The key of the size limit.
pub(crate) const SIZE_LIMIT: &str = "size_limit";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How far a class may reach back: a hundred years.
pub(crate) const SPAN: Bounds<Duration> = Bounds {
    least: Duration::ZERO,
    most: Duration::from_secs(36_500 * 24 * 3600),
};
const LIMIT: Bounds<u64> = Bounds {
    least: 0,
    most: 1 << 60,
};
/// The longest name of a policy, in bytes.
const NAME_MAX: usize = 64;

/// How a machine's points are kept, and how large its harbor may become before that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Which points are kept for how long.
    pub keep: retention::Policy,
    /// Bytes; 0: no limit.
    pub size_limit: u64,
    /// When its machines are drilled; none: when somebody asks for it.
    pub drill: Option<Arc<DrillRule>>,
}

impl Policy {
    /// Returns what `default` is unless it is configured: a day of every point, a week of hours, a month of days, a
    /// quarter of weeks, a year of months.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            keep: retention::Policy {
                all: DAY,
                hourly: DAY * 7,
                daily: DAY * 30,
                weekly: DAY * 91,
                monthly: DAY * 365,
            },
            size_limit: 0,
            drill: None,
        }
    }

    /// Returns a policy that uses no class yet.
    pub(crate) fn blank() -> Self {
        Self {
            keep: retention::Policy::default(),
            size_limit: 0,
            drill: None,
        }
    }
}

/// Returns the policies there are without any configuration.
#[must_use]
pub fn built_in() -> BTreeMap<String, Policy> {
    [(DEFAULT.to_owned(), Policy::built_in())].into()
}

/// Checks the name of a policy; what is wrong with it, and the cure.
pub(crate) fn check_name(name: &str) -> Result<(), (String, &'static str)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        return Err((
            format!("{name:?} is no name of a policy"),
            "use 1 to 64 letters, digits, '-', '_' and '.'",
        ));
    }
    Ok(())
}

/// Checks a policy as a whole; what is wrong with it, and the cure.
pub(crate) fn check(name: &str, policy: &Policy) -> Result<(), (String, String)> {
    if !policy.keep.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = Class::ALL.iter().map(|class| class.name()).collect();
    Err((
        format!("policy `{name}` keeps nothing but the newest point"),
        format!("give at least one of {} a span", names.join(", ")),
    ))
}

/// Reads the policies of a configuration; `default` is there also where it is not written down.
pub(super) fn configured<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, Policy>, D::Error> {
    let mut all = named(from)?;
    all.entry(DEFAULT.to_owned())
        .or_insert_with(Policy::built_in);
    Ok(all)
}

/// Reads policies by their names.
pub(crate) fn named<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, Policy>, D::Error> {
    struct Named;
    impl<'de> Visitor<'de> for Named {
        type Value = BTreeMap<String, Policy>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("policies as [policy.NAME]")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                let policy = map.next_value_seed(Called(&name))?;
                all.insert(name, policy);
            }
            Ok(all)
        }
    }
    from.deserialize_map(Named)
}

/// The policy of that name: with it, what is wrong is found where the policy stands.
struct Called<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Called<'_> {
    type Value = Policy;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Policy, D::Error> {
        let keys = Keys::deserialize(from)?;
        let wrong =
            |(what, hint): (String, String)| D::Error::custom(format!("{what}{HINT_MARK}{hint}"));
        check_name(self.0).map_err(|(what, hint)| wrong((what, hint.into())))?;
        let absent = match self.0 {
            DEFAULT => Policy::built_in(),
            _ => Policy::blank(),
        };
        let policy = Policy {
            keep: retention::Policy {
                all: keys.all.unwrap_or(absent.keep.all),
                hourly: keys.hourly.unwrap_or(absent.keep.hourly),
                daily: keys.daily.unwrap_or(absent.keep.daily),
                weekly: keys.weekly.unwrap_or(absent.keep.weekly),
                monthly: keys.monthly.unwrap_or(absent.keep.monthly),
            },
            size_limit: keys.size_limit.unwrap_or(absent.size_limit),
            drill: keys.drill.map(Arc::new),
        };
        check(self.0, &policy).map_err(wrong)?;
        Ok(policy)
    }
}

/// A policy's keys as they stand in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default, deserialize_with = "span")]
    all: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    hourly: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    daily: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    weekly: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    monthly: Option<Duration>,
    #[serde(default, deserialize_with = "limit")]
    size_limit: Option<u64>,
    drill: Option<DrillRule>,
}

fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from, &SPAN).map(Some)
}

fn limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    size(from, &LIMIT).map(Some)
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(
            Class::ALL.len() + 1 + usize::from(self.drill.is_some()),
        ))?;
        for class in Class::ALL {
            let span = units::format_duration(self.keep.span(class));
            map.serialize_entry(class.name(), &span)?;
        }
        map.serialize_entry(SIZE_LIMIT, &units::exact_size(self.size_limit))?;
        if let Some(drill) = &self.drill {
            map.serialize_entry("drill", &**drill)?;
        }
        map.end()
    }
}
