//! Drills: a machine's copy is booted in isolation, checked, reported, and removed without a trace.
//!
//! Modules in the order in which a drill meets them. This crate knows neither where data is kept nor how a VM is
//! started from it: [`stage`] is the door behind which that is done.

pub mod units;

pub mod mounts;

pub mod plan;

pub mod isolation;

pub mod stage;

pub mod check;

pub mod run;

pub mod outcome;

pub mod report;

pub mod bisect;

pub mod schedule;
