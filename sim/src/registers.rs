//! Files as registers: programs set a file's owner and read it, through caches that last as long as
//! the read lease. Each is linearizable, or a program has seen something stale.
//!
//! Each written owner is unique in the run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::Rng;
use rand::seq::IndexedRandom;
use unum_core::tree::ROOT;
use unum_proto::ids::{Ino, Lane, NodeId, RequestId};
use unum_proto::registry::command::Kind;
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{Create, FileKind, SetAttributes};

use crate::coverage::Met;
use crate::kernel::Kernel;
use crate::linear::{Event, Model, is_linearizable};
use crate::run::{Flaw, Setup};
use crate::world::{Registry, World};

const REGISTERS: usize = 3;
/// A reader that waits for longer goes away.
const READ_MAX: Duration = Duration::from_millis(900);
/// What a writer waits for its change to be stable: more than a lease lasts.
const SETTLE_MAX: Duration = Duration::from_secs(4);
/// Less than half of the time between two heartbeats.
const AT_ONCE: Duration = Duration::from_millis(40);
/// Reads for which the kernel has forgotten what it had.
const FORGOTTEN_SHARE: f64 = 0.15;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    Write(u32),
    Read,
}

/// A file's owner. What a write returns does not matter.
struct Register;

impl Model for Register {
    type State = u32;
    type Op = Op;
    type Ret = u32;

    fn initial(&self) -> u32 {
        0
    }

    fn step(&self, state: &u32, op: &Op, ret: Option<&u32>) -> Option<u32> {
        match op {
            Op::Write(owner) => Some(*owner),
            Op::Read => ret.is_none_or(|ret| ret == state).then_some(*state),
        }
    }
}

#[derive(Default)]
pub struct Registers {
    inos: Vec<Ino>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    writes: u32,
    events: Vec<(usize, Option<RequestId>, Event<Op, u32>)>,
}

/// A write that has begun.
#[derive(Debug)]
pub struct Write {
    register: usize,
    ino: Ino,
    owner: u32,
    invoked: u64,
}

impl Write {
    pub fn command(&self) -> Kind {
        let uid = Some(self.owner);
        let set = SetAttributes { ino: self.ino.0, uid, ..SetAttributes::default() };
        Kind::Tree(Command::SetAttributes(set).into())
    }
}

impl Registers {
    pub async fn create(world: &Arc<World>) -> Result<Self, String> {
        let (_, registry) = world.running().into_iter().next().ok_or("nobody runs")?;
        let mut setup = Setup { registry, lane: Lane(1002), seq: 0 };
        let mut inos = Vec::new();
        for register in 0..REGISTERS {
            let name = format!("register{register}");
            let create = Create {
                parent: ROOT.0,
                name: name.clone().into(),
                kind: FileKind::Regular.into(),
                mode: 0o644,
                ..Create::default()
            };
            setup.ask(Kind::Tree(Command::Create(create).into())).await?;
            let found = setup.registry.read(|state| state.tree().lookup(ROOT, name.as_bytes()));
            inos.push(found.map_err(|error| format!("{name}: {error}"))?);
        }
        Ok(Self { inos, seen: Mutex::default() })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, world: &World) -> Option<(usize, Ino)> {
        let register = world.draw(|rng| rng.random_range(0..REGISTERS));
        Some((register, *self.inos.get(register)?))
    }

    pub fn begin_write(&self, world: &World) -> Option<Write> {
        let (register, ino) = self.draw(world)?;
        let mut seen = self.seen();
        seen.writes += 1;
        Some(Write { register, ino, owner: seen.writes, invoked: world.nanos() })
    }

    /// Whether a write at this place of the log may be acknowledged to its program.
    pub async fn acknowledge(
        &self,
        world: &World,
        node: NodeId,
        registry: &Registry,
        index: u64,
    ) -> bool {
        if world.plan.flaw == Flaw::AcknowledgeUnsettled {
            return true;
        }
        let awaited = world.running().iter().any(|(_, registry)| registry.awaits_former_leases());
        let asked = world.elapsed();
        let settled = registry.settle(index, SETTLE_MAX).await.is_ok();
        world.met(match world.elapsed() - asked < AT_ONCE {
            true => Met::SettledAtOnce,
            false => Met::SettledLate,
        });
        if settled && awaited {
            world.met(Met::FormerLeasesAwaited);
        }
        // A machine without power tells nobody anything.
        settled && world.registry(node).is_some_and(|now| now.is_same(registry))
    }

    pub fn end_write(&self, world: &World, write: Write, id: RequestId, acknowledged: bool) {
        let returned = acknowledged.then(|| (world.nanos(), write.owner));
        let event = Event { op: Op::Write(write.owner), invoked: write.invoked, returned };
        self.seen().events.push((write.register, Some(id), event));
    }

    async fn read(&self, world: &World, kernel: &Kernel, register: usize, ino: Ino) {
        let invoked = world.nanos();
        if world.draw(|rng| rng.random_bool(FORGOTTEN_SHARE)) {
            kernel.forget(ino);
        }
        let (found, how) = match kernel.cached(ino) {
            Some(owner) => {
                world.met(Met::ReadFromCache);
                (Some(owner), "in the cache")
            }
            None => look(world, kernel, ino).await,
        };
        let Some(owner) = found.filter(|_| world.is_alive(kernel.node, kernel.life)) else {
            return;
        };
        world.note(format!("register{register} on {} is {owner}, {how}", kernel.node));
        let returned = Some((world.nanos(), owner));
        self.seen().events.push((register, None, Event { op: Op::Read, invoked, returned }));
    }

    /// Once all is mended, on each node.
    pub async fn last_reads(&self, world: &Arc<World>) {
        for kernel in world.kernels() {
            for (register, ino) in self.inos.iter().enumerate() {
                self.read(world, &kernel, register, *ino).await;
            }
        }
    }

    /// Returns how many operations there were.
    pub fn judge(&self, world: &World) -> Result<usize, String> {
        let events = std::mem::take(&mut self.seen().events);
        let operations = events.len();
        let mut histories = vec![Vec::new(); REGISTERS];
        for (register, id, mut event) in events {
            // A write whose program never learned of it may come at any time, if ever.
            if let (None, Some(id), Op::Write(owner)) = (&event.returned, id, &event.op) {
                if world.monitor(|monitor| monitor.reply(id)).is_none() {
                    continue;
                }
                event.returned = Some((u64::MAX, *owner));
            }
            histories[register].push(event);
        }
        for (register, history) in histories.iter().enumerate() {
            if !is_linearizable(&Register, history) {
                history
                    .iter()
                    .for_each(|event| world.note(format!("register{register}: {event:?}")));
                return Err(format!("the history of register{register} is not linearizable"));
            }
        }
        Ok(operations)
    }
}

/// As the daemon answers its kernel.
async fn look(world: &World, kernel: &Kernel, ino: Ino) -> (Option<u32>, &'static str) {
    let registry = &kernel.registry;
    let (seen, how) = match kernel.look(ino, None).filter(|look| look.leased) {
        Some(look) => (Some(look), "leased"),
        None => match registry.barrier(READ_MAX).await {
            Ok(()) => (kernel.look(ino, None), "behind a barrier"),
            Err(_) => (None, "without an answer"),
        },
    };
    let Some(seen) = seen else { return (None, how) };
    if seen.unsettled == 0 {
        return (Some(seen.owner), how);
    }
    if registry.settle(seen.unsettled, READ_MAX).await.is_err() {
        return (None, how);
    }
    world.met(Met::SettledForReader);
    kernel.look(ino, Some(seen.owner));
    (Some(seen.owner), "settled")
}

/// A program that reads here and there until the time is over.
pub async fn read_registers(world: Arc<World>, registers: Arc<Registers>, until: Duration) {
    while world.elapsed() < until && world.violation().is_none() {
        let pause = world.draw(|rng| rng.random_range(500..40_000));
        SimRuntime::sleep(Duration::from_micros(pause)).await;
        let kernels = world.kernels();
        let Some(kernel) = world.draw(|rng| kernels.choose(rng).cloned()) else { continue };
        let Some((register, ino)) = registers.draw(&world) else { return };
        registers.read(&world, &kernel, register, ino).await;
    }
}
