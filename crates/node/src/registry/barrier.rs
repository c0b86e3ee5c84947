//! Read barriers: after one, a local read shows everything that was acknowledged to anybody before
//! it was asked for.
//!
//! Two steps, each coalesced: the leader confirms with a quorum that it leads and tells its commit
//! index; this node waits until it has applied that index. Who arrives while a step is under way
//! shares the next one, never the present one, whose confirmation may be older than the question.

use std::sync::Arc;

use openraft::{AsyncRuntime, ReadPolicy};
use tokio::sync::{mpsc, oneshot};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::limits::FORWARD_TIMEOUT;
use super::mutation::Mutation;
use super::shell::Core;
use super::transport::{Answer, Call};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// What is committed up to here is all that was acknowledged before.
    Index(u64),
    NotLeader {
        leader: Option<NodeId>,
    },
    Unknown,
}

pub type Waiter = oneshot::Sender<Confirmed>;

/// Takes everyone who waits now.
async fn gather(queue: &mut mpsc::Receiver<Waiter>) -> Option<Vec<Waiter>> {
    let mut waiters = vec![queue.recv().await?];
    while let Ok(waiter) = queue.try_recv() {
        waiters.push(waiter);
    }
    Some(waiters)
}

fn answer(waiters: Vec<Waiter>, confirmed: Confirmed) {
    for waiter in waiters {
        // Whoever went away does not wait.
        let _ = waiter.send(confirmed);
    }
}

/// Serves the whole cluster while this node leads: confirms leadership. Ends when all senders are
/// gone.
pub async fn confirm_leadership<RT: AsyncRuntime>(
    core: Arc<Core<RT>>,
    mut queue: mpsc::Receiver<Waiter>,
) {
    while let Some(waiters) = gather(&mut queue).await {
        answer(waiters, confirm(&core).await);
    }
}

async fn confirm<RT: AsyncRuntime>(core: &Core<RT>) -> Confirmed {
    if core.leader() != Some(core.own) {
        return Confirmed::NotLeader { leader: core.leader() };
    }
    let confirmed = RT::timeout(FORWARD_TIMEOUT, core.raft.get_read_log_id(ReadPolicy::ReadIndex));
    match confirmed.await {
        Ok(Ok((id, _))) => Confirmed::Index(id.index()),
        Ok(Err(error)) => match error.forward_to_leader() {
            Some(to) => Confirmed::NotLeader { leader: to.leader_id },
            None => Confirmed::Unknown,
        },
        Err(_) => Confirmed::Unknown,
    }
}

/// Serves the readers of this node. Ends when all senders are gone.
pub async fn serve_readers<RT: AsyncRuntime>(
    core: Arc<Core<RT>>,
    mut queue: mpsc::Receiver<Waiter>,
) {
    while let Some(waiters) = gather(&mut queue).await {
        answer(waiters, ask(&core).await);
    }
}

async fn ask<RT: AsyncRuntime>(core: &Core<RT>) -> Confirmed {
    if core.mutation == Mutation::BarrierWithoutQuorum {
        return Confirmed::Index(core.shared.index());
    }
    match core.leader() {
        None => Confirmed::NotLeader { leader: None },
        Some(leader) if leader == core.own => core.confirm_leadership().await,
        Some(leader) => {
            let call = Call::Barrier(wire::BarrierRequest {});
            match core.ask_leader(leader, call).await {
                Ok(Answer::Barrier(reply)) => confirmed_from_wire(reply),
                Ok(_) | Err(_) => Confirmed::Unknown,
            }
        }
    }
}

pub fn confirmed_to_wire(confirmed: Confirmed) -> wire::BarrierReply {
    let mut reply = wire::BarrierReply::default();
    match confirmed {
        Confirmed::Index(index) => {
            reply.index = index;
            reply.set_outcome(wire::ShellOutcome::Ok);
        }
        Confirmed::NotLeader { leader } => {
            reply.leader = leader.map_or(0, |leader| leader.0);
            reply.set_outcome(wire::ShellOutcome::NotLeader);
        }
        Confirmed::Unknown => reply.set_outcome(wire::ShellOutcome::Unknown),
    }
    reply
}

fn confirmed_from_wire(reply: wire::BarrierReply) -> Confirmed {
    match reply.outcome() {
        wire::ShellOutcome::Ok => Confirmed::Index(reply.index),
        wire::ShellOutcome::NotLeader => {
            Confirmed::NotLeader { leader: (reply.leader != 0).then_some(NodeId(reply.leader)) }
        }
        _ => Confirmed::Unknown,
    }
}
