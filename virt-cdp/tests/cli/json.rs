//! `--json`: one document on stdout, with these fields for ever.

use serde_json::{Value, json};

use crate::stage::Stage;

const TIME: &str = "2026-01-02T03:04:05.123456789Z";

#[track_caller]
fn document(stage: &Stage, words: &[&str]) -> Value {
    let before: Vec<&str> = ["--json"].iter().chain(words).copied().collect();
    let after: Vec<&str> = words.iter().chain(&["--json"]).copied().collect();
    let text = stage.run(&after).good();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(
        stage.run(&before).good(),
        text,
        "--json may stand before and after the verb"
    );
    serde_json::from_str(&text).unwrap()
}

fn point() -> Value {
    json!({
        "id": 123, "time": TIME, "grade": "crash", "label": "before", "seq": 4567, "locked": true,
        "damaged": false,
    })
}

fn machine(name: &str, state: &str) -> Value {
    let progress =
        json!({"what": "seed", "done_bytes": 1_073_741_824, "total_bytes": 10_737_418_240_u64});
    json!({
        "name": name,
        "id": "0b7a",
        "source": "libvirt:///system, 0b7a",
        "state": state,
        "state_detail": "",
        "state_since": TIME,
        "volumes": [{
            "id": 0, "target": "vda", "size_bytes": 10_737_418_240_u64, "node": "libvirt-1-format",
            "image": "/images/web1.qcow2", "attached": true,
        }],
        "left_out": ["sda: CD-ROM drive"],
        "points": 7,
        "first_point": point(),
        "newest_point": point(),
        "progress": if state == "seeding" { progress } else { Value::Null },
        "journal_bytes": 3_145_728,
        "base_bytes": 5_368_709_120_u64,
        "buffer_bytes": 4096,
        "buffer_limit_bytes": 67_108_864,
        "writes": 99,
        "written_bytes": 405_504,
        "point_interval_ms": 1000,
        "ack": "durable",
        "ack_own": true,
        "flush_interval_ms": 200,
        "flush_interval_own": false,
        "harbor": "/var/lib/virt-cdp/web1",
        "gaps": [{"start": TIME, "end": null, "reason": "guest-off"}],
        "last_resync": {
            "start": TIME, "end": "2026-01-02T03:04:06.623456789Z",
            "read_bytes": 3_145_728, "differing_bytes": 2_097_152,
            "volumes": [{
                "target": "vda", "how": "whole", "reason": "its bitmap is inconsistent",
                "read_bytes": 3_145_728, "differing_bytes": 2_097_152,
            }],
        },
        "coverage": coverage(),
        "policy": "long",
        "policy_problem": "",
        "size_limit_bytes": 6_442_450_944_u64,
        "size_state": "critical",
        "created": TIME,
        "activity": activity(),
        "damage": [],
        "points_damaged": 0,
        "files_verified": 6,
        "files": 8,
        "verified_since": TIME,
        "drills": {
            "rule": "every 1h", "proven_point": 123, "proven_point_time": TIME, "last": "20260102-030405-4f2a",
            "last_proved": true, "last_why": "", "last_ended": TIME, "rto_ms": 5000, "put_off": null,
        },
    })
}

fn activity() -> Value {
    json!({
        "window_ms": 300_000, "bytes_per_second": 1_572_864.0, "writes_per_second": 384.5,
        "latency_p50_us": 12, "latency_p99_us": 1500,
        "growth": {
            "window_ms": 1_500_000, "bytes_per_day": 12_884_901_888_u64, "limit_bytes": 214_748_364_800_u64,
            "limit_in_ms": 864_000_000, "file_system_in_ms": null,
        },
    })
}

fn coverage() -> Value {
    const GAP: &str = "2026-01-02T04:04:05.123456789Z";
    json!([
        {"start": TIME, "end": GAP, "kind": "points", "reason": "", "points": 7},
        {"start": GAP, "end": "2026-01-02T04:05:05.123456789Z", "kind": "gap", "reason": "guest-off", "points": 0},
    ])
}

/// A point that was just made, in `grade`.
fn new_point(grade: &str, note: &str, frozen_ms: u64) -> Value {
    json!({
        "id": 123, "time": TIME, "grade": grade, "label": "before", "seq": 4567, "locked": true,
        "damaged": false,
        "note": note, "frozen_ms": frozen_ms,
    })
}

fn policy(name: &str) -> Value {
    json!({
        "name": name, "all_ms": 86_400_000, "hourly_ms": 604_800_000, "daily_ms": 2_592_000_000_u64, "weekly_ms": 0,
        "monthly_ms": 31_536_000_000_u64, "size_limit_bytes": 6_442_450_944_u64, "origin": "policy-set", "drill": "every 1h",
        "machines": ["web1", "db 2"],
    })
}

fn view() -> Value {
    json!({
        "id": "v1",
        "machine": "web1",
        "point": point(),
        "opened": TIME,
        "volumes": [{
            "target": "vda", "size_bytes": 10_737_418_240_u64,
            "uri": "nbd+unix:///vda?socket=/run/virt-cdp/v1.sock",
        }],
        "connections": 1,
        "holder": "user",
    })
}

fn takeover() -> Value {
    json!({
        "name": "web1-takeover-123", "machine": "web1", "point": point(), "state": "running", "created": TIME,
        "uuid": "77aa", "overlay_bytes": 1_048_576, "detail": "",
    })
}

fn job(id: &str, kind: &str) -> Value {
    json!({
        "id": id, "kind": kind, "machine": "web1", "state": "done", "error": "", "hint": "",
        "progress": {"what": kind, "done_bytes": 1_073_741_824, "total_bytes": 10_737_418_240_u64},
        "point": point(), "files": ["/out/web1-vda.qcow2"], "report": null,
    })
}

#[test]
fn the_documents_are_as_promised() {
    let stage = Stage::new();
    let table: &[(&[&str], Value)] = &[
        (
            &["protect", "web1", "--no-wait"],
            machine("web1", "seeding"),
        ),
        (&["protect", "web1"], machine("web1", "protected")),
        (
            &["unprotect", "web1"],
            json!({"name": "web1", "deleted": false}),
        ),
        (
            &["unprotect", "web1", "--delete"],
            json!({"name": "web1", "deleted": true}),
        ),
        (
            &["list"],
            json!({"machines": [machine("web1", "protected"), machine("db 2", "seeding")]}),
        ),
        (&["info", "slow"], machine("slow", "seeding")),
        (&["suspend", "web1"], machine("web1", "suspended")),
        (&["resume", "web1"], machine("web1", "resyncing")),
        (
            &["point-list", "web1"],
            json!({
                "points": [point()], "truncated": true,
                "gaps": [{"start": TIME, "end": null, "reason": "guest-off"}],
                "coverage": coverage(),
            }),
        ),
        (
            &["point-create", "web1", "--label", "before"],
            new_point("crash", "", 0),
        ),
        (
            &["point-create", "web1", "--quiesce", "--label", "before"],
            new_point("quiesced", "", 41),
        ),
        (
            &["point-create", "no-agent", "--quiesce", "--label", "before"],
            new_point("crash", "it has no guest agent", 0),
        ),
        (&["point-lock", "web1", "123"], json!({"points": [point()]})),
        (
            &["point-unlock", "web1", "123", "latest"],
            json!({"points": [point()]}),
        ),
        (
            &["point-label", "web1", "123", "before"],
            json!({"points": [point()]}),
        ),
        (
            &["point-delete", "web1", "123"],
            json!({"points": [point()]}),
        ),
        (&["policy-show", "long"], policy("long")),
        (&["policy-set", "long", "--all", "1d"], policy("long")),
        (
            &["policy-assign", "web1", "long"],
            machine("web1", "protected"),
        ),
        (
            &["policy-preview", "web1"],
            json!({"policy": policy("long"), "points": [point()], "kept": 6, "freed_bytes": 3_145_728}),
        ),
        (&["view-open", "web1", "--at", "latest"], view()),
        (&["view-list"], json!({"views": [view()]})),
        (
            &["view-close", "v1"],
            json!({"name": "v1", "done": "closed"}),
        ),
        (
            &["export", "web1", "--at", "latest", "/out"],
            job("export-web1", "export"),
        ),
        (
            &["takeover", "web1", "--at", "latest"],
            json!({"takeover": takeover(), "dropped": ["host device 0000:01:00.0"], "ready_ms": 1840}),
        ),
        (&["takeover-list"], json!({"takeovers": [takeover()]})),
        (
            &["takeover-discard", "t"],
            json!({"name": "t", "done": "discarded"}),
        ),
        (&["takeover-commit", "t"], job("commit-1", "commit")),
        (
            &["version"],
            json!({
                "client": {"version": env!("CARGO_PKG_VERSION")},
                "daemon": {"version": env!("CARGO_PKG_VERSION"), "format_version": 1},
            }),
        ),
    ];
    for (words, expected) in table {
        assert_eq!(&document(&stage, words), expected, "{words:?}");
    }
}

#[test]
fn policies_come_as_a_list() {
    let stage = Stage::new();
    let list = document(&stage, &["policy-list"]);
    let names: Vec<&Value> = list["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["name"])
        .collect();
    assert_eq!(names, ["default", "long"]);
    assert_eq!(list["policies"][1], policy("long"));
    assert_eq!(list["policies"][0]["all_ms"], 5_400_000);
}

#[test]
fn status_has_the_daemons_own_fields() {
    let stage = Stage::new();
    let mut status = document(&stage, &["status"]);
    let started = status.as_object_mut().unwrap().remove("started").unwrap();
    assert!(started.as_str().unwrap().ends_with('Z'), "{started}");
    let expected = json!({
        "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "state_dir": "/var/lib/virt-cdp",
        "machines": 2, "machines_protected": 1, "views": 0, "takeovers": 0, "jobs_running": 0, "drills_running": 0,
        "report_key": "",
        "free_bytes": 1_099_511_627_776_u64, "problems": ["the disk is slow"],
        "alerts": [{
            "key": "tap-lost", "machine": "db 2", "severity": "critical", "since": TIME,
            "text": "QEMU has let go of the tap",
        }],
        "protection": [
            {
                "name": "web1", "state": "protected", "state_detail": "", "state_since": TIME,
                "points": 7, "newest_point": TIME, "newest_point_age_ms": 1250, "unsynced_age_ms": 100,
                "gaps": 2, "gap_ms": 4500, "open_gap": null,
                "journal_bytes": 3_145_728, "base_bytes": 5_368_709_120_u64,
                "base_point": TIME, "base_point_age_ms": 5_400_000,
                "buffer_bytes": 4096, "buffer_limit_bytes": 67_108_864, "activity": activity(),
            },
            {
                "name": "db 2", "state": "retrying", "state_detail": "", "state_since": null,
                "points": 0, "newest_point": null, "newest_point_age_ms": null, "unsynced_age_ms": null,
                "gaps": 1, "gap_ms": 0, "open_gap": {"start": TIME, "end": null, "reason": "tap-lost"},
                "journal_bytes": 0, "base_bytes": 0, "base_point": null, "base_point_age_ms": null,
                "buffer_bytes": 0, "buffer_limit_bytes": 0, "activity": null,
            },
        ],
    });
    assert_eq!(status, expected);
}
