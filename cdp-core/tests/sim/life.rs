//! The life of a machine: rounds of work, each with an end, and what comes after it.

use std::path::Path;
use std::time::Duration;

use cdp_core::storage::{Left, Operation, Trouble};
use cdp_core::{Clock, GapReason, Grade, Harbor, HarborError, Timestamp};

use crate::world::{DIR, Step, Stop, World, wrong};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Lives one life; what is wrong, if something is.
pub(crate) fn live(world: &mut World) -> Step {
    create(world)?;
    let rounds = 3 + world.chance.below(5) * if world.is_keeper { 3 } else { 1 };
    for round in 0..rounds {
        world.tell(format!("-- round {round}"));
        world.is_trouble = false;
        match play(world) {
            Ok(()) => {}
            Err(Stop::Ended(why)) => {
                world.tell(format!("ended: {why}"));
                check_poison(world)?;
            }
            Err(wrong) => return Err(wrong),
        }
        world.untouchable = crate::history::Untouchable::none(world.history.sizes.len());
        end(world)?;
    }
    last_rites(world)
}

/// Makes the harbor; a power cut in the middle leaves none, or a whole one.
fn create(world: &mut World) -> Step {
    let description = world.description();
    if world.chance.once_in(3) {
        let after = world.chance.below(20);
        world.tell(format!(
            "the power is cut {after} changes into the creation"
        ));
        world.storage.ask_for(Trouble::PowerCut { after });
    }
    let made = Harbor::create(Path::new(DIR), &description, world.options.clone());
    if world.storage.is_cut() {
        drop(made);
        world.storage.power_up(Left::ByChance);
        match Harbor::open(Path::new(DIR), world.options.clone()) {
            Ok((harbor, _)) => world.harbor = Some(harbor),
            Err(HarborError::NotAHarbor { .. }) => {
                let again = Harbor::create(Path::new(DIR), &description, world.options.clone());
                world.harbor =
                    Some(again.map_err(|error| world.failed("making it again", &error))?);
            }
            Err(error) => return Err(world.failed("a harbor that was just made", &error)),
        }
    } else {
        world.harbor = Some(made.map_err(|error| world.failed("making a harbor", &error))?);
    }
    world.storage.forget_troubles();
    Ok(())
}

/// Asks for trouble, or not.
fn ask_for_trouble(world: &mut World) {
    let chance = &mut world.chance;
    let operations = [
        Operation::Read,
        Operation::Write,
        Operation::Name,
        Operation::Sync,
    ];
    let operation = operations[chance.below(4) as usize];
    let after = chance.below(if operation == Operation::Write {
        60
    } else {
        20
    });
    let trouble = match chance.below(9) {
        0 => Trouble::Error {
            operation,
            after,
            errno: EIO,
        },
        1 => Trouble::Error {
            operation: Operation::Write,
            after,
            errno: ENOSPC,
        },
        2 => Trouble::LosingSync { after, errno: EIO },
        3 => Trouble::Full {
            room: chance.below(512 * 1024),
        },
        4 | 5 => Trouble::PowerCut {
            after: chance.below(120),
        },
        6 => Trouble::Slow {
            operation,
            after,
            pause: Duration::from_millis(chance.below(15)),
        },
        _ => return,
    };
    world.tell(format!("trouble: {trouble:?}"));
    world.is_trouble = true;
    world.storage.ask_for(trouble);
}

/// Records for a while.
fn play(world: &mut World) -> Step {
    let is_early = world.chance.once_in(4);
    if is_early {
        ask_for_trouble(world);
    }
    let recorder = world.harbor()?.record();
    let recorder = recorder.map_err(|error| world.failed("starting to record", &error))?;
    if recorder.head().0 != world.history.head() {
        let (found, expected) = (recorder.head(), world.history.head());
        return wrong(format!(
            "the recording goes on behind {found}, not {expected}"
        ));
    }
    world.recorder = Some(recorder);
    if !world.harbor()?.is_seeded() {
        for volume in 0..world.history.sizes.len() {
            world.seed(volume)?;
        }
        world.is_missing_writes = false;
    } else if world.is_missing_writes || world.history.open_gap().is_some() {
        world.open_gap()?;
        world.heal()?;
    }
    let is_upkeep = !is_early && (world.is_keeper || world.chance.once_in(4));
    if !is_early && !is_upkeep {
        ask_for_trouble(world);
    }
    let steps = if world.is_keeper { 20 } else { 60 };
    for _ in 0..10 + world.chance.below(steps) {
        world.step()?;
    }
    if is_upkeep {
        world.upkeep_under_cut()?;
    }
    Ok(())
}

/// After the journal has failed nothing is taken, and nothing is written, until it is recovered.
fn check_poison(world: &mut World) -> Step {
    let Some(recorder) = world
        .recorder
        .clone()
        .filter(|recorder| recorder.failure().is_some())
    else {
        return Ok(());
    };
    let (head, changes) = (recorder.head(), world.storage.changes());
    let volume = world.volume(0)?;
    let taken = volume
        .buffer(512)
        .and_then(|buf| volume.write(0, buf))
        .is_ok()
        || volume.zero(0, 512).is_ok()
        || {
            volume.announce(0..512);
            volume.resync_data(0, &[1; 512]).is_ok()
        }
        || recorder.point(Grade::Crash, None).is_ok()
        || recorder.open_gap(GapReason::Crash, Timestamp(0)).is_ok()
        || recorder.close_gap().is_ok()
        || recorder.sync().is_ok()
        || world.harbor()?.record().is_ok();
    if taken || recorder.head() != head || world.storage.changes() != changes {
        return wrong("a journal that has failed goes on");
    }
    Ok(())
}

/// Ends a round in one of many ways, and has everything checked afterwards.
fn end(world: &mut World) -> Step {
    if world.storage.is_cut() {
        return restart(world, Some(Left::ByChance));
    }
    if world.chance.once_in(4) {
        // The trouble stays for the closing, and perhaps for the recovery.
        world.tell("trouble stays");
    } else {
        world.storage.forget_troubles();
    }
    let has_failed = world
        .recorder
        .as_ref()
        .is_some_and(|recorder| recorder.failure().is_some());
    match world.chance.below(if has_failed { 7 } else { 5 }) {
        0 => {
            world.tell("power cut");
            world.storage.cut_power();
            restart(world, Some(Left::ByChance))
        }
        1 => {
            world.tell("killed");
            world.storage.cut_power();
            restart(world, Some(Left::Everything))
        }
        2 => {
            world.tell("power cut, nothing is left that was not synced");
            world.storage.cut_power();
            restart(world, Some(Left::Nothing))
        }
        3 | 4 => {
            close(world)?;
            if !world.storage.is_cut() && world.chance.once_in(2) {
                return restart(world, None);
            }
            if world.storage.is_cut() {
                return restart(world, Some(Left::ByChance));
            }
            recover_if_failed(world)
        }
        _ => recover_if_failed(world),
    }
}

/// Closes the recording in order.
fn close(world: &mut World) -> Step {
    world.tell("close");
    let Some(recorder) = world.recorder.clone() else {
        return Ok(());
    };
    match recorder.close() {
        Ok(()) => world.promise_all(),
        Err(error) => {
            if let Stop::Wrong(words) = world.failed("closing", &error) {
                return wrong(words);
            }
        }
    }
    Ok(())
}

/// Has the journal put right without the harbor being closed; without failure, only checks.
fn recover_if_failed(world: &mut World) -> Step {
    let harbor = world.harbor()?;
    if harbor.failure().is_none() {
        if let Some(recorder) = world.recorder.take() {
            drop(recorder);
            if harbor.failure().is_some() {
                return recover_if_failed(world);
            }
            world.promise_all();
        }
        world.storage.forget_troubles();
        return world.check(4);
    }
    world.tell("recover in place");
    if world.chance.once_in(2) {
        world.recorder = None;
    }
    let mut recovered = harbor.recover();
    if world.storage.is_cut() {
        return restart(world, Some(Left::ByChance));
    }
    if recovered.is_err() {
        world.tell(format!("recovery failed: {recovered:?}"));
        world.storage.forget_troubles();
        recovered = harbor.recover();
    }
    world.storage.forget_troubles();
    let report = recovered.map_err(|error| Stop::Wrong(format!("recovery in place: {error}")))?;
    world.recorder = None;
    world.check_recovered(&report)
}

/// Ends the process, or the machine, and starts it again.
fn restart(world: &mut World, left: Option<Left>) -> Step {
    world.views.clear();
    world.recorder = None;
    world.harbor = None;
    if let Some(left) = left {
        world.storage.power_up(left);
        world.tell(format!("up again with {left:?}"));
    }
    world.clock.set(Timestamp(
        world.clock.now().0 + world.chance.below(2_000_000_000),
    ));
    if world.chance.once_in(5) {
        // The power is cut during the recovery, too.
        let after = world.chance.below(6);
        world.storage.ask_for(Trouble::PowerCut { after });
        let opened = Harbor::open(Path::new(DIR), world.options.clone());
        world.tell(format!(
            "opened, with the power cut after {after} changes: {}",
            opened.is_ok()
        ));
        drop(opened);
        if world.storage.is_cut() {
            world.storage.power_up(Left::ByChance);
        }
    }
    let mut opened = Harbor::open(Path::new(DIR), world.options.clone());
    if opened.is_err() && (world.storage.is_trouble_ahead() || world.is_trouble) {
        world.tell("opening failed once");
        if world.storage.is_cut() {
            world.storage.power_up(Left::ByChance);
        }
        world.storage.forget_troubles();
        opened = Harbor::open(Path::new(DIR), world.options.clone());
    }
    world.storage.forget_troubles();
    let (harbor, report) = opened.map_err(|error| Stop::Wrong(format!("opening: {error:?}")))?;
    world.harbor = Some(harbor);
    world.check_recovered(&report)?;
    check_idempotence(world)
}

/// Opening again finds the same and changes nothing.
fn check_idempotence(world: &mut World) -> Step {
    let harbor = world.harbor()?;
    let before = (harbor.points(), harbor.gaps());
    drop(harbor);
    world.harbor = None;
    let changes = world.storage.changes();
    let opened = Harbor::open(Path::new(DIR), world.options.clone());
    let (harbor, report) =
        opened.map_err(|error| Stop::Wrong(format!("opening again: {error:?}")))?;
    if !report.is_clean() || (harbor.points(), harbor.gaps()) != before {
        return wrong(format!("opening again finds something else: {report:?}"));
    }
    let _ = changes;
    world.harbor = Some(harbor);
    Ok(())
}

/// Closes everything in order, checks all of it, and damages it.
fn last_rites(world: &mut World) -> Step {
    world.tell("-- the end");
    world.is_trouble = false;
    world.storage.forget_troubles();
    if let Some(recorder) = world.recorder.take() {
        recorder
            .close()
            .map_err(|error| world.failed("closing", &error))?;
        world.promise_all();
    }
    restart(world, None)?;
    world.check(usize::MAX)?;
    world.harbor = None;
    crate::spoil::spoil(world)
}
