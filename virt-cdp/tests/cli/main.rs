//! virt-cdp and virtcdpd from the outside: the command line over a real socket against a fake engine, and
//! the daemon as a process. What a real engine does is tested end to end elsewhere.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod drills;
mod fake;
mod fake_drill;
mod fake_space;
mod stage;

mod at;
mod config;
mod units;

mod daemon;
mod metrics;
mod peer;

mod errors;
mod help;
mod json;
mod people;
mod shell;
mod space;
mod waiting;
