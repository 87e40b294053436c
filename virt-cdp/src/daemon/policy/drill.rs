//! When a policy has its machines drilled, and what must hold: `drill = { ... }`.

use std::{path::PathBuf, str::FromStr as _, time::Duration};

use drill_runner::{plan::CheckPlan, schedule::Calendar};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeMap as _,
};

use super::{HINT_MARK, units};

/// The shortest time between two drills by `every`.
const EVERY_LEAST: Duration = Duration::from_secs(10);

/// When drills are due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// After every base point.
    BasePoint,
    /// So long after the last one.
    Every(Duration),
    /// At moments of the calendar.
    At(Calendar),
    /// One after the other.
    Continuous,
}

/// When a policy has its machines drilled, and what must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillRule {
    /// When they are due.
    pub when: When,
    /// The checks, in their short form; none: that it boots.
    pub checks: Vec<String>,
    /// The file of a plan, held for the first of its machines; it has the checks then.
    pub plan: Option<PathBuf>,
}

impl DrillRule {
    /// When drills are due, in words: `after base point`, `every 1h`, `at Mon 03:00`, `continuous`.
    #[must_use]
    pub fn words(&self) -> String {
        match &self.when {
            When::BasePoint => "after base point".into(),
            When::Every(span) => format!("every {}", units::format_duration(*span)),
            When::At(calendar) => format!("at {calendar}"),
            When::Continuous => "continuous".into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    after: Option<String>,
    every: Option<String>,
    at: Option<String>,
    #[serde(default)]
    continuous: bool,
    #[serde(default)]
    checks: Vec<String>,
    plan: Option<PathBuf>,
}

impl<'de> Deserialize<'de> for DrillRule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let wrong =
            |what: String, hint: String| D::Error::custom(format!("{what}{HINT_MARK}{hint}"));
        let keys = Keys::deserialize(from)?;
        let mut when = Vec::new();
        match keys.after.as_deref() {
            None => {}
            Some("base-point") => when.push(When::BasePoint),
            Some(other) => {
                return Err(wrong(
                    format!("drills are not held after `{other}`"),
                    "write after = \"base-point\"".into(),
                ));
            }
        }
        if let Some(text) = &keys.every {
            let span = units::parse_duration(text)
                .map_err(|error| wrong(error.to_string(), "write it like \"1h\"".into()))?;
            if span < EVERY_LEAST {
                return Err(wrong(
                    format!("{text} is too short"),
                    "give at least \"10s\", or continuous = true".into(),
                ));
            }
            when.push(When::Every(span));
        }
        if let Some(text) = &keys.at {
            let calendar = Calendar::from_str(text);
            when.push(When::At(calendar.map_err(|what| {
                wrong(what, "write it like \"Mon..Fri 03:00\"".into())
            })?));
        }
        if keys.continuous {
            when.push(When::Continuous);
        }
        for check in &keys.checks {
            CheckPlan::parse_short(check).map_err(|(what, hint)| wrong(what, hint))?;
        }
        match &keys.plan {
            Some(plan) if !plan.is_absolute() => {
                return Err(wrong(
                    format!("the plan `{}` is no absolute path", plan.display()),
                    "start it with /".into(),
                ));
            }
            Some(_) if !keys.checks.is_empty() => {
                return Err(wrong(
                    "`checks` and `plan` exclude each other".into(),
                    "write the checks into the plan".into(),
                ));
            }
            _ => {}
        }
        match <[When; 1]>::try_from(when) {
            Ok([when]) => Ok(Self {
                when,
                checks: keys.checks,
                plan: keys.plan,
            }),
            Err(_) => Err(wrong(
                "it is not known when drills are due".into(),
                "give one of after = \"base-point\", every = \"1h\", at = \"03:00\", continuous = true".into(),
            )),
        }
    }
}

impl Serialize for DrillRule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        match &self.when {
            When::BasePoint => map.serialize_entry("after", "base-point")?,
            When::Every(span) => map.serialize_entry("every", &units::format_duration(*span))?,
            When::At(calendar) => map.serialize_entry("at", &calendar.to_string())?,
            When::Continuous => map.serialize_entry("continuous", &true)?,
        }
        if !self.checks.is_empty() {
            map.serialize_entry("checks", &self.checks)?;
        }
        if let Some(plan) = &self.plan {
            map.serialize_entry("plan", plan)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written_the_same() {
        for (text, words) in [
            (
                "after = 'base-point'\nchecks = ['ping', 'tcp:22']",
                "after base point",
            ),
            ("every = '1h'", "every 1h"),
            (
                "at = 'Mon..Fri 03:00'\nplan = '/etc/virt-cdp/shop.toml'",
                "at Mon..Fri 03:00",
            ),
            ("continuous = true", "continuous"),
        ] {
            let rule: DrillRule = toml::from_str(text).unwrap();
            assert_eq!(rule.words(), words);
            let again: DrillRule = toml::from_str(&toml::to_string(&rule).unwrap()).unwrap();
            assert_eq!(again, rule);
        }
        for (text, what) in [
            ("", "not known when"),
            ("every = '1h'\ncontinuous = true", "not known when"),
            ("after = 'noon'", "not held after"),
            ("every = '1x'", "no unit"),
            ("every = '1s'", "too short"),
            ("at = 'never'", "no moment"),
            ("every = '1h'\nchecks = ['pong']", "no check"),
            ("every = '1h'\nplan = 'x'", "absolute"),
            ("every = '1h'\nplan = '/x'\nchecks = ['ping']", "exclude"),
            ("every = '1h'\nwhat = 1", "unknown field"),
        ] {
            let error = toml::from_str::<DrillRule>(text).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
