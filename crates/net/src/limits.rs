//! Every limit of the transport, with its unit. What depends on something else is checked when
//! this compiles.

use std::time::Duration;

/// Version of the frame protocol; both sides of a connection must speak the same.
pub const PROTOCOL_VERSION: u32 = 1;

/// A frame's header and body together, in bytes.
pub const FRAME_SIZE_MAX: usize = 4 << 20;
/// A frame's header, in bytes.
pub const FRAME_HEADER_SIZE_MAX: usize = 16 << 10;
/// Length, kind and header length before each frame, in bytes.
pub const FRAME_PREFIX_SIZE: usize = 8;
/// The encoded request or reply of a method, in bytes.
pub const MESSAGE_SIZE_MAX: usize = FRAME_SIZE_MAX - FRAME_HEADER_SIZE_MAX;
/// Free room made before each read from a connection, in bytes.
pub const READ_CHUNK_SIZE: usize = 64 << 10;

/// Name of a method, in bytes.
pub const METHOD_NAME_SIZE_MAX: usize = 128;
/// What a person reads in an error that crosses the wire, in bytes.
pub const STATUS_MESSAGE_SIZE_MAX: usize = 4 << 10;
/// Supplementary groups of a caller that travel along.
pub const CALLER_GROUPS_MAX: usize = 1024;

/// Calls that run at once on one connection.
pub const CALLS_IN_FLIGHT_MAX: usize = 4096;
/// Request bytes held by the calls that run on one connection.
pub const REQUEST_BYTES_IN_FLIGHT_MAX: usize = 64 << 20;
/// Bytes waiting to be written to one connection; senders wait beyond it.
pub const WRITE_QUEUE_BYTES_MAX: usize = 8 << 20;
/// From this size on, a body is queued as it is and not copied behind its header, in bytes.
pub const BODY_COPY_SIZE_MAX: usize = 16 << 10;

/// What one side of a stream may send ahead of the other's reading, in bytes.
pub const STREAM_WINDOW_BULK: u32 = 1 << 20;
pub const STREAM_WINDOW_CONTROL: u32 = 64 << 10;
/// One piece of a stream, in bytes: other frames pass between pieces.
pub const STREAM_PIECE_SIZE_MAX: usize = 32 << 10;
/// Pieces below this are copied out of the buffer that they came in, which may be far larger than
/// what they cost, in bytes.
pub const STREAM_PIECE_COPIED_MAX: usize = 16 << 10;
/// What a piece costs on top of its length, in bytes: many tiny pieces are bounded, too.
pub const STREAM_PIECE_COST: u32 = 64;

/// Replies kept for repeated requests, for one peer.
pub const REPLIES_KEPT_MAX: usize = 4096;
/// The same, in bytes of the replies.
pub const REPLY_BYTES_KEPT_MAX: usize = 8 << 20;
/// Runs of one peer whose replies are kept; the one least recently heard goes first.
pub const LANES_PER_PEER_MAX: usize = 16;

/// Connections that a server accepts at once.
pub const CONNECTIONS_MAX: usize = 4096;
/// Connections that have not shown who they are yet.
pub const HANDSHAKES_MAX: usize = 256;
/// Connections of one local user: no user keeps the others out.
pub const CONNECTIONS_PER_USER_MAX: usize = 512;
/// Machines that ask to join at once, none of which has shown yet that it may.
pub const JOINS_MAX: usize = 64;
/// From accepting a connection to its hello.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Join requests that are looked at in one second, after a burst of `JOIN_BURST_MAX`.
pub const JOIN_RATE_PER_SECOND: u32 = 10;
pub const JOIN_BURST_MAX: u32 = 20;
/// One join, handshake included.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// A join request or reply, in bytes.
pub const JOIN_MESSAGE_SIZE_MAX: usize = 64 << 10;

/// Answers `Moved` that one call follows.
pub const MOVED_HOPS_MAX: u32 = 8;
/// Names whose place is remembered.
pub const HINTS_MAX: usize = 65_536;
/// Addresses of one node.
pub const ADDRESSES_PER_NODE_MAX: usize = 16;

/// First and longest wait before a peer is dialled again.
pub const REDIAL_BACKOFF_MIN: Duration = Duration::from_millis(20);
pub const REDIAL_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// One attempt to reach one address, handshakes included.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = assert!(CONNECTIONS_PER_USER_MAX < CONNECTIONS_MAX);
const _: () = assert!(HANDSHAKES_MAX + JOINS_MAX < CONNECTIONS_MAX);
const _: () = assert!(FRAME_SIZE_MAX < u32::MAX as usize);
const _: () = assert!(FRAME_HEADER_SIZE_MAX < 1 << 24);
const _: () = assert!(
    CALLER_GROUPS_MAX * 5 + METHOD_NAME_SIZE_MAX + STATUS_MESSAGE_SIZE_MAX + 512
        < FRAME_HEADER_SIZE_MAX
);
const _: () =
    assert!(STREAM_PIECE_SIZE_MAX + (STREAM_PIECE_COST as usize) < STREAM_WINDOW_CONTROL as usize);
const _: () = assert!((STREAM_WINDOW_BULK as usize) < WRITE_QUEUE_BYTES_MAX);
const _: () = assert!(MESSAGE_SIZE_MAX < WRITE_QUEUE_BYTES_MAX);
