//! What goes through the guest agent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::{outcome::Verdict, plan::FileSum};

fn exec(exit_code: i32, output: Option<&str>) -> CheckKind {
    CheckKind::Exec {
        command: "systemctl is-system-running".into(),
        exit_code,
        output: output.map(pattern),
    }
}

/// An agent of a guest in which every command ends so, at the third question.
fn agent_with(os: &'static str, end: Value) -> Scene {
    let asked = AtomicU64::new(0);
    Scene::with_agent(move |command, _| {
        let arguments = &command["arguments"];
        match command["execute"].as_str().unwrap() {
            "guest-get-osinfo" => Ok(json!({ "id": os })),
            "guest-exec" => {
                let (path, flag) = match os {
                    "mswindows" => ("cmd.exe", "/c"),
                    _ => ("/bin/sh", "-c"),
                };
                assert_eq!(arguments["path"], path);
                assert_eq!(
                    arguments["arg"],
                    json!([flag, "systemctl is-system-running"])
                );
                assert_eq!(arguments["capture-output"], true);
                Ok(json!({ "pid": 4711 }))
            }
            "guest-exec-status" => {
                assert_eq!(arguments["pid"], 4711);
                match asked.fetch_add(1, Ordering::SeqCst) {
                    0..2 => Ok(json!({ "exited": false })),
                    _ => Ok(end.clone()),
                }
            }
            other => panic!("{other} was asked"),
        }
    })
}

#[test]
fn a_command_is_run_and_its_end_waited_for() {
    for os in ["debian", "mswindows"] {
        let out = STANDARD.encode("running\n");
        let err = STANDARD.encode("a warning\n");
        let end = json!({ "exited": true, "exitcode": 0, "out-data": out, "err-data": err });
        let report = agent_with(os, end).run(&once(exec(0, Some("^running$")), 3000));
        assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
        assert_eq!(report.attempts[0].output, "running\na warning\n");
    }
}

#[test]
fn how_a_command_ended_is_told() {
    for (end, why) in [
        (
            json!({ "exited": true, "exitcode": 1 }),
            "exit code 1 where 0 was expected",
        ),
        (
            json!({ "exited": true, "signal": 9 }),
            "killed by signal 9 where 0 was expected",
        ),
        (
            json!({ "exited": true, "exitcode": 0, "out-data": "%%%" }),
            "has output that is no base64",
        ),
        (json!([1, 2]), "does not say whether it exited: \"[1,2]\""),
    ] {
        let report = agent_with("debian", end).run(&once(exec(0, None), 3000));
        assert_eq!(report.verdict, Verdict::Failed);
        assert!(report.why.contains(why), "{}", report.why);
    }
}

#[test]
fn a_command_that_does_not_end_is_left() {
    let end = json!({ "exited": false });
    let report = agent_with("debian", end).run(&once(exec(0, None), 300));
    assert_eq!(report.why, "it did not end within 300 ms");
}

#[test]
fn an_agent_that_may_not_run_commands_is_told_at_once() {
    let scene = Scene::with_agent(|command, _| match command["execute"].as_str() {
        Some("guest-exec") => Err(StageError::Refused(
            "The command guest-exec has been disabled for this instance".into(),
        )),
        _ => Ok(json!({})),
    });
    let mut plan = once(exec(0, None), 3000);
    plan.attempts = None;
    let report = scene.run(&plan);
    assert_eq!(report.attempts_total, 1);
    assert_eq!(report.verdict, Verdict::Failed);
    assert!(
        report.why.contains("guest-exec is blocked"),
        "{}",
        report.why
    );
}

#[test]
fn an_agent_that_never_answers_does_not_keep_a_check() {
    let kinds = [
        CheckKind::Agent,
        exec(0, None),
        CheckKind::Files(vec![FileSum {
            path: "/etc/hostname".into(),
            sha256: "0".repeat(64),
        }]),
    ];
    for kind in kinds {
        // It blocks for all of the time that it is given, as the door does.
        let scene = Scene::with_agent(|_, timeout| {
            thread::sleep(timeout);
            Err(StageError::AgentSilent("no answer in time".into()))
        });
        let mut plan = once(kind, 60_000);
        plan.deadline = Duration::from_millis(700);
        let began = Instant::now();
        let report = scene.run(&plan);
        assert!(began.elapsed() < Duration::from_millis(1700));
        assert_eq!(report.verdict, Verdict::Failed);
    }
}

#[test]
fn an_agent_that_talks_rubbish_is_no_agent() {
    for rubbish in [json!(null), json!("pong"), json!({ "x": [1] })] {
        let said = rubbish.clone();
        let scene = Scene::with_agent(move |_, _| Ok(said.clone()));
        for kind in [
            CheckKind::Agent,
            exec(0, None),
            CheckKind::Files(vec![FileSum {
                path: "/etc/hostname".into(),
                sha256: "0".repeat(64),
            }]),
        ] {
            let report = scene.run(&once(kind, 500));
            assert_eq!(report.verdict, Verdict::Failed);
            assert!(
                report.why.contains("answered a ping with") || report.why.contains("answer to"),
                "{rubbish}: {}",
                report.why
            );
        }
    }
}

/// An agent of a guest with one file.
fn agent_with_file(content: Vec<u8>, opened: Arc<AtomicU64>) -> Scene {
    let position = AtomicU64::new(0);
    Scene::with_agent(move |command, _| {
        let arguments = &command["arguments"];
        match command["execute"].as_str().unwrap() {
            "guest-file-open" if arguments["path"] == "/data/file" => {
                assert_eq!(arguments["mode"], "r");
                opened.fetch_add(1, Ordering::SeqCst);
                position.store(0, Ordering::SeqCst);
                Ok(json!(1000))
            }
            "guest-file-open" => Err(StageError::Refused("No such file or directory".into())),
            "guest-file-read" => {
                assert_eq!(arguments["handle"], 1000);
                let count = arguments["count"].as_u64().unwrap() as usize;
                let from = position.load(Ordering::SeqCst) as usize;
                let piece = &content[from..content.len().min(from + count)];
                position.store((from + piece.len()) as u64, Ordering::SeqCst);
                Ok(json!({
                    "count": piece.len(), "buf-b64": STANDARD.encode(piece), "eof": piece.len() < count
                }))
            }
            "guest-file-close" => {
                opened.fetch_sub(1, Ordering::SeqCst);
                Ok(json!({}))
            }
            other => panic!("{other} was asked"),
        }
    })
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn files_are_read_in_pieces_and_summed() {
    for size in [0, 5, 1 << 20, (3 << 20) + 17] {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let opened = Arc::new(AtomicU64::new(0));
        let scene = agent_with_file(content.clone(), Arc::clone(&opened));
        let mut file = FileSum {
            path: "/data/file".into(),
            sha256: sum(&content),
        };
        let report = scene.run(&once(CheckKind::Files(vec![file.clone()]), 5000));
        assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
        assert_eq!(opened.load(Ordering::SeqCst), 0, "it is closed");
        file.sha256 = "ab".repeat(32);
        let report = scene.run(&once(CheckKind::Files(vec![file]), 5000));
        assert_eq!(report.verdict, Verdict::Failed);
        let both = [sum(&content), "ab".repeat(32)];
        assert!(
            both.iter().all(|one| report.why.contains(one)),
            "{}",
            report.why
        );
    }
}

#[test]
fn a_file_that_is_not_there_is_told() {
    let scene = agent_with_file(Vec::new(), Arc::default());
    let files = vec![FileSum {
        path: "/data/other".into(),
        sha256: "0".repeat(64),
    }];
    let report = scene.run(&once(CheckKind::Files(files), 2000));
    assert_eq!(
        report.why,
        "/data/other: the guest agent refused: No such file or directory"
    );
}

#[test]
fn a_file_without_end_is_given_up() {
    for piece in ["", "eHh4eHh4"] {
        let scene = Scene::with_agent(move |command, _| match command["execute"].as_str() {
            Some("guest-file-open") => Ok(json!(1)),
            Some("guest-file-read") => Ok(json!({ "buf-b64": piece, "eof": false })),
            _ => Ok(json!({})),
        });
        let files = vec![FileSum {
            path: "/dev/zero".into(),
            sha256: "0".repeat(64),
        }];
        let report = scene.run(&once(CheckKind::Files(files), 400));
        assert_eq!(report.verdict, Verdict::Failed);
        let why = &report.why;
        assert!(
            why.contains("not read to its end") || why.contains("neither"),
            "{why}"
        );
    }
}
