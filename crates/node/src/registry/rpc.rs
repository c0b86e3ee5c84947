//! The transport between daemons: consensus over RPC.
//!
//! Every method is idempotent for the RPC layer: consensus tells repeated messages by their terms
//! and positions, commands by their request ids.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use unum_net::{CallOptions, Client, Code, Method, Name, Router, RpcError, Status};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::Registry;
use super::transport::{Answer, Call, Transport, Unreached};

unum_net::methods! {
    pub Append = "registry.append", Control, idempotent,
        wire::AppendRequest => wire::AppendReply;
    pub Vote = "registry.vote", Control, idempotent, wire::VoteRequest => wire::VoteReply;
    pub PreVote = "registry.pre_vote", Control, idempotent, wire::VoteRequest => wire::VoteReply;
    pub Transfer = "registry.transfer", Control, idempotent,
        wire::TransferRequest => wire::TransferReply;
    pub Snapshot = "registry.snapshot", Bulk, idempotent,
        wire::SnapshotPiece => wire::SnapshotReply;
    pub Propose = "registry.propose", Control, idempotent,
        wire::ProposeRequest => wire::ProposeReply;
    pub Barrier = "registry.barrier", Control, idempotent,
        wire::BarrierRequest => wire::BarrierReply;
}

/// Calls other nodes' registries.
pub struct RpcTransport {
    client: Client,
}

impl RpcTransport {
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

async fn call<M: Method>(
    client: Client,
    to: NodeId,
    request: M::Request,
    within: Duration,
) -> Result<M::Reply, Unreached> {
    // Consensus has its own pace of trying again.
    let options = CallOptions::within(within).fail_fast();
    client.call::<M>(&Name::Node(to), request, &options).await.map_err(|error| match error {
        RpcError::Unreachable { why, .. } => Unreached::Unreachable(to, why),
        RpcError::DeadlineExceeded | RpcError::OutcomeUnknown { .. } => Unreached::Timeout(to),
        error => Unreached::Refused(to, error.to_string()),
    })
}

impl Transport for RpcTransport {
    fn call(
        &self,
        to: NodeId,
        request: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, Unreached>> {
        let client = self.client.clone();
        async move {
            match request {
                Call::Append(request) => {
                    call::<Append>(client, to, request, within).await.map(Answer::Append)
                }
                Call::Vote(request) => {
                    call::<Vote>(client, to, request, within).await.map(Answer::Vote)
                }
                Call::PreVote(request) => {
                    call::<PreVote>(client, to, request, within).await.map(Answer::Vote)
                }
                Call::Transfer(request) => {
                    call::<Transfer>(client, to, request, within).await.map(Answer::Transfer)
                }
                Call::Snapshot(piece) => {
                    call::<Snapshot>(client, to, piece, within).await.map(Answer::Snapshot)
                }
                Call::Propose(request) => {
                    call::<Propose>(client, to, request, within).await.map(Answer::Propose)
                }
                Call::Barrier(request) => {
                    call::<Barrier>(client, to, request, within).await.map(Answer::Barrier)
                }
            }
        }
        .boxed()
    }
}

async fn serve(registry: Registry, from: Option<NodeId>, call: Call) -> Result<Answer, Status> {
    // Only a node's certificate makes a member of consensus; local users go through the services.
    let from = from.ok_or_else(|| Status::denied("only nodes take part in consensus"))?;
    if !may_take_part(&registry, from) {
        return Err(Status::denied(format!("{from} does not belong to the cluster")));
    }
    let answer = registry.answer(from, call).await;
    answer.map_err(|error| Status::new(Code::Unavailable, error.to_string()))
}

/// A node that has left is refused. One that this node does not know yet may be newer than what is
/// applied here.
fn may_take_part(registry: &Registry, from: NodeId) -> bool {
    registry.read(|state| state.nodes().get(from).is_none_or(|node| node.is_member()))
}

fn mismatch() -> Status {
    Status::internal("the registry gave another answer than asked for")
}

macro_rules! answered {
    ($router:expr, $registry:expr, $method:ident, $call:ident, $answer:ident) => {{
        let registry = $registry.clone();
        $router.call::<$method>(move |incoming: unum_net::Incoming, request| {
            let registry = registry.clone();
            async move {
                match serve(registry, incoming.caller.node, Call::$call(request)).await? {
                    Answer::$answer(reply) => Ok(reply),
                    _ => Err(mismatch()),
                }
            }
        })
    }};
}

/// Adds the registry's methods.
pub fn routes(router: Router, registry: &Registry) -> Router {
    let router = answered!(router, registry, Append, Append, Append);
    let router = answered!(router, registry, Vote, Vote, Vote);
    let router = answered!(router, registry, PreVote, PreVote, Vote);
    let router = answered!(router, registry, Transfer, Transfer, Transfer);
    let router = answered!(router, registry, Snapshot, Snapshot, Snapshot);
    let router = answered!(router, registry, Propose, Propose, Propose);
    answered!(router, registry, Barrier, Barrier, Barrier)
}
