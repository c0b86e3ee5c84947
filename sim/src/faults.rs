//! What goes wrong, and when: drawn from the seed.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::Rng;
use rand::seq::IndexedRandom;
use unum_node::store::disk::{Fault, Op};
use unum_proto::ids::{Lane, NodeId, RequestId};
use unum_proto::registry as wire;
use unum_proto::registry::command::Kind;

use crate::coverage::Met;
use crate::net::{Groups, Weather};
use crate::world::{DISK_BYTES, Registry, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Trouble {
    /// One node or some are cut off from the others.
    Partition,
    IsolateLeader,
    /// A minority is cut off for a while; then it is back, and the leader is cut off instead.
    ChangeSides,
    Heal,
    Crash,
    CrashInSync,
    /// A write or a sync fails for good; the daemon is started again.
    DiskError,
    /// A node loses what it had last acknowledged, and perhaps its snapshot.
    Rot,
    /// The same to one of just enough nodes that have it, and the others would elect it.
    Amnesia,
    CrashLeader,
    /// All nodes lose their power while their disks are idle.
    Blackout,
    /// All nodes lose their power while they write, which tears the ends of their logs.
    PowerCut,
    DiskFull,
    Storm,
    DeclareDown,
    HandOver,
}

const ALL: [Trouble; 16] = [
    Trouble::Partition,
    Trouble::IsolateLeader,
    Trouble::ChangeSides,
    Trouble::Heal,
    Trouble::Crash,
    Trouble::CrashInSync,
    Trouble::DiskError,
    Trouble::Rot,
    Trouble::Amnesia,
    Trouble::CrashLeader,
    Trouble::Blackout,
    Trouble::PowerCut,
    Trouble::DiskFull,
    Trouble::Storm,
    Trouble::DeclareDown,
    Trouble::HandOver,
];

/// Makes trouble until the time is over.
pub async fn trouble(world: Arc<World>, until: Duration) {
    while world.elapsed() < until && world.violation().is_none() {
        let pause = world.draw(|rng| rng.random_range(200..1500));
        SimRuntime::sleep(Duration::from_millis(pause)).await;
        let drawn = world.draw(|rng| *ALL.choose(rng).expect("there are some"));
        let what = world.plan.only.unwrap_or(drawn);
        strike(&world, what).await;
    }
}

/// Mends all that was broken.
pub async fn mend(world: &Arc<World>) {
    world.set_weather(Weather::CALM);
    world.set_groups(Groups::default());
    for node in world.nodes() {
        if let Some(disk) = world.disk(node) {
            disk.set_total_bytes(DISK_BYTES);
        }
        // A fault that was ordered and has not struck yet goes with the power.
        if world.has_failing_disk(node) {
            world.crash(node);
        }
        if world.registry(node).is_none() {
            world.boot(node).await;
        }
        world.come_up(node);
    }
    world.note("all is mended");
}

async fn strike(world: &Arc<World>, what: Trouble) {
    let node = any(world);
    match what {
        Trouble::Partition => partition(world),
        Trouble::IsolateLeader => {
            let alone = leader(world).unwrap_or(node);
            world.met(Met::LeaderCutOff);
            world.set_groups(Groups([(alone, 1)].into()));
            world.note(format!("{alone} is cut off"));
        }
        Trouble::ChangeSides => change_sides(world).await,
        Trouble::Heal => {
            world.set_groups(Groups::default());
            world.note("the network is whole");
        }
        Trouble::Crash => crash_and_boot(world, node),
        Trouble::CrashLeader => crash_and_boot(world, leader(world).unwrap_or(node)),
        // A fault ordered for a dead machine would strike its next boot instead.
        Trouble::CrashInSync | Trouble::DiskError if world.registry(node).is_none() => {}
        // What a majority has lost is lost.
        Trouble::Rot if !world.may_lose(node) => {}
        Trouble::Amnesia if !is_sound(world) => {}
        Trouble::DiskError => disk_error(world, node),
        Trouble::Rot => {
            world.crash(node);
            world.rot_log(node);
            if world.draw(|rng| rng.random()) {
                world.rot_snapshot(node);
            }
            boot_after(world, node, 20..1500);
        }
        Trouble::Amnesia => amnesia(world).await,
        Trouble::CrashInSync => {
            let after = world.draw(|rng| rng.random_range(0..4));
            let path_contains = String::new();
            let errno = rustix::io::Errno::IO;
            world.fail_disk(node, Fault { op: Op::Sync, path_contains, after, errno });
            world.note(format!("{node} will die in a sync"));
            world.met(Met::CrashInSync);
            let pause = world.draw(|rng| rng.random_range(5..120));
            SimRuntime::sleep(Duration::from_millis(pause)).await;
            crash_and_boot(world, node);
        }
        Trouble::PowerCut => power_cut(world).await,
        Trouble::Blackout => {
            world.met(Met::Blackout);
            for node in world.nodes() {
                crash_and_boot(world, node);
            }
        }
        Trouble::DiskFull => fill_disk(world, node),
        Trouble::Storm => {
            let weather = world.draw(Weather::draw);
            world.set_weather(weather);
            world.met(Met::Storm);
            world.note(format!("weather: {weather:?}"));
        }
        Trouble::DeclareDown => declare_down(world, node),
        Trouble::HandOver => {
            if let Some(registry) = leader(world).and_then(|leader| world.registry(leader)) {
                let to = registry.hand_over().await;
                if to.is_some() {
                    world.met(Met::HandedOver);
                }
                world.note(format!("{} hands over to {to:?}", registry.own()));
            }
        }
    }
}

fn any(world: &World) -> NodeId {
    let nodes = world.nodes();
    world.draw(|rng| *nodes.choose(rng).expect("there are nodes"))
}

fn leader(world: &World) -> Option<NodeId> {
    let running = world.running();
    running.iter().find(|(id, registry)| registry.standing().leader == Some(*id)).map(|(id, _)| *id)
}

fn partition(world: &World) {
    let nodes = world.nodes();
    let groups = world
        .draw(|rng| nodes.iter().map(|node| (*node, u8::from(rng.random_bool(0.5)))).collect());
    world.note(format!("partition: {groups:?}"));
    world.met(Met::Partition);
    world.set_groups(Groups(groups));
}

/// Those who follow the next leader heard this one last at very different times.
async fn change_sides(world: &Arc<World>) {
    let Some(first) = leader(world) else { return };
    let Some(registry) = world.registry(first) else { return };
    let others: Vec<NodeId> =
        registry.standing().voters.into_iter().filter(|node| *node != first).collect();
    let absent: Vec<NodeId> =
        world.draw(|rng| others.choose_multiple(rng, others.len() / 2).copied().collect());
    world.set_groups(Groups(absent.iter().map(|node| (*node, 1)).collect()));
    world.note(format!("{absent:?} are cut off"));
    let pause = world.draw(|rng| rng.random_range(500..1500));
    SimRuntime::sleep(Duration::from_millis(pause)).await;
    world.met(Met::SidesChanged);
    // So that the next one leads while this one's leases last.
    if world.draw(|rng| rng.random()) {
        let to = registry.hand_over().await;
        world.note(format!("{first} hands over to {to:?}"));
        let pause = world.draw(|rng| rng.random_range(1..8));
        SimRuntime::sleep(Duration::from_millis(pause)).await;
    }
    world.set_groups(Groups([(first, 1)].into()));
    world.note(format!("{absent:?} are back, and {first} is cut off"));
    let pause = world.draw(|rng| rng.random_range(500..1500));
    SimRuntime::sleep(Duration::from_millis(pause)).await;
}

fn crash_and_boot(world: &Arc<World>, node: NodeId) {
    if world.registry(node).is_none() {
        return;
    }
    world.crash(node);
    boot_after(world, node, 20..2500);
}

/// The next syncs of all logs are torn, and then all is dark.
async fn power_cut(world: &Arc<World>) {
    world.met(Met::PowerCut);
    world.note("the power of all is about to be cut");
    for (node, _) in world.running() {
        let after = world.draw(|rng| rng.random_range(0..2));
        let (path_contains, errno) = ("log".to_owned(), rustix::io::Errno::IO);
        world.fail_disk(node, Fault { op: Op::Sync, path_contains, after, errno });
    }
    for (_, registry) in world.running() {
        burden(world, registry);
    }
    let pause = world.draw(|rng| rng.random_range(1..100));
    SimRuntime::sleep(Duration::from_millis(pause)).await;
    for node in world.nodes() {
        crash_and_boot(world, node);
    }
}

/// Proposes something long, so that what is written next fills several sectors.
fn burden(world: &World, registry: Registry) {
    let (lane, bytes) = world.draw(|rng| (rng.random(), rng.random_range(600..9000)));
    let put = wire::PutValue { key: "ballast".into(), value: vec![7; bytes].into() };
    drop(SimRuntime::spawn(async move {
        let id = RequestId { lane: Lane(lane), seq: 1 };
        let within = Duration::from_millis(500);
        // Whether it succeeds does not matter.
        let _ = registry.propose_within(id, Kind::PutValue(put), within).await;
    }));
}

/// Within so many milliseconds.
fn boot_after(world: &Arc<World>, node: NodeId, within: std::ops::Range<u64>) {
    let world = world.clone();
    drop(SimRuntime::spawn(async move {
        let pause = world.draw(|rng| rng.random_range(within));
        SimRuntime::sleep(Duration::from_millis(pause)).await;
        if world.registry(node).is_none() {
            world.boot(node).await;
            world.come_up(node);
        }
    }));
}

fn fill_disk(world: &Arc<World>, node: NodeId) {
    let Some(disk) = world.disk(node) else { return };
    world.note(format!("the disk of {node} is full"));
    world.met(Met::DiskFull);
    disk.set_total_bytes(0);
    let world = world.clone();
    drop(SimRuntime::spawn(async move {
        SimRuntime::sleep(Duration::from_millis(1500)).await;
        disk.set_total_bytes(DISK_BYTES);
        world.note(format!("the disk of {node} has room"));
    }));
}

/// Somebody holds a living node for dead: it is fenced and must come up again.
fn declare_down(world: &Arc<World>, node: NodeId) {
    let by = any(world);
    let Some(registry) = world.registry(by).filter(|_| by != node) else { return };
    let world = world.clone();
    drop(SimRuntime::spawn(async move {
        let epoch = registry.read(|state| state.nodes().get(node).map(|known| known.epoch.0));
        let Some(epoch) = epoch else { return };
        let down = wire::NodeDown { node: node.0, epoch, why: "a whim".into() };
        let id = RequestId { lane: Lane(world.draw(|rng| rng.random())), seq: 1 };
        let within = Duration::from_secs(1);
        let outcome = registry.propose_within(id, Kind::NodeDown(down), within).await;
        if outcome.is_ok() {
            world.met(Met::DeclaredDown);
        }
        world.note(format!("{by} declares {node} down: {outcome:?}"));
    }));
}

/// Whether all nodes run and know all that they ever acknowledged.
fn is_sound(world: &World) -> bool {
    world.nodes().into_iter().all(|node| {
        let standing = world.registry(node).map(|registry| registry.standing());
        standing.is_some_and(|standing| !standing.suspect && !standing.stopped)
    })
}

/// One operation of the disk fails, and consensus on the node with it: its daemon sees that and
/// starts anew, on a machine that kept its power.
fn disk_error(world: &Arc<World>, node: NodeId) {
    let (op, after) = world.draw(|rng| {
        let op = if rng.random() { Op::Write } else { Op::Sync };
        (op, rng.random_range(0..4))
    });
    let (path_contains, errno) = ("log".to_owned(), rustix::io::Errno::IO);
    world.fail_disk(node, Fault { op, path_contains, after, errno });
    world.met(Met::DiskError);
    world.note(format!("on {node}, {op} fails after {after} more"));
    let world = world.clone();
    drop(SimRuntime::spawn(async move {
        for _ in 0..20 {
            SimRuntime::sleep(Duration::from_millis(100)).await;
            let Some(registry) = world.registry(node) else { return };
            if registry.standing().stopped {
                return world.restart(node).await;
            }
        }
    }));
}

/// Voters that are just enough acknowledge entries; then one of them forgets, and the leader is cut
/// off: if the forgetful one voted, the rest would elect a leader without these entries.
async fn amnesia(world: &Arc<World>) {
    let Some(first) = leader(world) else { return };
    let Some(registry) = world.registry(first) else { return };
    let others: Vec<NodeId> =
        registry.standing().voters.into_iter().filter(|node| *node != first).collect();
    let Some(forgetful) = world.draw(|rng| others.choose(rng).copied()) else { return };
    let absent: Vec<NodeId> =
        others.iter().filter(|node| **node != forgetful).take(others.len() / 2).copied().collect();
    world.set_weather(Weather::CALM);
    world.set_groups(Groups(absent.iter().map(|node| (*node, 1)).collect()));
    world.met(Met::Amnesia);
    world.note(format!("only just enough nodes follow {first}"));
    let pause = world.draw(|rng| rng.random_range(20..400));
    SimRuntime::sleep(Duration::from_millis(pause)).await;
    let put = wire::PutValue { key: "remember".into(), value: "me".into() };
    let id = RequestId { lane: Lane(world.draw(|rng| rng.random())), seq: 1 };
    let within = Duration::from_millis(400);
    let outcome = registry.propose_within(id, Kind::PutValue(put), within).await;
    world.note(format!("{first} acknowledges: {outcome:?}"));
    world.crash(forgetful);
    world.rot_log(forgetful);
    let group = |node: &NodeId| u8::from(*node == forgetful || absent.contains(node));
    world.set_groups(Groups(world.nodes().iter().map(|node| (*node, group(node))).collect()));
    world.note(format!("those who remember are cut off from {forgetful} and {absent:?}"));
    world.boot(forgetful).await;
    world.come_up(forgetful);
    let pause = world.draw(|rng| rng.random_range(1500..4500));
    SimRuntime::sleep(Duration::from_millis(pause)).await;
    world.set_groups(Groups::default());
    world.note("the network is whole");
}
