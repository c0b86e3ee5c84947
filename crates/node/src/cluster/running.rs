//! A node while it runs in its cluster: everything that exists only then, started in order and
//! stopped in the reverse one.
//!
//! This is where a service plugs in: it gets [`Parts`], adds its routes for other nodes in
//! `node_routes`, and starts its tasks on `Parts::tasks`.

use super::authority::{Authority, trusted_pem};
use super::consensus::{self, NetTransport};
use super::credentials::{CredentialError, Credentials};
use super::facts;
use super::leader::Leader;
use super::lifecycle::{Lifecycle, Refusals, Standing};
use super::proposer::Proposer;
use super::service::{ClusterService, Desk, keep_authority, learn_leader, renew};
use crate::api::status::advice;
use crate::beats;
use crate::membership::{self, Membership, Timings};
use crate::registry::{Options, Registry, Timing};
use crate::services::{self, ServiceError, Services};
use crate::settings::Settings;
use crate::slow::Step;
use crate::tasks::{Stop, TaskDeath, Tasks};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use unum_net::identity::keep_renewed;
use unum_net::{Client, Departures, Directory, Identity, IdentityStore, Router, Server};
use unum_proto::cluster::{NodeFacts, Peer};
use unum_proto::ids::{Epoch, NodeId};
use unum_proto::registry::{self as wire, Description, command};

/// How long a new cluster's first command may take.
const FOUND_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a leader may take to hand its office over before it stops all the same.
const TRANSFER_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a former leader still answers the next one: two heartbeats.
const ANSWER_TIME: Duration = Duration::from_millis(300);

/// What a service of a running node works with. Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    pub settings: Arc<Settings>,
    pub node: NodeId,
    pub name: String,
    /// `host:port` that the others use.
    pub address: String,
    pub registry: Registry,
    pub proposer: Proposer,
    pub client: Client,
    pub directory: Arc<Directory>,
    pub identity: Arc<IdentityStore>,
    pub membership: Membership,
    pub standing: watch::Receiver<Standing>,
    pub services: Arc<Services>,
    pub tasks: Tasks,
}

impl Parts {
    pub fn stop(&self) -> Stop {
        self.tasks.stop()
    }

    /// The epoch that this node acts under; none while it is not up.
    pub fn epoch(&self) -> Option<Epoch> {
        match *self.standing.borrow() {
            Standing::Up(epoch) => Some(epoch),
            Standing::Coming | Standing::Gone(_) => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {address}: {error}; is another daemon running, or the port taken?")]
    Listen { address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("the certificate cannot be used: {0}")]
    Identity(#[from] unum_net::identity::IdentityError),
    #[error("the registry cannot start: {0}")]
    Registry(String),
    #[error(transparent)]
    Services(#[from] ServiceError),
}

/// What ends when a node stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The daemon alone: programs and mount live on for the next one.
    Daemon,
    /// The machine's part in the cluster: programs end, the mount goes.
    Node,
}

pub struct Running {
    pub parts: Parts,
    server: Server,
    deaths: mpsc::Receiver<TaskDeath>,
}

/// What is known before a node runs.
pub struct Plan {
    pub settings: Arc<Settings>,
    pub credentials: Credentials,
    pub identity: Identity,
    pub name: String,
    /// Known from the join; the registry knows better once it is there.
    pub peers: Vec<Peer>,
    pub run: u64,
    pub boot: Vec<u8>,
    pub listener: TcpListener,
}

impl Running {
    /// Starts everything. `found` makes the cluster that this node is the first of.
    pub async fn start(plan: Plan, found: Option<Found>) -> Result<Self, RunError> {
        let (tasks, deaths) = Tasks::new();
        let node = plan.identity.node();
        let listening = local_address(&plan.listener, &plan.settings)?;
        let identity = Arc::new(IdentityStore::new(plan.identity)?);
        let directory = Arc::new(Directory::new());
        for peer in &plan.peers {
            directory.set_node(NodeId(peer.node), facts::resolve(&peer.addresses).await);
        }
        // Services call each other by name, also when the name leads back to this node.
        directory.set_node(node, vec![facts::loopback(listening)]);
        let departures = Departures::default();
        let network = net_settings(&plan.settings, departures.clone());
        let client = Client::new(identity.clone(), directory.clone(), network.clone());
        let step = Step::begin("opening the registry");
        let registry = start_registry(&plan.settings, node, client.clone()).await?;
        drop(step);
        let registry = registry.departing_through(departures.clone());
        let starting = membership::service::prepare(node);
        let (standing, seen_standing) = watch::channel(Standing::Coming);
        let step = Step::begin("opening the chunk store, starting unum-init and mounting");
        let services = Services::prepare(services::Plan {
            settings: &plan.settings,
            node,
            registry: registry.clone(),
            client: client.clone(),
            membership: starting.membership.clone(),
            tasks: tasks.clone(),
            departures,
        })
        .await?;
        drop(step);
        let facts = facts::node_facts(&plan.settings, facts::own_address(listening));
        let parts = Parts {
            settings: plan.settings.clone(),
            node,
            name: plan.name,
            address: facts.addresses.first().cloned().unwrap_or_default(),
            proposer: Proposer::new(registry.clone()),
            registry,
            client,
            directory,
            identity,
            membership: starting.membership.clone(),
            standing: seen_standing,
            services,
            tasks,
        };
        let authority = Arc::new(Authority::load(
            plan.credentials.clone(),
            parts.identity.clone(),
            plan.settings.certificate_lifetime,
        )?);
        let server = serve(&parts, authority.clone(), plan.listener, network)?;
        starting.start(parts.client.clone(), timings(&plan.settings), plan.run, &parts.tasks);
        if let Some(found) = found {
            let _step = Step::begin("founding the cluster in the registry");
            found_cluster(&parts, found, facts::description(&facts, facts.addresses.clone()))
                .await?;
        }
        spawn_tasks(&parts, authority, plan.credentials, standing, &facts, plan.boot);
        parts.services.start();
        Ok(Self { parts, server, deaths })
    }

    /// Completes when a task died that the node cannot live without.
    pub async fn death(&mut self) -> TaskDeath {
        match self.deaths.recv().await {
            Some(death) => death,
            None => std::future::pending().await,
        }
    }

    /// Hands leadership over, stops the tasks, then closes what they used.
    pub async fn stop(self, ending: Ending) {
        match ending {
            Ending::Node => self.parts.services.end().await,
            Ending::Daemon => self.parts.services.leave().await,
        }
        let _ = tokio::time::timeout(TRANSFER_TIME_MAX, give_up_leadership(&self.parts)).await;
        self.parts.tasks.shutdown().await;
        self.server.shutdown().await;
        self.parts.registry.shutdown().await;
        self.parts.client.shutdown().await;
    }
}

/// What the first node writes into its registry before anything else.
pub struct Found {
    pub cluster: [u8; 16],
    pub name: String,
}

fn local_address(listener: &TcpListener, settings: &Settings) -> Result<SocketAddr, RunError> {
    listener.local_addr().map_err(|error| RunError::Listen { address: settings.listen, error })
}

fn net_settings(settings: &Settings, departures: Departures) -> unum_net::Settings {
    // A peer may go on over an old connection for some time after its certificate's end, but a
    // test in a hurry wants that shorter.
    let default = unum_net::Settings::default();
    let grace = default.certificate_grace.min(settings.certificate_lifetime);
    unum_net::Settings { certificate_grace: grace, grid: beats::start(), departures, ..default }
}

fn timings(settings: &Settings) -> Timings {
    Timings {
        period: settings.gossip_period,
        timeout: settings.gossip_timeout,
        suspicion: settings.gossip_suspicion,
    }
}

async fn start_registry(
    settings: &Settings,
    own: NodeId,
    client: Client,
) -> Result<Registry, RunError> {
    let failed = |error: String| RunError::Registry(error);
    let disk = crate::stores::open(settings, "registry").map_err(|e| failed(e.to_string()))?;
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let timing = Timing {
        heartbeat_ms: milliseconds(settings.raft_heartbeat),
        election_min_ms: milliseconds(settings.raft_election_min),
        election_max_ms: milliseconds(settings.raft_election_max),
    };
    let options = Options {
        timing,
        snapshot_entries: settings.raft_snapshot_entries,
        ..Options::new(own, disk, Arc::new(NetTransport { client }))
    };
    Registry::start(options).await.map_err(|error| failed(error.to_string()))
}

/// What other nodes may call here.
fn node_routes(parts: &Parts, authority: Arc<Authority>) -> Router {
    let cluster = ClusterService {
        own: parts.node,
        registry: parts.registry.clone(),
        proposer: parts.proposer.clone(),
        authority,
    };
    Router::new()
        .merge(consensus::routes(parts.registry.clone()))
        .merge(parts.membership.routes())
        .merge(parts.services.routes())
        .merge(Arc::new(cluster).routes())
}

fn serve(
    parts: &Parts,
    authority: Arc<Authority>,
    listener: TcpListener,
    network: unum_net::Settings,
) -> Result<Server, RunError> {
    let desk = Desk {
        client: parts.client.clone(),
        directory: parts.directory.clone(),
        registry: parts.registry.clone(),
    };
    Server::start(
        listener,
        parts.identity.clone(),
        Arc::new(node_routes(parts, authority)),
        Some(Arc::new(desk)),
        network,
    )
    .map_err(|error| RunError::Listen { address: parts.settings.listen, error })
}

async fn found_cluster(
    parts: &Parts,
    found: Found,
    description: Description,
) -> Result<(), RunError> {
    let failed = |error: crate::registry::RegistryError| RunError::Registry(error.to_string());
    parts.registry.initialize().await.map_err(failed)?;
    let command = command::Kind::Found(wire::Found {
        cluster: found.cluster.to_vec().into(),
        name: found.name,
        authorities_pem: vec![trusted_pem(&parts.identity)],
        node_name: parts.name.clone(),
        description: Some(description),
    });
    parts.proposer.propose(command, FOUND_TIME_MAX).await.map(|_| ()).map_err(failed)
}

fn spawn_tasks(
    parts: &Parts,
    authority: Arc<Authority>,
    credentials: Credentials,
    standing: watch::Sender<Standing>,
    facts: &NodeFacts,
    boot: Vec<u8>,
) {
    let lifecycle = Lifecycle {
        own: parts.node,
        registry: parts.registry.clone(),
        proposer: parts.proposer.clone(),
        directory: parts.directory.clone(),
        identity: parts.identity.clone(),
        membership: parts.membership.clone(),
        description: facts::description(facts, facts.addresses.clone()),
        boot: boot.into(),
        standing,
        refused: Refusals::default(),
    };
    let leader = Leader {
        own: parts.node,
        registry: parts.registry.clone(),
        proposer: parts.proposer.clone(),
        membership: parts.membership.clone(),
    };
    let keeping = keep_authority(
        parts.node,
        parts.registry.clone(),
        parts.client.clone(),
        authority,
        parts.stop(),
    );
    let registry = parts.registry.clone();
    parts.tasks.spawn_watch("consensus", async move { registry.ended().await });
    parts.tasks.spawn_lasting("authority", keeping);
    parts.tasks.spawn_lasting("lifecycle", lifecycle.run(parts.stop()));
    parts.tasks.spawn_lasting("leader", leader.run(parts.stop()));
    parts.tasks.spawn_lasting("renewal", renewal(parts.clone(), credentials));
    parts.tasks.spawn_lasting("standing", tell_turned_away(parts.clone()));
}

/// Has the log say what to do when the others do not speak to this node.
async fn tell_turned_away(parts: Parts) {
    let (stop, mut changes) = (parts.stop(), parts.identity.turned_away_changes());
    loop {
        tokio::select! {
            () = stop.requested() => return,
            Ok(()) = changes.changed() => {
                let why = *changes.borrow_and_update();
                match why {
                    Some(why) => tracing::error!("{}", advice(why, &parts.name)),
                    None => tracing::info!("the other nodes speak to this one again"),
                }
            }
        }
    }
}

/// Keeps the certificate valid, and each new one on disk before the old one ends.
async fn renewal(parts: Parts, credentials: Credentials) {
    let (stop, mut changes) = (parts.stop(), parts.identity.changes());
    let asking = parts.clone();
    let renewed = keep_renewed(parts.identity.clone(), move |csr| {
        learn_leader(&asking.directory, &asking.registry);
        renew(asking.client.clone(), asking.identity.clone(), csr)
    });
    tokio::pin!(renewed);
    loop {
        tokio::select! {
            () = stop.requested() => return,
            () = &mut renewed => return,
            Ok(()) = changes.changed() => {
                changes.borrow_and_update();
                let saved = parts.identity.with(|identity| credentials.save_identity(identity));
                if let Err(error) = saved {
                    tracing::error!(%error, "the renewed certificate is not saved");
                }
            }
        }
    }
}

/// Writes go on at once when the office is handed over; otherwise they wait for an election.
async fn give_up_leadership(parts: &Parts) {
    if parts.registry.hand_over().await.is_none() {
        return;
    }
    while parts.registry.standing().leader.is_none_or(|leader| leader == parts.node) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Unless the next leader hears that this node gave its read lease back, it waits for the end of it
    // with everybody's changes.
    tokio::time::sleep(ANSWER_TIME).await;
}
