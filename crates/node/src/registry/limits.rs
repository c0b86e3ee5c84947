//! The limits and times of the consensus shell, each with its unit.

use std::time::Duration;

/// Commands in one log entry.
pub const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes of commands in one log entry. A single command may be larger, up to `COMMAND_BYTES_MAX`.
pub const BATCH_BYTES_MAX: usize = 512 << 10;
/// One encoded command with its envelope.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Batches that are on their way at once.
pub const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Groups of commands that wait for a batch; beyond it callers are told to come later.
pub const PROPOSE_QUEUE_MAX: usize = 8192;
/// Readers that wait for a barrier.
pub const BARRIER_QUEUE_MAX: usize = 8192;
/// Bytes of log entries in one append message.
pub const APPEND_BYTES_MAX: usize = 2 << 20;
/// Log entries in one append message.
pub const APPEND_ENTRIES_MAX: u64 = 256;
/// Requests that wait for the log's writer.
pub const WRITER_QUEUE_MAX: usize = 4096;
/// Bytes of log records that go into one group: one write and one sync.
pub const WRITER_GROUP_BYTES_MAX: usize = 8 << 20;
pub const WRITER_GROUP_RECORDS_MAX: usize = 8192;
/// A piece of a snapshot on the network.
pub const SNAPSHOT_PIECE_BYTES: usize = 512 << 10;
/// One record of a snapshot.
pub const SNAPSHOT_RECORD_BYTES_MAX: usize = 8 << 20;
/// Bytes of log since the last snapshot that call for a new one.
pub const SNAPSHOT_LOG_BYTES: u64 = 32 << 20;
/// Log entries kept behind a snapshot, so that a follower that lags a little needs no snapshot.
pub const LOG_KEPT_ENTRIES: u64 = 256;

/// Room that proposals leave on the disk, so that votes and the log of a follower find some.
pub const DISK_HEADROOM_BYTES: u64 = 48 << 20;
/// The reserve file, given up when even the headroom is gone.
pub const DISK_RESERVE_BYTES: u64 = 8 << 20;
/// How often a full disk is looked at again.
pub const DISK_RETRY: Duration = Duration::from_millis(100);
/// How often room is looked at while entries come, or while there is none.
pub const DISK_CHECK: Duration = Duration::from_millis(500);
/// How often room is looked at while no entries come: others may fill the disk, or empty it.
pub const DISK_CHECK_QUIET: Duration = Duration::from_secs(5);

/// What `propose` and `barrier` wait for unless the caller says otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// One attempt to hand commands to the leader.
pub const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts.
pub const RETRY_PAUSE: Duration = Duration::from_millis(15);
/// One piece of a snapshot, and its installation. If the answer is lost, the follower stands still
/// for as long; an installation that takes longer goes on and shows at the next attempt.
pub const SNAPSHOT_PIECE_TIMEOUT: Duration = Duration::from_secs(3);
pub const SNAPSHOT_INSTALL_TIMEOUT: Duration = Duration::from_secs(12);
/// What a shutdown waits for the log's writer, which may itself wait for a full disk.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = assert!(BATCH_BYTES_MAX <= COMMAND_BYTES_MAX);
const _: () = assert!(COMMAND_BYTES_MAX < APPEND_BYTES_MAX);
const _: () = assert!(SNAPSHOT_RECORD_BYTES_MAX > COMMAND_BYTES_MAX);
