//! The limits of the registry, in one place.

/// A key of a named value.
pub const KEY_SIZE_MAX: usize = 1024;
/// A named value.
pub const VALUE_SIZE_MAX: usize = 64 * 1024;
/// Named values in all.
pub const VALUES_MAX: usize = 1_000_000;
/// Replies kept per lane for repeated requests.
pub const LANE_REPLIES_MAX: usize = 4096;
/// Lanes kept per issuing node; the least recently used one goes first.
pub const NODE_LANES_MAX: usize = 16;
/// Nodes that have not left.
pub const NODES_MAX: usize = 1024;
pub const NODE_NAME_SIZE_MAX: usize = 63;
pub const NODE_ADDRESSES_MAX: usize = 16;
/// An address or another word by which a node describes itself.
pub const NODE_WORD_SIZE_MAX: usize = 255;
/// A reason given by a person or a detector.
pub const WHY_SIZE_MAX: usize = 1024;
pub const CLUSTER_NAME_SIZE_MAX: usize = 63;
/// Certificates of the cluster's authority: the old and the new one, and some room.
pub const AUTHORITIES_MAX: usize = 4;
pub const AUTHORITY_PEM_SIZE_MAX: usize = 16 * 1024;
/// Serial number or fingerprint of a certificate.
pub const CERTIFICATE_FIELD_SIZE_MAX: usize = 64;
/// Join tokens that have not been swept.
pub const TOKENS_MAX: usize = 4096;
pub const TOKEN_TTL_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// A used or expired token is remembered this long past its expiry, so that whoever presents it
/// learns what is wrong with it.
pub const TOKEN_MEMORY_MS: u64 = 24 * 3600 * 1000;
/// PIDs in a block.
pub const PID_BLOCK_SIZE: u32 = 8192;
/// The kernel's ceiling, exclusive.
pub const PID_END: u32 = 4_194_304;
/// The first block that is leased: low PIDs stay for the init of each node's world.
pub const PID_BLOCK_FIRST: u32 = 1;
pub const PID_BLOCK_END: u32 = PID_END / PID_BLOCK_SIZE;
/// Blocks that one node may hold, so that one node cannot take all PIDs.
pub const NODE_PID_BLOCKS_MAX: usize = 32;

const _: () = assert!(PID_END.is_multiple_of(PID_BLOCK_SIZE));
const _: () = assert!(PID_BLOCK_FIRST < PID_BLOCK_END);
