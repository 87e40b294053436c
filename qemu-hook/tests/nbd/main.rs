//! NBD in both directions and the tap, against the peers they are made for: nbdinfo, nbdcopy,
//! qemu-img, qemu-io, fio, libnbd; qemu-nbd and qemu-storage-daemon; and peers that mean harm.
//!
//! A test whose peer is not installed says so and passes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(
    clippy::single_range_in_vec_init,
    reason = "a list of one range is what is meant"
)]

mod device;
mod peers;
mod raw;
mod storage_daemon;
mod tap_sink;

mod view_handshake;
mod view_hostile;
mod view_reads;
mod view_server;

mod client_reads;
mod client_suspicion;

mod tap_bypass;
mod tap_door;
mod tap_kept;
mod tap_mirror;
mod tap_requests;

mod speed;
