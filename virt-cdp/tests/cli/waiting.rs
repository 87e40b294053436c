//! Commands that wait: for the seed, for a job, and what Ctrl-C does to them.

use std::process::Stdio;

use rustix::process::Signal;

use crate::stage::{Ran, Stage, send, wait_for};

#[test]
fn protect_waits_for_the_seed() {
    let text = Stage::new().run(&["protect", "web1"]).good();
    assert_eq!(
        text,
        "web1 is being protected: vda (10 GiB)\nleft out: sda: CD-ROM drive\nweb1 is protected; its first point is 123\n"
    );
}

#[test]
fn a_seed_that_fails_is_a_failure_with_its_reason() {
    let ran = Stage::new().run(&["protect", "bad-seed"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .starts_with("error: bad-seed is failed, not protected: vda went away\nhint: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_export_shows_its_files() {
    let text = Stage::new()
        .run(&["export", "web1", "--at", "latest", "/out"])
        .good();
    assert!(text.ends_with("\nwritten: /out/web1-vda.qcow2\n"), "{text}");
}

#[test]
fn a_job_that_fails_shows_its_error_and_hint() {
    let ran = Stage::new().run(&["export", "full", "--at", "latest", "/out"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            Some(1),
            "error: the export failed: the disk is full\nhint: make room\n"
        )
    );
}

/// Runs a command, sends SIGINT once it polls, and returns what it left.
fn interrupted(stage: &Stage, words: &[&str]) -> Ran {
    let mut command = stage.command(words);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the command to reach the engine", || {
        !stage.asked().is_empty()
    });
    std::thread::sleep(std::time::Duration::from_millis(500));
    send(&child, Signal::INT);
    Ran::from(child.wait_with_output().unwrap())
}

#[test]
fn ctrl_c_leaves_the_protection_running_and_says_so() {
    let stage = Stage::new();
    let ran = interrupted(&stage, &["protect", "slow"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            Some(1),
            "error: interrupted; the protection of slow goes on\nhint: see how far it is: virt-cdp info slow\n"
        )
    );
    assert!(
        stage.asked().starts_with("ProtectRequest"),
        "{}",
        stage.asked()
    );
}

#[test]
fn ctrl_c_cancels_an_export() {
    let stage = Stage::new();
    let ran = interrupted(&stage, &["export", "slow", "--at", "latest", "/out"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (Some(1), "error: the export was cancelled\n")
    );
    assert_eq!(stage.asked(), "JobRequest { id: \"export-slow\" }");
}
