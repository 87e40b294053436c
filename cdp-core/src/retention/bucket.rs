//! The classes of a policy, and the bucket of a point in each.
//!
//! Buckets are numbers that rise with time; what they are counted from does not matter.

use jiff::tz::Offset;

use super::Candidate;

const HOUR_NS: u64 = 3600 * 1_000_000_000;
const DAY_NS: u64 = 24 * HOUR_NS;
/// 1970-01-01 was a Thursday, the fourth day of its week.
const DAYS_BEFORE_1970: u64 = 3;

/// A class of points: the last one of each bucket is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Every point is a bucket of its own.
    All,
    /// An hour of UTC.
    Hourly,
    /// A day of UTC.
    Daily,
    /// An ISO week by UTC: Monday to Sunday.
    Weekly,
    /// A calendar month of UTC.
    Monthly,
}

impl Class {
    /// Lists every class, from the finest to the coarsest.
    pub const ALL: [Class; 5] = [
        Class::All,
        Class::Hourly,
        Class::Daily,
        Class::Weekly,
        Class::Monthly,
    ];

    /// Returns the class's key in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Class::All => "all",
            Class::Hourly => "hourly",
            Class::Daily => "daily",
            Class::Weekly => "weekly",
            Class::Monthly => "monthly",
        }
    }

    /// Returns the number of a point's bucket.
    pub(super) fn bucket(self, point: &Candidate) -> i64 {
        let ns = point.time.as_nanos();
        match self {
            Class::All => point.id.0 as i64,
            Class::Hourly => (ns / HOUR_NS) as i64,
            Class::Daily => (ns / DAY_NS) as i64,
            Class::Weekly => ((ns / DAY_NS + DAYS_BEFORE_1970) / 7) as i64,
            Class::Monthly => {
                let date = Offset::UTC.to_datetime(point.time.to_jiff());
                i64::from(date.year()) * 12 + i64::from(date.month())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::point::PointId;

    fn at(text: &str) -> Candidate {
        Candidate {
            id: PointId(1),
            time: Timestamp::from_jiff(text.parse().unwrap()),
            locked: false,
            pinned: false,
        }
    }

    #[test]
    fn buckets_end_where_the_calendar_says() {
        // the last moment of one bucket, the first of the next
        let table = [
            (
                Class::Hourly,
                "2026-11-22T04:59:59.999999999Z",
                "2026-11-22T05:00:00Z",
            ),
            (
                Class::Daily,
                "2026-11-22T23:59:59.999999999Z",
                "2026-11-23T00:00:00Z",
            ),
            // A week ends with Sunday, also over the end of a year.
            (
                Class::Weekly,
                "2026-11-22T23:59:59.999999999Z",
                "2026-11-23T00:00:00Z",
            ),
            (
                Class::Weekly,
                "2027-01-03T23:59:59.999999999Z",
                "2027-01-04T00:00:00Z",
            ),
            (
                Class::Weekly,
                "1970-01-04T23:59:59.999999999Z",
                "1970-01-05T00:00:00Z",
            ),
            (
                Class::Monthly,
                "2026-11-30T23:59:59.999999999Z",
                "2026-12-01T00:00:00Z",
            ),
            (
                Class::Monthly,
                "2028-02-29T23:59:59.999999999Z",
                "2028-03-01T00:00:00Z",
            ),
            (
                Class::Monthly,
                "2026-12-31T23:59:59.999999999Z",
                "2027-01-01T00:00:00Z",
            ),
        ];
        for (class, last, first) in table {
            let (last, first) = (class.bucket(&at(last)), class.bucket(&at(first)));
            assert_eq!(last + 1, first, "{class:?} {first}");
        }
        let together = [
            (
                Class::Hourly,
                "2026-11-22T04:00:00Z",
                "2026-11-22T04:59:59Z",
            ),
            (Class::Daily, "2026-11-22T00:00:00Z", "2026-11-22T23:59:59Z"),
            (
                Class::Weekly,
                "2026-12-28T00:00:00Z",
                "2027-01-03T23:59:59Z",
            ),
            (
                Class::Monthly,
                "2026-12-01T00:00:00Z",
                "2026-12-31T23:59:59Z",
            ),
        ];
        for (class, one, other) in together {
            assert_eq!(
                class.bucket(&at(one)),
                class.bucket(&at(other)),
                "{class:?} {one}"
            );
        }
    }
}
