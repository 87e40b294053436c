//! The grammar of `--at`, as tables.

use jiff::{Timestamp, tz::TimeZone};
use virt_cdp::{
    api::v1::at::At as Sent,
    cli::at::{At, parse},
};

fn berlin() -> TimeZone {
    // Rules instead of a name, so that the test needs no time zone database.
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn ns(text: &str) -> i64 {
    text.parse::<Timestamp>()
        .unwrap()
        .as_nanosecond()
        .try_into()
        .unwrap()
}

#[test]
fn each_form_is_read() {
    let exactly = |text| At::Time {
        asked_ns: ns(text),
        until_ns: ns(text),
    };
    let table = [
        ("latest", At::Latest),
        ("123", At::Point(123)),
        ("0", At::Point(0)),
        ("30s", exactly("2026-11-22T11:59:30Z")),
        ("5m", exactly("2026-11-22T11:55:00Z")),
        ("2h", exactly("2026-11-22T10:00:00Z")),
        ("1d", exactly("2026-11-21T12:00:00Z")),
        ("1h30m", exactly("2026-11-22T10:30:00Z")),
        ("0s", exactly("2026-11-22T12:00:00Z")),
        ("2026-11-22T11:59:30Z", exactly("2026-11-22T11:59:30Z")),
        ("2026-11-22t11:59:30z", exactly("2026-11-22T11:59:30Z")),
        ("2026-11-22T12:59:30+01:00", exactly("2026-11-22T11:59:30Z")),
        (
            "2026-11-22T11:59:30.123456789Z",
            exactly("2026-11-22T11:59:30.123456789Z"),
        ),
        ("2026-11-22 12:59:30", exactly("2026-11-22T11:59:30Z")),
        ("2026-07-01 12:00:00", exactly("2026-07-01T10:00:00Z")),
        (" 2026-11-22 12:59:30 ", exactly("2026-11-22T11:59:30Z")),
    ];
    for (text, at) in table {
        assert_eq!(parse(text, now(), &berlin()), Ok(at), "{text}");
    }
}

#[test]
fn a_time_given_to_the_millisecond_stands_until_its_end() {
    let at = parse("2026-11-22 12:59:30.123", now(), &berlin()).unwrap();
    let expected = At::Time {
        asked_ns: ns("2026-11-22T11:59:30.123Z"),
        until_ns: ns("2026-11-22T11:59:30.123999999Z"),
    };
    assert_eq!(at, expected);
    assert_eq!(
        at.newest().at,
        Some(Sent::TimeNs(ns("2026-11-22T11:59:30.123999999Z")))
    );
    assert_eq!(
        at.oldest().at,
        Some(Sent::TimeNs(ns("2026-11-22T11:59:30.123Z")))
    );
    let finer = parse("2026-11-22 12:59:30.1234", now(), &berlin()).unwrap();
    assert_eq!(finer.newest(), finer.oldest());
}

#[test]
fn what_is_no_moment_is_refused_with_the_reason() {
    let table = [
        ("", "`` is no moment"),
        ("yesterday", "`yesterday` is no moment"),
        ("Latest", "`Latest` is no moment"),
        ("-5m", "`-5m` is no moment"),
        ("12:00:00", "`12:00:00` is no moment"),
        ("2026-11-22", "`2026-11-22` is no moment"),
        ("2026-11-22 12:00", "`2026-11-22 12:00` is no moment"),
        ("2026-11-22T12:00:00", "`2026-11-22T12:00:00` is no moment"),
        ("2026-02-30 12:00:00", "`2026-02-30 12:00:00` is no moment"),
        ("2026-11-22 25:00:00", "`2026-11-22 25:00:00` is no moment"),
        (
            "99999999999999999999",
            "`99999999999999999999` is out of range",
        ),
        ("200000d", "`200000d` is out of range"),
        (
            "1600-01-01 00:00:00",
            "`1600-01-01 00:00:00` is out of range",
        ),
        (
            "2026-03-29 02:30:00",
            "`2026-03-29 02:30:00` never came that day, as the clocks were turned forward",
        ),
        (
            "2026-10-25 02:30:00",
            "`2026-10-25 02:30:00` came twice that day, as the clocks were turned back",
        ),
        (
            "2026-11-22 13:00:01",
            "2026-11-22 13:00:01.000 is in the future; it is 2026-11-22 13:00:00.000 now",
        ),
        (
            "2026-11-22T12:00:00.001Z",
            "2026-11-22 13:00:00.001 is in the future; it is 2026-11-22 13:00:00.000 now",
        ),
    ];
    for (text, error) in table {
        assert_eq!(
            parse(text, now(), &berlin()).unwrap_err().to_string(),
            error,
            "{text}"
        );
    }
}
