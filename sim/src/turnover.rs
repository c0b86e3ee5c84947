//! A node is expelled, alive or dead, and a new one takes its place.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::Rng;
use rand::seq::IndexedRandom;
use unum_core::registry::voters::desired;
use unum_proto::ids::{Lane, NodeId, RequestId};
use unum_proto::registry as wire;
use unum_proto::registry::command::Kind;

use crate::coverage::Met;
use crate::run::Setup;
use crate::world::{Registry, World};

const STEP_MAX: Duration = Duration::from_secs(30);

pub async fn turn_over(world: &Arc<World>) -> Result<(), String> {
    let nodes = world.nodes();
    let Some(gone) = world.draw(|rng| nodes.choose(rng).copied()) else { return Ok(()) };
    if world.draw(|rng| rng.random()) {
        world.crash(gone);
    }
    let rest = || world.running().into_iter().filter(move |(id, _)| *id != gone);
    let (by, registry) = rest().next().ok_or("nobody is left")?;
    expel(world, by, &registry, gone).await?;
    let out = || rest().all(|(_, registry)| !registry.standing().members.contains(&gone));
    until(world, &format!("{gone} is out of consensus"), out).await?;
    world.retire(gone);
    let new = NodeId(nodes.iter().map(|node| node.0).max().unwrap_or(0) + 1);
    let mut setup = Setup { registry, lane: Lane(1001), seq: 0 };
    setup.admit(new, wire::Role::Node).await?;
    world.add(new);
    world.boot(new).await;
    world.come_up(new);
    let members: BTreeSet<NodeId> = world.nodes().into_iter().collect();
    let whole = || {
        world.running().iter().all(|(_, registry)| {
            let standing = registry.standing();
            standing.members == members && standing.voters.len() == desired(members.len())
        })
    };
    until(world, &format!("{new} is in, and the voters are as many as they should be"), whole).await
}

async fn expel(
    world: &Arc<World>,
    by: NodeId,
    registry: &Registry,
    gone: NodeId,
) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..10 {
        let id = RequestId { lane: Lane(world.draw(|rng| rng.random())), seq: 1 };
        let remove = Kind::RemoveNode(wire::RemoveNode { node: gone.0 });
        match registry.propose(id, remove).await {
            Ok(_) => {
                world.met(Met::Expelled);
                world.note(format!("{by} expels {gone}"));
                return Ok(());
            }
            Err(error) => last = error.to_string(),
        }
        world.come_up(by);
        SimRuntime::sleep(Duration::from_millis(500)).await;
    }
    Err(format!("{gone} cannot be expelled: {last}"))
}

async fn until(world: &World, what: &str, holds: impl Fn() -> bool) -> Result<(), String> {
    let deadline = world.elapsed() + STEP_MAX;
    while !holds() {
        if world.elapsed() > deadline {
            return Err(format!("never came true: {what}: {}", world.standings()));
        }
        SimRuntime::sleep(Duration::from_millis(50)).await;
    }
    world.note(what);
    Ok(())
}
