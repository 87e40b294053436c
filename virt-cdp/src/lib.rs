//! The virt-cdp program: daemon virtcdpd, gRPC API, command line.

pub mod api;
