//! A node leaves of its own will: its programs end while they can still save, what it holds goes to
//! those who stay, the departure is recorded, then it is out of consensus, then gone.

use super::handover;
use super::running::Parts;
use crate::api::registry_status;
use crate::membership::MemberState;
use crate::registry::RegistryError;
use std::time::Duration;
use tokio::time::Instant;
use unum_core::registry::Refused;
use unum_net::{Code, Status};
use unum_proto::registry::{LeaveNode, command};

/// How long it may take to copy to others what this node holds. Who is not done then is told so,
/// and goes on at the next attempt where this one ended.
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(600);
/// How long the record of the departure may take.
const RECORD_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the others may take to do without this node's vote.
const RELEASE_TIME_MAX: Duration = Duration::from_secs(10);
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Returns when the cluster does without this node. With `force`, it leaves whatever that breaks.
pub async fn depart(parts: &Parts, force: bool) -> Result<(), Status> {
    let others = parts
        .registry
        .read(|state| state.nodes().members().filter(|node| node.id != parts.node).count());
    if others == 0 {
        return match force {
            true => Ok(()),
            false => Err(Status::new(
                Code::Conflict,
                "this is the last node: with it the cluster ends and its files are gone; add \
                 --force if that is meant",
            )),
        };
    }
    match release(parts).await {
        Err(status) if force => {
            tracing::warn!(%status, "leaves all the same");
            Ok(())
        }
        done => done,
    }
}

async fn release(parts: &Parts) -> Result<(), Status> {
    require_heirs(parts)?;
    // Most of it while everything still runs.
    handover::hand_over(parts, Instant::now() + HAND_OVER_TIME_MAX).await?;
    // Without a world this daemon is of no use as a node: if what follows fails, it starts anew.
    parts.services.end().await;
    record(parts).await?;
    let deadline = Instant::now() + RELEASE_TIME_MAX;
    while parts.registry.standing().voters.contains(&parts.node) {
        if Instant::now() >= deadline {
            return Err(Status::new(
                Code::Unavailable,
                "the departure is recorded, but the other voters have not taken over yet; run \
                 `unum leave --force` to go all the same",
            ));
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
    Ok(())
}

/// What was written meanwhile is handed over, too: the registry lets nobody go with an only copy.
async fn record(parts: &Parts) -> Result<(), Status> {
    let deadline = Instant::now() + HAND_OVER_TIME_MAX;
    loop {
        handover::hand_over(parts, deadline).await?;
        let epoch = parts.epoch().ok_or_else(|| {
            Status::new(Code::Unavailable, "this node has not come up yet; try again in a moment")
        })?;
        let leave = LeaveNode { node: parts.node.0, epoch: epoch.0, keep_files: true };
        let leave = command::Kind::LeaveNode(leave);
        match parts.proposer.propose(leave, RECORD_TIME_MAX).await {
            Err(RegistryError::Refused(Refused::OnlyCopies(_))) if Instant::now() < deadline => {}
            done => return done.map(drop).map_err(registry_status),
        }
    }
}

/// Somebody must be there to go on: without this node's vote the rest must still be a majority.
fn require_heirs(parts: &Parts) -> Result<(), Status> {
    let view = parts.membership.view();
    let alive = |node| view.get(&node).is_some_and(|member| member.state == MemberState::Alive);
    let alive = parts.registry.read(|state| {
        state.nodes().members().filter(|node| node.id != parts.node && alive(node.id)).count()
    });
    if alive == 0 {
        return Err(Status::new(
            Code::Conflict,
            "no other node is alive: if this one leaves now, the cluster stops; bring another \
             node up first, or add --force",
        ));
    }
    Ok(())
}
