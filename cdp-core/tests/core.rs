//! The core as a whole: what is appended is what is viewed, whatever happens in between.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "core/harness.rs"]
mod harness;

#[path = "core/back_pressure.rs"]
mod back_pressure;
#[path = "core/cold.rs"]
mod cold;
#[path = "core/damage.rs"]
mod damage;
#[path = "core/durable.rs"]
mod durable;
#[path = "core/eras.rs"]
mod eras;
#[path = "core/export.rs"]
mod export;
#[path = "core/failure.rs"]
mod failure;
#[path = "core/figures.rs"]
mod figures;
#[path = "core/gaps.rs"]
mod gaps;
#[path = "core/golden.rs"]
mod golden;
#[path = "core/harbors.rs"]
mod harbors;
#[path = "core/history.rs"]
mod history;
#[path = "core/keeping.rs"]
mod keeping;
#[path = "core/keeping_crashes.rs"]
mod keeping_crashes;
#[path = "core/layers.rs"]
mod layers;
#[path = "core/layers_check.rs"]
mod layers_check;
#[path = "core/layers_power.rs"]
mod layers_power;
#[path = "core/layers_sizes.rs"]
mod layers_sizes;
#[path = "core/marks.rs"]
mod marks;
#[path = "core/mend.rs"]
mod mend;
#[path = "core/pace.rs"]
mod pace;
#[path = "core/power.rs"]
mod power;
#[path = "core/reserved.rs"]
mod reserved;
#[path = "core/resync.rs"]
mod resync;
#[path = "core/retention.rs"]
mod retention;
#[path = "core/seed.rs"]
mod seed;
#[path = "core/space.rs"]
mod space;
#[path = "core/time.rs"]
mod time;
#[path = "core/turns.rs"]
mod turns;
#[path = "core/verify.rs"]
mod verify;
#[path = "core/verify_crashes.rs"]
mod verify_crashes;
#[path = "core/without.rs"]
mod without;
