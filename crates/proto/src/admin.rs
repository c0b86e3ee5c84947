//! The local API: what `unum` asks of its own node's daemon.
//!
//! One request and one reply for each method; the method's name stands above its request. The
//! caller is whoever the socket's peer credentials say. A daemon that belongs to no cluster yet
//! answers `admin.status`, `admin.create`, `admin.join` and `admin.down`; it refuses the rest with a
//! status that says so.
//!
//! Times are Unix time in milliseconds. A field that has nothing to say is 0 or empty.

use prost::{Enumeration, Message};

use crate::tree::VolumeSettings;

/// Where a node stands in the life of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum NodeState {
    Unspecified = 0,
    /// Admitted, not heard of yet.
    Joining = 1,
    Alive = 2,
    /// Somebody missed its answers; not yet given up.
    Suspect = 3,
    Dead = 4,
    /// Handing over what it holds, on its way out.
    Leaving = 5,
}

impl NodeState {
    /// The word that people and JSON see. Stable.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Joining => "joining",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Leaving => "leaving",
        }
    }
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum NodeRole {
    Unspecified = 0,
    /// Votes when chosen, stores chunks, runs programs.
    Node = 1,
    /// Votes; stores no chunks and runs no programs.
    Witness = 2,
}

impl NodeRole {
    /// The word that people and JSON see. Stable.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Node => "node",
            Self::Witness => "witness",
        }
    }
}

/// What the daemon that answers is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum DaemonState {
    Unspecified = 0,
    /// Belongs to no cluster: waits for `admin.create` or `admin.join`.
    Solitary = 1,
    /// Reads its disk or looks for its peers.
    Starting = 2,
    /// Serves everything.
    Ready = 3,
    /// Belongs to a cluster but reaches no majority: changes are refused.
    NoQuorum = 4,
    Stopping = 5,
}

impl DaemonState {
    /// The word that people and JSON see. Stable.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Solitary => "solitary",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::NoQuorum => "no-quorum",
            Self::Stopping => "stopping",
        }
    }
}

/// `admin.create`: makes a new cluster whose first node this is. Refused when the daemon already
/// belongs to one.
#[derive(Clone, PartialEq, Message)]
pub struct CreateRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct CreateReply {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub cluster: String,
}

/// `admin.join`: joins the cluster that made the token. Returns when the node is admitted and its
/// certificate is on disk.
#[derive(Clone, PartialEq, Message)]
pub struct JoinRequest {
    /// As printed by `unum token create`.
    #[prost(string, tag = "1")]
    pub token: String,
    /// HOST:PORT of any member, tried in order.
    #[prost(string, repeated, tag = "2")]
    pub addresses: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct JoinReply {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub cluster: String,
}

/// `admin.leave`: hands over what this node holds, leaves the cluster and forgets it. The daemon
/// then is solitary.
#[derive(Clone, PartialEq, Message)]
pub struct LeaveRequest {
    /// Leave even when that loses data or the majority.
    #[prost(bool, tag = "1")]
    pub force: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct LeaveReply {}

/// `admin.remove`: declares another node gone for good. Its certificate is refused from then on.
#[derive(Clone, PartialEq, Message)]
pub struct RemoveRequest {
    /// A name or a numeric id.
    #[prost(string, tag = "1")]
    pub node: String,
    /// Remove it even when it is alive, or when that loses data or the majority.
    #[prost(bool, tag = "2")]
    pub force: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct RemoveReply {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub name: String,
}

/// `admin.down`: unmounts, stops the node's world and ends the daemon after the reply. The node
/// stays a member.
#[derive(Clone, PartialEq, Message)]
pub struct DownRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct DownReply {
    /// The daemon's process, so that the caller can wait for its end.
    #[prost(uint32, tag = "1")]
    pub daemon_pid: u32,
}

/// `admin.nodes`: every member.
#[derive(Clone, PartialEq, Message)]
pub struct NodesRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct NodesReply {
    /// Ordered by id.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<Node>,
    /// No majority of the voters answered: this is what the node knew last.
    #[prost(bool, tag = "2")]
    pub no_quorum: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Node {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(enumeration = "NodeState", tag = "3")]
    pub state: i32,
    #[prost(enumeration = "NodeRole", tag = "4")]
    pub role: i32,
    #[prost(bool, tag = "5")]
    pub voter: bool,
    #[prost(bool, tag = "6")]
    pub leader: bool,
    /// HOST:PORT where its peers reach it.
    #[prost(string, tag = "7")]
    pub address: String,
    #[prost(uint32, tag = "8")]
    pub cores: u32,
    /// Runnable tasks, one-minute average, in thousandths.
    #[prost(uint32, tag = "9")]
    pub load_milli: u32,
    #[prost(uint64, tag = "10")]
    pub memory_bytes: u64,
    #[prost(uint64, tag = "11")]
    pub memory_free_bytes: u64,
    #[prost(uint64, tag = "12")]
    pub epoch: u64,
    #[prost(string, tag = "13")]
    pub version: String,
    #[prost(uint64, tag = "14")]
    pub joined_ms: u64,
    /// When this node last heard of it; 0 for the node that answers.
    #[prost(uint64, tag = "15")]
    pub heard_ms: u64,
    /// Programs that run there for the cluster.
    #[prost(uint32, tag = "16")]
    pub processes: u32,
    /// As `uname -m` says.
    #[prost(string, tag = "17")]
    pub arch: String,
}

/// `admin.status`: this node and the health of the cluster as it sees it.
#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct StatusReply {
    #[prost(enumeration = "DaemonState", tag = "1")]
    pub state: i32,
    /// Empty while solitary, as all that follows but `daemon_pid`, `version` and `started_ms`.
    #[prost(string, tag = "2")]
    pub cluster: String,
    #[prost(uint64, tag = "3")]
    pub node: u64,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(string, tag = "5")]
    pub address: String,
    /// 0 while no leader is known.
    #[prost(uint64, tag = "6")]
    pub leader: u64,
    #[prost(uint64, tag = "7")]
    pub term: u64,
    /// The registry's newest index applied here.
    #[prost(uint64, tag = "8")]
    pub applied: u64,
    #[prost(uint32, tag = "9")]
    pub nodes: u32,
    #[prost(uint32, tag = "10")]
    pub nodes_alive: u32,
    #[prost(uint32, tag = "11")]
    pub voters: u32,
    #[prost(uint32, tag = "12")]
    pub voters_alive: u32,
    /// How many more nodes may be lost at once, whichever they are, with nothing lost or stopped.
    #[prost(uint32, tag = "13")]
    pub losses_survivable: u32,
    /// Why not more, as a sentence.
    #[prost(string, tag = "14")]
    pub losses_reason: String,
    /// Chunks with fewer replicas than wanted.
    #[prost(uint64, tag = "15")]
    pub chunks_degraded: u64,
    #[prost(uint64, tag = "16")]
    pub certificate_expires_ms: u64,
    /// Where the file tree is mounted; empty when it is not.
    #[prost(string, tag = "17")]
    pub mount: String,
    #[prost(string, tag = "18")]
    pub version: String,
    #[prost(uint32, tag = "19")]
    pub daemon_pid: u32,
    #[prost(uint64, tag = "20")]
    pub started_ms: u64,
    /// What an operator should know, one sentence each: a full disk, a missing right, a lost clock.
    #[prost(string, repeated, tag = "21")]
    pub warnings: Vec<String>,
    /// What is being done for the contents of files.
    #[prost(message, optional, tag = "22")]
    pub upkeep: Option<Upkeep>,
}

/// How the contents of files are kept.
#[derive(Clone, PartialEq, Message)]
pub struct Upkeep {
    /// In the whole cluster: replicas that are being made because there are too few.
    #[prost(message, optional, tag = "1")]
    pub repair: Option<Work>,
    /// In the whole cluster: replicas on their way to other nodes.
    #[prost(message, optional, tag = "2")]
    pub moving: Option<Work>,
    /// Chunks that need replicas and that no living node holds.
    #[prost(uint64, tag = "3")]
    pub chunks_without_source: u64,
    /// On the node that answers.
    #[prost(message, optional, tag = "4")]
    pub scrub: Option<Scrub>,
}

/// Copying, and how long it will take.
#[derive(Clone, PartialEq, Message)]
pub struct Work {
    #[prost(uint64, tag = "1")]
    pub chunks: u64,
    /// Bytes still to be copied.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Bytes copied since there was nothing to do.
    #[prost(uint64, tag = "3")]
    pub done_bytes: u64,
    /// Bytes per second; 0: not known yet, or nothing moves.
    #[prost(uint64, tag = "4")]
    pub rate: u64,
    /// 0: not known.
    #[prost(uint64, tag = "5")]
    pub left_ms: u64,
}

/// The reading of everything that a node holds, to find rot.
#[derive(Clone, PartialEq, Message)]
pub struct Scrub {
    /// 0: it rests.
    #[prost(uint64, tag = "1")]
    pub began_ms: u64,
    /// Of this one, or of the last one if it rests.
    #[prost(uint64, tag = "2")]
    pub checked_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub total_bytes: u64,
    /// When the last one ended; 0: never.
    #[prost(uint64, tag = "4")]
    pub finished_ms: u64,
    /// Replicas here that were missing or damaged, since the node joined.
    #[prost(uint64, tag = "5")]
    pub found: u64,
    /// Those of them that were mended.
    #[prost(uint64, tag = "6")]
    pub mended: u64,
    /// Those that cannot be mended now, since no other node has a good replica.
    #[prost(uint64, tag = "7")]
    pub unmended: u64,
}

/// `admin.fsck`: checks the tree, and the stores of all nodes against it. The stream brings
/// [`FsckEvent`]s, each behind its length in four bytes, big endian.
#[derive(Clone, PartialEq, Message)]
pub struct FsckRequest {
    /// Reads all contents.
    #[prost(bool, tag = "1")]
    pub deep: bool,
    #[prost(bool, tag = "2")]
    pub repair: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct FsckEvent {
    #[prost(oneof = "fsck_event::Kind", tags = "1, 2")]
    pub kind: Option<fsck_event::Kind>,
}

pub mod fsck_event {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Progress(super::FsckProgress),
        #[prost(message, tag = "2")]
        Finding(super::FsckFinding),
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct FsckProgress {
    /// What is being done.
    #[prost(string, tag = "1")]
    pub what: String,
    /// Replicas looked at, and all of them; 0 while that is not what is done.
    #[prost(uint64, tag = "2")]
    pub done: u64,
    #[prost(uint64, tag = "3")]
    pub total: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct FsckFinding {
    #[prost(enumeration = "FindingKind", tag = "1")]
    pub kind: i32,
    /// What is wrong, as a sentence.
    #[prost(string, tag = "2")]
    pub what: String,
    /// The node's name; empty where none is to blame.
    #[prost(string, tag = "3")]
    pub node: String,
    #[prost(string, tag = "4")]
    pub chunk: String,
    /// The file's inode; 0 where there is none.
    #[prost(uint64, tag = "5")]
    pub ino: u64,
    /// Below the mount; empty where it has no name.
    #[prost(bytes = "vec", tag = "6")]
    pub path: Vec<u8>,
    #[prost(bool, tag = "7")]
    pub mended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum FindingKind {
    Unspecified = 0,
    /// The tree breaks one of its own rules.
    Tree = 1,
    /// A replica is not there.
    Missing = 2,
    /// A replica has the wrong length.
    Length = 3,
    /// A replica's content is not what was written.
    Rotten = 4,
    /// Too few nodes that live hold a chunk.
    Replicas = 5,
    /// No node that lives holds a chunk.
    Lost = 6,
    /// A node keeps a chunk that nobody wants, for longer than it should.
    Garbage = 7,
    /// A node could not be asked.
    Unchecked = 8,
}

impl FindingKind {
    /// The word that people and JSON see. Stable.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Tree => "tree",
            Self::Missing => "missing",
            Self::Length => "length",
            Self::Rotten => "rotten",
            Self::Replicas => "replicas",
            Self::Lost => "lost",
            Self::Garbage => "garbage",
            Self::Unchecked => "unchecked",
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct FsckReply {
    #[prost(uint64, tag = "1")]
    pub inodes: u64,
    #[prost(uint64, tag = "2")]
    pub chunks: u64,
    #[prost(uint64, tag = "3")]
    pub replicas: u64,
    /// Of all replicas that were looked at.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// Everything that is wrong, also what was too much to be told one by one.
    #[prost(uint64, tag = "5")]
    pub found: u64,
    #[prost(uint64, tag = "6")]
    pub mended: u64,
    /// Nodes that could not be asked.
    #[prost(uint64, tag = "7")]
    pub unchecked: u64,
    /// Deleted chunks whose room is not freed yet, and their bytes. Nothing is wrong with them.
    #[prost(uint64, tag = "8")]
    pub young_garbage: u64,
    #[prost(uint64, tag = "9")]
    pub young_garbage_bytes: u64,
    /// The names of nodes that were not asked, since they are dead.
    #[prost(string, repeated, tag = "10")]
    pub dead: Vec<String>,
}

/// `admin.token-create`: root only.
#[derive(Clone, PartialEq, Message)]
pub struct TokenCreateRequest {
    #[prost(uint64, tag = "1")]
    pub ttl_ms: u64,
    #[prost(enumeration = "NodeRole", tag = "2")]
    pub role: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct TokenCreateReply {
    /// The secret. Shown once; the registry keeps only its hash.
    #[prost(string, tag = "1")]
    pub token: String,
    /// A public name of the token, for listing and revoking.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Where the new node should turn to, best first.
    #[prost(string, repeated, tag = "3")]
    pub addresses: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub expires_ms: u64,
}

/// `admin.token-list`: tokens neither used, revoked nor expired. Root only.
#[derive(Clone, PartialEq, Message)]
pub struct TokenListRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct TokenListReply {
    #[prost(message, repeated, tag = "1")]
    pub tokens: Vec<Token>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Token {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(enumeration = "NodeRole", tag = "2")]
    pub role: i32,
    #[prost(uint64, tag = "3")]
    pub created_ms: u64,
    #[prost(uint64, tag = "4")]
    pub expires_ms: u64,
}

/// `admin.token-revoke`: root only.
#[derive(Clone, PartialEq, Message)]
pub struct TokenRevokeRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct TokenRevokeReply {}

/// `admin.value-get`: a named value of the registry, linearizable.
#[derive(Clone, PartialEq, Message)]
pub struct ValueGetRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueGetReply {
    /// Absent when there is no such name.
    #[prost(message, optional, tag = "1")]
    pub value: Option<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", tag = "2")]
    pub content: Vec<u8>,
    /// Grows with each put; 1 is the first.
    #[prost(uint64, tag = "3")]
    pub version: u64,
    /// In a listing `content` is left out and this tells its length.
    #[prost(uint64, tag = "4")]
    pub size_bytes: u64,
}

/// `admin.value-put`.
#[derive(Clone, PartialEq, Message)]
pub struct ValuePutRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", tag = "2")]
    pub content: Vec<u8>,
    /// Put only if the current version is this; 0: only if the name is new.
    #[prost(uint64, optional, tag = "3")]
    pub if_version: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValuePutReply {
    /// False when `if_version` did not match; `version` then is the one found (0: none).
    #[prost(bool, tag = "1")]
    pub done: bool,
    #[prost(uint64, tag = "2")]
    pub version: u64,
}

/// `admin.value-list`: names that begin with a prefix, in order, without their contents.
#[derive(Clone, PartialEq, Message)]
pub struct ValueListRequest {
    #[prost(string, tag = "1")]
    pub prefix: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueListReply {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

/// `admin.value-delete`.
#[derive(Clone, PartialEq, Message)]
pub struct ValueDeleteRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, optional, tag = "2")]
    pub if_version: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueDeleteReply {
    /// False when there was no such name or `if_version` did not match.
    #[prost(bool, tag = "1")]
    pub done: bool,
    /// The version found; 0 when there was none.
    #[prost(uint64, tag = "2")]
    pub version: u64,
}

/// A part of the file tree with settings and limits of its own.
#[derive(Clone, PartialEq, Message)]
pub struct Volume {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// The inode number of its root.
    #[prost(uint64, tag = "2")]
    pub root: u64,
    /// From the root of the file tree on, without a slash before it.
    #[prost(bytes = "vec", tag = "3")]
    pub path: Vec<u8>,
    /// Of each chunk of its files, while there are enough nodes.
    #[prost(uint32, tag = "4")]
    pub replicas: u32,
    /// That is the cluster's setting, as this node has it.
    #[prost(bool, tag = "5")]
    pub replicas_usual: bool,
    /// 0: no limit.
    #[prost(uint64, tag = "6")]
    pub quota_bytes: u64,
    #[prost(uint64, tag = "7")]
    pub quota_inodes: u64,
    /// Before replication. Without what other nodes changed in the last second.
    #[prost(uint64, tag = "8")]
    pub used_bytes: u64,
    #[prost(uint64, tag = "9")]
    pub used_inodes: u64,
    #[prost(uint32, tag = "60")]
    pub snapshots: u32,
    /// Of chunks that only these need, before replication.
    #[prost(uint64, tag = "61")]
    pub snapshot_bytes: u64,
}

/// What a volume was at one moment.
#[derive(Clone, PartialEq, Message)]
pub struct Snapshot {
    #[prost(uint32, tag = "1")]
    pub volume: u32,
    /// That of the volume, as there.
    #[prost(bytes = "vec", tag = "2")]
    pub path: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub name: Vec<u8>,
    /// Since the Unix epoch.
    #[prost(uint64, tag = "4")]
    pub time_ns: u64,
    /// What would go with this one alone, before replication.
    #[prost(uint64, tag = "5")]
    pub alone_bytes: u64,
}

/// `admin.snapshot-create`: takes a snapshot of the volume that an inode is in.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotCreateRequest {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub name: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SnapshotCreateReply {
    #[prost(message, optional, tag = "1")]
    pub snapshot: Option<Snapshot>,
}

/// `admin.snapshot-delete`: of the volume that an inode is in.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotDeleteRequest {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub name: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SnapshotDeleteReply {}

/// `admin.snapshot-list`: all of them, or those of the volume that an inode is in.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotListRequest {
    #[prost(uint64, optional, tag = "1")]
    pub ino: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SnapshotListReply {
    #[prost(message, repeated, tag = "1")]
    pub snapshots: Vec<Snapshot>,
}

/// `admin.volume-create`: makes an empty directory that is the root of a new volume.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeCreateRequest {
    /// The inode number of the directory that it is made in.
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub name: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub settings: Option<VolumeSettings>,
}

#[derive(Clone, PartialEq, Message)]
pub struct VolumeCreateReply {
    #[prost(message, optional, tag = "1")]
    pub volume: Option<Volume>,
}

/// `admin.volume-set`: what is absent in the settings stays as it is.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeSetRequest {
    /// The inode number of the volume's root.
    #[prost(uint64, tag = "1")]
    pub root: u64,
    #[prost(message, optional, tag = "2")]
    pub settings: Option<VolumeSettings>,
}

#[derive(Clone, PartialEq, Message)]
pub struct VolumeSetReply {
    #[prost(message, optional, tag = "1")]
    pub volume: Option<Volume>,
}

/// `admin.volume-list`: all volumes, or the one that an inode is in.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeListRequest {
    #[prost(uint64, optional, tag = "1")]
    pub ino: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct VolumeListReply {
    #[prost(message, repeated, tag = "1")]
    pub volumes: Vec<Volume>,
}
