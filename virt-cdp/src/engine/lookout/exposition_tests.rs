//! The whole page as it is written, and the README's table of it.

use std::collections::BTreeSet;

use super::*;
use crate::engine::{
    alerts::{Alert, Severity},
    lookout::{
        fixture::{NOW, ago, outlook, sight},
        sight::OpenGap,
    },
    webhook::WebhookCounts,
};

/// Two machines, of which one is lost, an alert and a webhook.
fn everything() -> Outlook {
    let mut lost = sight("db \"2\"\\\n");
    lost.state = State::Retrying;
    lost.recording = None;
    lost.newest = None;
    lost.open_gap = Some(OpenGap {
        since: ago(12),
        reason: "tap-lost".into(),
    });
    let mut seen = outlook(vec![lost, sight("web")]);
    seen.in_use = [1, 2, 3, 4];
    seen.guard_closings = 4;
    seen.webhook = Some(WebhookCounts {
        delivered: 5,
        failed: 6,
        dropped: 7,
    });
    seen.mail = seen.webhook;
    seen.alerts = vec![Alert {
        key: "tap-lost",
        machine: "web".into(),
        severity: Severity::Critical,
        since: ago(12),
        text: "it is lost".into(),
    }];
    seen
}

/// The samples of a family, and those of its buckets.
fn samples<'a>(text: &'a str, family: &str) -> Vec<&'a str> {
    let of = |line: &&str| {
        line.strip_prefix(family)
            .is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
    };
    text.lines().filter(of).collect()
}

#[test]
fn figures_are_written_as_they_were_seen() {
    let text = text(&everything(), NOW, ago(60));
    for (family, expected) in [
        (
            "virtcdp_points",
            &[
                r#"virtcdp_points{machine="db \"2\"\\\n"} 7"#,
                r#"virtcdp_points{machine="web"} 7"#,
            ][..],
        ),
        // What is not known of one is left out.
        (
            "virtcdp_newest_point_age_seconds",
            &[r#"virtcdp_newest_point_age_seconds{machine="web"} 1"#],
        ),
        (
            "virtcdp_unsynced_age_seconds",
            &[r#"virtcdp_unsynced_age_seconds{machine="web"} 0.125"#],
        ),
        (
            "virtcdp_open_gap_seconds",
            &[
                r#"virtcdp_open_gap_seconds{machine="db \"2\"\\\n"} 12"#,
                r#"virtcdp_open_gap_seconds{machine="web"} 0"#,
            ],
        ),
        (
            "virtcdp_alert",
            &[r#"virtcdp_alert{key="tap-lost",machine="web",severity="critical"} 1"#],
        ),
        (
            "virtcdp_webhook_messages_total",
            &[
                r#"virtcdp_webhook_messages_total{outcome="delivered"} 5"#,
                r#"virtcdp_webhook_messages_total{outcome="failed"} 6"#,
                r#"virtcdp_webhook_messages_total{outcome="dropped"} 7"#,
            ],
        ),
        (
            "virtcdp_guard_closings_total",
            &["virtcdp_guard_closings_total 4"],
        ),
        (
            "process_start_time_seconds",
            &["process_start_time_seconds 1767322985"],
        ),
    ] {
        assert_eq!(samples(&text, family), expected, "{text}");
    }
    let of_web = |family: &str| -> Vec<String> {
        let all = samples(&text, family).into_iter();
        let all = all.filter(|line| line.contains("machine=\"web\""));
        all.map(|line| line.split(' ').next_back().unwrap_or_default().into())
            .collect()
    };
    for (family, expected) in [
        ("virtcdp_gaps_total", &["2"][..]),
        ("virtcdp_gap_seconds_total", &["4.5"]),
        ("virtcdp_captured_writes_total", &["100"]),
        ("virtcdp_captured_bytes_total", &["401408"]),
        ("virtcdp_captured_zeroed_bytes_total", &["8192"]),
        ("virtcdp_bypass_closings_total", &["1"]),
        ("virtcdp_journal_bytes", &["3145728"]),
        ("virtcdp_base_bytes", &["5242880"]),
        ("virtcdp_base_point_age_seconds", &["1800"]),
        ("virtcdp_buffer_used_bytes", &["4096"]),
        (
            "virtcdp_machine_state",
            &["0", "0", "1", "0", "0", "0", "0", "0", "0"],
        ),
        // 90 in the second bucket, 10 in the tenth; all buckets, the endless one, sum and count.
        (
            "virtcdp_capture_latency_seconds",
            &[
                "0", "90", "90", "90", "90", "90", "90", "90", "90", "100", "100", "100", "100",
                "100", "100", "100", "100", "100", "100", "100", "100", "0.021", "100",
            ],
        ),
    ] {
        assert_eq!(of_web(family), expected, "{family}");
    }
    let third = samples(&text, "virtcdp_capture_latency_seconds_bucket");
    let bound =
        r#"virtcdp_capture_latency_seconds_bucket{machine="web",volume="vda",le="0.00001"} 90"#;
    assert!(third.contains(&bound), "{third:#?}");
}

#[test]
fn a_daemon_without_machines_has_no_empty_families() {
    let text = text(&outlook(Vec::new()), NOW, ago(60));
    assert!(text.contains("\nvirtcdp_views 0\n"), "{text}");
    for absent in ["virtcdp_points", "virtcdp_alert", "virtcdp_webhook"] {
        assert!(!text.contains(absent), "{text}");
    }
}

#[test]
fn the_readme_has_exactly_the_metrics_there_are() {
    let text = text(&everything(), NOW, ago(60));
    let there_are: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let readme = include_str!("../../../../README.md");
    let table = readme
        .lines()
        .skip_while(|line| !line.starts_with("| metric |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let said: BTreeSet<&str> = table.filter_map(|row| row.split('`').nth(1)).collect();
    assert_eq!(said, there_are);
}
