//! Clients that change and read the registry through random nodes, and what they saw.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use prost::Message;
use rand::Rng;
use rand::seq::IndexedRandom;
use unum_core::registry::Refused;
use unum_node::registry::RegistryError;
use unum_proto::ids::{Lane, NodeId, RequestId};
use unum_proto::registry::command::Kind;
use unum_proto::registry::{self as wire, reply};
use unum_proto::tree::ChunkKey;

use crate::coverage::Met;
use crate::linear::Event;
use crate::monitor::Monitor;
use crate::registers::Registers;
use crate::tree::{self, Sight};
use crate::values::{Op, Ret};
use crate::world::{Registry, World};

pub const KEYS: u64 = 5;
/// One attempt of a client before it tries another node with the same request.
const ATTEMPT: Duration = Duration::from_millis(900);
const ATTEMPTS_MAX: u32 = 6;

pub type History = Vec<Event<Op, Ret>>;

/// What all clients saw, by key.
#[derive(Default)]
pub struct Histories(Mutex<BTreeMap<u64, Vec<Seen>>>);

struct Seen {
    /// Of a change.
    id: Option<RequestId>,
    event: Event<Op, Ret>,
}

impl Histories {
    fn add(&self, key: u64, id: Option<RequestId>, event: Event<Op, Ret>) {
        let mut histories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histories.entry(key).or_default().push(Seen { id, event });
    }

    /// The histories, once the run is over. A change whose client never learned the outcome gets
    /// it from the log (with an open end in time), or is left out if no node ever applied it: it
    /// would only make the search longer.
    pub fn settle(&self, monitor: &Monitor) -> BTreeMap<u64, History> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let settle = |seen: Vec<Seen>| seen.into_iter().filter_map(|seen| seen.settle(monitor));
        all.into_iter().map(|(key, seen)| (key, settle(seen).collect())).collect()
    }
}

impl Seen {
    fn settle(self, monitor: &Monitor) -> Option<Event<Op, Ret>> {
        if self.event.returned.is_some() {
            return Some(self.event);
        }
        let reply = wire::Reply::decode(monitor.reply(self.id?)?).ok()?.kind?;
        let outcome = match reply {
            reply::Kind::Refused(refusal) => Err(Refused::from(&refusal).into()),
            kind => Ok(kind),
        };
        let ret = ret(&self.event.op, &outcome)?;
        Some(Event { returned: Some((u64::MAX, ret)), ..self.event })
    }
}

pub struct Client {
    pub world: Arc<World>,
    pub histories: Arc<Histories>,
    pub registers: Arc<Registers>,
    pub number: u64,
    pub seq: u64,
}

/// A request whose outcome is known.
struct Done {
    outcome: Result<reply::Kind, RegistryError>,
    /// Where in the log it is, if it was not refused.
    index: u64,
    /// Who told the outcome.
    by: (NodeId, Registry),
}

impl Client {
    /// Works until the time is over.
    pub async fn run(mut self, until: Duration) {
        while self.world.elapsed() < until && self.world.violation().is_none() {
            let pause = self.world.draw(|rng| rng.random_range(2..90));
            SimRuntime::sleep(Duration::from_millis(pause)).await;
            let key = self.world.draw(|rng| rng.random_range(0..KEYS));
            match self.world.draw(|rng| rng.random_range(0..14)) {
                0..3 => self.put(key).await,
                3..5 => self.compare_and_set(key).await,
                5 => self.delete(key).await,
                6..9 => self.get(key).await,
                9..11 => self.write_register().await,
                _ => self.change_tree().await,
            }
        }
    }

    pub async fn put(&mut self, key: u64) {
        let value = self.fresh_value();
        let command = wire::PutValue { key: name(key), value: encode(value) };
        self.change(key, Op::Put(value), Kind::PutValue(command)).await;
    }

    async fn delete(&mut self, key: u64) {
        let command = wire::DeleteValue { key: name(key) };
        self.change(key, Op::Delete, Kind::DeleteValue(command)).await;
    }

    async fn compare_and_set(&mut self, key: u64) {
        let Some((_, registry)) = self.pick() else { return };
        // What it has seen may be old: then it must be told so.
        let expected =
            registry.read(|state| state.values().get(&name(key)).map_or(0, |value| value.version));
        let value = self.fresh_value();
        let command = wire::CompareAndSet { key: name(key), expected, value: Some(encode(value)) };
        self.change(key, Op::CompareAndSet { expected, value }, Kind::CompareAndSet(command)).await;
    }

    pub async fn get(&mut self, key: u64) {
        let Some((node, registry)) = self.pick() else { return };
        let invoked = self.world.nanos();
        let before = self.world.monitor(|monitor| monitor.acknowledged_index());
        if registry.barrier(ATTEMPT).await.is_err() {
            return;
        }
        let applied = *registry.watch().borrow();
        let found = registry.read(|state| {
            let value = state.values().get(&name(key))?;
            Some(Ret::Found { value: decode(&value.bytes), version: value.version })
        });
        let ret = found.unwrap_or(Ret::Nothing);
        self.world.note(format!("c{} reads k{key} on {node}: {ret:?}", self.number));
        self.world.monitor(|monitor| monitor.passed_barrier(node, before, applied));
        let returned = Some((self.world.nanos(), ret));
        self.histories.add(key, None, Event { op: Op::Get, invoked, returned });
    }

    async fn change(&mut self, key: u64, op: Op, command: Kind) {
        let invoked = self.world.nanos();
        let outcome = self.execute(command).await.map(|done| done.outcome);
        let returned = match &outcome {
            Some(outcome) => ret(&op, outcome).map(|ret| (self.world.nanos(), ret)),
            None => None,
        };
        self.world.note(format!("c{} {op:?} k{key}: {returned:?}", self.number));
        let id = RequestId { lane: Lane(self.number), seq: self.seq };
        self.histories.add(key, Some(id), Event { op, invoked, returned });
    }

    /// What happens to the tree only has to be the same everywhere.
    async fn change_tree(&mut self) {
        let Some((node, registry)) = self.pick() else { return };
        let sight = registry.read(|state| Sight::of(state.tree()));
        let unique = ChunkKey { lane: self.number, seq: self.seq + 1 };
        let command = self.world.draw(|rng| tree::draw(rng, &sight, node, unique));
        self.execute(Kind::Tree(command.into())).await;
    }

    /// The write is acknowledged once it is stable.
    async fn write_register(&mut self) {
        let Some(write) = self.registers.begin_write(&self.world) else { return };
        let done = self.execute(write.command()).await;
        let id = RequestId { lane: Lane(self.number), seq: self.seq };
        let acknowledged = match done {
            Some(Done { outcome: Ok(_), index, by: (node, registry) }) => {
                self.registers.acknowledge(&self.world, node, &registry, index).await
            }
            Some(_) | None => false,
        };
        self.world.note(format!("c{} {write:?}: {acknowledged}", self.number));
        self.registers.end_write(&self.world, write, id, acknowledged);
    }

    /// Asks node after node with the same id until one knows the outcome.
    async fn execute(&mut self, command: Kind) -> Option<Done> {
        self.seq += 1;
        let id = RequestId { lane: Lane(self.number), seq: self.seq };
        for _ in 0..ATTEMPTS_MAX {
            let Some((node, registry)) = self.pick() else {
                SimRuntime::sleep(Duration::from_millis(200)).await;
                continue;
            };
            self.maybe_repeat(id, &command);
            match registry.propose_indexed(id, command.clone(), ATTEMPT).await {
                Err(RegistryError::NoQuorum { .. } | RegistryError::Deadline { .. }) => {}
                Err(RegistryError::Stopped | RegistryError::DiskFull) => {}
                // It did nothing yet; the same id may go out again.
                Err(RegistryError::Fenced { .. }) => {
                    self.world.met(Met::Fenced);
                    self.world.come_up(node);
                }
                settled => {
                    self.world.monitor(|monitor| monitor.acknowledged(id));
                    let index = settled.as_ref().map_or(0, |(_, index)| *index);
                    let outcome = settled.map(|(reply, _)| reply);
                    return Some(Done { outcome, index, by: (node, registry) });
                }
            }
        }
        None
    }

    /// Now and then the same request goes to two nodes at once.
    fn maybe_repeat(&self, id: RequestId, command: &Kind) {
        if !self.world.draw(|rng| rng.random_bool(0.1)) {
            return;
        }
        let Some((_, registry)) = self.pick() else { return };
        let command = command.clone();
        drop(SimRuntime::spawn(async move {
            // The first one's outcome is the one that counts.
            let _ = registry.propose_within(id, command, ATTEMPT).await;
        }));
    }

    fn pick(&self) -> Option<(NodeId, Registry)> {
        let running = self.world.running();
        self.world.draw(|rng| running.choose(rng).cloned())
    }

    fn fresh_value(&self) -> u64 {
        self.number << 32 | (self.seq + 1)
    }
}

fn ret(op: &Op, outcome: &Result<reply::Kind, RegistryError>) -> Option<Ret> {
    match outcome {
        Ok(reply::Kind::Version(_)) if *op == Op::Delete => Some(Ret::Deleted),
        Ok(reply::Kind::Version(version)) => Some(Ret::Version(version.version)),
        Err(RegistryError::Refused(Refused::VersionConflict(found))) => Some(Ret::Conflict(*found)),
        Err(RegistryError::Refused(Refused::ValueMissing)) => Some(Ret::Missing),
        Ok(_) | Err(_) => None,
    }
}

fn name(key: u64) -> Bytes {
    format!("k{key}").into_bytes().into()
}

fn encode(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

fn decode(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}
