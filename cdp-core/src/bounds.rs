//! Every bound of the crate, in one place, with what must hold between them.
//!
//! Sizes are in bytes unless the name says otherwise. A bound that stands in the format
//! (`FORMAT.md`) is marked so; changing it is a new format version.

use std::time::Duration;

/// Unit in which guests address disks, and to which payloads are aligned (format).
pub const SECTOR: usize = 512;
/// Unit in which frames are placed in a segment (format).
pub const BLOCK: usize = 4096;
/// Cluster of a base point, and the grain of resync bookkeeping (format).
pub const CLUSTER: usize = 64 * 1024;

/// Largest single request that is taken, as NBD and QEMU split above it (format).
pub const REQUEST_MAX: usize = 32 * 1024 * 1024;
/// Smallest, default and largest budget of the IO buffer of one machine.
pub const BUFFER_BUDGET_MIN: usize = REQUEST_MAX + BLOCK;
/// Default budget of the IO buffer of one machine.
pub const BUFFER_BUDGET_DEFAULT: usize = 64 * 1024 * 1024;
/// Largest budget of the IO buffer of one machine.
pub const BUFFER_BUDGET_MAX: usize = 256 * 1024 * 1024;

/// Payloads of this length and above get memory in multiples of it, which is kept to be used again.
pub const MEMORY_GRAIN: usize = 16 * 1024;
/// Most memory that is kept to be used again, beside what is in use.
pub const MEMORY_SPARE_MAX: usize = 16 * 1024 * 1024;

/// A payload below this length is copied into the frame in the making.
pub const STAGED_BELOW: usize = 32 * 1024;
/// Room for such payloads in a frame.
pub const STAGE_LEN: usize = 1024 * 1024;
/// Most frames that are written to the disk at a time.
pub const FRAMES_UNDER_WAY_MAX: usize = 8;

/// A frame takes no further record once it holds this many payload bytes, padding included.
pub const FRAME_PAYLOAD_TARGET: usize = 4 * 1024 * 1024;
/// Most records in a frame (format).
pub const FRAME_RECORDS_MAX: usize = 256;
/// Most payload bytes in a frame: the target, overshot by one request.
pub const FRAME_PAYLOAD_MAX: usize = FRAME_PAYLOAD_TARGET + REQUEST_MAX;
/// Longest frame that is read: header and table, payloads with their padding, rounded to a block (format).
pub const FRAME_LEN_MAX: usize =
    64 * (FRAME_RECORDS_MAX + 1) + SECTOR + FRAME_PAYLOAD_MAX + FRAME_RECORDS_MAX * SECTOR + BLOCK;

/// How long a record waits for company in its frame, when nobody waits for it to be durable.
pub const FRAME_LINGER: Duration = Duration::from_millis(20);

/// Longest time a buffered write waits for its sync, unless the options say otherwise.
pub const FLUSH_INTERVAL_DEFAULT: Duration = Duration::from_millis(200);
/// Longest such time that can be chosen.
pub const FLUSH_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Length at which a segment is sealed unless the options say otherwise.
pub const SEGMENT_DEFAULT: u64 = 64 * 1024 * 1024;
/// Smallest length at which a segment may be sealed.
pub const SEGMENT_MIN: u64 = 64 * 1024;
/// Largest length at which a segment may be sealed.
pub const SEGMENT_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// A segment reserves at most one part in so many of the room that is left in its file system.
pub const RESERVED_SHARE: u64 = 4;
/// At most one part in so many of a file system is kept free.
pub const KEPT_FREE_SHARE: u64 = 10;
/// A segment is sealed when it holds this many records, however short it is: they are kept in memory until then.
pub const SEGMENT_RECORDS_MAX: usize = 64 * 1024;

/// Most records on top that are held of a part of a volume that is opened part by part; twice as many while it is
/// worked out.
pub const PART_RECORDS_MAX: usize = 32 * 1024;
/// Most parts of a volume that are held at a time: reads come in order, but for some that are under way together.
pub const PARTS_KEPT_MAX: usize = 2;

/// Longest label of a point.
pub const LABEL_MAX: usize = 1024;
/// Longest machine id, in UTF-8 (format).
pub const MACHINE_ID_MAX: usize = 64;
/// Longest domain XML that is kept.
pub const XML_MAX: u64 = 4 * 1024 * 1024;
/// Longest `machine.toml` that is read.
pub const DESCRIPTION_MAX: u64 = 4 * 1024 * 1024;
/// Longest `marks.toml` that is read.
pub const MARKS_MAX: u64 = 4 * 1024 * 1024;
/// Longest `points.toml` that is read, and that is written.
pub const POINTS_MAX: u64 = 16 * 1024 * 1024;

/// How old a point is before it counts as the last one of its hour, day, week or month: until then a gap may take it
/// back.
pub const POINT_SETTLE: Duration = Duration::from_secs(60);

/// How long a lock that looks taken is asked for again.
pub const LOCK_PATIENCE: Duration = Duration::from_millis(250);

/// Largest volume; seeding it in full takes 64 MiB of memory per TiB for its tables.
pub const VOLUME_SIZE_MAX: u64 = 64 << 40;
/// Most volumes of one machine.
pub const VOLUMES_MAX: usize = 1024;

/// A resync call is cut into pieces of this length, so that the sequencer is never held long.
pub const RESYNC_PIECE: usize = 256 * 1024;
/// As [`RESYNC_PIECE`], for zeros, which need no memory.
pub const RESYNC_ZERO_PIECE: u64 = 1 << 30;
/// Unit in which an export reads and writes.
pub const COPY_PIECE: usize = 1024 * 1024;

const _: () = {
    assert!(BLOCK.is_multiple_of(SECTOR));
    assert!(CLUSTER.is_multiple_of(BLOCK));
    assert!(
        CLUSTER / SECTOR == 128,
        "a cluster's sectors fit the bits of a u128"
    );
    assert!(COPY_PIECE.is_multiple_of(CLUSTER));
    assert!(RESYNC_PIECE.is_multiple_of(CLUSTER));
    assert!(REQUEST_MAX <= u32::MAX as usize);
    assert!(FRAME_LEN_MAX <= u32::MAX as usize);
    assert!(BUFFER_BUDGET_MIN <= BUFFER_BUDGET_DEFAULT);
    assert!(BUFFER_BUDGET_DEFAULT <= BUFFER_BUDGET_MAX);
    assert!(SEGMENT_MIN <= SEGMENT_DEFAULT && SEGMENT_DEFAULT <= SEGMENT_MAX);
    assert!(LABEL_MAX < STAGED_BELOW);
    assert!(STAGED_BELOW <= STAGE_LEN);
    // A full frame has at least this much of the budget, so the stages of full frames are within the budget.
    assert!(FRAME_RECORDS_MAX * BLOCK >= STAGE_LEN);
    assert!(FRAME_PAYLOAD_TARGET >= STAGE_LEN);
    // A cluster's number in a base point is kept in 32 bits, metadata included.
    assert!(VOLUME_SIZE_MAX / CLUSTER as u64 * 2 <= u32::MAX as u64);
};
