//! The check `fsck`: the file systems on the disks are in order, without a boot.
//!
//! For each disk, in order:
//! 1. a qcow2 overlay in a private folder, its base the read-only view ([`overlay`]);
//! 2. the partition table, read through it ([`partition`]);
//! 3. for each partition a window onto the overlay as a file of FUSE, its journal replayed as a mount would, and the checker
//!    of its file system told to change nothing ([`filesystem`]).
//!
//! What a checker does not exist for (LVM, LUKS, swap, what nobody knows) is named as not looked at. Where that is all of a disk
//! that is asked for, or of all disks, nothing is known about the copy: the check could not be made. A disk on which nothing is
//! known at all is another matter: there should be something.
//!
//! Invariant: the view is never written to, and folder, exports and processes are gone afterwards, also when the bound ends
//! it in the middle. A crash of this program leaves the folder `fsck-...` in the drill's own directory, with a dead mount in
//! it: whoever removes that directory unmounts it first.

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

/// What `blkid` calls swap space, in which nothing lasts: nobody misses a look at it.
const SWAP: &str = "swap";

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
    /// Disks of which nothing could be looked at, though it is known what is on them.
    blind: Vec<String>,
    /// Disks with nothing on them that is known.
    blank: Vec<String>,
    /// Whether something that has a content to look at was not looked at.
    is_partial: bool,
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
    judge(&sum, !disks.is_empty()).with_output(&sum.output)
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
    let looked_at = sum.looked_at();
    for part in &parts {
        let Some(kind) = part.content.as_deref() else {
            sum.skip(&part.name, "nothing that is known");
            sum.is_partial = true;
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
            Found::Skipped(why) => {
                sum.skip(&part.name, &why);
                sum.is_partial |= kind != SWAP;
            }
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
    if sum.looked_at() == looked_at {
        let is_known = parts.iter().any(|part| part.content.is_some());
        let disks = if is_known {
            &mut sum.blind
        } else {
            &mut sum.blank
        };
        disks.push(volume.target.clone());
    }
    Ok(())
}

impl Sum {
    /// How many file systems a checker has judged, or could not as it is missing.
    fn looked_at(&self) -> usize {
        self.good.len() + self.bad.len() + self.missing.len()
    }

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

fn judge(sum: &Sum, are_named: bool) -> Seen {
    let skipped = sum.skipped.join(", ");
    if !sum.bad.is_empty() {
        return Seen::never(format!("not in order: {}", sum.bad.join("; ")));
    }
    if let Some(first) = sum.missing.first() {
        return Seen::broken(first);
    }
    let is_short = are_named || sum.good.is_empty();
    if is_short && !sum.blank.is_empty() {
        return Seen::never(format!("there was no file system to look at: {skipped}"));
    }
    if is_short && !sum.blind.is_empty() {
        let disks = sum.blind.join(", ");
        return Seen::broken(format!(
            "nothing on {disks} could be looked at: {skipped}; have a check in the guest look at it"
        ));
    }
    let good = sum.good.join(", ");
    Seen::passed(match (sum.is_partial, skipped.as_str()) {
        (true, _) => format!("looked at in part: in order: {good}; not looked at: {skipped}"),
        (false, "") => format!("in order: {good}"),
        (false, _) => format!("in order: {good}; not looked at: {skipped}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::seen::Come;

    fn sum(good: &[&str], blind: &[&str], blank: &[&str]) -> Sum {
        let own = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let mut sum = Sum {
            good: own(good),
            blind: own(blind),
            blank: own(blank),
            ..Sum::default()
        };
        blind
            .iter()
            .for_each(|disk| sum.skip(disk, "LVM2_member has no checker here"));
        blank
            .iter()
            .for_each(|disk| sum.skip(disk, "nothing that is known"));
        sum.is_partial = !sum.skipped.is_empty();
        sum
    }

    #[test]
    fn what_could_not_be_looked_at_says_nothing_about_the_copy() {
        for (sum, are_named, come, saw) in [
            (sum(&["vda1"], &[], &[]), true, Come::Passed, "in order: "),
            (
                sum(&["vda1"], &["vdb"], &[]),
                false,
                Come::Passed,
                "looked at in part: in order: vda1; not",
            ),
            (
                sum(&["vda1"], &["vdb"], &[]),
                true,
                Come::Broken,
                "nothing on vdb could be",
            ),
            (
                sum(&[], &["vda"], &[]),
                false,
                Come::Broken,
                "nothing on vda could be",
            ),
            (
                sum(&[], &["vda"], &["vdb"]),
                false,
                Come::Never,
                "there was no file",
            ),
        ] {
            let seen = judge(&sum, are_named);
            assert_eq!(seen.come, come, "{seen:?}");
            assert!(seen.saw.starts_with(saw), "{seen:?}");
        }
    }
}
