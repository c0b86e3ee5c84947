//! What read leases add to the calls of consensus, and their own call.

use prost::Message;

use super::ShellOutcome;

/// A reading of the clock of a node that wants a read lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseMark {
    /// Which life of the node's caches; later ones have larger numbers.
    #[prost(fixed64, tag = "1")]
    pub life: u64,
    /// Nanoseconds since a moment of the node's own.
    #[prost(fixed64, tag = "2")]
    pub at_ns: u64,
}

/// Tells the leader how far a node has confirmed the log, and asks to be told when the log is stable
/// up to an entry: when no holder of a read lease can show what was before it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StableRequest {
    #[prost(fixed64, tag = "1")]
    pub life: u64,
    #[prost(uint64, tag = "2")]
    pub confirmed: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StableReply {
    #[prost(enumeration = "ShellOutcome", tag = "1")]
    pub outcome: i32,
    /// With `Ok`: the log is stable up to here. It may be less than what was asked for: ask again.
    #[prost(uint64, tag = "2")]
    pub index: u64,
}
