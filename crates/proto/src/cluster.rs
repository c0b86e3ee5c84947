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
