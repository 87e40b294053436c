//! How a guest write reaches virt-cdp: QMP, taps, NBD in both directions, seed and resync.
//!
//! Modules are listed in the order in which a capture meets them.

pub mod monitor;
pub mod qmp;

pub mod node;

pub mod bitmap;

pub mod end_mark;

pub mod channel;

pub mod attach;

pub mod tap;

pub mod sink;

pub mod read_export;

pub mod disk_read;

pub mod nbd;
