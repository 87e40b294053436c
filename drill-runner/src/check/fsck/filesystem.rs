//! A file system and its checker.
//!
//! What a mount would do first is done first, in the overlay: the journal of ext3 and ext4 is replayed, and files that were
//! deleted while they were open are cleared. Then the checker is told to change nothing.
//!
//! The log of XFS can be replayed by a mount only. Where it has something in it and `xfs_repair` complains, that says nothing
//! about the copy, and the file system counts as not looked at.

use std::path::Path;

use super::{
    Trouble,
    overlay::{Overlay, Window},
    partition::Partition,
};
use crate::check::{
    Place,
    bound::Bound,
    process::{Ended, Program},
};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It is in order, and what the checker printed.
    Good(String),
    /// It is not, and what the checker printed.
    Bad(String),
    /// It was not looked at, and why.
    Skipped(String),
    /// It was not looked at, as this program is not installed.
    NoTool(&'static str),
}

/// Checks what is in a partition.
pub(super) fn check(
    kind: &str,
    part: &Partition,
    overlay: &Overlay<'_>,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Result<Found, Trouble> {
    let tool = match kind {
        "ext2" | "ext3" | "ext4" => "e2fsck",
        "xfs" => "xfs_repair",
        "btrfs" => "btrfs",
        "vfat" => "fsck.vfat",
        other => return Ok(Found::Skipped(format!("{other} has no checker here"))),
    };
    if !is_installed(tool) {
        return Ok(Found::NoTool(tool));
    }
    let window = overlay.show(part.offset, part.size, true, bound)?;
    let run = |arguments: &[&str]| run(tool, arguments, &window, place, bound);
    match kind {
        "xfs" => {
            let ended = run(&["-n"])?;
            let is_dirty = ended.output.contains("metadata changes in a log");
            Ok(match ended.code() {
                Some(0) => Found::Good(ended.output),
                _ if is_dirty => Found::Skipped(
                    "xfs with changes in its log, which only a mount can replay".into(),
                ),
                _ => Found::Bad(ended.output),
            })
        }
        "btrfs" => Ok(by_code(run(&["check", "--readonly", "--force"])?, &[0])),
        "vfat" => {
            let ended = run(&["-n"])?;
            // That it was not unmounted is so in every copy of a running machine.
            let is_dirty_only = ended.output.contains("Dirty bit is set")
                && ended
                    .output
                    .lines()
                    .filter(|line| !line.trim().is_empty())
                    .count()
                    <= 6;
            Ok(match is_dirty_only {
                true => Found::Good(ended.output),
                false => by_code(ended, &[0]),
            })
        }
        _ => {
            let has_orphans = || has_orphans(&window, place, bound);
            ext(&run, &has_orphans)
        }
    }
}

/// Replays what a mount would, and checks.
fn ext(
    run: &dyn Fn(&[&str]) -> Result<Ended, Trouble>,
    has_orphans: &dyn Fn() -> Result<bool, Trouble>,
) -> Result<Found, Trouble> {
    let replayed = run(&["-E", "journal_only", "-y"])?;
    let mut output = replayed.output.clone();
    // Bits: 1 corrected, 2 reboot, 4 left uncorrected, 8 and up: it could not work.
    if replayed.code().is_none_or(|code| code & !0b11 != 0) {
        return Ok(Found::Bad(output));
    }
    if has_orphans()? {
        let cleared = run(&["-p"])?;
        output.push_str(&cleared.output);
        if cleared.code().is_none_or(|code| code & !0b11 != 0) {
            return Ok(Found::Bad(output));
        }
    }
    let checked = run(&["-f", "-n"])?;
    output.push_str(&checked.output);
    Ok(match checked.code() {
        Some(0) => Found::Good(output),
        _ => Found::Bad(output),
    })
}

/// Whether there are files that were deleted while they were open; clearing them is what a mount does, too. The superblock
/// is not read here but by a program, which can be killed when the disk does not answer.
fn has_orphans(window: &Window, place: &Place<'_>, bound: &Bound<'_>) -> Result<bool, Trouble> {
    if !is_installed("dumpe2fs") {
        return Ok(false);
    }
    let shown = run("dumpe2fs", &["-h"], window, place, bound)?.output;
    Ok(shown.contains("First orphan inode:") || shown.contains("orphan_present"))
}

fn by_code(ended: Ended, good: &[i32]) -> Found {
    match ended.code().is_some_and(|code| good.contains(&code)) {
        true => Found::Good(ended.output),
        false => Found::Bad(ended.output),
    }
}

fn run(
    tool: &str,
    arguments: &[&str],
    window: &Window,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Result<Ended, Trouble> {
    let program = Program::new(tool, place).with(|command| {
        command.args(arguments).arg(window.path());
    });
    let ended = program.run(false, bound)?;
    match ended.status {
        Some(_) => Ok(ended),
        None => Err(Trouble::Stopped),
    }
}

/// Whether a program is where programs are looked for.
fn is_installed(tool: &str) -> bool {
    crate::check::process::PATH
        .split(':')
        .any(|folder| Path::new(folder).join(tool).exists())
}
