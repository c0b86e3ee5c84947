//! Gossip between the simulated nodes, and the leader that calls the dead dead by it.
//!
//! The state machine (`membership::gossip`) and the judgement (`cluster::observe`) are the daemon's
//! own; the loops around them are the daemon's in short. What must hold while the network is whole
//! and calm: nobody that runs is held for down, and who dies is known within a bound to everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::Rng;
use rand::seq::IndexedRandom;
use unum_node::cluster::observe::Newcomers;
use unum_node::membership::gossip::{Gossip, Outgoing};
use unum_node::membership::{Identity, MemberState, RUN_STRIDE, Timings};
use unum_proto::ids::{Epoch, Lane, NodeId, RequestId};
use unum_proto::registry as wire;
use unum_proto::registry::command::Kind;

use crate::world::World;

/// The daemon's own.
const TIMINGS: Timings = Timings {
    period: Duration::from_millis(250),
    timeout: Duration::from_millis(100),
    suspicion: Duration::from_millis(750),
};
/// Between two looks of a node at what is due.
const TURN: Duration = Duration::from_millis(10);
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// After the repair, until everybody hears everybody again.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// How long a calm network is watched.
const CALM: Duration = Duration::from_secs(3);
/// From a death to the moment when every other node knows.
const DEATH_KNOWN_MAX: Duration = Duration::from_secs(5);
/// From then to the moment when the registry says so.
const DEATH_AGREED_MAX: Duration = Duration::from_secs(10);

/// Begins the gossip of one life of a node.
pub fn start(world: &Arc<World>, node: NodeId, life: u64) {
    let own = Identity { node, run: life * RUN_STRIDE };
    let seed = world.draw(|rng| rng.random());
    world.set_gossip(node, Gossip::new(own, TIMINGS, seed, world.elapsed()));
    drop(SimRuntime::spawn(turn(world.clone(), node, life)));
    drop(SimRuntime::spawn(look_around(world.clone(), node, life)));
}

async fn turn(world: Arc<World>, node: NodeId, life: u64) {
    while world.is_alive(node, life) {
        let now = world.elapsed();
        let due = |gossip: &Gossip| gossip.next_wakeup().is_some_and(|at| at <= now);
        world.gossip(node, |gossip| {
            if due(gossip) {
                gossip.tick(now)
            }
        });
        send(&world, node);
        SimRuntime::sleep(TURN).await;
    }
}

fn send(world: &Arc<World>, from: NodeId) {
    for Outgoing { to, packet } in world.gossip(from, Gossip::take_outgoing).unwrap_or_default() {
        let fate = world.fate();
        let first = (!fate.lost).then_some(fate.delay);
        for delay in first.into_iter().chain(fate.repeated) {
            let (world, packet) = (world.clone(), packet.clone());
            drop(SimRuntime::spawn(async move {
                SimRuntime::sleep(delay).await;
                if world.is_joined(from, to) {
                    let now = world.elapsed();
                    // A packet that is refused is lost, as in the daemon.
                    let _ = world.gossip(to, |gossip| gossip.receive(from, &packet, now));
                    send(&world, to);
                }
            }));
        }
    }
}

/// Tells gossip whom the registry knows; comes up again if it was held for dead; as the leader,
/// calls the dead dead.
async fn look_around(world: Arc<World>, node: NodeId, life: u64) {
    let mut newcomers = Newcomers::default();
    while world.is_alive(node, life) {
        let Some(registry) = world.registry(node) else { return };
        let nodes = registry.read(|state| state.nodes().clone());
        let now = world.elapsed();
        world.gossip(node, |gossip| gossip.set_contacts(nodes.members().map(|n| n.id), now));
        if nodes.get(node).is_some_and(|own| !own.is_up()) {
            world.come_up(node);
        }
        if registry.standing().leader != Some(node) {
            newcomers = Newcomers::default();
        } else if let Some(view) = world.gossip(node, |gossip| gossip.view(now)) {
            for (dead, epoch) in newcomers.newly_dead(&nodes, &view, node, now) {
                world.note(format!("{node} calls {dead} dead"));
                let why = "gossip".to_owned();
                let down = Kind::NodeDown(wire::NodeDown { node: dead.0, epoch: epoch.0, why });
                let id = RequestId { lane: Lane(world.draw(|rng| rng.random())), seq: 1 };
                // A failure shows at the next look.
                let _ = registry.propose_within(id, down, LOOK_PERIOD).await;
            }
        }
        SimRuntime::sleep(LOOK_PERIOD).await;
    }
}

/// What must hold once all is mended.
pub async fn judge(world: &Arc<World>) -> Result<(), String> {
    until(world, SETTLE_MAX, "everybody hears and is up", || all_well(world, None)).await?;
    let epochs = epochs(world);
    let end = world.elapsed() + CALM;
    while world.elapsed() < end {
        SimRuntime::sleep(Duration::from_millis(50)).await;
        no_false_alarm(world, None)?;
    }
    let nodes = world.nodes();
    let Some(dead) = world.draw(|rng| nodes.choose(rng).copied()) else { return Ok(()) };
    world.crash(dead);
    let known = || others(world, dead).all(|node| state(world, node, dead) == MemberState::Down);
    until(world, DEATH_KNOWN_MAX, &format!("all know of the death of {dead}"), known).await?;
    let agreed = || is_up(world, dead, dead) == Some(false);
    until(world, DEATH_AGREED_MAX, &format!("the registry knows of it: {dead}"), agreed).await?;
    no_false_alarm(world, Some(dead))?;
    world.boot(dead).await;
    world.come_up(dead);
    until(world, SETTLE_MAX, &format!("{dead} is back"), || all_well(world, None)).await?;
    let now = self::epochs(world);
    match epochs.iter().find(|(id, epoch)| **id != dead && now.get(id) != Some(epoch)) {
        Some((id, _)) => Err(format!("{id} was called dead in a calm network, alive")),
        None => Ok(()),
    }
}

async fn until(
    world: &World,
    within: Duration,
    what: &str,
    holds: impl Fn() -> bool,
) -> Result<(), String> {
    let deadline = world.elapsed() + within;
    while !holds() {
        if world.elapsed() > deadline {
            return Err(format!("not within {within:?}: {what}"));
        }
        SimRuntime::sleep(Duration::from_millis(20)).await;
    }
    world.note(what);
    Ok(())
}

fn others(world: &World, but: NodeId) -> impl Iterator<Item = NodeId> {
    world.nodes().into_iter().filter(move |node| *node != but)
}

fn state(world: &World, seen_by: NodeId, of: NodeId) -> MemberState {
    let now = world.elapsed();
    let view = world.gossip(seen_by, |gossip| gossip.view(now)).unwrap_or_default();
    view.get(&of).map_or(MemberState::Unknown, |member| member.state)
}

/// By the copy of any running node but one.
fn is_up(world: &World, node: NodeId, not_by: NodeId) -> Option<bool> {
    let (_, registry) = world.running().into_iter().find(|(id, _)| *id != not_by)?;
    registry.read(|state| state.nodes().get(node).map(|known| known.is_up()))
}

fn all_well(world: &World, but: Option<NodeId>) -> bool {
    let nodes: Vec<NodeId> = world.nodes().into_iter().filter(|id| Some(*id) != but).collect();
    nodes.iter().all(|a| {
        let up = world.registry(*a).is_some_and(|registry| {
            nodes.iter().all(|b| {
                registry.read(|state| state.nodes().get(*b).is_some_and(|node| node.is_up()))
            })
        });
        up && nodes.iter().all(|b| state(world, *a, *b) == MemberState::Alive)
    })
}

fn no_false_alarm(world: &World, but: Option<NodeId>) -> Result<(), String> {
    let nodes: Vec<NodeId> = world.nodes().into_iter().filter(|id| Some(*id) != but).collect();
    let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b)));
    let mut wrong = pairs.filter(|(a, b)| state(world, *a, *b) == MemberState::Down);
    match wrong.next() {
        Some((a, b)) => Err(format!("{a} holds {b} for dead in a calm network, and it lives")),
        None => Ok(()),
    }
}

fn epochs(world: &World) -> BTreeMap<NodeId, Epoch> {
    let Some((_, registry)) = world.running().into_iter().next() else { return BTreeMap::new() };
    registry.read(|state| state.nodes().members().map(|node| (node.id, node.epoch)).collect())
}
