//! Consensus over the daemons' RPC: the registry's transport and the routes that answer it.

use crate::registry::Registry;
use crate::registry::transport::{Answer, Call, Transport, Unreached};
use futures_util::future::BoxFuture;
use std::time::Duration;
use unum_net::{CallOptions, Client, Code, Incoming, Method, Name, Router, RpcError, Status};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

unum_net::methods! {
    pub Append = "registry.append", Control, idempotent, wire::AppendRequest => wire::AppendReply;
    pub Vote = "registry.vote", Control, idempotent, wire::VoteRequest => wire::VoteReply;
    pub PreVote = "registry.pre-vote", Control, idempotent, wire::VoteRequest => wire::VoteReply;
    pub Transfer = "registry.transfer", Control, idempotent,
        wire::TransferRequest => wire::TransferReply;
    pub Snapshot = "registry.snapshot", Bulk, idempotent,
        wire::SnapshotPiece => wire::SnapshotReply;
    /// Commands carry ids of their own: asking twice is as good as once.
    pub Propose = "registry.propose", Control, idempotent,
        wire::ProposeRequest => wire::ProposeReply;
    pub Barrier = "registry.barrier", Control, idempotent,
        wire::BarrierRequest => wire::BarrierReply;
    pub Stable = "registry.stable", Control, idempotent,
        wire::StableRequest => wire::StableReply;
    pub Roll = "registry.roll", Control, idempotent, wire::RollRequest => wire::RollReply;
}

pub struct NetTransport {
    pub client: Client,
}

impl Transport for NetTransport {
    fn call(
        &self,
        to: NodeId,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, Unreached>> {
        let client = self.client.clone();
        Box::pin(async move {
            match call {
                Call::Append(request) => {
                    ask::<Append>(&client, to, request, within).await.map(Answer::Append)
                }
                Call::Vote(request) => {
                    ask::<Vote>(&client, to, request, within).await.map(Answer::Vote)
                }
                Call::PreVote(request) => {
                    ask::<PreVote>(&client, to, request, within).await.map(Answer::Vote)
                }
                Call::Transfer(request) => {
                    ask::<Transfer>(&client, to, request, within).await.map(Answer::Transfer)
                }
                Call::Snapshot(request) => {
                    ask::<Snapshot>(&client, to, request, within).await.map(Answer::Snapshot)
                }
                Call::Propose(request) => {
                    ask::<Propose>(&client, to, request, within).await.map(Answer::Propose)
                }
                Call::Barrier(request) => {
                    ask::<Barrier>(&client, to, request, within).await.map(Answer::Barrier)
                }
                Call::Stable(request) => {
                    ask::<Stable>(&client, to, request, within).await.map(Answer::Stable)
                }
                Call::Roll(request) => {
                    ask::<Roll>(&client, to, request, within).await.map(Answer::Roll)
                }
            }
        })
    }
}

/// Consensus decides itself when to try again, so a call fails as soon as there is no connection.
async fn ask<M: Method>(
    client: &Client,
    to: NodeId,
    request: M::Request,
    within: Duration,
) -> Result<M::Reply, Unreached> {
    let options = CallOptions::within(within).fail_fast();
    let answer = client.call::<M>(&Name::Node(to), request, &options).await;
    answer.map_err(|error| unreached(to, error))
}

fn unreached(to: NodeId, error: RpcError) -> Unreached {
    match error {
        RpcError::DeadlineExceeded => Unreached::Timeout(to),
        RpcError::Unreachable { why, .. } | RpcError::OutcomeUnknown { why, .. } => {
            Unreached::Unreachable(to, why)
        }
        other => Unreached::Refused(to, other.to_string()),
    }
}

/// The routes by which other nodes' consensus reaches this one's.
pub fn routes(registry: Registry) -> Router {
    let mut router = Router::new();
    router = on::<Append>(router, &registry, Call::Append, |answer| match answer {
        Answer::Append(reply) => Some(reply),
        _ => None,
    });
    router = on::<Vote>(router, &registry, Call::Vote, vote_reply);
    router = on::<PreVote>(router, &registry, Call::PreVote, vote_reply);
    router = on::<Transfer>(router, &registry, Call::Transfer, |answer| match answer {
        Answer::Transfer(reply) => Some(reply),
        _ => None,
    });
    router = on::<Snapshot>(router, &registry, Call::Snapshot, |answer| match answer {
        Answer::Snapshot(reply) => Some(reply),
        _ => None,
    });
    router = on::<Propose>(router, &registry, Call::Propose, |answer| match answer {
        Answer::Propose(reply) => Some(reply),
        _ => None,
    });
    router = on::<Stable>(router, &registry, Call::Stable, |answer| match answer {
        Answer::Stable(reply) => Some(reply),
        _ => None,
    });
    router = on::<Roll>(router, &registry, Call::Roll, |answer| match answer {
        Answer::Roll(reply) => Some(reply),
        _ => None,
    });
    on::<Barrier>(router, &registry, Call::Barrier, |answer| match answer {
        Answer::Barrier(reply) => Some(reply),
        _ => None,
    })
}

fn vote_reply(answer: Answer) -> Option<wire::VoteReply> {
    match answer {
        Answer::Vote(reply) => Some(reply),
        _ => None,
    }
}

fn on<M: Method>(
    router: Router,
    registry: &Registry,
    call: fn(M::Request) -> Call,
    reply: fn(Answer) -> Option<M::Reply>,
) -> Router {
    let registry = registry.clone();
    router.call::<M>(move |incoming: Incoming, request| {
        let registry = registry.clone();
        async move {
            let from = incoming
                .caller
                .node
                .ok_or_else(|| Status::denied("only nodes take part in consensus"))?;
            if registry.is_outsider(from) {
                return Err(Status::denied(format!(
                    "{from} is no member of this cluster any more"
                )));
            }
            let answer = registry.answer(from, call(request)).await;
            let answer =
                answer.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
            reply(answer).ok_or_else(|| Status::internal("an answer to another question"))
        }
    })
}
