//! openraft's view of the transport.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{
    AsyncRuntime, EntryPayload, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::leases::Leases;
use super::limits::{SNAPSHOT_INSTALL_TIMEOUT, SNAPSHOT_PIECE_BYTES, SNAPSHOT_PIECE_TIMEOUT};
use super::offload::Offload;
use super::snapshots::SnapshotFile;
use super::transport::{Answer, Call, Transport, Unreached};
use super::types::{
    Malformed, Types, entry_to_wire, log_id_from_wire, log_id_to_wire, meta_to_wire,
    vote_from_wire, vote_to_wire,
};

/// Pause before a peer that could not be reached is tried again.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(50);

pub struct Network<RT: AsyncRuntime> {
    pub own: NodeId,
    pub transport: Arc<dyn Transport>,
    pub offload: Offload,
    pub leases: Arc<Leases<RT>>,
}

impl<RT: AsyncRuntime> Clone for Network<RT> {
    fn clone(&self) -> Self {
        Self {
            own: self.own,
            transport: self.transport.clone(),
            offload: self.offload,
            leases: self.leases.clone(),
        }
    }
}

/// The way to one peer.
pub struct Peer<RT: AsyncRuntime> {
    network: Network<RT>,
    to: NodeId,
}

impl<RT: AsyncRuntime> RaftNetworkFactory<Types<RT>> for Network<RT> {
    type Network = Peer<RT>;

    async fn new_client(&mut self, target: NodeId, (): &()) -> Peer<RT> {
        Peer { network: self.clone(), to: target }
    }
}

impl<RT: AsyncRuntime> Peer<RT> {
    async fn call(
        &self,
        kind: RPCTypes,
        call: Call,
        within: Duration,
    ) -> Result<Answer, RPCError<Types<RT>>> {
        let answer = self.network.transport.call(self.to, call, within).await;
        answer.map_err(|error| self.rpc_error(kind, within, error))
    }

    fn rpc_error(
        &self,
        action: RPCTypes,
        timeout: Duration,
        error: Unreached,
    ) -> RPCError<Types<RT>> {
        match error {
            Unreached::Unreachable(..) => RPCError::Unreachable(Unreachable::new(&error)),
            Unreached::Refused(..) => RPCError::Network(NetworkError::new(&error)),
            Unreached::Timeout(_) => RPCError::Timeout(Timeout {
                action,
                id: self.network.own,
                target: self.to,
                timeout,
            }),
        }
    }
}

fn malformed<RT: AsyncRuntime>(error: Malformed) -> RPCError<Types<RT>> {
    RPCError::Network(NetworkError::new(&error))
}

fn vote_request<RT: AsyncRuntime>(rpc: &VoteRequest<Types<RT>>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_to_wire(rpc.vote)),
        last: rpc.last_log_id.map(log_id_to_wire),
        leadership_transfer: rpc.leadership_transfer,
    }
}

fn vote_response<RT: AsyncRuntime>(
    answer: Answer,
) -> Result<VoteResponse<Types<RT>>, RPCError<Types<RT>>> {
    let Answer::Vote(reply) = answer else { return Err(malformed(Malformed("answer"))) };
    Ok(VoteResponse {
        vote: vote_from_wire(reply.vote).map_err(malformed)?,
        vote_granted: reply.granted,
        last_log_id: reply.last.map(log_id_from_wire),
    })
}

impl<RT: AsyncRuntime> RaftNetworkV2<Types<RT>> for Peer<RT> {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<RT>>, RPCError<Types<RT>>> {
        let leases = &self.network.leases;
        let term = rpc.vote.leader_id.term;
        for entry in &rpc.entries {
            if let EntryPayload::Membership(membership) = &entry.payload {
                leases.configured(term, entry.log_id.index, membership.get_joint_config());
            }
        }
        let sent = leases.sending();
        let call = Call::Append(wire::AppendRequest {
            renewal: leases.renewal(term, self.to),
            vote: Some(vote_to_wire(rpc.vote)),
            previous: rpc.prev_log_id.map(log_id_to_wire),
            leader_commit: rpc.leader_commit.map(log_id_to_wire),
            entries: rpc.entries.iter().map(entry_to_wire).collect(),
        });
        let answer = self.call(RPCTypes::AppendEntries, call, option.hard_ttl()).await?;
        let Answer::Append(reply) = answer else { return Err(malformed(Malformed("answer"))) };
        if reply.outcome() != wire::AppendOutcome::HigherVote {
            leases.answered(term, self.to, sent, &reply);
        }
        match reply.outcome() {
            wire::AppendOutcome::Success => Ok(AppendEntriesResponse::Success),
            wire::AppendOutcome::Partial => {
                Ok(AppendEntriesResponse::PartialSuccess(reply.matching.map(log_id_from_wire)))
            }
            // openraft takes a conflict only with an entry before the sent ones.
            wire::AppendOutcome::Conflict if rpc.prev_log_id.is_some() => {
                Ok(AppendEntriesResponse::Conflict)
            }
            wire::AppendOutcome::HigherVote => {
                vote_from_wire(reply.vote).map(AppendEntriesResponse::HigherVote).map_err(malformed)
            }
            wire::AppendOutcome::Conflict | wire::AppendOutcome::Unspecified => {
                Err(malformed(Malformed("outcome")))
            }
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<RT>>, RPCError<Types<RT>>> {
        let call = Call::Vote(vote_request(&rpc));
        vote_response(self.call(RPCTypes::Vote, call, option.hard_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<RT>>, RPCError<Types<RT>>> {
        let call = Call::PreVote(vote_request(&rpc));
        vote_response(self.call(RPCTypes::Vote, call, option.hard_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types<RT>>,
        snapshot: SnapshotOf<Types<RT>, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types<RT>>, StreamingError<Types<RT>>> {
        let send = self.send_snapshot(vote, snapshot);
        let send = std::pin::pin!(send);
        let cancel = std::pin::pin!(cancel);
        match futures_util::future::select(cancel, send).await {
            futures_util::future::Either::Left((closed, _)) => Err(closed.into()),
            futures_util::future::Either::Right((sent, _)) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types<RT>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<RT>>, RPCError<Types<RT>>> {
        let call = Call::Transfer(wire::TransferRequest {
            from: Some(vote_to_wire(*req.from_leader())),
            to: req.to_node_id().0,
            last: req.last_log_id().copied().map(log_id_to_wire),
        });
        let answer = self.call(RPCTypes::TransferLeader, call, option.hard_ttl()).await?;
        match answer {
            Answer::Transfer(wire::TransferReply { accepted: true }) => Ok(Ok(())),
            _ => Err(malformed(Malformed("answer"))),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE)))
    }
}

impl<RT: AsyncRuntime> Peer<RT> {
    async fn send_snapshot(
        &self,
        vote: VoteOf<Types<RT>>,
        snapshot: SnapshotOf<Types<RT>, SnapshotFile>,
    ) -> Result<SnapshotResponse<Types<RT>>, StreamingError<Types<RT>>> {
        let network = |error: &dyn std::fmt::Display| {
            StreamingError::Network(NetworkError::from_string(error))
        };
        let file = snapshot.snapshot;
        let head = meta_to_wire(&snapshot.meta);
        let transfer = file.transfer_id(self.network.own, vote_to_wire(vote));
        let mut offset = 0;
        loop {
            let source = file.clone();
            let bytes = self.network.offload.run(move || source.read(offset, SNAPSHOT_PIECE_BYTES));
            let bytes = bytes.await.map_err(|error| network(&error))?;
            let end = offset + bytes.len() as u64;
            let last = end >= file.size();
            let piece = wire::SnapshotPiece {
                transfer,
                vote: Some(vote_to_wire(vote)),
                head: Some(head.clone()),
                offset,
                bytes,
                last,
            };
            let within = if last { SNAPSHOT_INSTALL_TIMEOUT } else { SNAPSHOT_PIECE_TIMEOUT };
            let answer = self.network.transport.call(self.to, Call::Snapshot(piece), within).await;
            let answer = answer.map_err(|error| match error {
                Unreached::Unreachable(..) => StreamingError::Unreachable(Unreachable::new(&error)),
                _ => network(&error),
            })?;
            let Answer::Snapshot(reply) = answer else { return Err(network(&Malformed("answer"))) };
            if reply.vote.is_some() {
                let vote = vote_from_wire(reply.vote).map_err(|error| network(&error))?;
                return Ok(SnapshotResponse::new(vote));
            }
            if last || reply.next != end {
                return Err(network(&Malformed("next piece")));
            }
            offset = end;
        }
    }
}
