//! One run: found a cluster, make trouble, mend it, and look at what everybody saw.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use unum_core::registry::snapshot;
use unum_node::registry::{RegistryError, Standing};
use unum_proto::ids::{Epoch, Lane, NodeId, RequestId};
use unum_proto::registry::command::Kind;
use unum_proto::registry::{self as wire, reply};

use crate::clients::{Client, Histories, KEYS};
use crate::coverage::{Coverage, Met};
use crate::faults::{Trouble, mend, trouble};
use crate::gossip;
use crate::linear::is_linearizable;
use crate::registers::{Registers, read_registers};
use crate::turnover::turn_over;
use crate::values::Key;
use crate::world::{Registry, World};

const CLIENTS: u64 = 5;
/// Programs that read files.
const READERS: u64 = 2;
/// Virtual time.
const SETUP_MAX: Duration = Duration::from_secs(20);
const TROUBLE: Duration = Duration::from_secs(10);
/// From the last repair to agreement.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// A fault planted in the system itself, to see whether the checks bite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Flaw {
    #[default]
    None,
    LyingSync,
    ForgetReplies,
    BarrierWithoutQuorum,
    IgnoreSuspicion,
    BarOfSome,
    NoRollCall,
    ForgetFormerLeases,
    TrustOne,
    OutliveProof,
    RenewWithoutQuorum,
    ShowUnsettled,
    /// A writer is told before what it wrote is stable.
    AcknowledgeUnsettled,
    /// A kernel's cache drops what changed after it was said to have.
    ConfirmBeforeDrop,
    /// A kernel's cache outlives the read lease.
    KeepAfterLease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub nodes: u64,
    pub flaw: Flaw,
    /// Nodes gossip, and the leader calls the dead dead. In the end gossip is judged: no false
    /// alarm in a calm network, a death known in time.
    pub gossip: bool,
    /// In the end a node is expelled and another one joins.
    pub turnover: bool,
    /// The last node is a witness.
    pub witness: bool,
    /// Only this kind of trouble.
    pub only: Option<Trouble>,
    /// Each message is in the trace, too.
    pub messages: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6e6f_6465);
        Self {
            seed,
            nodes: rng.random_range(3..=5),
            flaw: Flaw::None,
            gossip: rng.random_bool(0.3),
            turnover: rng.random_bool(0.3),
            witness: rng.random_bool(0.3),
            only: None,
            messages: false,
        }
    }

    pub fn with(self, flaw: Flaw) -> Self {
        Self { flaw, ..self }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    pub nodes: u64,
    pub virtual_time: Duration,
    /// Applications of entries, over all nodes and lives.
    pub entries: u64,
    /// Requests that were in the log more than once.
    pub repeats: u64,
    pub operations: usize,
    pub coverage: Coverage,
    pub digest: [u8; 32],
    pub trace: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub seed: u64,
    pub flaw: Flaw,
    pub only: Option<Trouble>,
    pub what: String,
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} fails: {}", self.seed, self.what)?;
        write!(f, "replay: cargo run -p sim -- --seed {} --trace", self.seed)?;
        let flaw = Some(self.flaw).filter(|flaw| *flaw != Flaw::None);
        write_argument(f, "flaw", flaw)?;
        write_argument(f, "only", self.only)
    }
}

fn write_argument(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    value: Option<impl ValueEnum>,
) -> fmt::Result {
    match value.and_then(|value| value.to_possible_value()) {
        Some(value) => write!(f, " --{name} {}", value.get_name()),
        None => Ok(()),
    }
}

pub fn run(plan: Plan) -> Result<Report, Failure> {
    let mut runtime = SimRuntime::with_seed(plan.seed);
    runtime.block_on(async move {
        let world = World::new(plan);
        let outcome = live(&world).await;
        let outcome = match world.violation() {
            Some(what) => Err(what),
            None => outcome,
        };
        world.end().await;
        let trace = world.take_trace();
        match outcome {
            Ok((operations, digest)) => Ok(Report {
                seed: plan.seed,
                nodes: plan.nodes,
                virtual_time: world.elapsed(),
                entries: world.monitor(|monitor| monitor.entries),
                repeats: world.monitor(|monitor| monitor.repeats),
                operations,
                coverage: coverage(&world),
                digest,
                trace,
            }),
            Err(what) => {
                Err(Failure { seed: plan.seed, flaw: plan.flaw, only: plan.only, what, trace })
            }
        }
    })
}

fn coverage(world: &World) -> Coverage {
    let mut coverage = world.coverage();
    coverage.count(Met::RequestInLogTwice, world.monitor(|monitor| monitor.repeats));
    coverage.count(Met::WitnessPresent, world.plan.witness.into());
    coverage
}

async fn live(world: &Arc<World>) -> Result<(usize, [u8; 32]), String> {
    found(world).await?;
    let histories = Arc::new(Histories::default());
    let registers = Arc::new(Registers::create(world).await?);
    let until = world.elapsed() + TROUBLE;
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|number| {
            let (world, histories) = (world.clone(), histories.clone());
            let registers = registers.clone();
            SimRuntime::spawn(Client { world, histories, registers, number, seq: 0 }.run(until))
        })
        .collect();
    let readers: Vec<_> = (0..READERS)
        .map(|_| SimRuntime::spawn(read_registers(world.clone(), registers.clone(), until)))
        .collect();
    trouble(world.clone(), until).await;
    for client in clients {
        client.await.map_err(|error| format!("a client panicked: {error}"))?;
    }
    for reader in readers {
        reader.await.map_err(|error| format!("a reader panicked: {error}"))?;
    }
    if let Some(what) = world.violation() {
        return Err(what);
    }
    mend(world).await;
    let digest = agree(world).await?;
    last_reads(world, &histories).await;
    registers.last_reads(world).await;
    let operations = judge(world, &histories)? + registers.judge(world)?;
    if world.plan.turnover {
        turn_over(world).await?;
        agree(world).await?;
    }
    if world.plan.gossip {
        gossip::judge(world).await?;
        agree(world).await?;
    }
    Ok((operations, digest))
}

/// A cluster of all nodes, with as many voters as it shall have.
pub async fn found(world: &Arc<World>) -> Result<(), String> {
    let deadline = world.elapsed() + SETUP_MAX;
    let nodes = world.nodes();
    world.boot(NodeId(1)).await;
    let first = world.registry(NodeId(1)).ok_or("the first node did not start")?;
    first.initialize().await.map_err(|error| error.to_string())?;
    let mut setup = Setup { registry: first, lane: Lane(1000), seq: 0 };
    setup
        .ask(Kind::Found(wire::Found {
            cluster: Bytes::from_static(&[7; 16]),
            name: "simulated".into(),
            authorities_pem: vec!["none".into()],
            node_name: "n1".into(),
            description: None,
        }))
        .await?;
    setup.registry.set_epoch(Epoch(1));
    for node in nodes.iter().skip(1) {
        let witness = world.plan.witness && Some(node) == nodes.last();
        setup.admit(*node, if witness { wire::Role::Witness } else { wire::Role::Node }).await?;
        world.boot(*node).await;
        world.come_up(*node);
    }
    let voters = unum_core::registry::voters::desired(nodes.len());
    let chosen = |standing: Standing| standing.settled && standing.voters.len() >= voters;
    while !chosen(setup.registry.standing()) {
        if world.elapsed() > deadline {
            return Err(format!("never {voters} voters: {:?}", setup.registry.standing()));
        }
        SimRuntime::sleep(Duration::from_millis(50)).await;
    }
    world.note(format!("founded with {} nodes, {voters} of them vote", nodes.len()));
    Ok(())
}

/// Commands outside of the clients' work.
pub struct Setup {
    pub registry: Registry,
    pub lane: Lane,
    pub seq: u64,
}

impl Setup {
    pub async fn ask(&mut self, command: Kind) -> Result<reply::Kind, String> {
        self.seq += 1;
        let id = RequestId { lane: self.lane, seq: self.seq };
        self.registry.propose(id, command).await.map_err(|error| error.to_string())
    }

    pub async fn admit(&mut self, node: NodeId, role: wire::Role) -> Result<(), String> {
        let hash = Bytes::copy_from_slice(blake3::hash(&node.0.to_le_bytes()).as_bytes());
        let role = role.into();
        let token = wire::CreateToken { hash: hash.clone(), role, ttl_ms: 60_000, uid: 0 };
        self.ask(Kind::CreateToken(token)).await?;
        let name = format!("n{}", node.0);
        let register = wire::RegisterNode { token_hash: hash, name, role, description: None };
        match self.ask(Kind::RegisterNode(register)).await? {
            reply::Kind::Node(given) if given.node == node.0 => Ok(()),
            other => Err(format!("{node} was registered as {other:?}")),
        }
    }
}

/// After everything is mended: all nodes come to the same state, and each may vote again.
pub async fn agree(world: &Arc<World>) -> Result<[u8; 32], String> {
    let deadline = world.elapsed() + RECOVERY_MAX;
    loop {
        if world.elapsed() > deadline {
            return Err(format!("no agreement after the repair: {}", world.standings()));
        }
        if let Some(digest) = try_to_agree(world).await? {
            return Ok(digest);
        }
        revive(world).await;
        SimRuntime::sleep(Duration::from_millis(200)).await;
    }
}

/// A node whose disk failed stops, as its daemon would; somebody starts it again.
async fn revive(world: &Arc<World>) {
    for node in world.nodes() {
        let stopped = world.registry(node).is_none_or(|registry| registry.standing().stopped);
        if stopped {
            world.crash(node);
            world.boot(node).await;
            world.come_up(node);
        }
    }
}

async fn try_to_agree(world: &Arc<World>) -> Result<Option<[u8; 32]>, String> {
    let mut seen: Option<(u64, [u8; 32])> = None;
    for node in world.nodes() {
        let Some(registry) = world.registry(node) else { return Ok(None) };
        match registry.barrier(Duration::from_secs(2)).await {
            Ok(()) => {}
            Err(RegistryError::NoQuorum { .. }) => return Ok(None),
            Err(error) => return Err(format!("a barrier on {node}: {error}")),
        }
        let applied = *registry.watch().borrow();
        let (digest, faults) =
            registry.read(|state| (snapshot::digest(state), state.tree().check()));
        if let Some(fault) = faults.first() {
            return Err(format!("the file tree on {node} is inconsistent: {fault}"));
        }
        if registry.standing().suspect {
            return Ok(None);
        }
        match seen {
            Some((index, _)) if index != applied => return Ok(None),
            Some((_, other)) if other != digest => {
                return Err(format!("{node} has another state at entry {applied}"));
            }
            Some(_) => {}
            None => seen = Some((applied, digest)),
        }
    }
    Ok(seen.map(|(_, digest)| digest))
}

async fn last_reads(world: &Arc<World>, histories: &Arc<Histories>) {
    let (world, histories) = (world.clone(), histories.clone());
    let registers = Arc::new(Registers::default());
    let mut reader = Client { world, histories, registers, number: 99, seq: 0 };
    for key in 0..KEYS {
        reader.get(key).await;
    }
}

fn judge(world: &Arc<World>, histories: &Histories) -> Result<usize, String> {
    let mut operations = 0;
    for (key, history) in world.monitor(|monitor| histories.settle(monitor)) {
        operations += history.len();
        if !is_linearizable(&Key, &history) {
            for event in &history {
                world.note(format!("k{key}: {event:?}"));
            }
            return Err(format!("the history of k{key} is not linearizable"));
        }
    }
    Ok(operations)
}
