//! Joining, membership, certificates and gossip between daemons.

// --- The join handshake: one request and one reply over TLS with server authentication only. ---

/// What a machine says about itself when it asks to join.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct NodeFacts {
    /// Name wanted, in general the host name.
    #[prost(string, tag = "1")]
    pub name: ::prost::alloc::string::String,
    /// "host:port" at which the other nodes reach its daemon. A host of 0.0.0.0 or [::] stands for
    /// the address that the join request came from.
    #[prost(string, repeated, tag = "2")]
    pub addresses: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
    #[prost(uint32, tag = "3")]
    pub cpus: u32,
    #[prost(uint64, tag = "4")]
    pub memory_bytes: u64,
    /// As in `uname -m`.
    #[prost(string, tag = "5")]
    pub architecture: ::prost::alloc::string::String,
    /// As in `uname -r`.
    #[prost(string, tag = "6")]
    pub kernel: ::prost::alloc::string::String,
    /// Version of Unum.
    #[prost(string, tag = "7")]
    pub version: ::prost::alloc::string::String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct JoinRequest {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// 8 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub token_id: ::prost::alloc::vec::Vec<u8>,
    /// 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub secret: ::prost::alloc::vec::Vec<u8>,
    /// PKCS #10, DER.
    #[prost(bytes = "vec", tag = "4")]
    pub csr: ::prost::alloc::vec::Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub facts: ::core::option::Option<NodeFacts>,
    /// "node" or "witness".
    #[prost(string, tag = "6")]
    pub role: ::prost::alloc::string::String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct JoinReply {
    #[prost(oneof = "join_reply::Outcome", tags = "1, 2")]
    pub outcome: ::core::option::Option<join_reply::Outcome>,
}

pub mod join_reply {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Outcome {
        #[prost(message, tag = "1")]
        Accepted(super::JoinAccepted),
        #[prost(message, tag = "2")]
        Refused(super::JoinRefused),
    }
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct JoinAccepted {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// The name given, which may differ from the one wanted.
    #[prost(string, tag = "2")]
    pub name: ::prost::alloc::string::String,
    #[prost(message, optional, tag = "3")]
    pub certificate: ::core::option::Option<Certificate>,
    #[prost(message, repeated, tag = "4")]
    pub peers: ::prost::alloc::vec::Vec<Peer>,
    #[prost(string, tag = "5")]
    pub cluster_name: ::prost::alloc::string::String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct JoinRefused {
    #[prost(enumeration = "JoinRefusalKind", tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub message: ::prost::alloc::string::String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
#[repr(i32)]
pub enum JoinRefusalKind {
    Unspecified = 0,
    UnknownToken = 1,
    TokenExpired = 2,
    TokenUsed = 3,
    WrongRole = 4,
    NameTaken = 5,
    BadRequest = 6,
    /// The cluster cannot decide now (no quorum); the token is not used up.
    Unavailable = 7,
    TooMany = 8,
}

/// A node's certificate with what is needed to use it and to check others.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Certificate {
    /// DER; the node's own first, then the CA's.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub chain: ::prost::alloc::vec::Vec<::prost::alloc::vec::Vec<u8>>,
    /// DER; every CA certificate that the cluster trusts now.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub trusted: ::prost::alloc::vec::Vec<::prost::alloc::vec::Vec<u8>>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Peer {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub name: ::prost::alloc::string::String,
    /// "host:port".
    #[prost(string, repeated, tag = "3")]
    pub addresses: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
}

// --- End of the join handshake. ---

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

// Calls between daemons about membership.

/// A join request, handed on to the leader by the node that the newcomer turned to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AdmitRequest {
    #[prost(message, optional, tag = "1")]
    pub request: Option<JoinRequest>,
    /// `ip:port` from which the newcomer called.
    #[prost(string, tag = "2")]
    pub from: String,
}

/// Asks the leader for the next certificate of the node that calls.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RenewRequest {
    /// PKCS #10, DER.
    #[prost(bytes = "vec", tag = "1")]
    pub csr: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RenewReply {
    #[prost(message, optional, tag = "1")]
    pub certificate: Option<Certificate>,
}

/// Asks another voter for the authority's key.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FetchAuthorityRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FetchAuthorityReply {
    #[prost(string, tag = "1")]
    pub certificate_pem: String,
    #[prost(string, tag = "2")]
    pub key_pem: String,
}

/// One-way messages have no reply.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Nothing {}
