//! `space`: what people and programs see, and what the engine is asked for it.

use serde_json::{Value, json};

use crate::stage::Stage;

const SHOWN: &str = "\x20Volume   Record   First point                    Image   Hashes
------------------------------------------------------------------
 vda      4000     -                              5 GiB   1 MiB
 vda      4567     123, 2026-01-02 03:04:05.123   3 MiB   1 MiB

Base points:         5 GiB
Journal, sealed:     64 MiB in 1 segment
Journal, cold:       512 MiB in 2 segments
Journal, since then: 12 MiB
Journal, reserved:   52 MiB
Unfinished work:     4 KiB
Other files:         8 KiB
Total:               5.6 GiB in /var/lib/virt-cdp/web1
";

#[test]
fn each_part_is_shown_and_the_total() {
    let stage = Stage::new();
    assert_eq!(stage.run(&["space", "web1"]).good(), SHOWN);
    assert_eq!(
        stage.asked(),
        "SpaceRequest { name: \"web1\", from: None, to: None }"
    );
}

#[test]
fn what_deleting_points_frees_is_told_where_a_bound_is_given() {
    let stage = Stage::new();
    let said = "\n5 of 7 points could be deleted, which frees about 256 MiB soon and 3 MiB later; the others are \
                locked, in use, or the newest\n";
    let table: [(&[&str], &str); 3] = [
        (
            &["--from", "2026-01-02 03:04:05.123"],
            "from: Some(At { at: Some(TimeNs(1767323045123000000)) }), to: None",
        ),
        (
            &["--to", "2026-01-02 03:04:05.123"],
            "from: None, to: Some(At { at: Some(TimeNs(1767323045123999999)) })",
        ),
        (
            &["--from", "7", "--to", "latest"],
            "from: Some(At { at: Some(Point(7)) }), to: Some(At { at: Some(Latest(true)) })",
        ),
    ];
    for (bounds, asked) in table {
        let words = [&["space", "web1"], bounds].concat();
        assert_eq!(stage.run(&words).good(), format!("{SHOWN}{said}"));
        assert!(stage.asked().contains(asked), "{}", stage.asked());
    }
}

#[test]
fn its_document_is_as_promised() {
    let stage = Stage::new();
    let document =
        |words: &[&str]| -> Value { serde_json::from_str(&stage.run(words).good()).unwrap() };
    let point = json!({
        "id": 123, "time": "2026-01-02T03:04:05.123456789Z", "grade": "crash", "label": "before", "seq": 4567,
        "locked": true, "damaged": false,
    });
    let mut expected = json!({
        "harbor": "/var/lib/virt-cdp/web1",
        "layers": [
            {
                "volume": "vda", "seq": 4000, "first_point": null, "image_bytes": 5_368_709_120_u64,
                "hashes_bytes": 1_048_576,
            },
            {
                "volume": "vda", "seq": 4567, "first_point": point, "image_bytes": 3_145_728,
                "hashes_bytes": 1_048_576,
            },
        ],
        "journal": {
            "sealed_segments": 1, "sealed_bytes": 67_108_864, "cold_segments": 2, "cold_bytes": 536_870_912,
            "recorded_bytes": 12_582_912, "reserved_bytes": 54_525_952,
        },
        "unfinished_bytes": 4096, "other_bytes": 8192, "total_bytes": 6_045_052_928_u64, "deletion": null,
    });
    assert_eq!(document(&["space", "web1", "--json"]), expected);
    expected["deletion"] = json!({
        "points": 7, "held": 2, "freed_soon_bytes": 268_435_456, "freed_later_bytes": 3_145_728,
    });
    assert_eq!(
        document(&["--json", "space", "web1", "--to", "latest"]),
        expected
    );
}
