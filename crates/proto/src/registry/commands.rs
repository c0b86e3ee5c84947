//! What is asked of the registry.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::{Description, Role};
use crate::tree::TreeCommand;

/// The first command of a cluster. It makes the issuer node 1, up, at epoch 1.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Found {
    /// 16 random bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
    #[prost(string, tag = "2")]
    pub name: String,
    /// The certificates of the cluster's authority, never its key.
    #[prost(string, repeated, tag = "3")]
    pub authorities_pem: Vec<String>,
    #[prost(string, tag = "4")]
    pub node_name: String,
    #[prost(message, optional, tag = "5")]
    pub description: Option<Description>,
}

/// Replaces the certificates that members trust: during a rollover both the old and the new one.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SetAuthorities {
    #[prost(string, repeated, tag = "1")]
    pub authorities_pem: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct CreateToken {
    /// blake3 of the secret; the secret itself is never stored.
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
    #[prost(enumeration = "Role", tag = "2")]
    pub role: i32,
    #[prost(uint64, tag = "3")]
    pub ttl_ms: u64,
    /// The user who asked for it, on the node that issued the command.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct RevokeToken {
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
}

/// Uses up a token and gives the newcomer its id, in one step.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegisterNode {
    #[prost(bytes = "bytes", tag = "1")]
    pub token_hash: Bytes,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(enumeration = "Role", tag = "3")]
    pub role: i32,
    #[prost(message, optional, tag = "4")]
    pub description: Option<Description>,
}

/// A node's daemon has started: its epoch grows, so that nothing of its former run is obeyed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeUp {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// The epoch that the daemon saw last. Anything else means that this command is a late one.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(message, optional, tag = "3")]
    pub description: Option<Description>,
    /// Names the life of the node's world. With another one than before, what the node held in the
    /// file tree (open files without a name, locks) is released: its programs are gone. Empty: not
    /// told.
    #[prost(bytes = "bytes", tag = "4")]
    pub boot: Bytes,
}

/// A node is held for dead: its epoch grows, so that what it still says is refused until it has
/// come up again.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeDown {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(string, tag = "3")]
    pub why: String,
}

/// A node goes of its own will. It keeps nothing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeaveNode {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Refuse if the node holds the only copy of anything.
    #[prost(bool, tag = "3")]
    pub keep_files: bool,
}

/// A node is expelled, whether it lives or not. It never comes back under this id.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RemoveNode {
    #[prost(uint64, tag = "1")]
    pub node: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct CertificateIssued {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub serial: Bytes,
    /// SHA-256 of the DER encoding.
    #[prost(bytes = "bytes", tag = "3")]
    pub fingerprint: Bytes,
    #[prost(uint64, tag = "4")]
    pub not_after_ns: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeasePids {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
}

/// Gives a block back. The node promises that no process with a PID of it is left.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReturnPids {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(uint32, tag = "3")]
    pub block: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct PutValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeleteValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
}

/// Changes a value only if its version is the expected one. 0 stands for "there is none".
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CompareAndSet {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(uint64, tag = "2")]
    pub expected: u64,
    /// Absent: delete.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub value: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Command {
    #[prost(
        oneof = "command::Kind",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20"
    )]
    pub kind: Option<command::Kind>,
}

pub mod command {
    use super::*;

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Found(Found),
        #[prost(message, tag = "2")]
        SetAuthorities(SetAuthorities),
        #[prost(message, tag = "3")]
        CreateToken(CreateToken),
        #[prost(message, tag = "4")]
        RevokeToken(RevokeToken),
        #[prost(message, tag = "5")]
        RegisterNode(RegisterNode),
        #[prost(message, tag = "6")]
        NodeUp(NodeUp),
        #[prost(message, tag = "7")]
        NodeDown(NodeDown),
        #[prost(message, tag = "8")]
        LeaveNode(LeaveNode),
        #[prost(message, tag = "9")]
        RemoveNode(RemoveNode),
        #[prost(message, tag = "10")]
        CertificateIssued(CertificateIssued),
        #[prost(message, tag = "11")]
        LeasePids(LeasePids),
        #[prost(message, tag = "12")]
        ReturnPids(ReturnPids),
        #[prost(message, tag = "13")]
        PutValue(PutValue),
        #[prost(message, tag = "14")]
        DeleteValue(DeleteValue),
        #[prost(message, tag = "15")]
        CompareAndSet(CompareAndSet),
        #[prost(message, tag = "20")]
        Tree(TreeCommand),
    }
}

impl From<command::Kind> for Command {
    fn from(kind: command::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}
