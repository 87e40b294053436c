//! What people see, and what the engine is asked for it.

use crate::stage::Stage;

#[test]
fn tables_look_like_virsh() {
    let stage = Stage::new();
    assert_eq!(
        stage.run(&["list"]).good(),
        "\x20Name   State          Volumes   Points   Newest point              Kept
---------------------------------------------------------------------------
 web1   protected      1         7        2026-01-02 03:04:05.123   5 GiB
 db 2   seeding 10 %   1         7        2026-01-02 03:04:05.123   5 GiB
"
    );
    assert_eq!(
        stage.run(&["point-list", "web1"]).good(),
        "\x20Id    Time                      Grade   Locked   State   Label
------------------------------------------------------------------
 123   2026-01-02 03:04:05.123   crash   yes      ok      before
(there are older ones)

Coverage: |#######################################+| 98.3 % of 1h1m, 1 gap
          2026-01-02 03:04:05.123 to 2026-01-02 04:05:05.123
          # points, + partly, . gap: guest-off 1m
"
    );
    let info = stage.run(&["info", "web1"]).good();
    assert!(info.contains("98.3 % of 1h1m, 1 gap\n"), "{info}");
}

#[test]
fn status_shows_machines_alerts_and_problems() {
    let stage = Stage::new();
    let text = stage.run(&["status"]).good();
    let (_, shown) = text.split_once("Jobs running:").unwrap();
    assert_eq!(
        shown,
        "    0
Drills running:  0
Report key:      -

 Name   State       Points   Newest   Lag     Gaps              Change rate               Latency         Journal   Base    Base age
--------------------------------------------------------------------------------------------------------------------------------------
 web1   protected   7        1.3 s    0.1 s   2                 1.5 MiB/s, 384 writes/s   12 us, 1.5 ms   3 MiB     5 GiB   1h30m
 db 2   retrying    0        -        -       1, now tap-lost   -                         -               0 B       0 B     -

critical: db 2: QEMU has let go of the tap (tap-lost, since 2026-01-02 03:04:05.123)
problem: the disk is slow
"
    );
}

#[test]
fn info_shows_how_fast_a_machine_is_written_to_and_its_harbor_grows() {
    let stage = Stage::new();
    let text = stage.run(&["info", "web1"]).good();
    for (name, value) in [
        ("Change rate", "1.5 MiB/s, 384 writes/s, in the last 5m"),
        ("Capture latency", "12 us, 1.5 ms (median, 99 of 100)"),
        ("Growth", "12 GiB a day, at the rate of the last 25m"),
        ("Limit", "200 GiB, reached in 10d at that rate"),
    ] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")));
        let line = line.unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(line.ends_with(&format!(" {value}")), "{line}");
    }
}

#[test]
fn a_quiesced_point_says_how_long_the_guest_stood_or_why_it_is_none() {
    let stage = Stage::new();
    let made = stage.run(&["point-create", "web1", "--quiesce"]);
    assert_eq!(
        made.good(),
        "point 123, 2026-01-02 03:04:05.123, quiesced: file systems frozen for 41 ms\n"
    );
    assert!(stage.asked().contains("quiesce: true"), "{}", stage.asked());
    let made = stage.run(&["point-create", "no-agent", "--quiesce"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    assert_eq!(
        made.stderr,
        "note: the point is of grade crash, not quiesced: it has no guest agent\n"
    );
    assert_eq!(made.stdout, "point 123, 2026-01-02 03:04:05.123\n");
}

#[test]
fn times_are_local() {
    let stage = Stage::new();
    let output = stage
        .command(&["point-list", "web1"])
        .env("TZ", "CET-1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("2026-01-02 04:04:05.123"), "{text}");
}

#[test]
fn the_point_picked_is_named_with_its_distance() {
    let stage = Stage::new();
    let table = [
        (
            "2026-01-02T03:04:05.523456789Z",
            "point 123, 2026-01-02 03:04:05.123 (before), 0.4 s before the time asked",
        ),
        (
            "2026-01-02 03:04:05.123",
            "point 123, 2026-01-02 03:04:05.123 (before), at the time asked",
        ),
        (
            "2026-01-02 03:14:05",
            "point 123, 2026-01-02 03:04:05.123 (before), 9m59s before the time asked",
        ),
        ("latest", "point 123, 2026-01-02 03:04:05.123 (before)\n"),
        ("123", "point 123, 2026-01-02 03:04:05.123 (before)\n"),
    ];
    for (at, picked) in table {
        for words in [
            &["view-open", "web1", "--at", at][..],
            &["export", "web1", "--at", at, "/out"],
            &["takeover", "web1", "--at", at],
        ] {
            let text = stage.run(words).good();
            assert!(text.contains(picked), "{words:?}: {text}");
        }
    }
}

#[test]
fn a_time_from_a_table_asks_for_the_point_in_it() {
    let stage = Stage::new();
    stage
        .run(&["view-open", "web1", "--at", "2026-01-02 03:04:05.123"])
        .good();
    assert!(
        stage.asked().contains("TimeNs(1767323045123999999)"),
        "{}",
        stage.asked()
    );
    stage
        .run(&[
            "point-list",
            "web1",
            "--from",
            "2026-01-02 03:04:05.123",
            "--to",
            "latest",
            "--limit",
            "5",
        ])
        .good();
    let asked = stage.asked();
    assert!(asked.contains("TimeNs(1767323045123000000)"), "{asked}");
    assert!(
        asked.contains("Latest(true)") && asked.contains("limit: 5"),
        "{asked}"
    );
}

#[test]
fn options_reach_the_engine() {
    let stage = Stage::new();
    let words = [
        "takeover",
        "web1",
        "--at",
        "7",
        "--name",
        "n",
        "--vcpus",
        "4",
        "--memory",
        "1.5G",
        "--network",
        "none",
        "--mac",
        "keep",
        "--disk-bus",
        "sata",
        "--paused",
    ];
    let text = stage.run(&words).good();
    for part in [
        "web1-takeover-123 is running, 1.840 s after the request",
        "left behind: host device 0000:01:00.0",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(
        stage.asked(),
        "TakeoverRequest { name: \"web1\", at: Some(At { at: Some(Point(7)) }), new_name: \"n\", vcpus: 4, \
         memory_bytes: 1610612736, network: \"none\", mac: \"keep\", disk_bus: \"sata\", paused: true, damaged: false }"
    );
    stage
        .run(&[
            "protect",
            "--no-wait",
            "x",
            "--qmp",
            "/q.sock",
            "--node",
            "a",
            "--node",
            "b",
        ])
        .good();
    assert_eq!(
        stage.asked(),
        "ProtectRequest { name: \"x\", qmp_socket: \"/q.sock\", disks: [], nodes: [\"a\", \"b\"], ack: \"\", \
         flush_interval_ms: None }"
    );
    let mut relative = stage.command(&["export", "web1", "--at", "7", "--disk", "vda", "out"]);
    assert!(
        relative
            .current_dir(stage.dir.path())
            .output()
            .unwrap()
            .status
            .success()
    );
    let dir = stage.dir.path().join("out");
    assert!(
        stage
            .asked()
            .contains(&format!("disks: [\"vda\"], dir: {dir:?}")),
        "{}",
        stage.asked()
    );
}

#[test]
fn ack_and_flush_interval_are_asked_for_and_shown() {
    let stage = Stage::new();
    let table: [(&[&str], &str); 3] = [
        (
            &["--ack", "durable", "--flush-interval", "50ms"],
            "ack: \"durable\", flush_interval_ms: Some(50)",
        ),
        (
            &["--ack", "default", "--flush-interval", "default"],
            "ack: \"default\", flush_interval_ms: Some(0)",
        ),
        (
            &["--ack=buffered"],
            "ack: \"buffered\", flush_interval_ms: None",
        ),
    ];
    for (options, asked) in table {
        let words = [&["protect", "web1"], options].concat();
        let text = stage.run(&words).good();
        assert!(stage.asked().contains(asked), "{}", stage.asked());
        let said = "ack: durable, chosen for this machine; flush interval: 200ms, as configured\n";
        assert!(text.contains(said), "{text}");
    }
    // Nothing is waited for where there is nothing to come.
    let text = stage.run(&["protect", "asleep", "--ack", "durable"]).good();
    assert!(
        text.ends_with("asleep is suspended; its first point is 123\n"),
        "{text}"
    );
    let info = stage.run(&["info", "web1"]).good();
    assert!(
        info.contains("durable, chosen for this machine\n"),
        "{info}"
    );
    assert!(info.contains("200ms, as configured\n"), "{info}");
}

#[test]
fn points_are_named_after_what_was_done_to_them() {
    let stage = Stage::new();
    let table: [(&[&str], &str, &str); 4] = [
        (
            &["point-lock", "web1", "123", "latest"],
            "point 123, 2026-01-02 03:04:05.123 (before): locked\n",
            "at: [At { at: Some(Point(123)) }, At { at: Some(Latest(true)) }]",
        ),
        (
            &["point-unlock", "web1", "2026-01-02 03:04:05.123"],
            "point 123, 2026-01-02 03:04:05.123 (before): unlocked\n",
            "at: [At { at: Some(TimeNs(1767323045123999999)) }]",
        ),
        (
            &["point-label", "web1", "123", ""],
            "point 123, 2026-01-02 03:04:05.123 (before): labelled\n",
            "at: Some(At { at: Some(Point(123)) }), label: \"\"",
        ),
        (
            &["point-delete", "web1", "123"],
            "point 123, 2026-01-02 03:04:05.123 (before): deleted\n",
            "at: [At { at: Some(Point(123)) }]",
        ),
    ];
    for (words, said, asked) in table {
        assert_eq!(stage.run(words).good(), said, "{words:?}");
        assert!(
            stage.asked().contains(asked),
            "{words:?}: {}",
            stage.asked()
        );
    }
}

#[test]
fn policies_are_shown_set_and_looked_ahead() {
    let stage = Stage::new();
    assert_eq!(
        stage.run(&["policy-list"]).good(),
        "\x20Name      All     Hourly   Daily   Weekly   Monthly   Size limit   From         Machines
---------------------------------------------------------------------------------------------
 default   1h30m   -        -       -        -         -            built-in     -
 long      1d      7d       30d     -        365d      6 GiB        policy-set   web1, db 2
"
    );
    let shown = stage.run(&["policy-show", "long"]).good();
    assert!(
        shown.contains("One an hour: 7d\nOne a day:   30d\nOne a week:  -\n"),
        "{shown}"
    );
    let set = [
        "policy-set",
        "long",
        "--all",
        "1h",
        "--weekly",
        "2w",
        "--size-limit",
        "500G",
    ];
    assert_eq!(stage.run(&set).good(), shown);
    assert_eq!(
        stage.asked(),
        "SetPolicyRequest { name: \"long\", all_ms: Some(3600000), hourly_ms: None, daily_ms: None, weekly_ms: \
         Some(1209600000), monthly_ms: None, size_limit_bytes: Some(536870912000), reset: false }"
    );
    stage.run(&["policy-set", "long", "--reset"]).good();
    assert!(stage.asked().contains("reset: true"), "{}", stage.asked());
    assert_eq!(
        stage.run(&["policy-assign", "web1", "long"]).good(),
        "the points of web1 are kept by policy long\n"
    );
    assert_eq!(
        stage.run(&["policy-preview", "web1", "long"]).good(),
        "by policy long, 1 of 7 points of web1 would go, which frees about 3 MiB

 Id    Time                      Label
-----------------------------------------
 123   2026-01-02 03:04:05.123   before
"
    );
    assert!(
        stage.asked().contains("policy: \"long\""),
        "{}",
        stage.asked()
    );
    let many = stage.run(&["policy-preview", "many"]).good();
    assert!(
        many.contains("25 of 31 points") && many.ends_with("(and 5 more; --json lists them all)\n"),
        "{many}"
    );
    let info = stage.run(&["info", "web1"]).good();
    assert!(
        info.contains(" long\n") && info.contains("6 GiB, critical\n"),
        "{info}"
    );
    let info = stage.run(&["info", "odd"]).good();
    assert!(
        info.contains("long; its policy 'long' is not known\n"),
        "{info}"
    );
}

#[test]
fn no_control_character_reaches_the_terminal() {
    let stage = Stage::new();
    let text = stage.run(&["info", "odd"]).good();
    assert!(text.contains("\\u{1b}[31mred\\u{7}"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    let text = stage.run(&["info", "fail-not-found\u{1b}[2J"]).good();
    assert!(!text.contains('\u{1b}'), "{text}");
}
