//! More than the cluster promises to survive: a majority of the voters loses what it had
//! acknowledged. Then nobody may lead, for what all agreed on may be gone, until an operator says
//! that less will do.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use crate::clients::{Client, Histories};
use crate::registers::Registers;
use crate::run::{Plan, agree, found};
use crate::world::World;

/// How long nobody may lead.
const WATCHED: Duration = Duration::from_secs(15);
const CHANGES: u64 = 20;

pub fn most_logs_rot(seed: u64) -> Result<(), String> {
    let plan = Plan { gossip: false, turnover: false, ..Plan::new(seed) };
    let mut runtime = SimRuntime::with_seed(seed);
    runtime.block_on(async move {
        let world = World::new(plan);
        let outcome = live(&world).await;
        world.end().await;
        outcome
    })
}

async fn live(world: &Arc<World>) -> Result<(), String> {
    found(world).await?;
    let mut client = Client {
        world: world.clone(),
        histories: Arc::new(Histories::default()),
        registers: Arc::new(Registers::default()),
        number: 1,
        seq: 0,
    };
    for change in 0..CHANGES {
        client.put(change % crate::clients::KEYS).await;
    }
    let (_, registry) = world.running().into_iter().next().ok_or("nobody runs")?;
    let voters = registry.standing().voters;
    world.nodes().into_iter().for_each(|node| world.crash(node));
    voters.iter().take(voters.len() / 2 + 1).for_each(|node| world.rot_log(*node));
    boot_all(world).await;
    let standings = || world.running().into_iter().map(|(_, registry)| registry.standing());
    let lost = standings().filter(|standing| standing.lost).count();
    if lost * 2 <= voters.len() {
        let all: Vec<_> = standings().collect();
        return Err(format!("only {lost} of {} lost something: {all:?}", voters.len()));
    }
    SimRuntime::sleep(WATCHED).await;
    for (node, registry) in world.running() {
        // A follower may still name the leader of before.
        let leads = registry.standing().leader == Some(node);
        if leads || registry.barrier(Duration::from_secs(1)).await.is_ok() {
            return Err(format!("{node} leads or is led, though most voters lost something"));
        }
    }
    // As the log tells the operator to.
    for node in world.nodes() {
        world.crash(node);
        let Some(disk) = world.disk(node).map(|disk| disk.disk()) else { continue };
        // Those that lost nothing have no mark.
        let _ = disk.remove("suspect");
        disk.sync_dir().map_err(|error| error.to_string())?;
    }
    boot_all(world).await;
    agree(world).await.map(|_| ())
}

async fn boot_all(world: &Arc<World>) {
    for node in world.nodes() {
        world.boot(node).await;
        world.come_up(node);
    }
}
