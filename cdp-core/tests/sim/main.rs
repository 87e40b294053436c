//! A seeded simulation: a guest writes, the storage fails, the power is cut; what is kept is compared with
//! an oracle that forgets nothing.
//!
//! One seed is one run: a machine with one to three volumes on a [`SimulatedStorage`], a clock that steps
//! back and forth, rounds of random work with random trouble, a crash or a failure, recovery, and a
//! check of everything against the [`history`]. Then the journal is damaged on purpose, and must say so.
//!
//! What is kept is worked on all the while, in any order ([`keeping`], [`layers`]): policies, deletions, locks, base
//! points, merges, cold segments, the removal of needless ones. The power is cut in the middle of that 300 times or more
//! where no number of seeds is given. Every point that was not let go of must be exact afterwards, and nothing else be
//! offered.
//!
//! `make sim SEEDS=n` runs n seeds, `make sim SEED=x` one, and `cargo test` as many as fit into
//! `SIM_SECONDS` (20 where nothing is said). A seed that fails is printed with all that was done.
//! The same seed does the same things in the same order; only how the journal's own thread cuts
//! records into frames depends on the machine's pace.
//!
//! Before anything else it is shown that the oracle can fail: on a storage that lies about its syncs it must.
//!
//! [`SimulatedStorage`]: cdp_core::storage::SimulatedStorage

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod check;
mod history;
mod keeping;
mod layers;
mod life;
mod reading;
mod said;
mod spoil;
mod steps;
mod world;

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use world::{Counts, Stop, World};

/// How long it runs where nothing is said, in seconds.
const SECONDS: u64 = 20;
/// So often at least the power is cut in the middle of upkeep, where no number of seeds is given.
const CUTS: u64 = 300;
/// Seeds among which a storage that lies must be found out.
const LIAR_SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Runs one seed; the power cuts in the middle of upkeep, or the trace and what is wrong.
fn run(seed: u64, lies: bool) -> Result<(Counts, Counts), String> {
    let mut world = World::new(seed, lies);
    let ran = panic::catch_unwind(AssertUnwindSafe(|| life::live(&mut world)));
    let wrong = match ran {
        Ok(Ok(())) => return Ok((world.cuts, world.deeds)),
        Ok(Err(Stop::Wrong(wrong) | Stop::Ended(wrong))) => wrong,
        Err(_) => "it panicked (see above)".to_string(),
    };
    Err(format!("{}\n{wrong}", world.trace.join("\n")))
}

/// Shows that the oracle can fail.
fn find_the_liar() -> Result<u64, String> {
    let is_found_out = |seed: &u64| run(*seed, false).is_ok() && run(*seed, true).is_err();
    let found = (1..=LIAR_SEEDS).find(is_found_out);
    found.ok_or_else(|| {
        format!("a storage that lies about syncs was not found out by {LIAR_SEEDS} seeds")
    })
}

fn add(all: &mut Counts, some: Counts) {
    for (name, times) in some {
        *all.entry(name).or_default() += times;
    }
}

fn main() -> ExitCode {
    let one = number("SEED");
    let (first, count) = match (one, number("SEEDS")) {
        (Some(seed), _) => (seed, Some(1)),
        (None, count) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            (now.as_secs() % 1_000_000 * 10_000, count)
        }
    };
    if one.is_none() {
        match find_the_liar() {
            Ok(seed) => {
                println!("sim: a storage that lies about syncs is found out by seed {seed}")
            }
            Err(wrong) => {
                println!("sim: {wrong}");
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = Duration::from_secs(number("SIM_SECONDS").unwrap_or(SECONDS));
    let begin = Instant::now();
    let mut done = 0;
    println!("sim: seeds from {first}");
    let (mut cuts, mut deeds) = (Counts::new(), Counts::new());
    let goes_on = |done: u64, cuts: &Counts| match count {
        Some(count) => done < count,
        None => begin.elapsed() < seconds || cuts.values().sum::<u64>() < CUTS,
    };
    while goes_on(done, &cuts) {
        let seed = first + done;
        match run(seed, false) {
            Ok((some_cuts, some_deeds)) => {
                add(&mut cuts, some_cuts);
                add(&mut deeds, some_deeds);
            }
            Err(wrong) => {
                println!("{wrong}\nsim: seed {seed} FAILED; again: make sim SEED={seed}");
                return ExitCode::FAILURE;
            }
        }
        done += 1;
    }
    let all: u64 = cuts.values().sum();
    println!("sim: the power was cut {all} times in the middle of upkeep: {cuts:?}");
    println!("sim: done in all: {deeds:?}");
    println!(
        "sim: {done} seeds, {first} to {}, in {:.1?}: nothing wrong",
        first + done.saturating_sub(1),
        begin.elapsed()
    );
    ExitCode::SUCCESS
}
