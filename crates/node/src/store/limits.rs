//! The limits of the stores, each with its unit.

/// Longest name of a file in a store's directory.
pub const FILE_NAME_BYTES_MAX: usize = 200;

/// Largest payload of one journal record.
pub const RECORD_BYTES_MAX: usize = 8 << 20;
/// A journal segment is sealed when the next group would make it longer than this.
pub const JOURNAL_SEGMENT_BYTES: u64 = 16 << 20;
/// The most a group of records may hold, headers included: one write, one sync.
pub const JOURNAL_GROUP_BYTES_MAX: usize = 16 << 20;
/// The most records in one group.
pub const JOURNAL_GROUP_RECORDS_MAX: usize = 65_536;
/// Requests that may wait for the journal's writer; beyond them the callers wait.
pub const JOURNAL_QUEUE_MAX: usize = 1024;

/// Largest content of one chunk.
pub const CHUNK_SIZE_MAX: usize = 1 << 20;
/// Unit of a chunk's checksums, and so the least that a partial read has to fetch.
pub const CHUNK_BLOCK_BYTES: usize = 64 << 10;
/// A chunk segment is sealed when the next group would make it longer than this.
pub const CHUNK_SEGMENT_BYTES: u64 = 64 << 20;
/// The most one group of chunk changes may hold: one write, one sync.
pub const CHUNK_GROUP_BYTES_MAX: usize = 8 << 20;
/// A group whose records are as long as this on average is not kept in memory once it is on the disk: it is
/// of large files, which whoever uses them caches for himself.
pub const CHUNK_BULK_BYTES_MIN: usize = 256 << 10;
/// Unused buffers that are kept for reading chunks.
pub const CHUNK_BUFFERS_IDLE_MAX: usize = 8;
/// Requests that may wait for the chunk writer, each with one change or with several; beyond them the
/// callers wait.
pub const CHUNK_QUEUE_MAX: usize = 64;
/// Bytes of chunks that may wait for the chunk writer.
pub const CHUNK_QUEUE_BYTES_MAX: usize = 32 << 20;
/// Room that puts leave on the disk, so that the journal and deletions go on when it is full.
pub const CHUNK_RESERVE_BYTES: u64 = 64 << 20;

/// Unsynced bytes that a volatile disk keeps; beyond them it writes a file through early.
pub const VOLATILE_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(RECORD_BYTES_MAX + 64 <= JOURNAL_GROUP_BYTES_MAX);
const _: () = assert!(JOURNAL_SEGMENT_BYTES + (JOURNAL_GROUP_BYTES_MAX as u64) < u32::MAX as u64);
const _: () = assert!(CHUNK_SIZE_MAX + 4096 <= CHUNK_GROUP_BYTES_MAX);
const _: () = assert!(CHUNK_SIZE_MAX + 4096 <= CHUNK_QUEUE_BYTES_MAX);
const _: () = assert!(CHUNK_SEGMENT_BYTES + (CHUNK_GROUP_BYTES_MAX as u64) < u32::MAX as u64);
