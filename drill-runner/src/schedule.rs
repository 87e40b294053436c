//! When drills are due: after a time, at moments of the calendar, within a part of the day. Pure.
//!
//! A calendar expression is a part of what systemd takes in `OnCalendar=`: `[WEEKDAYS] [DATE] TIME`, where weekdays are names,
//! lists and ranges (`Mon..Fri`, `Sat,Sun`), the date is `*-MONTH-DAY` or `*-*-DAY` with `*` or numbers and lists of them, and
//! the time is `HH:MM` or `HH:MM:SS`, with `*` or lists for the hours and minutes. `hourly`, `daily`, `weekly` and `monthly` stand for the usual ones.

use std::{fmt, str::FromStr};

use jiff::{
    Timestamp, ToSpan, Zoned,
    civil::{Time, Weekday},
    tz::TimeZone,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// How far ahead a moment is looked for: beyond it there is none, as for the 30th of February.
const DAYS_MAX: i32 = 366 * 5;

/// Moments of the calendar, in local time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    text: String,
    weekdays: Vec<Weekday>,
    months: Vec<u8>,
    days: Vec<u8>,
    hours: Vec<u8>,
    minutes: Vec<u8>,
    second: u8,
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Calendar {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let spelled = match text.trim() {
            "hourly" => "*:00",
            "daily" => "00:00",
            "weekly" => "Mon 00:00",
            "monthly" => "*-*-01 00:00",
            other => other,
        };
        let bad = || {
            format!(
                "`{text}` is no moment of the calendar: write it like `Mon..Fri 03:00` or `*-*-01 04:30`"
            )
        };
        let mut words: Vec<&str> = spelled.split_whitespace().collect();
        let time = words
            .pop()
            .filter(|word| word.contains(':'))
            .ok_or_else(bad)?;
        let date = words.last().copied().filter(|word| word.contains('-'));
        if date.is_some() {
            words.pop();
        }
        let weekdays = match words.as_slice() {
            [] => Vec::new(),
            [one] => weekdays(one).ok_or_else(bad)?,
            _ => return Err(bad()),
        };
        let (months, days) = match date {
            None => (Vec::new(), Vec::new()),
            Some(date) => match date.split('-').collect::<Vec<_>>().as_slice() {
                ["*", month, day] => (
                    numbers(month, 1, 12).ok_or_else(bad)?,
                    numbers(day, 1, 31).ok_or_else(bad)?,
                ),
                _ => return Err(bad()),
            },
        };
        let parts: Vec<&str> = time.split(':').collect();
        let (hours, minutes, second) = match parts.as_slice() {
            [hours, minutes] => (hours, minutes, "0"),
            [hours, minutes, second] => (hours, minutes, *second),
            _ => return Err(bad()),
        };
        let calendar = Self {
            text: text.trim().to_owned(),
            weekdays,
            months,
            days,
            hours: numbers(hours, 0, 23).ok_or_else(bad)?,
            minutes: numbers(minutes, 0, 59).ok_or_else(bad)?,
            second: second
                .parse()
                .ok()
                .filter(|second| *second < 60)
                .ok_or_else(bad)?,
        };
        match calendar.next(&Zoned::new(Timestamp::UNIX_EPOCH, TimeZone::UTC)) {
            Some(_) => Ok(calendar),
            None => Err(format!("`{text}` never comes")),
        }
    }
}

/// Names, lists and ranges of weekdays.
fn weekdays(text: &str) -> Option<Vec<Weekday>> {
    let day = |name: &str| {
        Some(match name.to_ascii_lowercase().as_str() {
            "mon" | "monday" => Weekday::Monday,
            "tue" | "tuesday" => Weekday::Tuesday,
            "wed" | "wednesday" => Weekday::Wednesday,
            "thu" | "thursday" => Weekday::Thursday,
            "fri" | "friday" => Weekday::Friday,
            "sat" | "saturday" => Weekday::Saturday,
            "sun" | "sunday" => Weekday::Sunday,
            _ => return None,
        })
    };
    let mut found = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => found.push(day(part)?),
            Some((first, last)) => {
                let (mut at, last) = (day(first)?, day(last)?);
                found.push(at);
                while at != last {
                    at = at.next();
                    found.push(at);
                }
            }
        }
    }
    Some(found)
}

/// `*` for all, which is the empty list, or a list of numbers.
fn numbers(text: &str, least: u8, most: u8) -> Option<Vec<u8>> {
    if text == "*" {
        return Some(Vec::new());
    }
    let all = text.split(',').map(|number| {
        let is_digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u8 = number.parse().ok().filter(|_| is_digits)?;
        (least..=most).contains(&number).then_some(number)
    });
    all.collect()
}

impl Calendar {
    /// The first moment after `now`, in its time zone; none if there is none for years.
    #[must_use]
    pub fn next(&self, now: &Zoned) -> Option<Zoned> {
        let is_in = |list: &[u8], value: i8| {
            list.is_empty() || list.iter().any(|one| i16::from(*one) == i16::from(value))
        };
        let mut day = now.date();
        for _ in 0..DAYS_MAX {
            let is_day = (self.weekdays.is_empty() || self.weekdays.contains(&day.weekday()))
                && is_in(&self.months, day.month())
                && is_in(&self.days, day.day());
            if is_day && let Some(found) = self.on(day, now) {
                return Some(found);
            }
            day = day.checked_add(1.day()).ok()?;
        }
        None
    }

    /// The first moment on a day that is after `now`.
    fn on(&self, day: jiff::civil::Date, now: &Zoned) -> Option<Zoned> {
        let all = |list: &[u8], end: u8| match list {
            [] => (0..end).collect::<Vec<u8>>(),
            list => {
                let mut list = list.to_vec();
                list.sort_unstable();
                list
            }
        };
        let minutes = all(&self.minutes, 60);
        for hour in all(&self.hours, 24) {
            for minute in &minutes {
                let number = |value: u8| i8::try_from(value).unwrap_or(0);
                let time = Time::new(number(hour), number(*minute), number(self.second), 0).ok()?;
                // A time that a change of the clocks leaves out is taken behind it.
                let moment = day
                    .to_datetime(time)
                    .to_zoned(now.time_zone().clone())
                    .ok()?;
                if moment > *now {
                    return Some(moment);
                }
            }
        }
        None
    }
}

/// A part of the day, in local time; it may reach over midnight. The empty one is all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window(Option<(Time, Time)>);

impl Window {
    /// Tells whether a moment is within.
    #[must_use]
    pub fn holds(&self, now: &Zoned) -> bool {
        let time = now.time();
        match self.0 {
            None => true,
            Some((from, to)) if from <= to => from <= time && time < to,
            Some((from, to)) => from <= time || time < to,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some((from, to)) => write!(
                f,
                "{:02}:{:02}-{:02}:{:02}",
                from.hour(),
                from.minute(),
                to.hour(),
                to.minute()
            ),
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let time = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let is_digits =
                |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            (is_digits(hour) && is_digits(minute)).then_some(())?;
            Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
        };
        let both = text
            .split_once('-')
            .and_then(|(from, to)| Some((time(from)?, time(to)?)));
        match both {
            Some((from, to)) if from != to => Ok(Self(Some((from, to)))),
            _ => Err(format!(
                "`{text}` is no part of the day: write it like `22:00-06:00`"
            )),
        }
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zoned(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    #[test]
    fn moments_follow_the_calendar_and_the_clocks() {
        // 2026-11-27 is a Friday.
        for (text, now, next) in [
            (
                "03:00",
                "2026-11-27T02:59:59[UTC]",
                "2026-11-27T03:00:00+00:00[UTC]",
            ),
            (
                "03:00",
                "2026-11-27T03:00:00[UTC]",
                "2026-11-28T03:00:00+00:00[UTC]",
            ),
            (
                "hourly",
                "2026-11-27T03:00:00[UTC]",
                "2026-11-27T04:00:00+00:00[UTC]",
            ),
            (
                "daily",
                "2026-11-27T03:00:00[UTC]",
                "2026-11-28T00:00:00+00:00[UTC]",
            ),
            (
                "weekly",
                "2026-11-27T03:00:00[UTC]",
                "2026-11-30T00:00:00+00:00[UTC]",
            ),
            (
                "monthly",
                "2026-12-27T03:00:00[UTC]",
                "2027-01-01T00:00:00+00:00[UTC]",
            ),
            (
                "Sat..Mon 05:30",
                "2026-11-27T06:00:00[UTC]",
                "2026-11-28T05:30:00+00:00[UTC]",
            ),
            (
                "Wed,Mon 05:30",
                "2026-11-27T06:00:00[UTC]",
                "2026-11-30T05:30:00+00:00[UTC]",
            ),
            (
                "*:00,15,30,45",
                "2026-11-27T06:31:00[UTC]",
                "2026-11-27T06:45:00+00:00[UTC]",
            ),
            (
                "2,14:05:30",
                "2026-11-27T06:31:00[UTC]",
                "2026-11-27T14:05:30+00:00[UTC]",
            ),
            (
                "*-02-29 01:00",
                "2026-11-27T06:31:00[UTC]",
                "2028-02-29T01:00:00+00:00[UTC]",
            ),
            // The clocks are turned forward at 02:00, and back at 03:00.
            (
                "02:30",
                "2026-03-28T12:00:00[Europe/Berlin]",
                "2026-03-29T03:30:00+02:00[Europe/Berlin]",
            ),
            (
                "02:30",
                "2026-10-24T12:00:00[Europe/Berlin]",
                "2026-10-25T02:30:00+02:00[Europe/Berlin]",
            ),
        ] {
            let calendar: Calendar = text.parse().unwrap();
            let found = calendar.next(&zoned(now)).unwrap();
            assert_eq!(found.to_string(), next, "{text} after {now}");
        }
        for text in [
            "",
            "noon",
            "3",
            "25:00",
            "03:60",
            "03:00:60",
            "Foo 03:00",
            "Mon Tue 03:00",
            "2026-01-01 03:00",
            "*-13-01 03:00",
            "*-02-30 03:00",
            "+3:00",
            "*-*-01",
        ] {
            assert!(text.parse::<Calendar>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_window_may_reach_over_midnight() {
        let holds = |window: &str, time: &str| {
            let window: Window = window.parse().unwrap();
            window.holds(&zoned(&format!("2026-11-27T{time}[UTC]")))
        };
        assert!(holds("", "12:00:00"));
        assert!(holds("22:00-06:00", "23:00:00") && holds("22:00-06:00", "05:59:59"));
        assert!(!holds("22:00-06:00", "06:00:00") && !holds("22:00-06:00", "21:59:59"));
        assert!(holds("08:00-12:00", "08:00:00") && !holds("08:00-12:00", "12:00:00"));
        for text in ["8:00-9:00", "08:00", "08:00-08:00", "24:00-01:00", "x-y"] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
        let window: Window = "22:00-06:00".parse().unwrap();
        assert_eq!(window.to_string(), "22:00-06:00");
    }
}
