//! What happens to the contents of files after they are stored: they are kept on as many nodes as
//! they should be and on the right ones, rot is found and mended, and what nobody wants is deleted.
//!
//! - `survey`: looks through the chunk table for what is to do, and tells how far it is
//! - `repair`: makes the replicas that the survey asks for
//! - `scrub`: reads everything that this node holds, and mends what is damaged or missing
//! - `garbage`: deletes what nobody wants, and frees its room
//! - `check`, `fsck`: the same knowledge as an answer, for one node and for the whole cluster
//!
//! Each loop does a bounded amount of work at a time and starts over from the registry's state and
//! the store, so that any of them may die at any point. All of it is throttled.
//!
//! Invariants: a replica is given up only after its successor is durable; a chunk is deleted only
//! when a registry state that is fresh does not want it here and nobody put it for longer than any
//! write or copy may take.

mod check;
pub mod fsck;
mod garbage;
mod repair;
mod scrub;
mod survey;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use unum_core::placement::chunks::Place;
use unum_core::placement::redundancy::View;
use unum_core::throttle::Throttle;
use unum_core::tree::{Chunk, Tree, TreeError};
use unum_net::{Client, Router};
use unum_proto::admin;
use unum_proto::ids::{ChunkId, NodeId};
use unum_proto::registry::{command, reply};
use unum_proto::tree::{SetReplicas, TreeCommand, tree_command};

use crate::cluster::proposer::Proposer;
use crate::files::replicas::Replicas;
use crate::registry::{Registry, RegistryError};
use crate::settings::Settings;
use crate::tasks::{Stop, Tasks};

/// How long a question to the registry, or a command, may take.
const REGISTRY_TIME_MAX: Duration = Duration::from_secs(5);
/// How long one chunk may take on its way to another node.
const COPY_TIME_MAX: Duration = Duration::from_secs(20);
/// A chunk is put on all of its new nodes, and then the registry is told: nobody deletes it in
/// between.
const GARBAGE_AGE_MIN: Duration = Duration::from_secs(30);
const _: () =
    assert!(COPY_TIME_MAX.as_secs() + REGISTRY_TIME_MAX.as_secs() < GARBAGE_AGE_MIN.as_secs());
/// A write is over so long after the patience of its caller.
const WRITE_MARGIN: Duration = Duration::from_secs(5);

/// What the work on contents asks of its surroundings.
pub trait Nodes: Send + Sync {
    /// Nodes whose replicas count: they live, or died so lately that they may be back soon.
    fn counting(&self) -> Vec<Place>;
}

pub struct Parts {
    pub node: NodeId,
    pub registry: Registry,
    pub proposer: Proposer,
    pub client: Client,
    pub replicas: Replicas,
    pub nodes: Arc<dyn Nodes>,
    pub rates: Rates,
    /// What the scrub remembers across daemons.
    pub record: PathBuf,
}

/// The settings that this module goes by.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Bytes per second.
    pub repair: u64,
    /// Bytes per second.
    pub scrub: u64,
    pub scrub_period: Duration,
    pub garbage_after: Duration,
}

impl Rates {
    pub fn of(settings: &Settings) -> Self {
        Self {
            repair: settings.repair_rate,
            scrub: settings.scrub_rate,
            scrub_period: settings.scrub_period,
            garbage_after: settings
                .garbage_after
                .max(settings.file_patience + WRITE_MARGIN)
                .max(GARBAGE_AGE_MIN),
        }
    }
}

/// The work on contents on this node.
pub struct Contents {
    parts: Parts,
    /// Of copying: restoring, moving, mending, compacting.
    copying: Pace,
    scrubbing: Pace,
    /// Protects what the last survey found. Never held across an await.
    surveyed: Mutex<survey::Surveyed>,
    /// Protects the record of the scrub. Never held across an await.
    scrubbed: Mutex<scrub::Record>,
    /// Protects what is known of the age of chunks. Never held across an await.
    ages: Mutex<garbage::Ages>,
    /// Protects the chunks here of which no node has a good replica, and when that was found out
    /// last. Never held across an await.
    unmended: Mutex<BTreeMap<ChunkId, Instant>>,
}

impl Contents {
    pub fn new(parts: Parts) -> Arc<Self> {
        let ages = garbage::Ages::since(Instant::now(), parts.replicas.store().store().stamp());
        Arc::new(Self {
            copying: Pace::new(parts.rates.repair),
            scrubbing: Pace::new(parts.rates.scrub),
            surveyed: Mutex::default(),
            scrubbed: Mutex::new(scrub::Record::load(&parts.record)),
            ages: Mutex::new(ages),
            unmended: Mutex::default(),
            parts,
        })
    }

    /// Starts the loops.
    pub fn run(self: &Arc<Self>, tasks: &Tasks) {
        let (found, work) = tokio::sync::watch::channel(Arc::default());
        let spawn = |name, work: LongWork| tasks.spawn_lasting(name, until(tasks.stop(), work));
        spawn("survey", Box::pin(survey::run(self.clone(), found)));
        spawn("repair", Box::pin(repair::run(self.clone(), work)));
        spawn("scrub", Box::pin(scrub::run(self.clone())));
        spawn("mend", Box::pin(scrub::mend_suspects(self.clone())));
        spawn("garbage", Box::pin(garbage::run(self.clone())));
    }

    /// What this node answers to the others.
    pub fn routes(self: &Arc<Self>) -> Router {
        check::routes(self)
    }

    /// How all this is, for people.
    pub fn standing(&self) -> admin::Upkeep {
        let (repair, moving, without_source) = locked(&self.surveyed).standing();
        let total = self.parts.replicas.store().store().usage().map(|usage| usage.live_bytes);
        let unmended = self.count_unmended();
        let scrub = locked(&self.scrubbed).standing(total.unwrap_or(0), unmended);
        admin::Upkeep { repair, moving, chunks_without_source: without_source, scrub: Some(scrub) }
    }

    fn look<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        self.parts.registry.read(|state| look(state.tree()))
    }

    /// Returns once everything that was committed before the call is visible here.
    async fn fresh(&self) -> Result<(), RegistryError> {
        self.parts.registry.barrier(REGISTRY_TIME_MAX).await
    }

    fn view(&self) -> View {
        View { counting: self.parts.nodes.counting(), alive: self.parts.replicas.alive() }
    }

    /// Some chunks behind `after`, each with the number of replicas that it should have.
    fn step(&self, after: Option<ChunkId>, scan_max: usize) -> Vec<(ChunkId, Chunk, usize)> {
        let replicas = &self.parts.replicas;
        self.look(|tree| {
            let chunks = tree.chunks_after(after).take(scan_max);
            let wanted = |(id, chunk)| {
                let wanted = replicas.wanted_of(tree, &chunk);
                (id, chunk, wanted)
            };
            chunks.map(wanted).collect()
        })
    }

    /// Whether `chunk` is still what is known of `id`.
    fn is_current(&self, id: ChunkId, chunk: &Chunk) -> bool {
        self.look(|tree| tree.chunk(id).is_some_and(|now| now.replicas == chunk.replicas))
    }

    /// What the registry knows of a chunk, if it wants it on this node.
    fn wanted_here(&self, id: ChunkId) -> Option<Chunk> {
        let node = self.parts.node;
        self.look(|tree| {
            let chunk = tree.chunk(id).filter(|chunk| chunk.replicas.contains(&node));
            chunk.map(Cow::into_owned)
        })
    }

    /// Records where a chunk is, unless somebody else has done so meanwhile.
    async fn set_replicas(
        &self,
        id: ChunkId,
        chunk: &Chunk,
        replicas: impl IntoIterator<Item = NodeId>,
    ) -> Result<(), String> {
        let set = SetReplicas {
            chunk: Some(id.into()),
            expected: chunk.replicas.iter().map(|node| node.0).collect(),
            replicas: replicas.into_iter().map(|node| node.0).collect(),
        };
        let set = TreeCommand::from(tree_command::Command::SetReplicas(set));
        let done = self.parts.proposer.propose(command::Kind::Tree(set), REGISTRY_TIME_MAX).await;
        let reply::Kind::Tree(reply) = done.map_err(|error| error.to_string())? else {
            return Err("the registry's reply is of another kind".into());
        };
        match unum_core::tree::outcome(&reply) {
            // The chunk is gone, or somebody else has set it.
            Ok(_) | Err(TreeError::Stale | TreeError::NotFound) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

type LongWork = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn until(stop: Stop, work: LongWork) {
    tokio::select! {
        () = stop.requested() => {}
        () = work => {}
    }
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rate that several tasks keep to together.
struct Pace {
    start: Instant,
    throttle: Mutex<Throttle>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { start: Instant::now(), throttle: Mutex::new(Throttle::new(rate)) }
    }

    /// Returns when `bytes` may be worked on.
    async fn take(&self, bytes: u64) {
        let wait = locked(&self.throttle).take(self.start.elapsed(), bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}
