//! The check `fsck`: the file systems on the disks are in order, without a boot.
//!
//! For each disk, in order:
//! 1. a qcow2 overlay in a private folder, its base the read-only view ([`overlay`]);
//! 2. the partition table, read through it ([`partition`]);
//! 3. for each partition a window onto the overlay as a file of FUSE, its journal replayed as a mount would, and the checker
//!    of its file system told to change nothing ([`filesystem`]).
//!
//! What a checker does not exist for (LVM, LUKS, swap, what nobody knows) is named as not looked at.
//!
//! Invariant: the view is never written to, and folder, exports and processes are gone afterwards, also when the bound ends
//! it in the middle. A crash of this program leaves the folder `virt-cdp-fsck-DRILL-...` in the folder for temporary files,
//! with a dead mount in it.

mod filesystem;
mod overlay;
mod partition;

use std::fmt::Write as _;

use super::{
    Place,
    bound::Bound,
    seen::{Seen, quote},
};
use crate::stage::Volume;
use filesystem::Found;
use overlay::Overlay;

/// Why a disk could not be looked at.
enum Trouble {
    /// The bound has ended it.
    Stopped,
    /// Something of the host, in a sentence.
    Host(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Host(why)
    }
}

/// What has come out, over all disks.
#[derive(Default)]
struct Sum {
    good: Vec<String>,
    bad: Vec<String>,
    skipped: Vec<String>,
    missing: Vec<String>,
    output: String,
}

/// Looks at the disks once.
pub(super) fn attempt(disks: &[String], place: &Place<'_>, bound: &Bound<'_>) -> Seen {
    let volumes = place.guest.volumes();
    if let Some(unknown) = disks
        .iter()
        .find(|disk| !volumes.iter().any(|one| one.target == **disk))
    {
        return Seen::broken(format!("the machine has no disk {unknown}"));
    }
    let mut sum = Sum::default();
    for volume in &volumes {
        if !disks.is_empty() && !disks.contains(&volume.target) {
            continue;
        }
        match disk(volume, place, bound, &mut sum) {
            Ok(()) => {}
            Err(Trouble::Stopped) => {
                return Seen::stopped(bound, "it did not come to its end").with_output(&sum.output);
            }
            Err(Trouble::Host(why)) => {
                return Seen::broken(format!("{}: {why}", volume.target)).with_output(&sum.output);
            }
        }
    }
    judge(&sum).with_output(&sum.output)
}

/// Looks at one disk.
fn disk(
    volume: &Volume,
    place: &Place<'_>,
    bound: &Bound<'_>,
    sum: &mut Sum,
) -> Result<(), Trouble> {
    let overlay = Overlay::make(volume, place, bound)?;
    let parts = {
        let whole = overlay.show(0, volume.size_bytes, false, bound)?;
        partition::find(&whole, volume, place, bound)?
    };
    for part in &parts {
        let Some(kind) = part.content.as_deref() else {
            sum.skip(&part.name, "nothing that is known");
            continue;
        };
        let checked = filesystem::check(kind, part, &overlay, place, bound)?;
        match checked {
            Found::Good(text) => {
                let _ = writeln!(sum.output, "{} ({kind}): in order\n{text}", part.name);
                sum.good.push(format!("{} ({kind})", part.name));
            }
            Found::Bad(text) => {
                let _ = writeln!(sum.output, "{} ({kind}): NOT in order\n{text}", part.name);
                let line = first_complaint(&text);
                sum.bad
                    .push(format!("{} ({kind}): {}", part.name, quote(line)));
            }
            Found::Skipped(why) => sum.skip(&part.name, &why),
            Found::NoTool(tool) => {
                let _ = writeln!(
                    sum.output,
                    "{} ({kind}): {tool} is not installed",
                    part.name
                );
                sum.missing.push(format!(
                    "{tool} is not installed, which {} ({kind}) needs",
                    part.name
                ));
            }
        }
    }
    if parts.is_empty() {
        sum.skip(&volume.target, "no partition");
    }
    Ok(())
}

impl Sum {
    fn skip(&mut self, name: &str, why: &str) {
        let _ = writeln!(self.output, "{name}: not looked at: {why}");
        self.skipped.push(format!("{name} ({why})"));
    }
}

/// The line of a checker that says most: the first one that is neither its greeting nor the name of a pass.
fn first_complaint(text: &str) -> &str {
    text.lines()
        .map(str::trim)
        .find(|line| {
            !line.is_empty()
                && !line.starts_with("Pass ")
                && !line.starts_with("Phase ")
                && !line.starts_with("e2fsck ")
        })
        .unwrap_or(text)
}

fn judge(sum: &Sum) -> Seen {
    let skipped = match sum.skipped.is_empty() {
        true => String::new(),
        false => format!("; not looked at: {}", sum.skipped.join(", ")),
    };
    if !sum.bad.is_empty() {
        return Seen::never(format!("not in order: {}", sum.bad.join("; ")));
    }
    if let Some(first) = sum.missing.first() {
        return Seen::broken(first);
    }
    match sum.good.as_slice() {
        [] => Seen::never(format!(
            "there was no file system to look at{}",
            skipped.replacen("; not looked at", "", 1)
        )),
        good => Seen::passed(format!("in order: {}{skipped}", good.join(", "))),
    }
}
