//! Plugins: their protocol, whom they may belong to, and the example that is delivered.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use serde_json::{Map, json};
use tempfile::TempDir;

use super::*;
use crate::outcome::Verdict;

fn plugin(name: &str, settings: Value) -> CheckKind {
    CheckKind::Plugin {
        name: name.into(),
        settings: settings.as_object().cloned().unwrap_or_default(),
    }
}

fn install(folder: &TempDir, text: &str, mode: u32) {
    let path = folder.path().join("mine");
    let _ = fs::remove_file(&path);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn scene(folder: &Path) -> Scene {
    let mut scene = Scene::new();
    scene.plugins = folder.to_owned();
    scene
}

#[test]
fn a_plugin_is_told_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    install(&folder, "cat", 0o700);
    let mut scene = scene(folder.path());
    scene.machine.volumes = vec![Volume {
        target: "vda".into(),
        size_bytes: 4096,
        uri: "nbd://x".into(),
    }];
    let report = scene.run(&once(plugin("mine", json!({ "port": 1 })), 5000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    let mut asked: Value = serde_json::from_str(&report.attempts[0].output).unwrap();
    let deadline = asked
        .as_object_mut()
        .unwrap()
        .remove("deadline_ms")
        .unwrap();
    assert!((4000..=5000).contains(&deadline.as_u64().unwrap()));
    let wanted = json!({
        "protocol": 1, "drill": "20261127-031500-4f2a", "machine": "db", "domain": "db-drill",
        "addresses": ["127.0.0.1"],
        "point": { "id": "17", "time": "2026-11-27T03:10:00Z", "age_ms": 1500 },
        "volumes": [{ "target": "vda", "size_bytes": 4096, "uri": "nbd://x" }],
        "settings": { "port": 1 }, "attempt": 1,
    });
    assert_eq!(asked, wanted);
}

#[test]
fn a_large_request_does_not_hang_a_plugin_that_does_not_read() {
    let folder = tempfile::tempdir().unwrap();
    install(&folder, "exit 0", 0o700);
    let settings = json!({ "text": "x".repeat(1 << 20) });
    let report = scene(folder.path()).run(&once(plugin("mine", settings), 5000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
}

#[test]
fn a_plugin_answers_by_exit_code_and_last_line() {
    let folder = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        install(&folder, text, 0o700);
        scene(folder.path()).run(&once(plugin("mine", json!({})), 5000))
    };
    let report = run("echo noise; echo '{\"saw\": \"all well.\", \"output\": \"kept\"}'");
    assert_eq!(report.verdict, Verdict::Proved);
    assert_eq!(report.attempts[0].saw, "all well");
    assert_eq!(report.attempts[0].output, "kept");
    let report = run("echo '{\"saw\": \"not yet\"}'; echo late >&2; exit 1");
    assert_eq!(
        (report.verdict, report.why.as_str()),
        (Verdict::Failed, "not yet")
    );
    let report = run("echo it is starting; exit 1");
    assert_eq!(report.why, "exit code 1; it said \"it is starting\"");
    let report = run("echo '{\"saw\": 7}'; exit 1");
    assert_eq!(report.verdict, Verdict::Failed, "rubbish is text");
}

#[test]
fn one_that_has_not_passed_is_run_again_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note");
    let mut plan = once(plugin("mine", json!({})), 5000);
    plan.attempts = None;
    let text = format!("[ -e {0} ] && exit 0; touch {0}; exit 1", note.display());
    install(&folder, &text, 0o700);
    let report = scene(folder.path()).run(&plan);
    assert_eq!(
        (report.verdict, report.attempts_total),
        (Verdict::Proved, 2)
    );
    install(&folder, "echo no library >&2; exit 2", 0o700);
    let report = scene(folder.path()).run(&plan);
    assert_eq!((report.verdict, report.attempts_total), (Verdict::Error, 1));
    assert_eq!(
        report.why,
        "the plugin mine is broken: exit code 2; it said \"no library\""
    );
}

#[test]
fn only_what_can_be_trusted_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let why = |folder: &Path, name: &str| {
        let report = scene(folder).run(&once(plugin(name, json!({})), 2000));
        assert_eq!(report.verdict, Verdict::Error, "{name}");
        report.why
    };
    assert!(why(folder.path(), "mine").contains("no such file"));
    assert!(why(folder.path(), "../mine").contains("is no name of a plugin"));
    assert!(why(folder.path(), "").contains("is no name of a plugin"));
    for mode in [0o720, 0o702, 0o777] {
        install(&folder, "exit 0", mode);
        assert!(why(folder.path(), "mine").contains("can be written by others"));
    }
    install(&folder, "exit 0", 0o600);
    assert!(why(folder.path(), "mine").contains("is not executable"));
    fs::create_dir(folder.path().join("sub")).unwrap();
    assert!(why(folder.path(), "sub").contains("is no file"));
    symlink("/bin/true", folder.path().join("link")).unwrap();
    assert!(why(folder.path(), "link").contains("is no file"));
    install(&folder, "exit 0", 0o700);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(why(folder.path(), "mine").contains("can be written by others"));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    if is_root() {
        let path = folder.path().join("mine");
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(why(folder.path(), "mine").contains("belongs to user 65534"));
    } else {
        eprintln!("SKIPPED: a file of somebody else needs root");
    }
}

/// A folder with the example in it as it is installed; none if there is no Python.
fn delivered() -> Option<TempDir> {
    let has_python = Command::new("/usr/bin/env")
        .env_clear()
        .env("PATH", crate::check::process::PATH)
        .args(["python3", "--version"])
        .output()
        .is_ok_and(|out| out.status.success());
    if !has_python {
        eprintln!("SKIPPED: there is no python3 where programs are looked for");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../plugins/checks.d/redis-ping");
    let mode = fs::metadata(&from).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "it is delivered executable");
    let to = folder.path().join("redis-ping");
    fs::copy(from, &to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    Some(folder)
}

/// A server that knows two commands of Redis and takes one password.
fn redis() -> u16 {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut next = || lines.next()?.ok();
            let mut is_known = false;
            while let Some(head) = next() {
                let count: usize = head.trim_start_matches('*').parse().unwrap();
                let words: Vec<String> = (0..count)
                    .map(|_| {
                        next();
                        next().unwrap_or_default()
                    })
                    .collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let answer = match words.as_slice() {
                    ["AUTH", "secret"] => {
                        is_known = true;
                        "+OK\r\n"
                    }
                    ["AUTH", _] => "-WRONGPASS invalid password\r\n",
                    ["PING"] if is_known => "+PONG\r\n",
                    _ => "-NOAUTH Authentication required.\r\n",
                };
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    port
}

#[test]
fn the_example_asks_a_redis_server() {
    let Some(folder) = delivered() else { return };
    let port = redis();
    let run =
        |settings: Value| scene(folder.path()).run(&once(plugin("redis-ping", settings), 5000));
    let report = run(json!({ "port": port, "password": "secret" }));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    assert_eq!(report.attempts[0].saw, "127.0.0.1 answered PING with PONG");
    // Settings of a command line are strings.
    let report = run(json!({ "port": port.to_string(), "password": "guess" }));
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(report.why, "it did not take the password");
    let report = run(json!({ "port": port }));
    assert_eq!(report.why, "it did not answer PING with PONG");
    let report = run(json!({ "port": "x" }));
    assert_eq!(report.verdict, Verdict::Error);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let kind = CheckKind::Plugin {
        name: "redis-ping".into(),
        settings: Map::from_iter([("port".to_owned(), json!(port))]),
    };
    let report = scene(folder.path()).run(&once(kind, 1500));
    assert_eq!(report.verdict, Verdict::Failed);
    assert!(
        report.why.contains("timed out") || report.why.contains("in time"),
        "{}",
        report.why
    );
}
