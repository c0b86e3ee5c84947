//! How the consensus shells of two nodes talk: one call, one answer, over whatever carries them.
//!
//! Invariant: a call may be lost, delayed, repeated or answered twice without harm. There are two
//! implementations: RPC between daemons, and the simulator's network.

use std::time::Duration;

use futures_util::future::BoxFuture;
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

/// What one shell asks of another.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Append(wire::AppendRequest),
    Vote(wire::VoteRequest),
    PreVote(wire::VoteRequest),
    Transfer(wire::TransferRequest),
    Snapshot(wire::SnapshotPiece),
    Propose(wire::ProposeRequest),
    Barrier(wire::BarrierRequest),
    Stable(wire::StableRequest),
    Roll(wire::RollRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Append(wire::AppendReply),
    Vote(wire::VoteReply),
    Transfer(wire::TransferReply),
    Snapshot(wire::SnapshotReply),
    Propose(wire::ProposeReply),
    Barrier(wire::BarrierReply),
    Stable(wire::StableReply),
    Roll(wire::RollReply),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// There is no way to the node now: wait a little before the next attempt.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(NodeId, String),
    /// No answer in time; the call may have been executed.
    #[error("{0} did not answer in time")]
    Timeout(NodeId),
    /// The other side could not or would not answer.
    #[error("{0} answered with an error: {1}")]
    Refused(NodeId, String),
}

pub trait Transport: Send + Sync + 'static {
    fn call(
        &self,
        to: NodeId,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, Unreached>>;
}
