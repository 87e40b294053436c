//! What takes foreign bytes, each as a function of bytes: it must not panic, hang, or take more memory
//! than its bounds say, whatever the bytes are; and what it takes for valid must be as it says.
//!
//! [`TARGETS`] has them all. `tests/stable.rs` runs them on any toolchain, from the corpus in `corpus` and
//! mutations of it; `libfuzzer` has them for cargo-fuzz, which is guided by coverage (`make fuzz`).

mod journal;
mod kept;
mod monitor;
mod nbd;
mod sparse;
mod tap;

pub use kept::recorded;
pub use sparse::{expand, pack};

/// A target: its name, which is that of its corpus, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 12] = [
    ("tap_handshake", tap::handshake),
    ("tap_requests", tap::requests),
    ("view_handshake", nbd::view_handshake),
    ("view_requests", nbd::view_requests),
    ("client", nbd::client),
    ("segment", journal::segment),
    ("description", journal::description),
    ("qcow2", journal::qcow2),
    ("points", kept::points),
    ("damage", kept::damage),
    ("scrub", kept::scrub),
    ("qmp", monitor::qmp),
];
