//! Durations and sizes, as tables.

use std::time::Duration;

use virt_cdp::units::{exact_size, format_duration, format_size, parse_duration, parse_size};

#[test]
fn durations_are_read() {
    let table = [
        ("200ms", 200),
        ("1s", 1000),
        ("1.5s", 1500),
        ("0.25s", 250),
        ("5m", 300_000),
        ("5min", 300_000),
        ("1h30m", 5_400_000),
        ("1h 30m", 5_400_000),
        (" 2d ", 172_800_000),
        ("1w", 604_800_000),
        ("0s", 0),
        ("1.001s", 1001),
    ];
    for (text, ms) in table {
        assert_eq!(
            parse_duration(text),
            Ok(Duration::from_millis(ms)),
            "{text}"
        );
    }
}

#[test]
fn what_is_no_duration_is_refused_with_the_reason() {
    let table = [
        ("", "`` does not start with a number"),
        ("s", "`s` does not start with a number"),
        ("-1s", "`-1s` does not start with a number"),
        (".5s", "`.5s` does not start with a number"),
        ("1.s", "`1.s` does not start with a number"),
        ("1.2.3s", "`1.2.3s` does not start with a number"),
        ("10", "`10` has no unit; one of ms, s, m, h, d, w is needed"),
        (
            "1h30",
            "`1h30` has no unit; one of ms, s, m, h, d, w is needed",
        ),
        (
            "3 parsecs",
            "`parsecs` is no unit; the units are ms, s, m, h, d, w",
        ),
        ("1S", "`S` is no unit; the units are ms, s, m, h, d, w"),
        ("99999999999d", "`99999999999d` is too large"),
        (
            "999999999999999999999999999999999999999999s",
            "`999999999999999999999999999999999999999999s` is too large",
        ),
    ];
    for (text, error) in table {
        assert_eq!(
            parse_duration(text).unwrap_err().to_string(),
            error,
            "{text}"
        );
    }
}

#[test]
fn sizes_are_read() {
    let table = [
        ("0", 0),
        ("4096", 4096),
        ("512B", 512),
        ("64MiB", 64 << 20),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("2G", 2 << 30),
        ("2 GiB", 2 << 30),
        ("1.5T", 3 << 39),
        ("10GB", 10_000_000_000),
        ("1.5KB", 1500),
        ("18446744073709551615", u64::MAX),
    ];
    for (text, bytes) in table {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
}

#[test]
fn what_is_no_size_is_refused() {
    for text in [
        "",
        "G",
        "-1G",
        "1 2",
        "1G5",
        "5X",
        "16777216T",
        "18446744073709551616",
        "1..5G",
    ] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn sizes_are_printed_for_people() {
    let table = [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1023.9 KiB"),
        (10 << 30, "10 GiB"),
        (u64::MAX, "15.9 EiB"),
    ];
    for (bytes, text) in table {
        assert_eq!(format_size(bytes), text);
    }
}

#[test]
fn what_is_printed_exactly_reads_back() {
    for bytes in [0, 1, 4096, 64 << 20, (64 << 20) + 1, 3 << 39, u64::MAX] {
        assert_eq!(parse_size(&exact_size(bytes)), Ok(bytes));
    }
    for ms in [0, 1, 200, 1000, 60_000, 5_400_000, 86_400_001] {
        let duration = Duration::from_millis(ms);
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }
}
