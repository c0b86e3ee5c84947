//! Joining, membership, certificates and gossip between daemons.

// Gossip. A packet is one header, a count of member updates, the updates, and load reports, each
// with its length in front. Packets travel as one-way messages on control connections.

/// One run of a node's daemon, as gossip tells runs apart: the greater `run` is the newer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GossipIdentity {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub run: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GossipHeader {
    #[prost(message, optional, tag = "1")]
    pub source: Option<GossipIdentity>,
    #[prost(uint32, tag = "2")]
    pub incarnation: u32,
    #[prost(message, optional, tag = "3")]
    pub destination: Option<GossipIdentity>,
    #[prost(enumeration = "GossipKind", tag = "4")]
    pub kind: i32,
    #[prost(uint32, tag = "5")]
    pub probe: u32,
    /// The third party of an indirect probe.
    #[prost(message, optional, tag = "6")]
    pub third: Option<GossipIdentity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum GossipKind {
    Unspecified = 0,
    Ping = 1,
    Ack = 2,
    PingRequest = 3,
    IndirectPing = 4,
    IndirectAck = 5,
    ForwardedAck = 6,
    Announce = 7,
    Feed = 8,
    Gossip = 9,
    Broadcast = 10,
    TurnUndead = 11,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GossipMember {
    #[prost(message, optional, tag = "1")]
    pub identity: Option<GossipIdentity>,
    #[prost(uint32, tag = "2")]
    pub incarnation: u32,
    #[prost(enumeration = "GossipState", tag = "3")]
    pub state: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum GossipState {
    Unspecified = 0,
    Alive = 1,
    Suspect = 2,
    Down = 3,
}

/// What a node has to offer now. A hint for placement and for people; nothing is decided by it
/// alone.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Load {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub run: u64,
    /// Grows with each report of a run; the newest replaces the others.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
    #[prost(uint32, tag = "4")]
    pub cores: u32,
    /// Tasks that ran or wanted to run, averaged over a minute, in thousandths.
    #[prost(uint32, tag = "5")]
    pub load_milli: u32,
    /// Tasks running or waiting for a CPU at the moment of the report.
    #[prost(uint32, tag = "6")]
    pub runnable: u32,
    /// Programs of the cluster's users on this node.
    #[prost(uint32, tag = "7")]
    pub programs: u32,
    #[prost(uint64, tag = "8")]
    pub memory_total: u64,
    #[prost(uint64, tag = "9")]
    pub memory_free: u64,
    #[prost(uint64, tag = "10")]
    pub storage_total: u64,
    #[prost(uint64, tag = "11")]
    pub storage_free: u64,
    #[prost(uint64, tag = "12")]
    pub epoch: u64,
    /// The registry's log index applied here.
    #[prost(uint64, tag = "13")]
    pub applied: u64,
}

/// A gossip packet as it is cast from node to node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GossipPacket {
    #[prost(bytes = "bytes", tag = "1")]
    pub packet: bytes::Bytes,
}
