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

/// Unit in which the payloads of a cold segment are compressed (format).
pub const COLD_BLOCK: usize = 64 * 1024;
/// Most records that are read into memory to make one cold segment, 64 bytes each; a single segment may have as many.
pub const COLD_RECORDS_MAX: u64 = 256 * 1024;
/// Most payload bytes that go into one cold segment made of several.
pub const COLD_PAYLOAD_MAX: u64 = 1024 * 1024 * 1024;
/// A cold segment of at most this many bytes is small: so many of them in a row are made into one.
pub const COLD_SMALL_BYTES: u64 = 16 * 1024 * 1024;
/// How many small ones in a row are worth that.
pub const COLD_SMALL_COUNT: usize = 8;
/// Level at which zstd compresses.
pub const COLD_LEVEL: i32 = 3;
/// Memory for blocks of cold segments that were decompressed, of one harbor.
pub const COLD_CACHE_MAX: usize = 16 * 1024 * 1024;

/// Records of a sealed segment's index that one fence stands for: a page of it.
pub const FENCE_RECORDS: usize = 64;
/// Most memory for the fences of all segments of a harbor: those of 16 million records. They are made again when
/// they are needed.
pub const FENCES_MAX: usize = 8 * 1024 * 1024;
/// How much of an index is read at a time.
pub const INDEX_PIECE: usize = 256 * 1024;

/// Longest part of a volume that is worked out at a time. Places in a part are kept in 32 bits.
pub const PART_LEN_MAX: u64 = 1 << 30;
/// Length of a part that is made no shorter, however many records lie there.
pub const PART_LEN_MIN: u64 = 32 * 1024;
/// A part is made as long as it may be without more records in it than this, by the fences.
pub const PART_RECORDS_AIM: usize = 4096;
/// The same, for each segment that is looked through for it: what is read of a segment is to be of use.
pub const PART_RECORDS_AIM_PER_SEGMENT: usize = 32;
/// Most records on top that are held of a part; twice as many records while it is worked out.
pub const PART_RECORDS_MAX: usize = 32 * 1024;
/// What a part is counted for at least, so that there are not too many of them.
pub const PART_COST_MIN: usize = 1024;
/// Most files that are verified at once.
pub const VERIFIERS_MAX: usize = 4;
/// Most memory for the parts of a view, over all its volumes: those of a million records and some.
pub const VIEW_PARTS_MAX: usize = 40 * 1024 * 1024;
/// The same of a volume that is read from front to back.
pub const READING_PARTS_MAX: usize = 4 * 1024 * 1024;
/// Most parts of one view that are worked out at a time.
pub const PARTS_UNDER_WAY_MAX: usize = 4;

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
/// Unit in which an export reads and writes, and a base point is built and merged.
pub const COPY_PIECE: usize = 1024 * 1024;

/// Most layers of a volume that merging leaves.
pub const LAYERS_MAX: usize = 8;
/// Most layers that are followed, each to the one below; where merging is behind, there are more than it leaves.
pub const CHAIN_MAX: usize = 64;
/// Longest name of the layer below that is taken.
pub const BACKING_NAME_MAX: usize = 255;
/// Memory for the tables of an open chain of layers.
pub const TABLES_KEPT_MAX: usize = 16 * 1024 * 1024;
/// A table is read and kept in slices of this length; one stands for 32 MiB of the volume.
pub const TABLE_SLICE: usize = 4096;
/// Most compressed clusters of an open chain that are kept as they read.
pub const UNPACKED_KEPT_MAX: usize = 16;
/// Blocks of 100 hashes that are kept of each layer that is read.
pub const HASH_BLOCKS_KEPT_MAX: usize = 64;
/// Level of compression of a cold layer's clusters.
pub const PACK_LEVEL: i32 = 3;
/// Bytes of compressed clusters that are placed behind each other.
pub const PACK_EXTENT: usize = 256 * 1024;
/// Part of a volume of which the clusters that were written are gathered at a time, one bit each.
pub const BUILD_SPAN: u64 = 1 << 40;
/// A layer in the making is synced whenever so much was written, so that its end does not hold up others' syncs.
pub const LAYER_SYNC: u64 = 64 * 1024 * 1024;
/// Most tables of an image that are changed in memory before they are written.
pub const UPDATED_TABLES_MAX: usize = 16;

/// Pieces that are read ahead while what is kept is verified.
pub const PIECES_AHEAD: usize = 2;
/// Most faults of one image that are told apart.
pub const IMAGE_FAULTS_MAX: usize = 100;
/// Most findings of one file that are told apart; neighbours are one.
pub const FINDINGS_MAX: usize = 200;
/// Longest `damage.toml` that is read, and that is written.
pub const DAMAGE_MAX: u64 = 64 * 1024 * 1024;
/// Longest `scrub.toml` that is read.
pub const SCRUB_MAX: u64 = 64 * 1024 * 1024;

const _: () = {
    assert!(BLOCK.is_multiple_of(SECTOR));
    assert!(CLUSTER.is_multiple_of(BLOCK));
    assert!(
        CLUSTER / SECTOR == 128,
        "a cluster's sectors fit the bits of a u128"
    );
    assert!(COPY_PIECE.is_multiple_of(CLUSTER));
    assert!(SEGMENT_RECORDS_MAX as u64 <= COLD_RECORDS_MAX);
    assert!(COLD_BLOCK.is_multiple_of(SECTOR) && COLD_CACHE_MAX >= COLD_BLOCK);
    assert!(PACK_EXTENT.is_multiple_of(CLUSTER));
    assert!(CLUSTER.is_multiple_of(TABLE_SLICE));
    assert!(LAYERS_MAX >= 2 && LAYERS_MAX < CHAIN_MAX);
    assert!(BUILD_SPAN.is_multiple_of(CLUSTER as u64));
    assert!(RESYNC_PIECE.is_multiple_of(CLUSTER));
    assert!(REQUEST_MAX <= u32::MAX as usize);
    assert!(FRAME_LEN_MAX <= u32::MAX as usize);
    assert!(BUFFER_BUDGET_MIN <= BUFFER_BUDGET_DEFAULT);
    assert!(BUFFER_BUDGET_DEFAULT <= BUFFER_BUDGET_MAX);
    assert!(SEGMENT_MIN <= SEGMENT_DEFAULT && SEGMENT_DEFAULT <= SEGMENT_MAX);
    assert!(LABEL_MAX < STAGED_BELOW);
    assert!(INDEX_PIECE.is_multiple_of(64 * FENCE_RECORDS));
    assert!(PART_LEN_MAX.is_power_of_two() && PART_LEN_MIN.is_power_of_two());
    assert!(PART_LEN_MIN <= PART_LEN_MAX);
    assert!(PART_LEN_MAX + REQUEST_MAX as u64 <= i32::MAX as u64);
    // Each record on top has a byte at least, so a part can always be made short enough.
    assert!(PART_LEN_MIN <= PART_RECORDS_MAX as u64);
    assert!(PART_RECORDS_AIM <= PART_RECORDS_MAX / 2);
    // The largest part: a record has 20 bytes and a bit, and up to two stretches of 12.
    assert!(PART_RECORDS_MAX * 48 <= READING_PARTS_MAX / 2);
    assert!(READING_PARTS_MAX <= VIEW_PARTS_MAX);
    assert!(STAGED_BELOW <= STAGE_LEN);
    // A full frame has at least this much of the budget, so the stages of full frames are within the budget.
    assert!(FRAME_RECORDS_MAX * BLOCK >= STAGE_LEN);
    assert!(FRAME_PAYLOAD_TARGET >= STAGE_LEN);
    // A cluster's number in a base point is kept in 32 bits, metadata included.
    assert!(VOLUME_SIZE_MAX / CLUSTER as u64 * 2 <= u32::MAX as u64);
};
