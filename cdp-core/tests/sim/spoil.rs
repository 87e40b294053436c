//! Damages a journal on purpose: it may lose what was hit, but it must not pass it off as whole.
//!
//! What is damaged is the journal. Base points and plain text files have no checksums of their own.

use std::path::{Path, PathBuf};

use cdp_core::storage::{SimulatedStorage, Trouble};
use cdp_core::{AckRule, Harbor, Options};
use std::sync::Arc;

use crate::check::compare_view;
use crate::history::Told;
use crate::world::{DIR, Step, Stop, World, wrong};

/// Copies of the storage that are damaged, each in its own way.
const COPIES: u64 = 6;

pub(crate) fn spoil(world: &mut World) -> Step {
    let copies = if world.is_keeper { 1 } else { COPIES };
    for _ in 0..copies {
        let fork = world.storage.fork(world.chance.number());
        flip_bits(world, &fork)?;
    }
    misdirect(world)
}

fn options(world: &World, storage: &SimulatedStorage) -> Options {
    Options {
        storage: Arc::new(storage.clone()),
        ..world.options.clone()
    }
}

fn segments(storage: &SimulatedStorage) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        path.extension()
            .is_some_and(|end| end == "seg" || end == "cold")
    };
    storage.files().into_iter().filter(is_segment).collect()
}

/// Flips bits in one segment.
fn flip_bits(world: &mut World, fork: &SimulatedStorage) -> Step {
    let segments = segments(fork);
    let Some(path) = world.chance.pick(&segments).cloned() else {
        return Ok(());
    };
    let bits = fork.content(&path).unwrap_or_default().len() as u64 * 8;
    for _ in 0..1 + world.chance.below(2) {
        let bit = world.chance.below(bits);
        world.tell(format!("bit {bit} of {} is flipped", path.display()));
        fork.rot(&path, bit);
    }
    check_damaged(world, fork)
}

/// Lets one write go to a wrong place while it records on, in a copy.
fn misdirect(world: &mut World) -> Step {
    let fork = world.storage.fork(world.chance.number());
    // What is acknowledged is of no interest here.
    let rule = std::mem::replace(&mut world.options.ack_rule, AckRule::Buffered);
    let options = options(world, &fork);
    let (harbor, _) =
        Harbor::open(Path::new(DIR), options).map_err(|e| Stop::Wrong(format!("a copy: {e}")))?;
    let own = std::mem::replace(&mut world.storage, fork.clone());
    world.harbor = Some(harbor.clone());
    let recorder = harbor
        .record()
        .map_err(|error| world.failed("recording on in a copy", &error))?;
    world.recorder = Some(recorder);
    world.is_trouble = true;
    let after = world.chance.below(20);
    world.tell(format!("write {after} goes astray"));
    fork.ask_for(Trouble::Misdirected { after });
    let mut done = Ok(());
    for _ in 0..20 {
        if world.is_missing_writes {
            break;
        }
        done = world.guest_writes().and_then(|()| world.make_point());
        if done.is_err() {
            break;
        }
    }
    if let Some(recorder) = world.recorder.take() {
        // What it says is of no interest: the storage has said that all was well.
        let _ = recorder.close();
    }
    world.harbor = None;
    drop(harbor);
    fork.forget_troubles();
    let checked = match done {
        Err(Stop::Wrong(words)) => wrong(words),
        _ => check_damaged(world, &fork),
    };
    world.storage = own;
    world.options.ack_rule = rule;
    checked
}

/// Whatever is offered is exact or says that it is damaged; what is missing is told of.
fn check_damaged(world: &World, fork: &SimulatedStorage) -> Step {
    let opened = Harbor::open(Path::new(DIR), options(world, fork));
    let (harbor, report) = match opened {
        Ok(opened) => opened,
        // An error is told of, too; but there must be no other than that something is damaged.
        Err(error) => return wrong(format!("a damaged journal does not open: {error}")),
    };
    let expected = world.history.points();
    let points = harbor.points();
    for point in &points {
        let same = expected
            .iter()
            .find(|one| matches!(one.told, Told::Point { id, .. } if *id == point.id.0));
        let Some(same) = same.filter(|same| same.seq == point.seq.0) else {
            return wrong(format!("{point:?} was never made, and {report:?}"));
        };
        let view = match harbor.view(point.id) {
            Ok(view) => view,
            Err(_) => continue,
        };
        match compare_view(&view, same.disks) {
            Err(Stop::Wrong(words)) if !words.starts_with("without reason") => {
                return wrong(format!(
                    "wrong bytes from a damaged journal: {words}; {report:?}"
                ));
            }
            _ => {}
        }
    }
    let is_told = !report.damage.is_empty() || report.cut.as_ref().is_some_and(|cut| cut.bytes > 0);
    if points.len() < expected.len() && !is_told {
        let offered: Vec<u64> = points.iter().map(|point| point.id.0).collect();
        let (count, promised) = (expected.len(), world.history.promised);
        return wrong(format!(
            "points {offered:?} are offered, not {count}, without a word; promised up to {promised}: {report:?}"
        ));
    }
    Ok(())
}
