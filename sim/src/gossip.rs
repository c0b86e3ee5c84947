//! Gossip between the simulated nodes, and the leader that calls the dead dead by it.
//!
//! The state machine (`membership::gossip`) and the judgement (`cluster::observe`) are the daemon's
//! own; the loops around them are the daemon's in short. What must hold while the network is whole
//! and calm: nobody that runs is held for down, and who dies is known within a bound to everybody.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::Rng;
use rand::seq::IndexedRandom;
use unum_node::cluster::observe::{Contact, Newcomers};
use unum_node::membership::gossip::{Gossip, Outgoing};
use unum_node::membership::{Identity, MemberState, RUN_STRIDE, Timings};
use unum_proto::ids::{Epoch, Lane, NodeId, RequestId};
use unum_proto::registry as wire;
use unum_proto::registry::command::Kind;

use crate::coverage::Met;
use crate::world::{Registry, World};

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
    let mut contact = Contact::default();
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
        } else if !newly_dead(&world, node, &registry, &mut newcomers).is_empty() {
            let by_majority = registry.barrier(LOOK_PERIOD).await.is_ok()
                && registry.standing().leader == Some(node);
            let may = contact.confirmed(by_majority, world.elapsed());
            let dead = newly_dead(&world, node, &registry, &mut newcomers);
            for (dead, epoch) in dead.into_iter().filter(|_| may) {
                if !world.is_alive(node, life) {
                    return;
                }
                world.calls_dead(node, dead);
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

fn newly_dead(
    world: &World,
    node: NodeId,
    registry: &Registry,
    newcomers: &mut Newcomers,
) -> Vec<(NodeId, Epoch)> {
    let nodes = registry.read(|state| state.nodes().clone());
    let now = world.elapsed();
    let view = world.gossip(node, |gossip| gossip.view(now)).unwrap_or_default();
    newcomers.newly_dead(&nodes, &view, node, now)
}

/// What must hold once all is mended.
pub async fn judge(world: &Arc<World>) -> Result<(), String> {
    until(world, SETTLE_MAX, "everybody hears and is up", || unwell(world)).await?;
    let calm = world.elapsed();
    while world.elapsed() < calm + CALM {
        SimRuntime::sleep(Duration::from_millis(50)).await;
        no_false_alarm(world, calm, None)?;
    }
    let nodes = world.nodes();
    let Some(dead) = world.draw(|rng| nodes.choose(rng).copied()) else { return Ok(()) };
    world.crash(dead);
    let unaware = || {
        let mut others = nodes.iter().filter(|node| **node != dead);
        let unaware = others.find(|node| state(world, **node, dead) != MemberState::Down)?;
        Some(format!("{unaware} holds it for {:?}", state(world, *unaware, dead)))
    };
    until(world, DEATH_KNOWN_MAX, &format!("all know of the death of {dead}"), unaware).await?;
    let still_up = || {
        let (by, registry) = world.running().into_iter().find(|(id, _)| *id != dead)?;
        is_up(&registry, dead).then(|| format!("{by} reads that it is up"))
    };
    until(world, DEATH_AGREED_MAX, &format!("the registry knows of it: {dead}"), still_up).await?;
    no_false_alarm(world, calm, Some(dead))?;
    world.boot(dead).await;
    world.come_up(dead);
    until(world, SETTLE_MAX, &format!("{dead} is back"), || unwell(world)).await?;
    world.met(Met::GossipJudged);
    no_false_alarm(world, calm, Some(dead))
}

/// Waits until nothing is amiss any more.
async fn until(
    world: &World,
    within: Duration,
    what: &str,
    amiss: impl Fn() -> Option<String>,
) -> Result<(), String> {
    let deadline = world.elapsed() + within;
    while let Some(amiss) = amiss() {
        if world.elapsed() > deadline {
            return Err(format!("not within {within:?}: {what}: {amiss}"));
        }
        SimRuntime::sleep(Duration::from_millis(20)).await;
    }
    world.note(what);
    Ok(())
}

fn state(world: &World, seen_by: NodeId, of: NodeId) -> MemberState {
    let now = world.elapsed();
    let view = world.gossip(seen_by, |gossip| gossip.view(now)).unwrap_or_default();
    view.get(&of).map_or(MemberState::Unknown, |member| member.state)
}

fn is_up(registry: &Registry, node: NodeId) -> bool {
    registry.read(|state| state.nodes().get(node).is_some_and(|known| known.is_up()))
}

/// All nodes, as each of them sees each.
fn pairs(world: &World) -> impl Iterator<Item = (NodeId, NodeId)> {
    let nodes = world.nodes();
    nodes.clone().into_iter().flat_map(move |a| nodes.clone().into_iter().map(move |b| (a, b)))
}

fn unwell(world: &World) -> Option<String> {
    pairs(world).find_map(|(a, b)| {
        let Some(registry) = world.registry(a) else { return Some(format!("{a} does not run")) };
        match state(world, a, b) {
            MemberState::Alive if is_up(&registry, b) => None,
            MemberState::Alive => Some(format!("{a} reads that {b} is down")),
            other => Some(format!("{a} holds {b} for {other:?}")),
        }
    })
}

/// Nobody that lives is held for dead, nor has been called dead since the calm began. Who was
/// called dead before and comes up late may still raise its epoch.
fn no_false_alarm(world: &World, calm: Duration, dead: Option<NodeId>) -> Result<(), String> {
    if let Some(called) = world.called_dead_since(calm).find(|node| Some(*node) != dead) {
        return Err(format!("{called} was called dead in a calm network, alive"));
    }
    let wrong = pairs(world)
        .filter(|(a, b)| Some(*a) != dead && Some(*b) != dead)
        .find(|(a, b)| state(world, *a, *b) == MemberState::Down);
    match wrong {
        Some((a, b)) => Err(format!("{a} holds {b} for dead in a calm network, and it lives")),
        None => Ok(()),
    }
}
