//! How a guest write reaches virt-cdp: QMP, taps, NBD in both directions, seed and resync.

pub mod monitor;
pub mod qmp;

pub mod nbd;
pub mod sink;
pub mod tap;
