//! Drills on the command line: plans are checked before anything is asked, and the verdict is the exit code.

use drill_runner::{outcome::Report, report::Store};
use serde_json::{Value, json};

use crate::stage::Stage;

const ID: &str = "20260102-030405-4f2a";

#[test]
fn the_verdict_is_the_exit_code() {
    let stage = Stage::new();
    let proved = stage.run(&["drill-run", "web1", "--check", "tcp:22", "--at", "123"]);
    assert_eq!(proved.code, Some(0), "{proved:?}");
    assert!(
        proved
            .stdout
            .contains("proved, recovered in 5.0 s, data 1.2 s old"),
        "{}",
        proved.stdout
    );
    assert!(
        proved.stderr.contains("[    0.7 s] web1: its CPUs run"),
        "{}",
        proved.stderr
    );
    let asked = stage.asked();
    assert!(
        asked.contains("Point(123)") && asked.contains("type = \\\"tcp\\\""),
        "{asked}"
    );
    let failed = stage.run(&["drill-run", "bad", "--check", "tcp:22"]);
    assert_eq!(failed.code, Some(3), "{failed:?}");
    assert!(
        failed
            .stderr
            .contains("error: web1 is not proved: web1: tcp:22: connection refused"),
        "{}",
        failed.stderr
    );
    assert!(
        failed.stdout.contains(&format!("drill-discard {ID}")),
        "{}",
        failed.stdout
    );
    let programs = stage.run(&["drill-run", "bad", "--json"]);
    assert_eq!(programs.code, Some(3));
    let told: Value = serde_json::from_str(&programs.stdout).unwrap();
    assert_eq!(
        told["drills"][0]["machines"][0]["checks"][0]["verdict"],
        "failed"
    );
    assert_eq!(told["drills"][0]["kept"], true);
}

#[test]
fn what_is_wrong_with_a_plan_is_told_with_its_line_and_nothing_is_asked() {
    let stage = Stage::new();
    let home = tempfile::tempdir().unwrap();
    let plan = home.path().join("shop.toml");
    let path = plan.to_str().unwrap();
    std::fs::write(
        &plan,
        "point = '2h'\n[[machine]]\nname = 'db'\n[[machine.check]]\ntype = 'tcp'\nport = 0\n",
    )
    .unwrap();
    for verb in ["plan-check", "drill-run"] {
        let ran = stage.run(&[verb, path]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(
            ran.stderr.contains(&format!(
                "error: {path}, line 6: 0 is no port\nhint: give 1 to 65535"
            )),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(stage.asked(), "", "the daemon was not asked");
    std::fs::write(&plan, "[[machine]]\nname = 'web'\nafter = ['db']\n[[machine]]\nname = 'db'\n[[machine.check]]\ntype = 'ping'\n").unwrap();
    let right = stage.run(&["plan-check", path]).good();
    assert!(
        right.contains("the plan 'web+db' is right; within 15m:\n  db\n    ping\n  web, after db"),
        "{right}"
    );
    let two = stage.run(&["drill-run", path, "--vcpus", "2"]);
    assert_eq!(two.code, Some(2), "{two:?}");
    // Each of several moments is a drill of its own.
    std::fs::write(&plan, "point = ['1h', '2h']\n[[machine]]\nname = 'db'\n").unwrap();
    let ran = stage.run(&["drill-run", path]).stdout;
    assert_eq!(ran.matches("drill 2026").count(), 2, "{ran}");
    for (check, what) in [("pong", "no check `pong`"), ("tcp:0", "no port")] {
        let ran = stage.run(&["drill-run", "web1", "--check", check]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(
            ran.stderr.contains(what) && ran.stderr.contains("hint: "),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn drills_are_listed_and_their_reports_are_had_as_they_are() {
    let stage = Stage::new();
    let list = stage.run(&["drill-list"]).good();
    assert!(
        list.contains("failed, kept") && list.contains("1m15s") && list.contains("--limit"),
        "{list}"
    );
    let told: Value =
        serde_json::from_str(&stage.run(&["drill-list", "web1", "--json"]).good()).unwrap();
    let expected = json!({
        "drills": [{
            "id": ID, "name": "web1", "state": "kept", "verdict": "failed", "why": "web1: tcp:22: connection refused",
            "reason": "after base point", "started": "2026-01-02T03:04:05.000000000Z",
            "ended": "2026-01-02T03:04:12.000000000Z", "rto_ms": null, "rpo_ms": 75_000,
            "machines": [{"name": "web1", "verdict": "failed", "point": 123, "point_time": "2026-01-02T03:04:05.123456789Z"}],
        }],
        "truncated": true,
    });
    assert_eq!(told, expected);
    let home = tempfile::tempdir().unwrap();
    let [html, junit] = ["a.html", "a.xml"].map(|name| home.path().join(name));
    let shown = stage.run(&["drill-report", "latest"]).good();
    assert!(shown.contains("proved    tcp:22"), "{shown}");
    stage
        .run(&[
            "drill-report",
            ID,
            "--html",
            html.to_str().unwrap(),
            "--junit",
            junit.to_str().unwrap(),
        ])
        .good();
    assert_eq!(
        std::fs::read_to_string(&html).unwrap(),
        format!("<html of {ID}>")
    );
    assert_eq!(
        std::fs::read_to_string(&junit).unwrap(),
        format!("<junit of {ID}>")
    );
    let raw = stage.run(&["drill-report", ID, "--json"]).good();
    assert!(raw.starts_with("{\"report\":{\"format\":1"), "{raw}");
    stage.run(&["drill-discard", ID]).good();
    assert!(stage.asked().contains(ID));
    let file = home.path().join("no-report");
    std::fs::write(&file, "nothing").unwrap();
    let ran = stage.run(&["report-verify", file.to_str().unwrap()]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

#[test]
fn a_search_tells_its_probes_and_the_answer() {
    let stage = Stage::new();
    let ran = stage.run(&["bisect", "web1", "--from", "7d", "--check", "tcp:22"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.stderr.contains("probe 1: point 123") && ran.stderr.contains("good (known already)"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("bad (1.5 s): exit code 1"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("point 124") && ran.stderr.contains(": not looked at ("),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stdout.contains("newest good: point 123")
            && ran.stdout.contains("3 probes among 86400 points")
            && ran.stdout.contains("not looked at: point 124"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("virt-cdp takeover web1 --at 123"),
        "{}",
        ran.stdout
    );
    let told: Value = serde_json::from_str(
        &stage
            .run(&[
                "bisect", "web1", "--from", "7d", "--check", "ping", "--json",
            ])
            .good(),
    )
    .unwrap();
    assert_eq!(
        (&told["newest_good"]["id"], &told["oldest_bad"]["id"]),
        (&json!(123), &json!(125))
    );
    assert_eq!(told["probes"][1]["passed"], false);
    assert_eq!(told["probes"][1]["outcome"], "bad");
    assert_eq!(told["probes"][2]["outcome"], "not-looked-at");
    assert_eq!(told["not_looked_at"][0]["id"], 124);
    for words in [
        vec!["bisect", "web1", "--from", "7d"],
        vec![
            "bisect",
            "web1",
            "--from",
            "7d",
            "--check",
            "ping",
            "--script",
            "/bin/true",
        ],
        vec!["bisect", "web1", "--check", "ping"],
    ] {
        assert_eq!(stage.run(&words).code, Some(2), "{words:?}");
    }
}

#[test]
fn what_was_held_is_told_where_a_later_point_is_refused() {
    let stage = Stage::new();
    let home = tempfile::tempdir().unwrap();
    let plan = home.path().join("points.toml");
    let text = "name = \"points\"\npoint = [\"123\", \"10\"]\n[[machine]]\nname = \"web1\"\n";
    std::fs::write(&plan, text).unwrap();
    let ran = stage.run(&["drill-run", plan.to_str().unwrap(), "--json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(told["drills"].as_array().map(Vec::len), Some(1), "{told}");
    assert!(ran.stderr.contains("there is no point 10"), "{ran:?}");
}

#[test]
fn a_group_is_taken_over_by_a_job() {
    let stage = Stage::new();
    let home = tempfile::tempdir().unwrap();
    let plan = home.path().join("shop.toml");
    std::fs::write(&plan, "name = \"shop\"\n[[machine]]\nname = \"web1\"\n").unwrap();
    let path = plan.to_str().unwrap();
    let ran = stage.run(&["takeover", path, "--at", "latest"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("web1-takeover-123 is running"));
    assert!(ran.stdout.contains("takeover-discard web1-takeover-123"));
    let told = stage.run(&["takeover", path, "--at", "latest", "--json"]);
    let told: Value = serde_json::from_str(&told.good()).unwrap();
    let name = &told["takeovers"][0]["takeover"]["name"];
    assert_eq!(name, "web1-takeover-123");
}

#[test]
fn the_reports_of_a_directory_are_verified_with_their_chain() {
    let stage = Stage::new();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("reports");
    let store = Store::open(&dir, &home.path().join("key")).unwrap();
    for number in 1..=3 {
        let mut report: Report = serde_json::from_str(&crate::fake_drill::live("drill-1")).unwrap();
        report.id = format!("20260102-030405-0000000{number}");
        store.add(report).unwrap();
    }
    let path = dir.to_str().unwrap();
    let told = stage.run(&["report-verify", path, "--json"]).good();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["reports"], 3, "{told}");
    assert_eq!(told["begins_after"], Value::Null);
    assert_eq!(told["newest"]["id"], "20260102-030405-00000003");
    let text = stage.run(&["report-verify", path]).good();
    assert!(text.contains("3 reports in ") && text.contains("compare the key"));
    // One by itself names its own hash, and that of the one before.
    let file = |number: u32| dir.join(format!("20260102-030405-0000000{number}.json"));
    let of = |number: u32| {
        let file = file(number);
        let told = stage.run(&["report-verify", file.to_str().unwrap(), "--json"]);
        serde_json::from_str::<Value>(&told.good()).unwrap()
    };
    assert_eq!(of(3)["previous_sha256"], of(2)["sha256"]);
    let text = stage
        .run(&["report-verify", file(3).to_str().unwrap()])
        .good();
    assert!(text.contains(of(2)["sha256"].as_str().unwrap()), "{text}");
    // Another key, a beginning that was removed, one that is missing.
    let other = "ab".repeat(32);
    let ran = stage.run(&["report-verify", path, "--key", &other]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    let kept = std::fs::read(file(1)).unwrap();
    std::fs::remove_file(file(1)).unwrap();
    let text = stage.run(&["report-verify", path]).good();
    assert!(
        text.contains("the oldest follows 20260102-030405-00000001"),
        "{text}"
    );
    std::fs::write(file(1), kept).unwrap();
    std::fs::remove_file(file(2)).unwrap();
    let ran = stage.run(&["report-verify", path]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("20260102-030405-00000002, is missing"),
        "{ran:?}"
    );
}
