//! Commands and replies of the replicated registry, its log entries and snapshots, and the calls
//! between the daemons' consensus shells.
//!
//! A command travels as encoded bytes from its issuer to the log: `Batch.proposals` has the same
//! encoding whether it is read as messages or as opaque byte strings, so the leader builds a log
//! entry without decoding what it received.

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use crate::tree::{TreeCommand, TreeRecord, TreeReply};

/// What a node may do in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Role {
    Unspecified = 0,
    /// Runs programs and stores file contents.
    Node = 1,
    /// Votes only, so that two nodes survive the loss of one.
    Witness = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum NodeState {
    Unspecified = 0,
    Joining = 1,
    Up = 2,
    Down = 3,
    Left = 4,
    Removed = 5,
}

/// What a node says of itself, refreshed each time that it comes up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Description {
    /// `host:port`, the preferred one first.
    #[prost(string, repeated, tag = "1")]
    pub addresses: Vec<String>,
    #[prost(uint32, tag = "2")]
    pub cores: u32,
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
    /// As in `uname -m`.
    #[prost(string, tag = "4")]
    pub architecture: String,
    /// The software version of its daemon.
    #[prost(string, tag = "5")]
    pub version: String,
}

// ---------------------------------------------------------------------------------------------
// Commands
// ---------------------------------------------------------------------------------------------

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

// ---------------------------------------------------------------------------------------------
// Replies
// ---------------------------------------------------------------------------------------------

/// Why the registry did not do what a command asked. The numbers are the wire form of
/// `unum_core::registry::Refused`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refusal {
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Numbers that belong to the code: an epoch, a version, a limit.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// A name that belongs to the code.
    #[prost(string, tag = "3")]
    pub text: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct Done {}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeEpoch {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidBlock {
    #[prost(uint32, tag = "1")]
    pub block: u32,
    #[prost(uint32, tag = "2")]
    pub first: u32,
    #[prost(uint32, tag = "3")]
    pub count: u32,
}

/// The version that a value has after the command; 0 when there is none.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Version {
    #[prost(uint64, tag = "1")]
    pub version: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    #[prost(oneof = "reply::Kind", tags = "1, 2, 3, 4, 5, 20")]
    pub kind: Option<reply::Kind>,
}

pub mod reply {
    use super::*;

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Refused(Refusal),
        #[prost(message, tag = "2")]
        Done(Done),
        #[prost(message, tag = "3")]
        Node(NodeEpoch),
        #[prost(message, tag = "4")]
        Pids(PidBlock),
        #[prost(message, tag = "5")]
        Version(Version),
        #[prost(message, tag = "20")]
        Tree(TreeReply),
    }
}

impl From<reply::Kind> for Reply {
    fn from(kind: reply::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

// ---------------------------------------------------------------------------------------------
// The log
// ---------------------------------------------------------------------------------------------

/// A command on its way to the log.
#[derive(Clone, PartialEq, Message)]
pub struct Proposal {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// The node that issues it; 0 is the cluster itself (never accepted from another node).
    #[prost(uint64, tag = "3")]
    pub node: u64,
    /// The issuer's epoch.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    #[prost(message, optional, tag = "5")]
    pub command: Option<Command>,
}

/// The payload of one log entry, as the state machine reads it.
#[derive(Clone, PartialEq, Message)]
pub struct Batch {
    /// The leader's clock when it closed the batch, in ns since 1970, never less than before.
    #[prost(fixed64, tag = "1")]
    pub time_ns: u64,
    #[prost(message, repeated, tag = "2")]
    pub proposals: Vec<Proposal>,
}

/// The same payload, as the leader writes it.
#[derive(Clone, PartialEq, Message)]
pub struct RawBatch {
    #[prost(fixed64, tag = "1")]
    pub time_ns: u64,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub proposals: Vec<Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogId {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub index: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Vote {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(bool, tag = "3")]
    pub committed: bool,
}

/// Who votes and who only listens. Two voter sets while one replaces the other.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Membership {
    #[prost(message, repeated, tag = "1")]
    pub voters: Vec<VoterSet>,
    /// All members, voters included.
    #[prost(uint64, repeated, tag = "2")]
    pub members: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct VoterSet {
    #[prost(uint64, repeated, tag = "1")]
    pub nodes: Vec<u64>,
}

/// An entry of the log, on the wire and on disk. Neither payload: a blank entry.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(message, optional, tag = "1")]
    pub id: Option<LogId>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub batch: Option<Bytes>,
    #[prost(message, optional, tag = "3")]
    pub membership: Option<Membership>,
}

/// The last entry that is left; absent when none is.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogPosition {
    #[prost(message, optional, tag = "1")]
    pub last: Option<LogId>,
}

// ---------------------------------------------------------------------------------------------
// Snapshots
// ---------------------------------------------------------------------------------------------

#[derive(Clone, PartialEq, Eq, Message)]
pub struct SnapshotHead {
    #[prost(message, optional, tag = "1")]
    pub last: Option<LogId>,
    #[prost(message, optional, tag = "2")]
    pub membership_at: Option<LogId>,
    #[prost(message, optional, tag = "3")]
    pub membership: Option<Membership>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct IdentityRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub authorities_pem: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub founded_ns: u64,
}

/// The counters of the state, so that ids and versions are never given twice.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CountersRecord {
    #[prost(uint64, tag = "1")]
    pub node_next: u64,
    #[prost(uint64, tag = "2")]
    pub version_last: u64,
    #[prost(uint64, tag = "3")]
    pub use_last: u64,
    #[prost(uint32, tag = "4")]
    pub block_next: u32,
    #[prost(uint32, repeated, tag = "5")]
    pub blocks_freed: Vec<u32>,
    #[prost(bytes = "bytes", tag = "6")]
    pub history: Bytes,
    /// The time of the last entry.
    #[prost(fixed64, tag = "7")]
    pub time_ns: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeRecord {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(enumeration = "Role", tag = "3")]
    pub role: i32,
    #[prost(enumeration = "NodeState", tag = "4")]
    pub state: i32,
    #[prost(uint64, tag = "5")]
    pub epoch: u64,
    #[prost(message, optional, tag = "6")]
    pub description: Option<Description>,
    #[prost(message, optional, tag = "7")]
    pub certificate: Option<CertificateIssued>,
    #[prost(uint64, tag = "8")]
    pub since_ns: u64,
    #[prost(uint64, tag = "9")]
    pub joined_ns: u64,
    #[prost(string, tag = "10")]
    pub why: String,
    #[prost(bytes = "bytes", tag = "11")]
    pub boot: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct TokenRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
    #[prost(enumeration = "Role", tag = "2")]
    pub role: i32,
    #[prost(uint64, tag = "3")]
    pub expires_ns: u64,
    #[prost(uint64, tag = "4")]
    pub creator_node: u64,
    #[prost(uint32, tag = "5")]
    pub creator_uid: u32,
    /// The node that it let in; 0 while unused.
    #[prost(uint64, tag = "6")]
    pub used_by: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidBlockRecord {
    #[prost(uint32, tag = "1")]
    pub block: u32,
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ValueRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    #[prost(uint64, tag = "3")]
    pub version: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct LaneRecord {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(uint64, tag = "3")]
    pub used: u64,
    /// Requests up to this one are forgotten; absent when none is.
    #[prost(uint64, optional, tag = "4")]
    pub forgotten: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplyRecord {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub reply: Bytes,
}

/// One record of a snapshot. The head comes first, a lane before its replies.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotRecord {
    #[prost(oneof = "snapshot_record::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 16")]
    pub kind: Option<snapshot_record::Kind>,
}

pub mod snapshot_record {
    use super::*;

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Head(SnapshotHead),
        #[prost(message, tag = "2")]
        Identity(IdentityRecord),
        #[prost(message, tag = "3")]
        Counters(CountersRecord),
        #[prost(message, tag = "4")]
        Node(NodeRecord),
        #[prost(message, tag = "5")]
        Token(TokenRecord),
        #[prost(message, tag = "6")]
        PidBlock(PidBlockRecord),
        #[prost(message, tag = "7")]
        Value(ValueRecord),
        #[prost(message, tag = "8")]
        Lane(LaneRecord),
        #[prost(message, tag = "9")]
        Reply(ReplyRecord),
        #[prost(message, tag = "16")]
        Tree(TreeRecord),
    }
}

impl From<snapshot_record::Kind> for SnapshotRecord {
    fn from(kind: snapshot_record::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

// ---------------------------------------------------------------------------------------------
// Calls between consensus shells
// ---------------------------------------------------------------------------------------------

#[derive(Clone, PartialEq, Message)]
pub struct AppendRequest {
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    pub previous: Option<LogId>,
    #[prost(message, optional, tag = "3")]
    pub leader_commit: Option<LogId>,
    #[prost(message, repeated, tag = "4")]
    pub entries: Vec<Entry>,
    /// A mark of the receiver that the leader brings back: its read lease is renewed.
    #[prost(message, optional, tag = "5")]
    pub renewal: Option<LeaseMark>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct AppendReply {
    #[prost(enumeration = "AppendOutcome", tag = "1")]
    pub outcome: i32,
    /// With `Partial`: the last entry that matches.
    #[prost(message, optional, tag = "2")]
    pub matching: Option<LogId>,
    /// With `HigherVote`.
    #[prost(message, optional, tag = "3")]
    pub vote: Option<Vote>,
    /// The sender wants a read lease.
    #[prost(message, optional, tag = "4")]
    pub mark: Option<LeaseMark>,
    /// With a mark: the entries up to this one are applied, and no cache shows what was before them.
    #[prost(uint64, tag = "5")]
    pub confirmed: u64,
    /// Unless `HigherVote`: nanoseconds since the sender last heard a leader of an earlier term, or since
    /// it started. Absent: not known.
    #[prost(fixed64, optional, tag = "6")]
    pub former_ns: Option<u64>,
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum AppendOutcome {
    Unspecified = 0,
    Success = 1,
    Partial = 2,
    Conflict = 3,
    HigherVote = 4,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VoteRequest {
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    pub last: Option<LogId>,
    #[prost(bool, tag = "3")]
    pub leadership_transfer: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VoteReply {
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    #[prost(bool, tag = "2")]
    pub granted: bool,
    #[prost(message, optional, tag = "3")]
    pub last: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TransferRequest {
    #[prost(message, optional, tag = "1")]
    pub from: Option<Vote>,
    #[prost(uint64, tag = "2")]
    pub to: u64,
    #[prost(message, optional, tag = "3")]
    pub last: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TransferReply {
    #[prost(bool, tag = "1")]
    pub accepted: bool,
}

/// A piece of a snapshot file. Pieces come in order; the last one asks for the installation.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotPiece {
    /// Tells one transfer from another of the same sender.
    #[prost(fixed64, tag = "1")]
    pub transfer: u64,
    #[prost(message, optional, tag = "2")]
    pub vote: Option<Vote>,
    #[prost(message, optional, tag = "3")]
    pub head: Option<SnapshotHead>,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub bytes: Bytes,
    #[prost(bool, tag = "6")]
    pub last: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SnapshotReply {
    /// The receiver's vote once the snapshot is installed or refused.
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    /// Where the receiver expects the next piece.
    #[prost(uint64, tag = "2")]
    pub next: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProposeRequest {
    /// Encoded `Proposal`s.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub proposals: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProposeReply {
    #[prost(enumeration = "ShellOutcome", tag = "1")]
    pub outcome: i32,
    /// Encoded `Reply`s, in the order of the proposals.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub replies: Vec<Bytes>,
    /// With `NotLeader`: who leads, as far as known; 0 when unknown.
    #[prost(uint64, tag = "3")]
    pub leader: u64,
    /// The log index of the entry that holds them.
    #[prost(uint64, tag = "4")]
    pub index: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ShellOutcome {
    Unspecified = 0,
    Ok = 1,
    NotLeader = 2,
    Overloaded = 3,
    DiskFull = 4,
    /// It cannot be told whether it was or will be committed: ask again with the same id.
    Unknown = 5,
    /// The issuer may not propose this.
    Denied = 6,
}

/// Asks a member how far its log reaches.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RollRequest {}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct RollReply {
    #[prost(message, optional, tag = "1")]
    pub last: Option<LogId>,
    /// It lost something that it may have acknowledged, and has not caught up yet.
    #[prost(bool, tag = "2")]
    pub lost: bool,
    #[prost(message, optional, tag = "3")]
    pub membership: Option<Membership>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BarrierRequest {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BarrierReply {
    #[prost(enumeration = "ShellOutcome", tag = "1")]
    pub outcome: i32,
    /// With `Ok`: what is committed up to here is visible to a read that began before the call.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, tag = "3")]
    pub leader: u64,
}
