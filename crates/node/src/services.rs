//! The services for programs: chunks, the file tree and processes, as one thing that a node starts
//! and ends.
//!
//! Order: the chunk store, the world (started or found again), the FUSE connection (made or taken
//! over), then the routes, and last the answering. Until the last step the kernel's callers wait.
//!
//! A machine that cannot have a world or a mount (no rights, no /dev/fuse) still stores chunks and
//! votes; `limits` says in a sentence each what it does without.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use unum_core::placement::chunks::{Place, durable_enough};
use unum_core::placement::programs::Candidate;
use unum_core::registry::{Node, State};
use unum_core::time::Time;
use unum_net::{Client, Departures, Router};
use unum_proto::ids::{Lane, NodeId};
use unum_proto::init::{Answer, Ask, PidBlock, Shutdown, StatusAsk};
use unum_proto::registry::NodeState;
use unum_sys::world::World as WorldStart;

use crate::beats::beat;
use crate::cluster::proposer::Proposer;
use crate::contents::{self, Contents};
use crate::files::mount::{Connection, KEPT_NAME, MountError, Mounted};
use crate::files::replicas::{Candidates, Replicas};
use crate::files::{self, Cluster, Files};
use crate::host::{self, Authority, HostTrees, Policy};
use crate::membership::{MemberState, Membership};
use crate::processes::{Nodes, Processes};
use crate::registry::{Registry, system_clock};
use crate::settings::Settings;
use crate::store::{ChunkError, ChunkOptions, ChunkQueue, ChunkStore};
use crate::tasks::{Stop, Tasks};
use crate::world::{self, World};

/// How long programs may take to end when the node stops.
const PROGRAMS_GRACE: Duration = Duration::from_secs(5);
/// How long the whole world may take.
const WORLD_TIME_MAX: Duration = Duration::from_secs(10);
/// For so long after a node went down, files without a name that it may have open are kept.
const OPEN_FILES_AFTER: Duration = Duration::from_secs(60);
/// Pause between two reports of how much the services hold.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// Chunks that a look for degraded ones goes through.
const DEGRADED_SCAN_MAX: usize = 1 << 16;
/// Every node gets the same share of chunks until weights become a setting.
const WEIGHT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Store(#[from] crate::stores::OpenError),
    #[error("the chunk store cannot be opened: {0}")]
    Chunks(#[from] ChunkError),
    #[error("a thread for the chunk store cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("the lists of open and cached files in {path} cannot be read: {error}")]
    Handles { path: PathBuf, error: std::io::Error },
}

/// What the services work with.
pub struct Plan<'a> {
    pub settings: &'a Settings,
    pub node: NodeId,
    pub registry: Registry,
    pub client: Client,
    pub membership: Membership,
    pub tasks: Tasks,
    /// What leaves for other nodes passes there first.
    pub departures: Departures,
}

/// The services of a running node.
pub struct Services {
    pub replicas: Replicas,
    pub contents: Arc<Contents>,
    /// None: see `limits`.
    pub processes: Option<Processes>,
    pub limits: Vec<String>,
    world: Option<World>,
    files: Option<Arc<Files>>,
    cluster: Arc<ClusterView>,
    client: Client,
    tasks: Tasks,
    /// Taken by `start` and by `end`.
    connection: Mutex<Option<Connection>>,
    mounted: Mutex<Option<Mounted>>,
    host: Option<Host>,
    registry: Registry,
}

/// Host trees: this machine's for the others, and theirs for this machine.
struct Host {
    authority: Arc<Authority>,
    trees: Arc<HostTrees>,
    /// As those of the file tree.
    connection: Mutex<Option<Connection>>,
    mounted: Mutex<Option<Mounted>>,
}

impl Services {
    /// Makes everything ready to answer, and answers nothing yet.
    pub async fn prepare(plan: Plan<'_>) -> Result<Arc<Self>, ServiceError> {
        let cluster = Arc::new(ClusterView {
            node: plan.node,
            registry: plan.registry.clone(),
            membership: plan.membership.clone(),
            repair_after: plan.settings.repair_after,
        });
        let replicas = Replicas::new(
            plan.node,
            plan.client.clone(),
            open_chunks(plan.settings)?,
            Box::new(cluster.clone()),
            plan.settings.replicas as usize,
            rand::random(),
        );
        let contents = make_contents(&plan, &replicas, &cluster);
        let mut limits = Vec::new();
        let (world, connection) = match plan.settings.worker {
            true => enter_world(&plan, &mut limits).await,
            false => (None, None),
        };
        let host = match &world {
            Some(world) => make_host(&plan, world, &mut limits).await,
            None => None,
        };
        let processes = world.as_ref().map(|world| {
            let (registry, client) = (plan.registry.clone(), plan.client.clone());
            let nodes = Box::new(cluster.clone());
            Processes::new(plan.node, registry, client, world.clone(), nodes)
        });
        let files = connection.as_ref().map(|connection| make_files(&plan, &replicas, connection));
        Ok(Arc::new(Self {
            replicas,
            contents,
            processes,
            limits,
            world,
            files: files.transpose()?,
            cluster,
            client: plan.client,
            tasks: plan.tasks,
            connection: Mutex::new(connection),
            mounted: Mutex::new(None),
            host,
            registry: plan.registry,
        }))
    }

    /// What other nodes may call.
    pub fn routes(&self) -> Router {
        let mut routes = self.replicas.routes().merge(self.contents.routes());
        if let Some(files) = &self.files {
            routes = routes.merge(files::upkeep_routes(files));
        } else {
            routes = routes.merge(files::nothing_held());
        }
        if let Some(host) = &self.host {
            routes = routes.merge(host.authority.routes()).merge(host.trees.routes());
        }
        match &self.processes {
            Some(processes) => {
                let processes = processes.clone();
                routes.merge(crate::processes::routes(move || Ok(processes.clone())))
            }
            None => routes,
        }
    }

    /// Answers the kernel and starts the upkeep.
    pub fn start(self: &Arc<Self>) {
        self.contents.run(&self.tasks);
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(files), Some(connection)) = (&self.files, connection) {
            files::start_upkeep(files, self.cluster.clone(), &self.client, &self.tasks);
            match connection.serve(files.clone(), &tokio::runtime::Handle::current()) {
                Ok(mounted) => {
                    let keeper = files.clone();
                    let keeping = async move { keeper.keep_caches().await };
                    self.tasks.spawn_lasting("caches", until(self.tasks.stop(), keeping));
                    let drainer = files.clone();
                    let draining = async move { drainer.drain_changes().await };
                    self.tasks.spawn_lasting("changes", until(self.tasks.stop(), draining));
                    *self.mounted.lock().unwrap_or_else(PoisonError::into_inner) = Some(mounted);
                }
                Err(error) => tracing::error!(%error, "the file tree cannot be served"),
            }
        }
        if let Some(host) = &self.host {
            host.start(&self.registry, &self.tasks);
        }
        if let (Some(world), Some(processes)) = (&self.world, &self.processes) {
            let following = follow_blocks(self.cluster.clone(), processes.clone());
            self.tasks.spawn_lasting("pids", until(self.tasks.stop(), following));
            let reporting = report(self.clone(), world.clone());
            self.tasks.spawn_lasting("report", until(self.tasks.stop(), reporting));
        }
    }

    /// The file service. None: see `limits`.
    pub fn files(&self) -> Option<&Arc<Files>> {
        self.files.as_ref()
    }

    /// Where the file tree is mounted.
    pub fn mount(&self) -> Option<PathBuf> {
        let mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.as_ref().map(|mounted| mounted.path().to_owned())
    }

    /// Chunks that have fewer living replicas than they should, as far as one look reaches.
    pub fn chunks_degraded(&self) -> u64 {
        let live = self.replicas.alive();
        let factor = self.replicas.factor();
        self.cluster.look(|state| {
            state.tree().chunks_lacking(&live, factor, None, DEGRADED_SCAN_MAX).found.len() as u64
        })
    }

    /// Stops answering; mount and programs wait for the next daemon.
    pub async fn leave(&self) {
        if let Some(files) = &self.files {
            files.hand_in().await;
            files.empty_caches().await;
        }
        if let Some(mounted) = self.take_mounted() {
            mounted.leave();
        }
        if let Some(mounted) = self.host.as_ref().and_then(Host::take_mounted) {
            mounted.leave();
        }
    }

    /// Ends the programs and takes the mount away.
    pub async fn end(&self) {
        if let Some(world) = &self.world {
            let shutdown = Shutdown { grace_ms: PROGRAMS_GRACE.as_millis() as u64 };
            // The answer comes at once; the world has ended when its connection does.
            let _ = world.ask(Ask::Shutdown(shutdown)).await;
            let _ = tokio::time::timeout(WORLD_TIME_MAX, world.ended()).await;
        }
        if let Some(mounted) = self.host.as_ref().and_then(Host::take_mounted) {
            mounted.unmount();
        }
        if let Some(mounted) = self.take_mounted() {
            mounted.unmount();
            if let Some(files) = &self.files {
                files.hand_in().await;
                files.unmounted().await;
            }
        }
    }

    fn take_mounted(&self) -> Option<Mounted> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Host {
    fn start(&self, registry: &Registry, tasks: &Tasks) {
        let tidying = self.authority.clone().tidy(registry.clone());
        tasks.spawn_lasting("host", until(tasks.stop(), tidying));
        if let Err(error) = self.authority.listen() {
            tracing::error!(%error, "other nodes hear of changes here only when something leaves");
        }
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(connection) = connection else { return };
        let trees = self.trees.clone();
        let runtime = tokio::runtime::Handle::current();
        match connection.serve_by(&runtime, move |request| trees.clone().answer(request)) {
            Ok(mounted) => {
                *self.mounted.lock().unwrap_or_else(PoisonError::into_inner) = Some(mounted);
            }
            Err(error) => tracing::error!(%error, "the host trees cannot be served"),
        }
    }

    fn take_mounted(&self) -> Option<Mounted> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn open_chunks(settings: &Settings) -> Result<ChunkQueue, ServiceError> {
    let disk = crate::stores::open(settings, "chunks")?;
    let (store, damage) = ChunkStore::open(disk, ChunkOptions::default())?;
    for damage in damage {
        tracing::warn!(?damage, "a chunk is damaged here; other replicas are used");
    }
    ChunkQueue::start(Arc::new(store)).map_err(ServiceError::Thread)
}

async fn enter_world(
    plan: &Plan<'_>,
    limits: &mut Vec<String>,
) -> (Option<World>, Option<Connection>) {
    let start = WorldStart {
        program: init_program(),
        prefix: Vec::new(),
        socket: world::socket(&plan.settings.run_dir),
        state: plan.settings.data_dir.join("programs"),
    };
    let world = match world::connect(start).await {
        Ok((world, driver)) => {
            plan.tasks.spawn_lasting("world", driver);
            limits.extend(world.missing());
            world
        }
        Err(error) => {
            limits.push(format!("this node runs no programs and mounts no file tree: {error}"));
            return (None, None);
        }
    };
    match connect_kernel(plan, &world).await {
        Ok(connection) => (Some(world), Some(connection)),
        Err(error) => {
            limits.push(format!("the file tree is not mounted here: {error}"));
            (Some(world), None)
        }
    }
}

/// unum-init lies beside this daemon.
fn init_program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("unum-init")
}

async fn connect_kernel(plan: &Plan<'_>, world: &World) -> Result<Connection, MountError> {
    let path = plan.settings.mount.as_path();
    if let Some(connection) = take_over(world, KEPT_NAME, path).await {
        return Ok(connection);
    }
    let connection = Connection::establish(path, Lane(rand::random()))?;
    keep(world, KEPT_NAME, &connection, &trusted_path(plan.settings)).await;
    Ok(connection)
}

/// Goes on with the mount that a former daemon made.
async fn take_over(world: &World, name: &str, path: &Path) -> Option<Connection> {
    let (note, descriptor) = world.fetch(name).await.ok()??;
    let connection = Connection::take_over(descriptor, &note, path)?;
    tracing::info!(mount = %path.display(), "took the mount over");
    Some(connection)
}

/// Has unum-init keep the mount for the next daemon.
async fn keep(world: &World, name: &str, connection: &Connection, ledger: &Path) {
    match connection.to_keep() {
        Ok((descriptor, note)) => {
            if let Err(error) = world.keep(name, note, descriptor, ledger).await {
                tracing::warn!(%error, "unum-init does not keep the mount: it ends with this daemon");
            }
        }
        Err(error) => tracing::warn!(%error, "the FUSE descriptor cannot be shared"),
    }
}

/// None: see `limits`.
async fn make_host(plan: &Plan<'_>, world: &World, limits: &mut Vec<String>) -> Option<Host> {
    match connect_host(plan, world).await {
        Ok(host) => Some(host),
        Err(error) => {
            limits.push(format!("host trees are neither seen nor shown here: {error}"));
            None
        }
    }
}

async fn connect_host(plan: &Plan<'_>, world: &World) -> Result<Host, MountError> {
    let (settings, run_dir) = (plan.settings, &plan.settings.run_dir);
    let unusable = |error| MountError::MountPoint { path: run_dir.clone(), error };
    let path = settings.host_mount.as_path();
    let connection = match take_over(world, host::KEPT_NAME, path).await {
        Some(connection) => connection,
        None => {
            let (options, wishes) = (host::mount_options(), host::wishes());
            let lane = Lane(rand::random());
            let connection = Connection::establish_as(path, lane, &options, &wishes)?;
            keep(world, host::KEPT_NAME, &connection, Path::new("")).await;
            connection
        }
    };
    let parts = host::Parts {
        node: plan.node,
        registry: plan.registry.clone(),
        membership: plan.membership.clone(),
        client: plan.client.clone(),
        lane: connection.lane,
        patience: settings.file_patience,
        notifier: connection.notifier(),
    };
    let journal = run_dir.join("host-table");
    let trees = HostTrees::new(parts, &journal, connection.fresh).map_err(unusable)?;
    let client = plan.client.clone();
    let locks = host::Locks::restore(world.clone(), &run_dir.join("host-fences")).await;
    let locks = locks.map_err(unusable)?;
    let authority =
        Authority::new(Policy::of(settings), run_dir, client, locks).map_err(unusable)?;
    plan.departures.set_guard(authority.clone());
    let (connection, mounted) = (Mutex::new(Some(connection)), Mutex::new(None));
    Ok(Host { authority, trees, connection, mounted })
}

fn make_contents(
    plan: &Plan<'_>,
    replicas: &Replicas,
    cluster: &Arc<ClusterView>,
) -> Arc<Contents> {
    Contents::new(contents::Parts {
        node: plan.node,
        registry: plan.registry.clone(),
        proposer: Proposer::new(plan.registry.clone()),
        client: plan.client.clone(),
        replicas: replicas.clone(),
        nodes: cluster.clone(),
        rates: contents::Rates::of(plan.settings),
        record: plan.settings.data_dir.join(crate::stores::UPKEEP).join("scrub.json"),
    })
}

fn make_files(
    plan: &Plan<'_>,
    replicas: &Replicas,
    connection: &Connection,
) -> Result<Arc<Files>, ServiceError> {
    let parts = files::Parts {
        node: plan.node,
        registry: plan.registry.clone(),
        replicas: replicas.clone(),
        mount_lane: connection.lane,
        proposer: Proposer::new(plan.registry.clone()),
        client: plan.client.clone(),
        patience: plan.settings.file_patience,
        notifier: connection.notifier(),
        drops_names: connection.drops_names(),
        obeys_acls: connection.obeys_acls(),
    };
    let run_dir = &plan.settings.run_dir;
    let (handles, trusted) = (run_dir.join("handles"), trusted_path(plan.settings));
    let changes = run_dir.join("changes");
    let kept = files::Kept { handles: &handles, trusted: &trusted, changes: &changes };
    Files::new(parts, &kept, connection.fresh)
        .map_err(|error| ServiceError::Handles { path: run_dir.clone(), error })
}

/// Where it is written what the kernel may cache.
fn trusted_path(settings: &Settings) -> PathBuf {
    settings.run_dir.join("trusted")
}

async fn until(stop: Stop, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.requested() => {}
        () = work => {}
    }
}

/// Tells the world each change of this node's PID blocks.
async fn follow_blocks(cluster: Arc<ClusterView>, processes: Processes) {
    let mut applied: watch::Receiver<u64> = cluster.registry.watch();
    let mut told: Vec<PidBlock> = Vec::new();
    loop {
        let blocks = cluster.blocks();
        if blocks != told {
            match processes.use_blocks(blocks.clone()).await {
                Ok(()) => told = blocks,
                Err(error) => tracing::warn!(%error, "unum-init does not take the PID blocks"),
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

/// Lets gossip know how much the services hold.
async fn report(services: Arc<Services>, world: World) {
    loop {
        let running = match world.ask(Ask::Status(StatusAsk {})).await {
            Ok(Answer::Status(status)) => status.running,
            _ => 0,
        };
        let space = services.replicas.store().store().usage().map(|usage| usage.disk);
        services.cluster.membership.report(|load| {
            load.programs = running;
            if let Ok(space) = space {
                load.storage_total = space.total_bytes;
                load.storage_free = space.free_bytes;
            }
        });
        beat(REPORT_PAUSE).await;
    }
}

/// The other nodes, as the registry and gossip tell of them.
struct ClusterView {
    node: NodeId,
    registry: Registry,
    membership: Membership,
    /// The replicas of a node that went down still count for so long: it may be back soon.
    repair_after: Duration,
}

impl ClusterView {
    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.registry.read(look)
    }

    fn blocks(&self) -> Vec<PidBlock> {
        self.look(|state| {
            let blocks = state.pids().blocks_of(self.node);
            blocks
                .map(|block| PidBlock { lo: block.first, hi: block.first + block.count })
                .collect()
        })
    }

    fn places(&self, wanted: impl Fn(&Node) -> bool) -> Vec<Place> {
        self.look(|state| {
            let workers = state.nodes().members().filter(|node| node.is_worker() && wanted(node));
            workers.map(|node| Place { node: node.id, weight: WEIGHT }).collect()
        })
    }

    fn is_suspect(&self, node: NodeId) -> bool {
        let view = self.membership.view();
        let state = view.get(&node).map(|member| member.state);
        matches!(state, Some(MemberState::Suspect | MemberState::Down))
    }

    /// Workers that are up and that nobody suspects.
    fn unsuspected(&self) -> Vec<Place> {
        self.places(|node| node.is_up() && !self.is_suspect(node.id))
    }
}

impl Candidates for Arc<ClusterView> {
    /// A node that is only suspected is not lost yet. Where the others are too few for what is
    /// written to survive the loss of a minority, a write waits for it, or for the registry's word
    /// that it is down.
    fn alive(&self, replicas: usize) -> Vec<Place> {
        let unsuspected = self.unsuspected();
        let enough = durable_enough(self.total(), replicas);
        match unsuspected.len() >= enough {
            true => unsuspected,
            false => self.places(Node::is_up),
        }
    }

    /// A witness counts, for its vote lets the cluster survive a loss that it would not survive
    /// without: a minority of all nodes may be lost.
    fn total(&self) -> usize {
        self.look(|state| state.nodes().members().count())
    }
}

impl Nodes for Arc<ClusterView> {
    fn candidates(&self) -> Vec<Candidate> {
        let view = self.membership.view();
        self.unsuspected()
            .into_iter()
            .map(|place| {
                let load = view.get(&place.node).and_then(|member| member.load).unwrap_or_default();
                Candidate {
                    node: place.node,
                    load_milli: load.load_milli.max(load.runnable.saturating_sub(1) * 1000),
                    cores: load.cores,
                    recent: 0,
                }
            })
            .collect()
    }
}

impl Cluster for ClusterView {
    fn leads(&self) -> bool {
        self.registry.standing().leader == Some(self.node)
    }

    fn members(&self) -> Vec<NodeId> {
        self.look(|state| {
            // A node that went down lately may only have lost its daemon: its programs have files
            // open, and the next daemon will say so. Later, what they have open is stale.
            let now: Time = system_clock()();
            let may_have = |node: &&Node| match node.state {
                NodeState::Down => now.since(node.since) < OPEN_FILES_AFTER,
                _ => node.is_up(),
            };
            state.nodes().members().filter(may_have).map(|node| node.id).collect()
        })
    }
}

impl contents::Nodes for ClusterView {
    fn counting(&self) -> Vec<Place> {
        let now: Time = system_clock()();
        self.places(|node| match node.state {
            NodeState::Up => true,
            NodeState::Down => now.since(node.since) < self.repair_after,
            _ => false,
        })
    }
}
