//! Machines that stand still before their system: the firmware finds nothing to start, the boot loader or the kernel gives up.
//!
//! Such a machine's screen stands still, too. It is known by what it shows, on a screen of text or on its console, and by its
//! having read next to nothing of its disks.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use super::plain_text;
use crate::{stage::Guest, units};

/// No system starts of less, bytes.
const READ_LEAST: u64 = 1 << 20;
/// How much of the end of a console is looked at, bytes.
const TAIL: i64 = 4096;

/// What is shown by whom; none of it comes by in a boot that goes well.
const SIGNS: [(&str, &str); 24] = [
    ("no bootable device", "the firmware"),
    (
        "bdsdxe: no bootable option or device was found",
        "the firmware",
    ),
    ("uefi interactive shell", "the firmware"),
    ("missing operating system", "the boot sector"),
    ("operating system not found", "the boot sector"),
    ("invalid partition table", "the boot sector"),
    ("non-system disk or disk error", "the boot sector"),
    ("bootmgr is missing", "the boot sector"),
    ("ntldr is missing", "the boot sector"),
    ("an operating system wasn't found", "the boot sector"),
    ("grub rescue>", "the boot loader"),
    (
        "minimal bash-like line editing is supported",
        "the boot loader",
    ),
    ("you need to load the kernel first", "the boot loader"),
    (
        "syslinux: no default or ui configuration directive found",
        "the boot loader",
    ),
    ("kernel panic - not syncing", "the kernel"),
    ("(initramfs)", "the initial RAM disk"),
    ("dropping to a shell!", "the initial RAM disk"),
    ("dracut:/#", "the initial RAM disk"),
    ("entering emergency mode", "systemd"),
    ("you are in emergency mode", "systemd"),
    ("you are in rescue mode", "systemd"),
    ("give root password for maintenance", "systemd"),
    ("press enter for maintenance", "systemd"),
    (
        "cannot open access to console, the root account is locked",
        "systemd",
    ),
];

/// Why a machine whose screen stands still has not come to its system, in a sentence; none where nothing speaks for that.
pub(super) fn why(guest: &dyn Guest) -> Option<String> {
    let screen = guest.screen_text().as_deref().and_then(shown);
    let console = || guest.console().and_then(|path| shown(&tail(&path)));
    if let Some((sign, who)) = screen.or_else(console) {
        return Some(format!("it stands still in {who}, which shows `{sign}`"));
    }
    let read = guest.disk_reads().filter(|read| *read < READ_LEAST)?;
    let read = units::format_size(read);
    Some(format!(
        "it has read {read} of its disks only, too little for any system"
    ))
}

fn shown(text: &str) -> Option<(&'static str, &'static str)> {
    // Over the ends of rows, whatever blanks there are.
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").to_lowercase();
    SIGNS.into_iter().find(|(sign, _)| text.contains(sign))
}

/// The end of what was written to a console.
fn tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let len = i64::try_from(file.metadata()?.len()).unwrap_or(0);
        file.seek(SeekFrom::End(-TAIL.min(len)))?;
        let mut bytes = Vec::new();
        file.take(TAIL.unsigned_abs()).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(plain_text(&bytes))
    };
    read().unwrap_or_default()
}
