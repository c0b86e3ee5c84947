//! What a node that leaves holds goes to those who stay.
//!
//! Invariant: when `hand_over` returns, each chunk that was known when it began is on as many of the
//! others as a write of today would ask for without this node, so that the loss of any minority of
//! them leaves a copy. Full numbers are repair's affair, afterwards.

use super::running::Parts;
use crate::api::registry_status;
use crate::registry::RegistryError;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use unum_core::placement::chunks::{Place, durable_enough, place};
use unum_core::tree::{Chunk, TreeError};
use unum_net::{Code, Status};
use unum_proto::ids::{ChunkId, NodeId};
use unum_proto::registry::{command, reply};
use unum_proto::tree::{SetReplicas, TreeCommand, tree_command};

/// Chunks looked at in one step of the walk.
const SCAN_MAX: usize = 1024;
/// Chunks copied at the same time.
const COPIES_MAX: usize = 4;
/// One chunk to one node.
const COPY_TIME_MAX: Duration = Duration::from_secs(20);
const RECORD_TIME_MAX: Duration = Duration::from_secs(5);

/// Copies what too few of the others have.
pub async fn hand_over(parts: &Parts, deadline: Instant) -> Result<(), Status> {
    parts.registry.barrier(RECORD_TIME_MAX).await.map_err(registry_status)?;
    let heirs = Heirs::of(parts);
    let mut after = None;
    loop {
        let (found, next) = parts.registry.read(|state| {
            let tree = state.tree();
            let walk = tree.chunks_on(parts.node, after, SCAN_MAX);
            let needed =
                |chunk: &Chunk| heirs.needed(parts.services.replicas.wanted_of(tree, chunk));
            let found = walk.found.into_iter().map(|(id, chunk)| (needed(&chunk), id, chunk));
            (found.collect::<Vec<_>>(), walk.next)
        });
        let lacking: Vec<(usize, ChunkId, Chunk)> =
            found.into_iter().filter(|(needed, _, chunk)| heirs.having(chunk) < *needed).collect();
        for batch in lacking.chunks(COPIES_MAX) {
            if Instant::now() >= deadline {
                return Err(unfinished("it takes longer than expected"));
            }
            let copies =
                batch.iter().map(|(needed, id, chunk)| heirs.take(parts, *needed, *id, chunk));
            join_all(copies).await.into_iter().collect::<Result<(), Status>>()?;
        }
        match next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

fn unfinished(why: &str) -> Status {
    Status::new(
        Code::Unavailable,
        format!(
            "this node holds parts of files that too few others have, and could not hand them all \
             over: {why}; the node is still a member. Run `unum leave` again to go on, make room \
             or add a node, or lose them with --force"
        ),
    )
}

/// Those who stay.
struct Heirs {
    living: BTreeSet<NodeId>,
    /// How many they are, dead ones included.
    staying: usize,
}

impl Heirs {
    fn of(parts: &Parts) -> Self {
        let mut living = parts.services.replicas.alive();
        living.remove(&parts.node);
        let staying = parts
            .registry
            .read(|state| state.nodes().members().filter(|member| member.id != parts.node).count());
        Self { living, staying }
    }

    /// Of how many of them a chunk must have a copy that should have so many replicas.
    fn needed(&self, wanted: usize) -> usize {
        durable_enough(self.staying, wanted.min(self.living.len())).max(1)
    }

    fn having(&self, chunk: &Chunk) -> usize {
        chunk.replicas.iter().filter(|node| self.living.contains(node)).count()
    }

    async fn take(
        &self,
        parts: &Parts,
        needed: usize,
        id: ChunkId,
        chunk: &Chunk,
    ) -> Result<(), Status> {
        let replicas = &parts.services.replicas;
        let deadline = Instant::now() + COPY_TIME_MAX;
        let others = self.in_order(id).into_iter().filter(|node| !chunk.replicas.contains(node));
        let lacking = needed.saturating_sub(self.having(chunk));
        let copied = replicas.copy(id, chunk, &chunk.replicas, others, lacking, deadline).await;
        let copied = copied.map_err(|why| unfinished(&why))?;
        if copied.to.len() < lacking {
            return Err(unfinished(&copied.refusal));
        }
        let mut now: BTreeSet<NodeId> = chunk.replicas.iter().copied().chain(copied.to).collect();
        // This node's own copy will be gone.
        now.remove(&parts.node);
        set_replicas(parts, id, chunk, &now).await
    }

    fn in_order(&self, id: ChunkId) -> Vec<NodeId> {
        let places: Vec<_> =
            self.living.iter().map(|node| Place { node: *node, weight: 1 }).collect();
        place(id, &places, places.len())
    }
}

async fn set_replicas(
    parts: &Parts,
    id: ChunkId,
    chunk: &Chunk,
    replicas: &BTreeSet<NodeId>,
) -> Result<(), Status> {
    let set = SetReplicas {
        chunk: Some(id.into()),
        expected: chunk.replicas.iter().map(|node| node.0).collect(),
        replicas: replicas.iter().map(|node| node.0).collect(),
    };
    let set = TreeCommand::from(tree_command::Command::SetReplicas(set));
    let done = parts.proposer.propose(command::Kind::Tree(set), RECORD_TIME_MAX).await;
    let reply::Kind::Tree(reply) = done.map_err(registry_status)? else {
        return Err(registry_status(RegistryError::Stopped));
    };
    match unum_core::tree::outcome(&reply) {
        // Deleted meanwhile, or changed by repair: the registry's own check finds what is left.
        Ok(_) | Err(TreeError::Stale | TreeError::NotFound) => Ok(()),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}
