//! The virt-cdp program: daemon virtcdpd, gRPC API, command line.

pub mod api;
pub mod daemon;

pub mod engine;

pub mod guard;

pub(crate) mod host;

pub mod cli;

/// Durations and sizes as people write them.
pub use drill_runner::units;
