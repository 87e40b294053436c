//! What a client learns before it reads.

use std::sync::Arc;

use qemu_hook::nbd::{Exports, NbdServer};
use serde_json::Value;

use crate::device::{Device, serve, uri};
use crate::peers::{attempt, requires, run};
use crate::raw::{self, Raw, context_data, go_data, string};

const ODD: &str = "vm/vda at 12:00 ü%?&#";

fn two_exports(dir: &std::path::Path) -> NbdServer {
    let mut exports = Exports::new();
    let vdb = Arc::new(Device::sparse(70_001, 1));
    exports.insert("vdb", "", vdb).unwrap();
    let odd = Arc::new(Device::sparse(1 << 20, 2));
    exports.insert(ODD, "as it was at noon", odd).unwrap();
    NbdServer::listen_unix(dir.join("view.sock"), 0o600, None, exports).unwrap()
}

#[test]
fn nbdinfo_lists_every_export_with_its_facts() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = two_exports(dir.path());
    let text = run("nbdinfo", &["--list", "--json", &uri(&server, "")]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["structured"], true);
    let exports = told["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 2);
    assert_eq!(exports[0]["export-name"], "vdb");
    assert_eq!(exports[0]["export-size"], 70_001);
    assert_eq!(exports[1]["export-name"], ODD);
    assert_eq!(exports[1]["description"], "as it was at noon");
    for export in exports {
        assert_eq!(export["is_read_only"], true);
        assert_eq!(export["can_multi_conn"], true);
        assert_eq!(export["can_df"], true);
        assert_eq!(export["can_trim"], false);
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        assert_eq!(export["contexts"][0], "base:allocation");
    }
    let (success, _) = attempt("nbdinfo", &[&uri(&server, "no-such")]);
    assert!(!success);
}

#[test]
fn the_empty_name_is_the_only_export() {
    if !requires(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), ODD, Device::sparse(70_001, 3));
    assert_eq!(
        run("nbdinfo", &["--size", &uri(&server, "")]).trim(),
        "70001"
    );
    let text = run("qemu-img", &["info", "--output=json", &uri(&server, "")]);
    assert!(text.contains("\"virtual-size\""), "{text}");
}

#[test]
fn export_name_is_the_old_way_in() {
    let dir = tempfile::tempdir().unwrap();
    let (server, device) = serve(dir.path(), "vda", Device::sparse(9000, 4));
    for (client_flags, zeroes) in [(1u32, 124), (3, 0)] {
        let mut raw = Raw::connect(server.path());
        raw.take(18);
        raw.send(&client_flags.to_be_bytes());
        raw.option(1, b"vda");
        let told = raw.take(10 + zeroes);
        assert_eq!(told[..8], 9000u64.to_be_bytes());
        raw.request(raw::READ, 0, 5, 10, 100);
        assert_eq!(raw.simple(5), 0);
        assert_eq!(raw.take(100), device.bytes[10..110]);
    }
    let mut raw = Raw::connect(server.path());
    raw.greet();
    raw.option(1, b"no-such");
    raw.expect_end();
}

#[test]
fn options_that_are_refused_leave_the_handshake_in_step() {
    let dir = tempfile::tempdir().unwrap();
    let server = two_exports(dir.path());
    let mut raw = Raw::connect(server.path());
    raw.greet();
    let allocation = &["base:allocation"][..];
    let refused: &[(u32, Vec<u8>, u32)] = &[
        (5, vec![], raw::ERR_UNSUP),  // STARTTLS
        (11, vec![], raw::ERR_UNSUP), // EXTENDED_HEADERS
        (u32::MAX, vec![1; 60_000], raw::ERR_UNSUP),
        (3, vec![0], raw::ERR_INVALID), // LIST has no data
        (8, vec![0], raw::ERR_INVALID), // nor STRUCTURED_REPLY
        (7, vec![], raw::ERR_INVALID),
        (7, go_data("no-such"), raw::ERR_UNKNOWN),
        (7, go_data(""), raw::ERR_UNKNOWN), // there are two
        (7, string("vdb"), raw::ERR_INVALID),
        (7, vec![0, 0, 0, 2, 0xff, 0xfe, 0, 0], raw::ERR_INVALID), // not UTF-8
        (10, context_data("vdb", allocation), raw::ERR_INVALID),   // not structured yet
    ];
    for (option, data, error) in refused {
        raw.option(*option, data);
        assert_eq!(raw.reply(*option).0, *error, "option {option}");
    }
    raw.option(6, &[&string("vdb")[..], &[0, 1, 0, 1]].concat());
    let infos: Vec<(u32, Vec<u8>)> = (0..4).map(|_| raw.reply(6)).collect();
    assert_eq!(infos[2], (3, b"\x00\x01vdb".to_vec()));
    assert_eq!(infos[3].0, 1);
    raw.option(2, &[]);
    assert_eq!(raw.reply(2).0, 1);
    raw.expect_end();
}

#[test]
fn a_context_counts_for_the_export_it_was_agreed_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = two_exports(dir.path());
    for (agreed_on, error) in [("vdb", None), (ODD, Some(22))] {
        let mut raw = Raw::connect(server.path());
        raw.greet();
        raw.option(8, &[]);
        assert_eq!(raw.reply(8).0, 1);
        let queries = ["qemu:dirty-bitmap:x", "base:allocation"];
        raw.option(10, &context_data(agreed_on, &queries));
        let (kind, data) = raw.reply(10);
        assert_eq!((kind, &data[4..]), (4, &b"base:allocation"[..]));
        assert_eq!(raw.reply(10).0, 1);
        raw.option(raw::GO, &go_data("vdb"));
        while raw.reply(raw::GO).0 != 1 {}
        raw.request(raw::STATUS, 0, 9, 0, 70_001);
        let (is_last, kind, payload) = raw.chunk(9);
        assert!(is_last);
        match error {
            None => assert_eq!(kind, 5),
            Some(error) => assert_eq!((kind, payload[3]), (0x8001, error)),
        }
    }
}
