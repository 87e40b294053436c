//! Every bound of the NBD code, in one place.
//!
//! Bounds on what a peer may make us hold or wait for, and the sizes in which we work.

use std::time::Duration;

/// The largest read or write we take or send, in bytes; also advertised as the maximum block size.
pub const REQUEST_MAX: u32 = 32 << 20;

/// How much a tap reads ahead of the request it looks at, in bytes.
pub const READ_AHEAD: usize = 128 << 10;

/// The block size we advertise as preferred, in bytes.
pub const BLOCK_PREFERRED: u32 = 4096;

/// The largest data of one option, or of one option's reply, in bytes.
pub const OPTION_MAX: u32 = 64 << 10;

/// The longest export name, description or context name, in bytes (the protocol's own limit).
pub const NAME_MAX: usize = 4096;

/// The longest time a handshake may take from its first to its last byte.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// The most connections one server keeps; further ones are closed at once.
pub const CONNECTIONS_MAX: usize = 64;

/// The piece in which a large structured read is sent, in bytes; each thread of a connection keeps a buffer of it.
pub const READ_PIECE: usize = 256 << 10;

/// The most threads that read for one connection.
pub const WORKERS_MAX: usize = 8;

/// The most of them while nothing but copying takes their time.
pub const COPIERS_MAX: usize = 2;

/// The average time of a request from which on several threads read.
pub const READ_SLOW: Duration = Duration::from_micros(50);

/// How many bytes are copied in a nanosecond at least, when they lie in memory.
pub const COPIED_PER_NS: u64 = 2;

/// The most requests that one thread takes at a time.
pub const BATCH_MAX: usize = 32;

/// The replies that are sent together, in bytes, though more are in the making.
pub const REPLIES_TOGETHER: usize = 32 << 10;

/// The shortest read for which it is asked where zeroes are, in bytes.
pub const EXTENTS_FROM: u64 = 64 << 10;

/// The smallest zero extent worth a hole chunk of its own in a read's reply, in bytes.
pub const HOLE_MIN: u64 = 4096;

/// The unit in which block status is told, in bytes; smaller runs of zeroes count as data.
pub const SECTOR: u64 = 512;

/// The most extents one block status reply of ours carries.
pub const STATUS_EXTENTS: usize = 8192;

/// The largest block status chunk the client takes, in bytes (QEMU sends up to 1 MiB).
pub const STATUS_PAYLOAD_MAX: u32 = 4 << 20;

/// The longest area the client asks about in one block status request, in bytes.
pub const STATUS_SPAN: u64 = 1 << 30;

/// The most requests the client keeps in flight.
pub const DEPTH_MAX: usize = 64;

/// The most separate fragments in which the client takes one read's reply.
pub const FRAGMENTS_MAX: usize = 16 << 10;

/// How long the client waits for the next bytes of an answer, unless told otherwise.
pub const CLIENT_READ_TIMEOUT: Duration = Duration::from_secs(30);

const _: () = assert!(READ_PIECE as u64 <= REQUEST_MAX as u64);
const _: () = assert!(REPLIES_TOGETHER <= READ_PIECE && HOLE_MIN <= EXTENTS_FROM);
const _: () = assert!(1 < COPIERS_MAX && COPIERS_MAX <= WORKERS_MAX && BATCH_MAX > 0);
const _: () = assert!(BLOCK_PREFERRED.is_power_of_two() && BLOCK_PREFERRED <= REQUEST_MAX);
const _: () = assert!(NAME_MAX * 2 + 16 <= OPTION_MAX as usize);
const _: () = assert!(STATUS_EXTENTS * 8 + 4 <= STATUS_PAYLOAD_MAX as usize);
const _: () = assert!(STATUS_SPAN.is_multiple_of(BLOCK_PREFERRED as u64));
const _: () = assert!(STATUS_SPAN < u32::MAX as u64);
