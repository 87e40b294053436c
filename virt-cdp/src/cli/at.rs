//! The grammar of `--at`: the moment of which the user wants to see a machine.
//!
//! What: `latest`, a point id (digits only), RFC 3339, local time `YYYY-MM-DD HH:MM:SS[.mmm]`, or an age
//! (`30s`, `5m`, `2h`, `1d`). How: ages and local times become moments here, so that the daemon needs to
//! know neither the user's clock nor zone; the daemon picks the newest point not later.
//! Invariant: a moment as the tables print it, given back, means the point it was printed for: a time
//! given to the millisecond or coarser fraction stands until that millisecond's end.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::text::{local, local_in, seconds};
use crate::{
    api::v1::{self, at},
    units,
};

/// What `--at` takes, for the help texts and errors.
pub const GRAMMAR: &str = "`latest`, a point id, an age (30s, 5m, 2h, 1d), a local time (YYYY-MM-DD HH:MM:SS[.mmm]) or RFC 3339";

/// A moment, as the user said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest point there is.
    Latest,
    /// The point of that number.
    Point(u64),
    /// A time, in nanoseconds since the Unix epoch.
    Time {
        /// The moment itself.
        asked_ns: i64,
        /// The last moment that is printed the same.
        until_ns: i64,
    },
}

/// Says why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AtError {
    /// The text follows none of the forms.
    #[error("`{text}` is no moment")]
    Grammar {
        /// The text.
        text: String,
    },
    /// The moment has not come yet.
    #[error("{asked} is in the future; it is {now} now")]
    Future {
        /// The moment.
        asked: String,
        /// The present.
        now: String,
    },
    /// The local time came twice, as clocks were turned back.
    #[error("`{text}` came twice that day, as the clocks were turned back")]
    Twice {
        /// The text.
        text: String,
    },
    /// The local time never came, as clocks were turned forward.
    #[error("`{text}` never came that day, as the clocks were turned forward")]
    Never {
        /// The text.
        text: String,
    },
    /// The moment is out of what can be counted in nanoseconds (1677 to 2262).
    #[error("`{text}` is out of range")]
    OutOfRange {
        /// The text.
        text: String,
    },
}

impl AtError {
    /// Returns the cure.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Grammar { .. } | Self::OutOfRange { .. } => format!("give {GRAMMAR}"),
            Self::Future { .. } => "give a moment that has passed, or `latest`".into(),
            Self::Twice { .. } | Self::Never { .. } => {
                "give it with its offset, as RFC 3339: 2026-10-25T02:30:00+02:00".into()
            }
        }
    }
}

/// Parses a moment; `now` and `zone` are the user's clock and time zone.
///
/// # Errors
/// A text that follows none of the forms, or a moment that is later than `now`.
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<At, AtError> {
    let text = text.trim();
    if text == "latest" {
        return Ok(At::Latest);
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text
            .parse()
            .map(At::Point)
            .map_err(|_| AtError::OutOfRange { text: text.into() });
    }
    if let Ok(age) = units::parse_duration(text) {
        let asked = now
            .checked_sub(age)
            .map_err(|_| AtError::OutOfRange { text: text.into() })?;
        let asked_ns = nanoseconds(asked, text)?;
        return Ok(At::Time {
            asked_ns,
            until_ns: asked_ns,
        });
    }
    let asked = moment(text, zone)?;
    let asked_ns = nanoseconds(asked, text)?;
    if asked > now {
        let now_ns = nanoseconds(now, text)?;
        return Err(AtError::Future {
            asked: local_in(asked_ns, zone),
            now: local_in(now_ns, zone),
        });
    }
    Ok(At::Time {
        asked_ns,
        until_ns: asked_ns.saturating_add(printed_alike_ns(text)),
    })
}

/// Parses a moment by the clock and the time zone of this machine.
pub(crate) fn parse_here(text: &str) -> Result<At, AtError> {
    parse(text, Timestamp::now(), &TimeZone::system())
}

/// Parses several moments by the clock and the time zone of this machine.
pub(super) fn parse_all(texts: &[String]) -> Result<Vec<At>, AtError> {
    texts.iter().map(|text| parse_here(text)).collect()
}

fn moment(text: &str, zone: &TimeZone) -> Result<Timestamp, AtError> {
    let grammar = || AtError::Grammar { text: text.into() };
    if text
        .get(10..11)
        .is_some_and(|separator| separator.eq_ignore_ascii_case("t"))
    {
        return text.parse().map_err(|_| grammar());
    }
    let format = if text.contains('.') {
        "%Y-%m-%d %H:%M:%S%.f"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    let civil = DateTime::strptime(format, text).map_err(|_| grammar())?;
    let ambiguous = zone.to_ambiguous_zoned(civil);
    match ambiguous.offset() {
        jiff::tz::AmbiguousOffset::Unambiguous { .. } => ambiguous
            .unambiguous()
            .map(|zoned| zoned.timestamp())
            .map_err(|_| grammar()),
        jiff::tz::AmbiguousOffset::Gap { .. } => Err(AtError::Never { text: text.into() }),
        jiff::tz::AmbiguousOffset::Fold { .. } => Err(AtError::Twice { text: text.into() }),
    }
}

fn nanoseconds(time: Timestamp, text: &str) -> Result<i64, AtError> {
    i64::try_from(time.as_nanosecond()).map_err(|_| AtError::OutOfRange { text: text.into() })
}

/// Returns how long after `text` a moment is still printed as `text`: a fraction of one to three digits
/// is one to the millisecond, cut off there; without a fraction, or with a finer one, it is exact.
fn printed_alike_ns(text: &str) -> i64 {
    let digits = text.split_once('.').map_or(0, |(_, rest)| {
        rest.bytes().take_while(u8::is_ascii_digit).count()
    });
    if (1..=3).contains(&digits) {
        999_999
    } else {
        0
    }
}

impl At {
    /// Returns the moment as the newest that is meant.
    #[must_use]
    pub fn newest(self) -> v1::At {
        let at = match self {
            Self::Latest => at::At::Latest(true),
            Self::Point(id) => at::At::Point(id),
            Self::Time { until_ns, .. } => at::At::TimeNs(until_ns),
        };
        v1::At { at: Some(at) }
    }

    /// Returns the moment as the oldest that is meant.
    #[must_use]
    pub fn oldest(self) -> v1::At {
        match self {
            Self::Time { asked_ns, .. } => v1::At {
                at: Some(at::At::TimeNs(asked_ns)),
            },
            _ => self.newest(),
        }
    }

    /// Says which point was picked: `point 123, 2026-11-22 05:12:01.123, 0.4 s before the time asked`.
    pub(super) fn picked(self, point: &v1::Point) -> String {
        let mut text = format!("point {}, {}", point.id, local(point.time_ns));
        if !point.label.is_empty() {
            text.push_str(&format!(" ({})", point.label));
        }
        if let Self::Time { asked_ns, .. } = self {
            match u64::try_from(asked_ns.saturating_sub(point.time_ns)) {
                Ok(before_ns) => {
                    text.push_str(&format!(", {} before the time asked", seconds(before_ns)))
                }
                Err(_) => text.push_str(", at the time asked"),
            }
        }
        text
    }
}
