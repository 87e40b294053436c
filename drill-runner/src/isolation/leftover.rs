//! Processes that were started for a drill, found by its marker and by its namespace.
//!
//! The namespace is that of what holds it, which has a marker of its own: a script of a check may well have gone into another
//! namespace, and what is there is none of ours. What holds it is killed last, so that all others are found until then.
//!
//! Anybody may set a marker. A process counts as a holder only if it is entirely our own user's, is in our user namespace,
//! and in a network namespace that is neither ours nor that of the host's first process: else a user would have all killed
//! that is in the namespace of a process of theirs. One with the other marker alone is killed alone.
//!
//! A process is known by a descriptor of it before it is looked at, so that none that merely got the number of another is
//! ever ended.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{HOLDER, MARKER};

/// How long is waited until what was killed is gone.
const DEADLINE: Duration = Duration::from_secs(5);

/// Kills every process of a drill, and waits until none is left; returns the numbers of those that are.
pub fn kill(id: &str) -> Vec<i32> {
    let give_up = Instant::now() + DEADLINE;
    loop {
        let left = round(id);
        if left.is_empty() || Instant::now() > give_up {
            return left;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The numbers of all processes of a drill.
#[must_use]
pub fn find(id: &str) -> Vec<i32> {
    let (holders, others) = sort(id);
    holders.into_iter().chain(others).collect()
}

/// A process in the namespace of a drill, which lasts as long as that; none if there is no such drill on this host.
#[must_use]
pub fn holder(id: &str) -> Option<i32> {
    sort(id).0.into_iter().next()
}

/// What holds the namespace of a drill, and all other processes of it.
fn sort(id: &str) -> (BTreeSet<i32>, BTreeSet<i32>) {
    let (marker, holder) = (format!("{MARKER}={id}"), format!("{HOLDER}={id}"));
    let all = numbers();
    let marked_by = |marker: &str| -> BTreeSet<i32> {
        let marked = all.iter().filter(|pid| is_marked(**pid, marker.as_bytes()));
        marked.copied().collect()
    };
    let mut holders = marked_by(&holder);
    holders.retain(|pid| may_hold(*pid));
    let spaces: BTreeSet<u64> = holders
        .iter()
        .filter_map(|pid| namespace(&pid.to_string(), "net"))
        .collect();
    let inside =
        |pid: &&i32| namespace(&pid.to_string(), "net").is_some_and(|one| spaces.contains(&one));
    let mut others = marked_by(&marker);
    others.extend(all.iter().filter(inside));
    others.retain(|pid| !holders.contains(pid));
    (holders, others)
}

/// Kills what there is; returns what was there and is no zombie.
fn round(id: &str) -> Vec<i32> {
    let (holders, others) = sort(id);
    let next = if others.is_empty() { &holders } else { &others };
    for number in next {
        let Some(pid) = Pid::from_raw(*number) else {
            continue;
        };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Behind the descriptor is whoever had the number when it was opened: it must be one of the drill's still.
        if find(id).contains(number) {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }
    holders.into_iter().chain(others).collect()
}

fn numbers() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|number| *number != own).collect()
}

/// A process that has ended, and is not reaped, has no environment any more.
fn is_marked(pid: i32, marker: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|one| one == marker)
}

/// Whether a process that is marked as one may hold a drill's namespace.
fn may_hold(pid: i32) -> bool {
    let pid = pid.to_string();
    let space = namespace(&pid, "net");
    space.is_some()
        && ["self", "1"].iter().all(|of| namespace(of, "net") != space)
        && namespace(&pid, "user") == namespace("self", "user")
        && is_our_users(&pid)
}

/// Whether all user numbers of a process are ours: a program that takes its owner's rights has only some of them.
fn is_our_users(pid: &str) -> bool {
    let own = rustix::process::geteuid().as_raw().to_string();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().all(|number| number == own))
}

fn namespace(pid: &str, kind: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/{kind}"))
        .ok()
        .map(|about| about.ino())
}
