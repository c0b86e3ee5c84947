//! The machines of a simulated cluster: their disks, their lives, and what joins them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::Instant;
use openraft_rt_sim::{SimInstant, SimRuntime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use unum_core::registry::voters::desired;
use unum_core::time::Time;
use unum_node::membership::gossip::Gossip;
use unum_node::registry::mutation::Mutation;
use unum_node::registry::offload::Offload;
use unum_node::registry::transport::Call;
use unum_node::registry::{Options, RegistryOn, Timing};
use unum_node::store::disk::{Disk, Fault, Open, SimDisk};
use unum_node::store::journal::JournalOptions;
use unum_proto::ids::{Epoch, Lane, NodeId, RequestId};
use unum_proto::registry::command::Kind;
use unum_proto::registry::{self as wire, reply};

use crate::coverage::{Coverage, Met};
use crate::disk::LyingDisk;
use crate::gossip;
use crate::kernel::Kernel;
use crate::monitor::Monitor;
use crate::net::{Fate, Groups, Port, Weather};
use crate::run::{Flaw, Plan};

pub type Registry = RegistryOn<SimRuntime>;

/// Room on each disk while it is not full.
pub const DISK_BYTES: u64 = 256 << 20;
/// Small, so that segments and snapshots come and go within a run.
const SEGMENT_BYTES: u64 = 32 << 10;
const SNAPSHOT_ENTRIES: u64 = 120;
/// Entries between two looks at the whole file tree.
const TREE_CHECK_ENTRIES: u64 = 16;
/// Virtual time begins here, in seconds since 1970.
const DAWN: u64 = 1_800_000_000;

/// How fast clocks go that are as slow and as fast as leases allow.
const SLOW_CLOCK: f64 = 0.976;
const FAST_CLOCK: f64 = 1.024;

pub struct World {
    pub plan: Plan,
    started: SimInstant,
    inner: Mutex<Inner>,
}

struct Inner {
    rng: StdRng,
    weather: Weather,
    groups: Groups,
    machines: BTreeMap<NodeId, Machine>,
    monitor: Monitor,
    /// Whom a leader called dead by gossip, and when.
    called_dead: Vec<(Duration, NodeId)>,
    coverage: Coverage,
    trace: Vec<String>,
}

struct Machine {
    disk: Arc<SimDisk>,
    /// Grows with each boot and each crash: what was started in an earlier one is a ghost.
    life: u64,
    registry: Option<Registry>,
    /// Of a node that runs and is no witness.
    kernel: Option<Arc<Kernel>>,
    gossip: Option<Gossip>,
    coming_up: bool,
    /// An operation of the disk was ordered to fail since the power came.
    disk_fails: bool,
    /// It lost what it had acknowledged, and has not caught up since.
    lost: bool,
}

impl World {
    pub fn new(plan: Plan) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let machines =
            (1..=plan.nodes).map(|id| (NodeId(id), Machine::new(rng.random()))).collect();
        let inner = Inner {
            rng,
            weather: Weather::CALM,
            groups: Groups::default(),
            machines,
            monitor: Monitor::default(),
            called_dead: Vec::new(),
            coverage: Coverage::default(),
            trace: Vec::new(),
        };
        Arc::new(Self { plan, started: SimInstant::now(), inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn nanos(&self) -> u64 {
        self.elapsed().as_nanos() as u64
    }

    pub fn note(&self, text: impl AsRef<str>) {
        let at = self.elapsed().as_secs_f64();
        self.inner().trace.push(format!("{at:10.6} {}", text.as_ref()));
    }

    pub fn violated(&self, what: String) {
        self.monitor(|monitor| monitor.report(what));
    }

    pub fn violation(&self) -> Option<String> {
        self.inner().monitor.violation().cloned()
    }

    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().trace)
    }

    pub fn monitor<T>(&self, look: impl FnOnce(&mut Monitor) -> T) -> T {
        let inner = &mut *self.inner();
        let before = inner.monitor.violations().len();
        let seen = look(&mut inner.monitor);
        let at = self.started.elapsed().as_secs_f64();
        let new = inner.monitor.violations().iter().skip(before);
        inner.trace.extend(new.map(|what| format!("{at:10.6} VIOLATED: {what}")));
        seen
    }

    pub fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.inner().rng)
    }

    pub fn fate(&self) -> Fate {
        let inner = &mut *self.inner();
        let fate = Fate::draw(&mut inner.rng, inner.weather);
        inner.coverage.count(Met::MessageLost, fate.lost.into());
        inner.coverage.count(Met::MessageLate, fate.is_late().into());
        inner.coverage.count(Met::MessageRepeated, fate.repeated.is_some().into());
        fate
    }

    pub fn set_weather(&self, weather: Weather) {
        self.inner().weather = weather;
    }

    pub fn set_groups(&self, groups: Groups) {
        self.inner().groups = groups;
    }

    pub fn is_joined(&self, a: NodeId, b: NodeId) -> bool {
        self.inner().groups.joined(a, b)
    }

    pub fn nodes(&self) -> Vec<NodeId> {
        self.inner().machines.keys().copied().collect()
    }

    pub fn registry(&self, node: NodeId) -> Option<Registry> {
        self.inner().machines.get(&node)?.registry.clone()
    }

    pub fn running(&self) -> Vec<(NodeId, Registry)> {
        let inner = self.inner();
        let running = inner.machines.iter();
        running.filter_map(|(id, machine)| Some((*id, machine.registry.clone()?))).collect()
    }

    /// The kernels of the nodes that run.
    pub fn kernels(&self) -> Vec<Arc<Kernel>> {
        let inner = self.inner();
        inner.machines.values().filter_map(|machine| machine.kernel.clone()).collect()
    }

    /// The last of those who found the cluster may be one.
    pub fn is_witness(&self, node: NodeId) -> bool {
        self.plan.witness && node == NodeId(self.plan.nodes)
    }

    /// How consensus stands on each, for people.
    pub fn standings(&self) -> String {
        let tell = |(id, registry): &(NodeId, Registry)| format!("{id}: {:?}", registry.standing());
        self.running().iter().map(tell).collect::<Vec<_>>().join("; ")
    }

    pub fn set_gossip(&self, node: NodeId, gossip: Gossip) {
        if let Some(machine) = self.inner().machines.get_mut(&node) {
            machine.gossip = Some(gossip);
        }
    }

    /// The gossip of a node that runs.
    pub fn gossip<T>(&self, node: NodeId, act: impl FnOnce(&mut Gossip) -> T) -> Option<T> {
        self.inner().machines.get_mut(&node)?.gossip.as_mut().map(act)
    }

    pub fn met(&self, met: Met) {
        self.inner().coverage.count(met, 1);
    }

    pub fn coverage(&self) -> Coverage {
        self.inner().coverage.clone()
    }

    /// Whether the node may lose what it acknowledged: it knows all of it, and those who do not
    /// are still a minority of the voters.
    pub fn may_lose(&self, node: NodeId) -> bool {
        let mut inner = self.inner();
        for machine in inner.machines.values_mut() {
            machine.lost &= machine.registry.as_ref().is_none_or(|r| r.standing().suspect);
        }
        let lost = inner.machines.values().filter(|machine| machine.lost).count();
        let whole = inner.machines.get(&node).and_then(|machine| machine.registry.as_ref());
        let whole = whole.map(Registry::standing).is_some_and(|s| !s.suspect && !s.stopped);
        whole && (lost + 1) * 2 < desired(inner.machines.len())
    }

    /// A leader finds by gossip that a node is dead.
    pub fn calls_dead(&self, leader: NodeId, dead: NodeId) {
        self.note(format!("{leader} calls {dead} dead"));
        self.met(Met::CalledDead);
        self.inner().called_dead.push((self.elapsed(), dead));
    }

    pub fn called_dead_since(&self, since: Duration) -> impl Iterator<Item = NodeId> {
        let called = self.inner().called_dead.clone();
        called.into_iter().filter(move |(at, _)| *at >= since).map(|(_, node)| node)
    }

    /// A new machine with an empty disk.
    pub fn add(&self, node: NodeId) {
        let inner = &mut *self.inner();
        let machine = Machine::new(inner.rng.random());
        inner.machines.insert(node, machine);
    }

    /// Takes a machine away for good.
    pub fn retire(self: &Arc<Self>, node: NodeId) {
        self.crash(node);
        self.inner().machines.remove(&node);
    }

    pub fn is_alive(&self, node: NodeId, life: u64) -> bool {
        self.inner().machines.get(&node).is_some_and(|machine| machine.life == life)
    }

    pub fn disk(&self, node: NodeId) -> Option<Arc<SimDisk>> {
        Some(self.inner().machines.get(&node)?.disk.clone())
    }

    /// Who sends entries or heartbeats is the leader of the term that it names.
    pub fn saw_call(&self, from: NodeId, to: NodeId, call: &Call) {
        if self.plan.messages {
            self.note(format!("{from} -> {to}: {}", describe(call)));
        }
        if let Call::Snapshot(_) = call {
            self.met(Met::SnapshotSent);
        }
        if let Call::Append(wire::AppendRequest { vote: Some(vote), .. }) = call {
            self.monitor(|monitor| monitor.leads(from, vote.term));
        }
    }

    /// Starts the node's registry from what its disk holds.
    pub async fn boot(self: &Arc<Self>, node: NodeId) {
        let Some((life, disk, salt)) = self.begin_life(node) else { return };
        self.note(format!("{node} boots"));
        let options = self.options(node, life, disk, salt);
        match Registry::start(options).await {
            Ok(registry) => {
                let ghost = {
                    let mut inner = self.inner();
                    match inner.machines.get_mut(&node) {
                        Some(machine) if machine.life == life => {
                            machine.registry = Some(registry);
                            None
                        }
                        _ => Some(registry),
                    }
                };
                match ghost {
                    Some(ghost) => ghost.shutdown().await,
                    None => self.accompany(node, life),
                }
            }
            // It stays down until somebody starts it again, as a daemon on a full disk would.
            Err(error) if error.is_full() => {
                self.met(Met::NoRoomToStart);
                self.note(format!("{node} cannot start: {error}"));
            }
            // Another fault was ordered than the one that ended the former life.
            Err(error) if self.has_failing_disk(node) => {
                self.note(format!("{node} cannot start: {error}"));
            }
            Err(error) if self.is_alive(node, life) => {
                self.violated(format!("{node} cannot start: {error}"));
            }
            Err(_) => {}
        }
    }

    /// What goes on as long as this life of the node.
    fn accompany(self: &Arc<Self>, node: NodeId, life: u64) {
        if self.plan.gossip {
            gossip::start(self, node, life);
        }
        let Some(registry) = self.registry(node) else { return };
        self.count_suspects(&registry);
        if !self.is_witness(node) {
            let kernel = Kernel::start(self, node, life, registry.clone());
            if let Some(machine) = self.inner().machines.get_mut(&node) {
                machine.kernel = Some(kernel);
            }
        }
        let world = self.clone();
        drop(SimRuntime::spawn(async move {
            let why = registry.ended().await;
            world.consensus_ended(node, life, &why);
        }));
    }

    fn count_suspects(&self, booted: &Registry) {
        let standing = booted.standing();
        if !standing.suspect {
            return;
        }
        self.met(if standing.lost { Met::LostEnd } else { Met::TornEnd });
        let kind = if standing.lost { "lost" } else { "torn" };
        self.note(format!("{} is suspect: its log's end is {kind}", booted.own()));
        let suspects = self.running().iter().filter(|(_, r)| r.standing().suspect).count();
        if suspects * 2 > desired(self.nodes().len()) {
            self.met(Met::MostSuspect);
        }
    }

    /// Only a disk that fails may end consensus on a node that lives.
    fn consensus_ended(&self, node: NodeId, life: u64, why: &str) {
        let lives = |machine: &&Machine| machine.life == life;
        let fails = self.inner().machines.get(&node).filter(lives).map(|m| m.disk_fails);
        match fails {
            Some(true) => {
                self.met(Met::ConsensusEnded);
                self.note(format!("consensus on {node} has ended: {why}"));
            }
            Some(false) => self.violated(format!("consensus on {node} ended by itself: {why}")),
            None => {}
        }
    }

    pub fn has_failing_disk(&self, node: NodeId) -> bool {
        self.inner().machines.get(&node).is_some_and(|machine| machine.disk_fails)
    }

    /// Has one operation of a disk fail.
    pub fn fail_disk(&self, node: NodeId, fault: Fault) {
        if let Some(machine) = self.inner().machines.get_mut(&node) {
            machine.disk_fails = true;
            machine.disk.fail(fault);
        }
    }

    fn begin_life(&self, node: NodeId) -> Option<(u64, Arc<dyn Disk>, u64)> {
        let inner = &mut *self.inner();
        let salt = inner.rng.random();
        let machine = inner.machines.get_mut(&node)?;
        machine.life += 1;
        machine.coming_up = false;
        Some((machine.life, machine.disk.disk(), salt))
    }

    fn options(
        self: &Arc<Self>,
        node: NodeId,
        life: u64,
        disk: Arc<dyn Disk>,
        salt: u64,
    ) -> Options {
        let disk: Arc<dyn Disk> = match self.plan.flaw {
            Flaw::LyingSync => Arc::new(LyingDisk(disk)),
            _ => disk,
        };
        let port = Arc::new(Port { world: self.clone(), own: node, life });
        let (clock, witness) = (self.clone(), self.clone());
        // Clocks of different machines differ.
        let skew = Duration::from_millis(node.0 * 137);
        Options {
            // Simulated time begins with the node.
            grid: || Duration::ZERO,
            clock: Arc::new(move || Time::from_secs(DAWN).after(clock.elapsed() + skew)),
            timing: Timing::default(),
            offload: Offload::Inline,
            snapshot_entries: SNAPSHOT_ENTRIES,
            reserve_bytes: 4096,
            lease_clock_speed: self.clock_speed(node),
            journal: JournalOptions { first: 1, segment_bytes: SEGMENT_BYTES, salt },
            observe: Some(Arc::new(move |entry| {
                if witness.is_alive(node, life) {
                    witness.monitor(|monitor| monitor.applied(node, entry));
                    if entry.log_id.index.is_multiple_of(TREE_CHECK_ENTRIES) {
                        witness.check_tree(node);
                    }
                }
            })),
            mutation: match self.plan.flaw {
                Flaw::ForgetReplies => Mutation::ForgetReplies,
                Flaw::BarrierWithoutQuorum => Mutation::BarrierWithoutQuorum,
                Flaw::IgnoreSuspicion => Mutation::IgnoreSuspicion,
                Flaw::BarOfSome => Mutation::BarOfSome,
                Flaw::NoRollCall => Mutation::NoRollCall,
                Flaw::ForgetFormerLeases => Mutation::ForgetFormerLeases,
                Flaw::TrustOne => Mutation::TrustOne,
                Flaw::OutliveProof => Mutation::OutliveProof,
                Flaw::RenewWithoutQuorum => Mutation::RenewWithoutQuorum,
                Flaw::ShowUnsettled => Mutation::ShowUnsettled,
                Flaw::None
                | Flaw::LyingSync
                | Flaw::AcknowledgeUnsettled
                | Flaw::ConfirmBeforeDrop
                | Flaw::KeepAfterLease => Mutation::None,
            },
            ..Options::new(node, disk, port)
        }
    }

    /// Of any two clocks, one is at most 5 % faster.
    fn clock_speed(&self, node: NodeId) -> f64 {
        let mut rng = StdRng::seed_from_u64(self.plan.seed ^ node.0 << 32);
        match rng.random_range(0..4) {
            0 => SLOW_CLOCK,
            1 => FAST_CLOCK,
            _ => rng.random_range(SLOW_CLOCK..FAST_CLOCK),
        }
    }

    fn check_tree(&self, node: NodeId) {
        let Some(registry) = self.registry(node) else { return };
        let faults = registry.read(|state| state.tree().check());
        if let Some(fault) = faults.first() {
            self.violated(format!("the file tree on {node} is inconsistent: {fault}"));
        }
    }

    /// Cuts the node's power: what it had not synced is gone.
    pub fn crash(self: &Arc<Self>, node: NodeId) {
        let ghost = {
            let inner = &mut *self.inner();
            let Some(machine) = inner.machines.get_mut(&node) else { return };
            machine.life += 1;
            if let Err(error) = machine.disk.crash() {
                inner.monitor.report(format!("the disk of {node} did not come back: {error}"));
            }
            machine.gossip = None;
            machine.kernel = None;
            machine.disk_fails = false;
            machine.registry.take()
        };
        self.met(Met::PowerLost);
        self.note(format!("{node} loses power"));
        if let Some(ghost) = ghost {
            // What is left of it can neither write nor send any more.
            drop(SimRuntime::spawn(async move { ghost.shutdown().await }));
        }
    }

    /// Starts the node's daemon anew; its machine keeps running.
    pub async fn restart(self: &Arc<Self>, node: NodeId) {
        self.note(format!("the daemon of {node} starts anew"));
        let registry = {
            let mut inner = self.inner();
            let Some(machine) = inner.machines.get_mut(&node) else { return };
            machine.life += 1;
            machine.gossip = None;
            machine.kernel = None;
            machine.registry.take()
        };
        if let Some(registry) = registry {
            registry.shutdown().await;
        }
        self.boot(node).await;
        self.come_up(node);
    }

    /// Damages the last group of a powerless node's log: what it had acknowledged last.
    pub fn rot_log(&self, node: NodeId) {
        self.rot(node, "log", last_group);
    }

    pub fn rot_snapshot(&self, node: NodeId) {
        self.rot(node, "snapshots", |bytes| Some(0..bytes.len()));
    }

    /// Flips a bit in a part of the directory's last file.
    fn rot(&self, node: NodeId, dir: &str, part: impl FnOnce(&[u8]) -> Option<Range<usize>>) {
        let Some(disk) = self.disk(node) else { return };
        let Some((name, bytes)) = last_file(&*disk.disk(), dir) else { return };
        let Some(part) = part(&bytes).filter(|part| !part.is_empty()) else { return };
        let offset = self.draw(|rng| rng.random_range(part));
        if disk.rot(&format!("{dir}/{name}"), offset as u64, 1) {
            self.met(if dir == "log" { Met::LogRots } else { Met::SnapshotRots });
            if let Some(machine) = self.inner().machines.get_mut(&node) {
                machine.lost = true;
            }
            self.note(format!("{dir}/{name} of {node} rots at {offset} of {}", bytes.len()));
        }
    }

    /// Raises the node's epoch, as its daemon does when it starts or was fenced.
    pub fn come_up(self: &Arc<Self>, node: NodeId) {
        let life = {
            let mut inner = self.inner();
            let Some(machine) = inner.machines.get_mut(&node) else { return };
            if machine.coming_up || machine.registry.is_none() {
                return;
            }
            machine.coming_up = true;
            machine.life
        };
        let world = self.clone();
        drop(SimRuntime::spawn(async move {
            while world.is_alive(node, life) && !world.try_come_up(node, life).await {
                SimRuntime::sleep(Duration::from_millis(100)).await;
            }
            if let Some(machine) = world.inner().machines.get_mut(&node)
                && machine.life == life
            {
                machine.coming_up = false;
            }
        }));
    }

    async fn try_come_up(self: &Arc<Self>, node: NodeId, life: u64) -> bool {
        let Some(registry) = self.registry(node) else { return false };
        let within = Duration::from_secs(2);
        if registry.barrier(within).await.is_err() {
            return false;
        }
        let known = registry.read(|state| state.nodes().get(node).map(|known| known.epoch));
        let Some(epoch) = known else { return false };
        let boot = Bytes::copy_from_slice(&life.to_le_bytes());
        let up = wire::NodeUp { node: node.0, epoch: epoch.0, description: None, boot };
        let id = RequestId { lane: Lane(self.draw(|rng| rng.random())), seq: 1 };
        match registry.propose_within(id, Kind::NodeUp(up), within).await {
            Ok(reply::Kind::Node(up)) => {
                registry.set_epoch(Epoch(up.epoch));
                self.note(format!("{node} is up at {}", Epoch(up.epoch)));
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Lets go of everything, so that no registry keeps its world alive.
    pub async fn end(self: &Arc<Self>) {
        for node in self.nodes() {
            let registry = {
                let mut inner = self.inner();
                inner.machines.get_mut(&node).and_then(|machine| {
                    machine.life += 1;
                    machine.kernel = None;
                    machine.registry.take()
                })
            };
            if let Some(registry) = registry {
                registry.shutdown().await;
            }
        }
    }
}

impl Machine {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed, DISK_BYTES).expect("a disk in memory opens");
        Self {
            disk: Arc::new(disk),
            life: 0,
            registry: None,
            kernel: None,
            gossip: None,
            coming_up: false,
            disk_fails: false,
            lost: false,
        }
    }
}

fn last_file(disk: &dyn Disk, dir: &str) -> Option<(String, Vec<u8>)> {
    let dir = disk.dir(dir).ok()?;
    let mut names = dir.list().ok()?;
    names.retain(|name| name.starts_with("snapshot-") || name.ends_with(".journal"));
    names.sort();
    let name = names.pop()?;
    let file = dir.open(&name, Open::Existing).ok()?;
    let mut bytes = vec![0; usize::try_from(file.size().ok()?).ok()?];
    let read = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(read);
    Some((name, bytes))
}

/// Where the last group of a journal's segment is (`docs/spec/journal.md`). `None` if the segment
/// holds none or is torn: what is behind a tear could prove the rot.
fn last_group(bytes: &[u8]) -> Option<Range<usize>> {
    const SEGMENT_HEADER: usize = 64;
    const RECORD_HEADER: usize = 32;
    let mut at = SEGMENT_HEADER;
    let mut last: Option<(u64, usize)> = None;
    while at < bytes.len() {
        let header = bytes.get(at..at + RECORD_HEADER)?;
        let number = |field: Range<usize>| header.get(field)?.try_into().ok();
        let len = u32::from_le_bytes(header.get(8..12)?.try_into().ok()?) as usize;
        let (seq, group) =
            (u64::from_le_bytes(number(16..24)?), u64::from_le_bytes(number(24..32)?));
        if seq == 0 || group > seq {
            return None;
        }
        if last.is_none_or(|(known, _)| known != group) {
            last = Some((group, at));
        }
        at += RECORD_HEADER + len;
    }
    last.filter(|_| at == bytes.len()).map(|(_, start)| start..at)
}

fn describe(call: &Call) -> String {
    match call {
        Call::Append(append) => {
            let vote = append.vote.unwrap_or_default();
            let after = append.previous.map_or(0, |id| id.index);
            let (count, commit) = (append.entries.len(), append.leader_commit);
            let commit = commit.map_or(0, |id| id.index);
            format!("append {count} after {after}, committed {commit}, term {}", vote.term)
        }
        Call::Vote(request) => format!("vote? term {}", request.vote.unwrap_or_default().term),
        Call::PreVote(request) => {
            format!("pre-vote? term {}", request.vote.unwrap_or_default().term)
        }
        Call::Transfer(request) => format!("lead! node-{}", request.to),
        Call::Snapshot(piece) => format!("snapshot from {} on", piece.offset),
        Call::Propose(request) => format!("propose {}", request.proposals.len()),
        Call::Barrier(_) => "barrier?".to_owned(),
        Call::Stable(request) => {
            format!("confirmed {}, {} stable?", request.confirmed, request.index)
        }
        Call::Roll(_) => "how far?".to_owned(),
    }
}
