//! The table of what is an alert and what is none.

use std::{collections::BTreeSet, sync::Arc};

use cdp_core::{RecorderStats, storage::Space};

use super::*;
use crate::engine::drills::Proof;
use crate::engine::lookout::{
    Free,
    fixture::{ago, outlook, sight},
    sight::OpenGap,
};

const LIMITS: Limits = Limits {
    gap: Duration::from_secs(60),
};

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// What is found, as `critical gap/web: ...`.
fn told(seen: &Outlook) -> Vec<String> {
    let told = |c: &Condition| {
        let severity = c.severity.name();
        format!("{severity} {}/{}: {}", c.key, c.machine, c.text)
    };
    conditions(seen, LIMITS).iter().map(told).collect()
}

/// What is found of a machine that is as it should be but for a change.
fn of_machine(change: impl FnOnce(&mut Sight)) -> Vec<String> {
    let mut machine = sight("web");
    change(&mut machine);
    told(&outlook(vec![machine, sight("db")]))
}

/// What is found of a daemon that is as it should be but for a change.
fn of_daemon(change: impl FnOnce(&mut Outlook)) -> Vec<String> {
    let mut seen = outlook(vec![sight("web")]);
    change(&mut seen);
    told(&seen)
}

fn open_gap(machine: &mut Sight, reason: &str, astray: u64) {
    machine.open_gap = Some(OpenGap {
        since: ago(astray),
        reason: reason.into(),
    });
    machine.astray = secs(astray);
}

fn unsynced(machine: &mut Sight, age: Duration) {
    machine.recording = Some(RecorderStats {
        unsynced_age: age,
        ..RecorderStats::default()
    });
}

fn kept(machine: &mut Sight, mib: u64) {
    machine.limit = Some(100 << 20);
    if let Some(sizes) = &mut machine.sizes {
        sizes.usage.journal_bytes = (mib + 1 - 5) << 20;
    }
}

fn free(seen: &mut Outlook, mib: u64, is_low: bool) {
    seen.room = Some(Free {
        space: Space {
            free: mib << 20,
            total: 100 << 30,
        },
        reserve: 1 << 30,
        is_low,
    });
}

type Row = (&'static str, Vec<String>, &'static [&'static str]);

fn machine_rows() -> Vec<Row> {
    let lost = |state, missing, detail: &'static str| {
        of_machine(move |m| {
            (m.state, m.missing, m.detail) = (state, missing, detail.into());
        })
    };
    vec![
        ("nothing is wrong", of_machine(|_| {}), &[]),
        (
            "a tap is lost",
            lost(State::Retrying, Some(GapReason::TapLost), ""),
            &["critical tap-lost/web: QEMU has let go of the tap"],
        ),
        (
            "the journal has failed, and it was tried again",
            lost(State::Failed, Some(GapReason::JournalFailed), "no luck"),
            &["critical journal-failed/web: the journal has failed: no luck"],
        ),
        (
            "the guest was let go",
            lost(State::Failed, Some(GapReason::Overload), ""),
            &["critical overload/web: the guest's writes were not taken in time"],
        ),
        (
            "no room",
            lost(State::Failed, Some(GapReason::DiskFull), "make room"),
            &["critical disk-full/web: the harbors' file system is short of space: make room"],
        ),
        (
            "it cannot be captured at all",
            lost(State::Failed, None, "no such disk"),
            &["critical not-captured/web: it cannot be captured: no such disk"],
        ),
        (
            "what has been lost is being read again",
            lost(State::Resyncing, Some(GapReason::TapLost), ""),
            &[],
        ),
        ("it has just started", lost(State::Starting, None, ""), &[]),
        (
            "it is off after it was lost",
            lost(State::Off, Some(GapReason::TapLost), ""),
            &[],
        ),
        (
            "a gap as long as it may be",
            of_machine(|m| open_gap(m, "resync", 60)),
            &[],
        ),
        (
            "a gap that is too long",
            of_machine(|m| {
                m.state = State::Resyncing;
                open_gap(m, "resync", 61);
            }),
            &[
                "critical gap/web: no recovery point could be made for 1m1s: a gap (resync), and the machine is resyncing",
            ],
        ),
        ("a point is due", of_machine(|m| m.pending = secs(30)), &[]),
        (
            "a point is missing",
            of_machine(|m| m.pending = secs(31)),
            &[
                "critical no-point/web: it is written to, and no recovery point was made for 31s; one is due every 1s",
            ],
        ),
        (
            "points are due each minute",
            of_machine(|m| (m.interval, m.pending) = (secs(60), secs(599))),
            &[],
        ),
        (
            "a sync takes its time",
            of_machine(|m| unsynced(m, secs(5))),
            &[],
        ),
        (
            "a sync takes too long",
            of_machine(|m| unsynced(m, secs(6))),
            &["warning write-late/web: the oldest write that is not on stable storage is 6s old"],
        ),
        (
            "syncs are to take their time",
            of_machine(|m| {
                m.flush = secs(10);
                unsynced(m, secs(99));
            }),
            &[],
        ),
        (
            "damage",
            of_machine(|m| m.damage = Arc::new(vec!["one".into(), "two".into(), "three".into()])),
            &["critical damaged/web: its harbor is damaged: one (and 2 more)"],
        ),
        (
            "the last drill did not prove it",
            of_machine(|m| {
                let why = "web: tcp:22: refused".to_owned();
                m.proof = Some(Proof {
                    last: Some(("7".into(), false, why)),
                    ..Proof::default()
                });
            }),
            &[
                "critical drill-failed/web: the last drill did not prove that its copy starts: web: tcp:22: refused (drill 7)",
            ],
        ),
        (
            "a drill waits",
            of_machine(|m| m.put_off = Some(("it is not the time".into(), secs(3600)))),
            &[],
        ),
        (
            "a drill waits for long",
            of_machine(|m| m.put_off = Some(("it is not the time".into(), secs(3601)))),
            &[
                "warning drill-put-off/web: a drill that is due has been put off for 1h1s: it is not the time",
            ],
        ),
        ("below three quarters", of_machine(|m| kept(m, 74)), &[]),
        (
            "three quarters",
            of_machine(|m| kept(m, 75)),
            &["warning harbor-75/web: its harbor has 75 MiB, more than 75 % of its limit, 100 MiB"],
        ),
        (
            "nearly full",
            of_machine(|m| kept(m, 85)),
            &[
                "warning harbor-75/web: its harbor has 85 MiB, more than 75 % of its limit, 100 MiB",
                "critical harbor-85/web: its harbor has 85 MiB, more than 85 % of its limit, 100 MiB",
            ],
        ),
    ]
}

fn daemon_rows() -> Vec<Row> {
    vec![
        (
            "a harbor stays closed",
            of_daemon(|seen| seen.closed_harbors = vec![("old".into(), "it is locked".into())]),
            &["critical harbor-closed/old: the harbor cannot be opened: it is locked"],
        ),
        (
            "twice the reserve",
            of_daemon(|seen| free(seen, 2048, false)),
            &[],
        ),
        (
            "less than that",
            of_daemon(|seen| free(seen, 2047, false)),
            &[
                "warning file-system-low/: the harbors' file system has 1.9 GiB free; with less than 1 GiB protection ends",
            ],
        ),
        (
            "less than the reserve",
            of_daemon(|seen| free(seen, 512, true)),
            &[
                "critical file-system-full/: the harbors' file system has 512 MiB free, less than its reserve (1 GiB): nothing is captured",
            ],
        ),
        (
            "libvirt is away",
            of_daemon(|seen| seen.libvirt_lost = vec![("qemu:///system".into(), ago(9))]),
            &[
                "warning libvirt-lost/: the connection to libvirt at qemu:///system is lost; what is captured goes on",
            ],
        ),
        (
            "no guard",
            of_daemon(|seen| seen.guarded = false),
            &[
                "critical guard-missing/: there is no guard process: guests would wait for a daemon that is stopped",
            ],
        ),
        (
            "a disk hangs",
            of_daemon(|seen| seen.disk_silent = Some(("web".into(), secs(75)))),
            &["critical disk-silent/web: the harbor's disk has not answered for 1m15s"],
        ),
    ]
}

#[test]
fn everything_that_is_an_alert_is_told_and_nothing_else() {
    for (what, found, expected) in machine_rows().into_iter().chain(daemon_rows()) {
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn the_readme_has_exactly_the_keys_there_are() {
    let rows = machine_rows().into_iter().chain(daemon_rows());
    let found: BTreeSet<String> = rows
        .flat_map(|(_, found, _)| found)
        .filter_map(|told| Some(told.split_once(' ')?.1.split_once('/')?.0.to_owned()))
        .collect();
    let readme = include_str!("../../../../README.md");
    let table = readme
        .lines()
        .skip_while(|line| !line.starts_with("| alert |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let said: BTreeSet<String> = table
        .filter_map(|row| Some(row.split('`').nth(1)?.to_owned()))
        .collect();
    assert_eq!(
        found, said,
        "the table of outcomes has them all, and the README"
    );
}
