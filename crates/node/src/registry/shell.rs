//! What the tasks of one node's consensus share, and its answers to other nodes' calls.

use std::sync::{Arc, Mutex, PoisonError};

use openraft::alias::SnapshotOf;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, Instant, Raft, Snapshot};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use unum_core::time::Time;
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::barrier::{self, Confirmed, confirmed_to_wire};
use super::leases::{self, Lead, Leases, Voters};
use super::limits::{BATCH_COMMANDS_MAX, COMMAND_BYTES_MAX, FORWARD_TIMEOUT};
use super::log::LogView;
use super::machine::{Machine, Shared};
use super::mutation::Mutation;
use super::offload::Offload;
use super::pace::Pace;
use super::pipeline::{Group, Outcome, outcome_to_wire};
use super::room::Room;
use super::snapshots::{SnapshotFile, Snapshots};
use super::suspicion::Suspicion;
use super::transport::{Answer, Call, Transport, Unreached};
use super::types::{
    Entry, LogId, Malformed, Types, Vote, entry_from_wire, log_id_from_wire, log_id_to_wire,
    meta_from_wire, vote_from_wire, vote_to_wire,
};
use crate::store::disk::{DiskError, DiskFile};

pub type Consensus<RT> = Raft<Types<RT>, Machine<RT>>;
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

pub struct Core<RT: AsyncRuntime> {
    pub own: NodeId,
    pub raft: Consensus<RT>,
    pub shared: Arc<Shared>,
    pub transport: Arc<dyn Transport>,
    pub clock: Clock,
    pub room: Arc<Room>,
    pub pace: Pace<RT>,
    pub leases: Arc<Leases<RT>>,
    pub offload: Offload,
    pub snapshots: Snapshots,
    pub mutation: Mutation,
    pub log: LogView<RT>,
    pub suspicion: Suspicion,
    pub proposals: mpsc::WeakSender<Group>,
    pub confirmations: mpsc::WeakSender<barrier::Waiter>,
    /// The snapshot that is being received.
    pub incoming: Mutex<Option<Incoming>>,
    /// Told when the log's writer has let go of the journal.
    pub log_ended: Mutex<Option<oneshot::Receiver<()>>>,
}

pub struct Incoming {
    transfer: u64,
    from: NodeId,
    file: Arc<dyn DiskFile>,
    next: u64,
}

/// Why a call is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("consensus has stopped: {0}")]
    Stopped(String),
    #[error("this node may have lost what it acknowledged and has not caught up yet")]
    Suspect,
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the snapshot is not usable: {0}")]
    Snapshot(String),
}

fn stopped(error: impl std::fmt::Display) -> Unanswered {
    Unanswered::Stopped(error.to_string())
}

impl<RT: AsyncRuntime> Core<RT> {
    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        use openraft::async_runtime::WatchReceiver;
        self.raft.server_metrics().borrow_watched().current_leader
    }

    /// Calls the leader, but waits no longer than it leads as far as this node knows: one whose
    /// power was cut answers nothing, and its connections show that late.
    pub async fn ask_leader(&self, leader: NodeId, call: Call) -> Result<Answer, Unreached> {
        use futures_util::future::{Either, select};
        let answer = self.transport.call(leader, call, FORWARD_TIMEOUT);
        let deposed = std::pin::pin!(self.deposed(leader));
        match select(answer, deposed).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(Unreached::Timeout(leader)),
        }
    }

    /// While this node leads: it leases what is read.
    pub fn lead(&self) {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        if !metrics.state.is_leader() {
            return;
        }
        let term = metrics.vote.leader_id.term;
        let membership = metrics.membership_config.membership();
        let configured = metrics.membership_config.log_id();
        let voters = Voters {
            term: configured.map_or(0, |id| id.leader_id.term),
            at: configured.map_or(0, |id| id.index),
            sets: membership.get_joint_config().clone(),
        };
        let committed = metrics.committed_membership_config.membership();
        let holders = committed.nodes().map(|(id, _)| *id).collect();
        let settled = metrics.membership_config == metrics.committed_membership_config;
        let last = self.log.last().map_or(0, |id| id.index);
        self.leases.lead(Lead { term, voters, settled, holders, last }, || {
            // Some of them may have been admitted by entries that are not applied here yet.
            let applied = self.shared.read();
            let role = |id: NodeId| applied.state.nodes().get(id).map(|node| node.role);
            let ids = membership.nodes().map(|(id, _)| *id);
            ids.filter(|id| role(*id) != Some(wire::Role::Witness)).collect()
        });
    }

    async fn deposed(&self, leader: NodeId) {
        use openraft::async_runtime::WatchReceiver;
        let mut metrics = self.raft.server_metrics();
        while metrics.borrow_watched().current_leader == Some(leader) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Answers another node's call. `from` is who it is according to its certificate.
    pub async fn answer(&self, from: NodeId, call: Call) -> Result<Answer, Unanswered> {
        match call {
            Call::Append(request) => self.append(request).await.map(Answer::Append),
            Call::Vote(request) => self.vote(request, false).await.map(Answer::Vote),
            Call::PreVote(request) => self.vote(request, true).await.map(Answer::Vote),
            Call::Transfer(request) => self.transfer(request).await.map(Answer::Transfer),
            Call::Snapshot(piece) => self.receive(from, piece).await.map(Answer::Snapshot),
            Call::Propose(request) => {
                let outcome = self.propose_for(from, request).await;
                Ok(Answer::Propose(outcome_to_wire(outcome)))
            }
            Call::Barrier(wire::BarrierRequest {}) => {
                Ok(Answer::Barrier(confirmed_to_wire(self.confirm_leadership().await)))
            }
            Call::Stable(request) => Ok(Answer::Stable(leases::answer(self, from, request).await)),
            Call::Roll(wire::RollRequest {}) => Ok(Answer::Roll(self.account())),
        }
    }

    async fn append(&self, request: wire::AppendRequest) -> Result<wire::AppendReply, Unanswered> {
        let renewal = request.renewal;
        let entries: Result<Vec<Entry>, Malformed> =
            request.entries.into_iter().map(entry_from_wire).collect();
        let entries = entries?;
        let prev_log_id = request.previous.map(log_id_from_wire);
        check_order(prev_log_id, &entries)?;
        let vote: Vote = vote_from_wire(request.vote)?;
        let term = vote.leader_id.term;
        let request = AppendEntriesRequest {
            vote,
            prev_log_id,
            entries,
            leader_commit: request.leader_commit.map(log_id_from_wire),
        };
        // Consensus restarts its election timer later than now, never earlier.
        let came = RT::Instant::now();
        self.leases.heard(term);
        let response = self.raft.append_entries(request).await.map_err(stopped)?;
        let mut reply = wire::AppendReply::default();
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.pace.heard(came);
            if let Some(mark) = renewal {
                self.leases.renewed(mark);
            }
            if let Some((mark, confirmed)) = self.leases.mark() {
                (reply.mark, reply.confirmed) = (Some(mark), confirmed);
            }
            reply.former_ns = self.leases.former_ns(term);
        }
        let outcome = match response {
            AppendEntriesResponse::Success => wire::AppendOutcome::Success,
            AppendEntriesResponse::PartialSuccess(matching) => {
                reply.matching = matching.map(log_id_to_wire);
                wire::AppendOutcome::Partial
            }
            AppendEntriesResponse::Conflict => wire::AppendOutcome::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                reply.vote = Some(vote_to_wire(vote));
                wire::AppendOutcome::HigherVote
            }
        };
        reply.set_outcome(outcome);
        Ok(reply)
    }

    async fn vote(
        &self,
        request: wire::VoteRequest,
        pre: bool,
    ) -> Result<wire::VoteReply, Unanswered> {
        let last = request.last.map(log_id_from_wire);
        if !self.suspicion.may_elect(last) {
            return Err(Unanswered::Suspect);
        }
        let request = VoteRequest {
            vote: vote_from_wire(request.vote)?,
            last_log_id: last,
            leadership_transfer: request.leadership_transfer,
        };
        let response: VoteResponse<Types<RT>> = match pre {
            true => self.raft.pre_vote(request).await.map_err(stopped)?,
            false => self.raft.vote(request).await.map_err(stopped)?,
        };
        if response.vote_granted && !pre {
            self.leases.voted(response.vote.leader_id.term);
        }
        Ok(wire::VoteReply {
            vote: Some(vote_to_wire(response.vote)),
            granted: response.vote_granted,
            last: response.last_log_id.map(log_id_to_wire),
        })
    }

    async fn transfer(
        &self,
        request: wire::TransferRequest,
    ) -> Result<wire::TransferReply, Unanswered> {
        if self.suspicion.is_on() {
            return Err(Unanswered::Suspect);
        }
        let from = vote_from_wire(request.from)?;
        let last = request.last.map(log_id_from_wire);
        let request = TransferLeaderRequest::new(from, NodeId(request.to), last);
        let accepted = self.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(wire::TransferReply { accepted: accepted.is_ok() })
    }

    /// Takes another node's commands into this node's queue, if this node leads.
    async fn propose_for(&self, from: NodeId, request: wire::ProposeRequest) -> Outcome {
        let leader = self.leader();
        if leader != Some(self.own) {
            return Outcome::NotLeader { leader };
        }
        if !may_propose(from, &request.proposals) {
            return Outcome::Denied;
        }
        let Some(queue) = self.proposals.upgrade() else { return Outcome::Unknown };
        let (done, outcome) = oneshot::channel();
        let group = Group { proposals: request.proposals, forward: false, done };
        if queue.try_send(group).is_err() {
            return Outcome::Overloaded;
        }
        outcome.await.unwrap_or(Outcome::Unknown)
    }

    /// Confirms that this node leads, together with all others who ask now.
    pub async fn confirm_leadership(&self) -> Confirmed {
        let Some(queue) = self.confirmations.upgrade() else { return Confirmed::Unknown };
        let (waiter, confirmed) = oneshot::channel();
        if queue.try_send(waiter).is_err() {
            return Confirmed::Unknown;
        }
        confirmed.await.unwrap_or(Confirmed::Unknown)
    }

    async fn receive(
        &self,
        from: NodeId,
        piece: wire::SnapshotPiece,
    ) -> Result<wire::SnapshotReply, Unanswered> {
        let vote: Vote = vote_from_wire(piece.vote)?;
        let head = piece.head.as_ref().ok_or(Malformed("snapshot head"))?;
        let meta = meta_from_wire(head)?;
        self.leases.heard(vote.leader_id.term);
        let Some((next, complete)) = self.take_piece(from, &piece)? else {
            return Err(Unanswered::Snapshot("it came in the wrong order".into()));
        };
        let Some(file) = complete else {
            return Ok(wire::SnapshotReply { vote: None, next });
        };
        let snapshots = self.snapshots.clone();
        let accepted = self.offload.run(move || snapshots.accept(file)).await;
        let (snapshot, loaded) =
            accepted.map_err(|error| Unanswered::Snapshot(error.to_string()))?;
        if loaded.head != *head {
            return Err(Unanswered::Snapshot("it is not the one that was announced".into()));
        }
        let snapshot: SnapshotOf<Types<RT>, SnapshotFile> = Snapshot { meta, snapshot };
        let response = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(wire::SnapshotReply { vote: Some(vote_to_wire(response.vote)), next })
    }

    /// Writes the piece where it belongs. The file comes out once it is complete.
    #[allow(clippy::type_complexity)]
    fn take_piece(
        &self,
        from: NodeId,
        piece: &wire::SnapshotPiece,
    ) -> Result<Option<(u64, Option<Arc<dyn DiskFile>>)>, Unanswered> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        if piece.offset == 0 {
            let file = self.snapshots.receive()?;
            *incoming = Some(Incoming { transfer: piece.transfer, from, file, next: 0 });
        }
        let Some(transfer) = incoming.as_mut() else { return Ok(None) };
        let fits = transfer.transfer == piece.transfer
            && transfer.from == from
            && transfer.next == piece.offset;
        if !fits {
            return Ok(None);
        }
        transfer.file.write_at(&piece.bytes, piece.offset)?;
        transfer.next += piece.bytes.len() as u64;
        let next = transfer.next;
        let complete = piece.last.then(|| incoming.take()).flatten().map(|done| done.file);
        Ok(Some((next, complete)))
    }
}

/// openraft takes for granted that entries follow each other.
fn check_order(previous: Option<LogId>, entries: &[Entry]) -> Result<(), Malformed> {
    let mut next = previous.map_or(0, |id| id.index.saturating_add(1));
    for entry in entries {
        if entry.log_id.index != next {
            return Err(Malformed("entry order"));
        }
        next = next.saturating_add(1);
    }
    Ok(())
}

/// A node speaks only for itself, and what it sends must be readable by everybody who applies it.
fn may_propose(from: NodeId, proposals: &[bytes::Bytes]) -> bool {
    let sound = |bytes: &bytes::Bytes| {
        bytes.len() <= COMMAND_BYTES_MAX
            && wire::Proposal::decode(bytes.clone()).is_ok_and(|proposal| proposal.node == from.0)
    };
    !proposals.is_empty() && proposals.len() <= BATCH_COMMANDS_MAX && proposals.iter().all(sound)
}
