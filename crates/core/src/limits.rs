//! Every limit of the state machines, with its unit. Limits that depend on each other are checked
//! here at compile time.

use std::time::Duration;

/// Largest file, in bytes.
pub const FILE_SIZE_MAX: u64 = 8 << 40;
/// Largest chunk, in bytes.
pub const CHUNK_SIZE_MAX: u32 = 4 << 20;
/// Replicas that one chunk may have.
pub const REPLICAS_MAX: usize = 16;
/// Extents of one file; its writer lays a ragged file out anew long before.
pub const EXTENTS_PER_INODE_MAX: usize = 1 << 20;
/// Extents, and new chunks, of one write command.
pub const WRITE_EXTENTS_MAX: usize = 1024;
/// Extents that one command copies from file to file.
pub const COPY_EXTENTS_MAX: usize = 1024;
/// Chunks of the whole tree.
pub const CHUNKS_MAX: usize = 1 << 26;
/// Inodes of the whole tree, orphans included.
pub const INODES_MAX: usize = 1 << 26;
/// Bytes that all files together may allocate, reserved ones included.
pub const ALLOCATED_MAX: u64 = 1 << 60;
/// What a counter of a snapshot may have reached: far from where it would overflow.
pub const COUNTER_MAX: u64 = 1 << 62;
/// Bytes of a name in a directory.
pub const NAME_LENGTH_MAX: usize = 255;
/// Bytes of a symbolic link's target.
pub const SYMLINK_LENGTH_MAX: usize = 4095;
/// Names of one inode that is no directory.
pub const LINKS_MAX: u32 = 65_000;
/// Bytes of an extended attribute's name.
pub const XATTR_NAME_LENGTH_MAX: usize = 255;
/// Bytes of an extended attribute's value.
pub const XATTR_VALUE_SIZE_MAX: usize = 64 << 10;
/// Bytes of the names of an inode's extended attributes, each with its terminating zero.
pub const XATTR_LIST_SIZE_MAX: usize = 64 << 10;
/// Bytes of the names and values of an inode's extended attributes.
pub const XATTR_TOTAL_SIZE_MAX: usize = 128 << 10;
/// Entries of an access control list: the kernel passes no longer one on.
pub const ACL_ENTRIES_MAX: usize = 511;
/// Least time between the loss of the last name and the end of an inode.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(5);
/// Inodes named by one hold, release or reap command.
pub const INODE_BATCH_MAX: usize = 1024;
/// Inodes that one command has a write lease cover, besides those that it names.
pub const LEASED_BELOW_MAX: u32 = 4096;
/// Entries that such a command looks at for each of them.
pub const LEASED_BELOW_LOOKS: usize = 16;
/// Inode numbers that come with a write lease. When they are used up the node needs a new lease.
pub const LEASE_INODES: u64 = 1 << 20;
/// Changes under a write lease in one command.
pub const DRAIN_CHANGES_MAX: usize = 1024;
/// Changes of one node that wait to be drained.
pub const PENDING_CHANGES_MAX: usize = 1 << 14;
/// Inodes and chunks that only changes made under write leases may use: these were promised room when
/// they were made.
pub const RESERVED_MAX: usize = 1 << 22;
/// The same for allocated bytes.
pub const RESERVED_BYTES_MAX: u64 = 1 << 50;
/// Volumes of the whole tree.
pub const VOLUMES_MAX: usize = 4096;
/// Replicas that a volume may ask for.
pub const VOLUME_REPLICAS_MAX: u8 = 7;
/// Where the numbers of inodes end; those behind belong to snapshots.
pub const INO_END: u64 = 1 << 48;
/// Snapshots of one volume.
pub const VOLUME_SNAPSHOTS_MAX: usize = 256;
/// Snapshots of the whole tree.
pub const SNAPSHOTS_MAX: usize = 4096;
/// Locks of both tables on one inode.
pub const LOCKS_PER_INODE_MAX: usize = 4096;
/// The same with what was locked under a write lease: others may have split theirs since there was room.
pub const LOCKS_RESERVED_MAX: usize = 2 * LOCKS_PER_INODE_MAX;
/// Waiting lock requests on one inode.
pub const WAITS_PER_INODE_MAX: usize = 1024;
/// Owners that one search for a deadlock visits; past it the request may wait.
pub const DEADLOCK_SEARCH_MAX: usize = 1024;
/// Entries, extents, chunks, locks or waits in one snapshot record.
pub const RECORD_ITEMS_MAX: usize = 256;
/// Bytes of one encoded snapshot record.
pub const RECORD_SIZE_MAX: usize = 256 << 10;

/// Bytes that an item of a snapshot record needs at most, besides its name.
const RECORD_ITEM_OVERHEAD: usize = 256;

const _: () = {
    assert!(RECORD_ITEMS_MAX * (NAME_LENGTH_MAX + RECORD_ITEM_OVERHEAD) <= RECORD_SIZE_MAX);
    assert!(XATTR_TOTAL_SIZE_MAX + SYMLINK_LENGTH_MAX + (8 << 10) <= RECORD_SIZE_MAX);
    assert!(XATTR_VALUE_SIZE_MAX + XATTR_NAME_LENGTH_MAX <= XATTR_TOTAL_SIZE_MAX);
    assert!(FILE_SIZE_MAX < i64::MAX as u64);
    assert!(ALLOCATED_MAX.checked_add(FILE_SIZE_MAX).is_some());
    assert!(SNAPSHOTS_MAX < (u16::MAX as usize) / 2 && INO_END == 1 << (64 - u16::BITS));
    assert!(64 * PENDING_CHANGES_MAX <= RESERVED_MAX);
    assert!(VOLUME_REPLICAS_MAX as usize <= REPLICAS_MAX);
    assert!(2 * WRITE_EXTENTS_MAX < EXTENTS_PER_INODE_MAX);
    assert!(COPY_EXTENTS_MAX > 0 && 2 * COPY_EXTENTS_MAX < EXTENTS_PER_INODE_MAX);
};
