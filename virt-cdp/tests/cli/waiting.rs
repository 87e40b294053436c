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
fn a_verification_says_what_is_damaged_and_ends_with_1_then() {
    let stage = Stage::new();
    let text = stage.run(&["verify", "web1"]).good();
    assert!(
        text.ends_with("verified: 3 files, 0 B\nno damage\n"),
        "{text}"
    );
    assert!(
        stage.asked().contains("all: false, rate: 0"),
        "{}",
        stage.asked()
    );
    let text = stage.run(&["verify", "web1", "--live"]).good();
    let expected = "verified: 3 files, 0 B\n\
        live disk vda: 1 GiB compared, no difference\n\
        live disk vdb: 1 GiB compared, 8 KiB damaged or different: 4 KiB put back where it was, 4 KiB journaled for points from \
        now on\nno damage is left\n";
    assert!(text.ends_with(expected), "{text}");
    let ran = stage.run(&["verify", "rotten", "--all", "--rate", "64MiB"]);
    assert!(ran.stdout.ends_with(
        "verified: 12 files, 1 GiB\n\
         left for the next time: 1 files that others took the place of\n\
         without hashes: 4 clusters of base/vol-00000/full-00000000000000000003.qcow2\n\
         damaged: journal/000000000007.seg, 4096 bytes at 8192: the payload of record 5 is not what was written\n\
         \x20 costs points 3 to 9: 4096 bytes of vda, from 65536 on\n\
         nothing was had again from the live disks: 'web1' is off\n"
    ), "{}", ran.stdout);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .contains("error: web1 is damaged in 1 place\nhint: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_verification_is_a_document_for_programs_also_where_there_is_damage() {
    let ran = Stage::new().run(&["verify", "rotten", "--json"]);
    assert_eq!(ran.code, Some(1));
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], "verify");
    assert_eq!(document["report"]["findings"][0]["costs"][0]["last"], 9);
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
fn ctrl_c_cancels_the_takeover_of_a_plan() {
    let stage = Stage::new();
    let home = tempfile::tempdir().unwrap();
    let plan = home.path().join("slow.toml");
    let text = "name = \"slow\"\n[[machine]]\nname = \"web1\"\ndelay = \"1h\"\n";
    std::fs::write(&plan, text).unwrap();
    let ran = interrupted(
        &stage,
        &["takeover", plan.to_str().unwrap(), "--at", "latest"],
    );
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            Some(1),
            "web1-takeover-123 is running\nerror: the takeover was cancelled\n"
        )
    );
    assert_eq!(stage.asked(), "JobRequest { id: \"takeover-slow\" }");
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
