//! The driver against a real libvirt and QEMU; skipped aloud where there is none.
//!
//! Each test makes domains of its own (named after the process and the test) and removes them again, also when it fails.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

#[path = "driver/connection.rs"]
mod connection;
#[path = "driver/descriptors.rs"]
mod descriptors;
#[path = "driver/discovery.rs"]
mod discovery;
#[path = "driver/guest.rs"]
mod guest;
#[path = "driver/host.rs"]
mod host;
#[path = "driver/takeover.rs"]
mod takeover;
#[path = "driver/validate.rs"]
mod validate;
