//! The daemon, virtcdpd: configuration, locks, socket, gRPC service, logs, start and stop.

pub mod config;
