//! Scripts, the good ones and the hostile ones.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::*;
use crate::outcome::Verdict;

fn script(folder: &TempDir, text: &str) -> CheckKind {
    let path = folder.path().join("check.sh");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    CheckKind::Script {
        path,
        args: vec!["one argument".into()],
        exit_code: 0,
        output: None,
    }
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Whether a process with this number still runs.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // What was killed may wait for somebody to take note of it.
    !stat.is_empty() && !stat.contains(") Z ")
}

fn wait_for(path: &Path) -> String {
    for _ in 0..200 {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("{} did not come", path.display());
}

#[test]
fn a_script_is_told_of_the_machine_and_of_nothing_else() {
    let folder = folder();
    let mut scene = Scene::new();
    scene.machine.volumes = vec![Volume {
        target: "vda".into(),
        size_bytes: 1,
        uri: "nbd+unix:///v?socket=/s".into(),
    }];
    let report = scene.run(&once(script(&folder, "env; echo \"$1\"; pwd; cat"), 5000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    let lines: Vec<&str> = report.attempts[0].output.lines().collect();
    for wanted in [
        "VIRT_CDP_DRILL=20261127-031500-4f2a",
        "VIRT_CDP_MACHINE=db",
        "VIRT_CDP_DOMAIN=db-drill",
        "VIRT_CDP_ADDRESS=127.0.0.1",
        "VIRT_CDP_ADDRESSES=127.0.0.1",
        "VIRT_CDP_POINT=17",
        "VIRT_CDP_POINT_TIME=2026-11-27T03:10:00Z",
        "VIRT_CDP_AGE_MS=1500",
        "VIRT_CDP_VOLUMES=vda",
        "VIRT_CDP_VIEW_vda=nbd+unix:///v?socket=/s",
        "VIRT_CDP_TEST_MARK=mark",
        "LANG=C.UTF-8",
        "one argument",
        "/",
    ] {
        assert!(lines.contains(&wanted), "no {wanted} in {lines:?}");
    }
    let is_known = |line: &&str| {
        [
            "VIRT_CDP_",
            "PATH=",
            "LANG=",
            "TZ=",
            "PWD=",
            "SHLVL=",
            "_=",
            "OLDPWD=",
        ]
        .iter()
        .any(|name| line.starts_with(name))
    };
    let strange: Vec<_> = lines
        .iter()
        .filter(|line| line.contains('=') && !is_known(line))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn exit_code_and_output_must_be_right() {
    let folder = folder();
    let mut kind = script(&folder, "echo out; echo err >&2; exit 3");
    let report = Scene::new().run(&once(kind.clone(), 5000));
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(report.why, "exit code 3 where 0 was expected");
    assert_eq!(report.attempts[0].output, "out\nerr\n", "in order");
    if let CheckKind::Script {
        exit_code, output, ..
    } = &mut kind
    {
        *exit_code = 3;
        *output = Some(pattern("^err$"));
    }
    assert_eq!(
        Scene::new().run(&once(kind.clone(), 5000)).verdict,
        Verdict::Proved
    );
    if let CheckKind::Script { output, .. } = &mut kind {
        *output = Some(pattern("fine"));
    }
    assert_eq!(
        Scene::new().run(&once(kind, 5000)).why,
        "exit code 3, but nothing in its output is like /fine/"
    );
    let report = Scene::new().run(&once(script(&folder, "kill -9 $$"), 5000));
    assert_eq!(report.why, "killed by signal 9 where 0 was expected");
}

#[test]
fn a_script_waits_for_the_first_address_and_not_for_ever() {
    let folder = folder();
    let scene = Scene::new();
    scene.machine.addresses.lock().unwrap().clear();
    let kind = script(&folder, "echo \"at $VIRT_CDP_ADDRESS.\"");
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            *scene.machine.addresses.lock().unwrap() = vec!["192.0.2.7".parse().unwrap()];
        });
        scene.run(&once(kind.clone(), 5000))
    });
    assert_eq!(report.attempts[0].output, "at 192.0.2.7.\n");
    scene.machine.addresses.lock().unwrap().clear();
    let began = Instant::now();
    let report = scene.run(&once(kind, 20_000));
    assert_eq!(report.attempts[0].output, "at .\n");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_script_that_is_not_there_is_no_fault_of_the_machine() {
    let kind = CheckKind::Script {
        path: "/nowhere/check.sh".into(),
        args: Vec::new(),
        exit_code: 0,
        output: None,
    };
    let mut plan = once(kind, 1000);
    plan.attempts = None;
    let report = Scene::new().run(&plan);
    assert_eq!(report.verdict, Verdict::Error);
    assert_eq!(report.attempts_total, 1);
    assert_eq!(
        report.why,
        "/nowhere/check.sh cannot be run: no such file or directory"
    );
}

#[test]
fn a_script_runs_as_who_it_should() {
    if !is_root() {
        eprintln!("SKIPPED: to be somebody else needs root");
        return;
    }
    let folder = folder();
    let mut scene = Scene::new();
    scene.run_as = Some((65534, 65533));
    let report = scene.run(&once(script(&folder, "id -u; id -g; id -G"), 5000));
    assert_eq!(report.attempts[0].output, "65534\n65533\n65533\n");
}

#[test]
fn a_script_that_does_not_want_to_end_is_killed() {
    let folder = folder();
    let note = folder.path().join("pid");
    let text = format!(
        "trap '' TERM INT HUP\necho $$ > {}\necho started\nwhile :; do sleep 100 & wait; done",
        note.display()
    );
    let began = Instant::now();
    let report = Scene::new().run(&once(script(&folder, &text), 500));
    assert!(
        began.elapsed() < Duration::from_millis(1400),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(report.why, "it did not end within 500 ms");
    assert_eq!(report.attempts[0].output, "started\n");
    assert!(!runs(&wait_for(&note)));
}

#[test]
fn children_that_hold_the_pipes_are_not_waited_for_and_killed() {
    let folder = folder();
    let note = folder.path().join("pid");
    let text = format!("sleep 1000 &\necho $! > {}\necho done", note.display());
    let began = Instant::now();
    let report = Scene::new().run(&once(script(&folder, &text), 20_000));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(report.verdict, Verdict::Proved);
    assert_eq!(report.attempts[0].output, "done\n");
    assert!(!runs(&wait_for(&note)));
}

#[test]
fn a_child_that_has_left_the_group_is_found() {
    let folder = folder();
    let note = folder.path().join("pid");
    // Twice removed, in a session of its own.
    let text = format!(
        "(setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' &)\nwhile [ ! -e {0} ]; do sleep 0.01; done",
        note.display()
    );
    let report = Scene::new().run(&once(script(&folder, &text), 10_000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!runs(&wait_for(&note)));
}

#[test]
fn a_flood_is_read_and_not_kept() {
    let folder = folder();
    let mut kind = script(
        &folder,
        "echo first; head -c 100000000 /dev/zero | tr '\\0' x; echo; echo last",
    );
    if let CheckKind::Script { output, .. } = &mut kind {
        *output = Some(pattern("^last$"));
    }
    let report = Scene::new().run(&once(kind, 30_000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    let kept = &report.attempts[0].output;
    assert!(kept.len() <= crate::outcome::OUTPUT_KEPT);
    assert!(kept.starts_with("first\nxxx") && kept.ends_with("x\nlast\n"));
    assert!(kept.contains("bytes left out"));
}

#[test]
fn a_flood_without_end_ends_with_the_attempt() {
    let folder = folder();
    let began = Instant::now();
    let report = Scene::new().run(&once(script(&folder, "exec yes"), 400));
    assert!(began.elapsed() < Duration::from_millis(1400));
    assert_eq!(report.why, "it did not end within 400 ms");
    // Left to a child, it does not keep the check either.
    let report = Scene::new().run(&once(script(&folder, "yes & echo ok"), 20_000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    assert!(report.attempts[0].took_ms < 3000);
}

#[test]
fn output_that_is_no_text_is_made_text() {
    let folder = folder();
    let report = Scene::new().run(&once(script(&folder, "printf 'a\\377b'"), 5000));
    assert_eq!(report.attempts[0].output, "a\u{fffd}b");
}
