//! NBD, both directions: views are served to readers, QEMU's disks are read.
//!
//! [`server`] serves read-only [`export`]s on a unix socket; [`client`] reads an export of QEMU (seed
//! and resync). The capture end, where QEMU writes to us, is [`crate::tap`]; it shares the
//! handshake and the wire structures with the server.
//!
//! Invariant: what a peer sends is checked before it is used. A length from the wire never
//! allocates more than [`bounds`] says, and an offset never leaves the device.

pub mod bounds;
pub mod error;
mod proto;
mod wire;

pub mod export;
pub mod server;
pub mod stream;

pub(crate) mod handshake;

mod serve;

mod incoming;

mod answer;
mod pieces;

pub mod client;
mod client_handshake;
mod read_ranges;
mod status;

pub use client::{ConnectOptions, NbdClient};
pub use error::NbdError;
pub use export::{Export, Exports, Extent, ExtentKind};
pub use read_ranges::{Piece, ReadError};
pub use server::NbdServer;
pub use status::ContextExtent;

pub(crate) use proto::{Request, SimpleReply, cmd, errno, flag};
