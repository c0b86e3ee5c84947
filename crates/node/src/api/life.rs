//! Verbs that change who belongs to the cluster.

use super::{Api, registry_status, time_left};
use crate::cluster::running::Parts;
use crate::daemon::Order;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use unum_core::registry::{Node, Nodes};
use unum_net::{Code, Incoming, Status};
use unum_proto::admin::{
    CreateReply, CreateRequest, DownReply, DownRequest, JoinReply, JoinRequest, LeaveReply,
    LeaveRequest, RemoveReply, RemoveRequest,
};
use unum_proto::registry::{RemoveNode, command};

pub async fn create(
    api: Arc<Api>,
    incoming: Incoming,
    _request: CreateRequest,
) -> Result<CreateReply, Status> {
    api.access.require_admin(&incoming.caller, "make a cluster")?;
    api.order(Order::Create).await
}

pub async fn join(
    api: Arc<Api>,
    incoming: Incoming,
    request: JoinRequest,
) -> Result<JoinReply, Status> {
    api.access.require_admin(&incoming.caller, "join a cluster")?;
    api.order(|reply| Order::Join { request, reply }).await
}

pub async fn leave(
    api: Arc<Api>,
    incoming: Incoming,
    request: LeaveRequest,
) -> Result<LeaveReply, Status> {
    api.access.require_admin(&incoming.caller, "take this node out of the cluster")?;
    api.parts()?;
    api.order(|reply| Order::Leave { force: request.force, reply }).await
}

pub async fn down(
    api: Arc<Api>,
    incoming: Incoming,
    _request: DownRequest,
) -> Result<DownReply, Status> {
    api.access.require_admin(&incoming.caller, "stop this node")?;
    api.order(Order::Down).await
}

pub async fn remove(
    api: Arc<Api>,
    incoming: Incoming,
    request: RemoveRequest,
) -> Result<RemoveReply, Status> {
    api.access.require_admin(&incoming.caller, "remove a node")?;
    let parts = api.parts()?;
    let node = parts.registry.read(|state| find(state.nodes(), &request.node).cloned());
    let node = node.ok_or_else(|| {
        Status::new(
            Code::NotFound,
            format!("no node is called {:?}; see `unum nodes`", request.node),
        )
    })?;
    if node.id == parts.node {
        return Err(Status::new(
            Code::Invalid,
            format!("{} is this node; take it out with `unum leave`", node.name),
        ));
    }
    if !request.force && parts.membership.is_reachable(node.id) {
        return Err(Status::new(
            Code::Conflict,
            format!(
                "{} is alive: run `unum leave` there, so that it hands over what it holds, or add \
                 --force to expel it",
                node.name
            ),
        ));
    }
    if !request.force {
        require_copies(&parts, &node, time_left(&incoming)).await?;
    }
    let command = command::Kind::RemoveNode(RemoveNode { node: node.id.0 });
    parts.proposer.propose(command, time_left(&incoming)).await.map_err(registry_status)?;
    tracing::warn!(node = %node.id, name = node.name, uid = incoming.caller.uid, "removed");
    Ok(RemoveReply { node: node.id.0, name: node.name })
}

/// What only a dead node has may come back with it. New content is not placed on the dead, so the
/// answer stays true.
async fn require_copies(parts: &Parts, node: &Node, within: Duration) -> Result<(), Status> {
    parts.registry.barrier(within).await.map_err(registry_status)?;
    match parts.registry.read(|state| state.only_copies(node.id)) {
        0 => Ok(()),
        lost => Err(Status::new(
            Code::Conflict,
            format!(
                "{} holds the only copy of {lost} pieces of files: bring it back, or lose them \
                 with --force",
                node.name
            ),
        )),
    }
}

/// By name, by number, or as errors print it.
fn find<'a>(nodes: &'a Nodes, what: &str) -> Option<&'a Node> {
    if let Some(node) = nodes.by_name(what) {
        return Some(node);
    }
    let number: u64 = what.strip_prefix("node-").unwrap_or(what).parse().ok()?;
    nodes.get(number.into()).filter(|node| node.is_member())
}

impl Api {
    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, Status>>) -> Order,
    ) -> Result<T, Status> {
        let stopping = || Status::new(Code::Unavailable, "the daemon is stopping");
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}
