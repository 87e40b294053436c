//! How a guest write reaches virt-cdp: QMP, taps, NBD in both directions, seed and resync.
