//! The daemon: its boot, its main loop, its end.
//!
//! A daemon is solitary, or a node of a cluster; `admin.create`, `admin.join` and `admin.leave`
//! lead from one to the other while the daemon and its local socket live on. The main loop owns the
//! running node, so such changes never overlap. When a task that the node cannot live without dies,
//! the daemon ends with a message: it is started again and takes over what it left.

use crate::api::Api;
use crate::api::access::Access;
use crate::cluster::credentials::{CredentialError, Credentials};
use crate::cluster::lifecycle::Standing;
use crate::cluster::running::{Ending, Found, Parts, Plan, RunError, Running};
use crate::cluster::{departure, founding, joining};
use crate::settings::Settings;
use crate::slow::Step;
use crate::stores;
use crate::system::{self, StartError};
use crate::tasks::TaskDeath;
use crate::world;
use arc_swap::ArcSwapOption;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use unum_net::{Code, Identity, Status, UnixServer};
use unum_proto::admin::{CreateReply, DownReply, JoinReply, JoinRequest, LeaveReply};
use unum_proto::cluster::Peer;

/// Orders that wait for the main loop.
const ORDERS_MAX: usize = 16;
/// How long a verb waits for this node to come up before it answers all the same.
const UP_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a reply may take to leave before the daemon ends.
const LAST_REPLY_TIME: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot keep count of this daemon's runs: {0}")]
    Runs(std::io::Error),
    #[error("cannot serve the local socket {path}: {error}")]
    Socket { path: std::path::PathBuf, error: std::io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("{0}; the daemon ends so that a fresh one can take over")]
    Death(#[from] TaskDeath),
    #[error("cannot found a cluster: {0}")]
    Found(Status),
}

/// Where the daemon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Solitary = 0,
    Starting = 1,
    Running = 2,
    Stopping = 3,
}

/// What the main loop is asked to do. The reply is dropped when the daemon stops first.
pub enum Order {
    Create(oneshot::Sender<Result<CreateReply, Status>>),
    Join { request: JoinRequest, reply: oneshot::Sender<Result<JoinReply, Status>> },
    Leave { force: bool, reply: oneshot::Sender<Result<LeaveReply, Status>> },
    Down(oneshot::Sender<Result<DownReply, Status>>),
}

/// What the main loop and the local API both see.
pub struct Shared {
    pub settings: Arc<Settings>,
    pub started: SystemTime,
    phase: AtomicU8,
    parts: ArcSwapOption<Parts>,
}

impl Shared {
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Solitary,
            1 => Phase::Starting,
            2 => Phase::Running,
            _ => Phase::Stopping,
        }
    }

    pub fn parts(&self) -> Option<Arc<Parts>> {
        self.parts.load_full()
    }

    fn set(&self, phase: Phase, parts: Option<Arc<Parts>>) {
        self.parts.store(parts);
        self.phase.store(phase as u8, Ordering::Release);
    }
}

/// Runs the daemon until it is told to stop: by `stop`, or by `admin.down`. `found` makes a cluster
/// if this machine belongs to none.
pub async fn run(
    settings: Settings,
    found: bool,
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let _lock = system::lock_directory(&settings.data_dir)?;
    system::make_directory(&settings.run_dir, 0o755)?;
    let run = system::next_run(&settings.data_dir).map_err(DaemonError::Runs)?;
    let world = settings.worker.then(|| world::socket(&settings.run_dir));
    let boot = system::boot_name(&settings.run_dir, world.as_deref()).map_err(DaemonError::Runs)?;
    let settings = Arc::new(settings);
    let shared = Arc::new(Shared {
        settings: settings.clone(),
        started: SystemTime::now(),
        phase: AtomicU8::new(Phase::Starting as u8),
        parts: ArcSwapOption::empty(),
    });
    let (orders, inbox) = mpsc::channel(ORDERS_MAX);
    let access = Access::new(settings.admin_group.as_deref());
    let api = Arc::new(Api { shared: shared.clone(), orders, access });
    let path = settings.socket();
    let local = UnixServer::start(&path, Arc::new(api.routes()))
        .map_err(|error| DaemonError::Socket { path, error })?;
    let credentials = Credentials::of(&settings.data_dir);
    let mut daemon = Daemon { settings, shared, credentials, run, boot, running: None };
    let ended = daemon.live(found, inbox, stop).await;
    daemon.stop(Ending::Daemon).await;
    local.shutdown().await;
    ended
}

struct Daemon {
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    credentials: Credentials,
    run: u64,
    boot: Vec<u8>,
    running: Option<Running>,
}

/// What ended a turn of the main loop.
enum Turn {
    Order(Order),
    Death(TaskDeath),
    /// The registry says that this node is no member any more.
    Gone,
    Stop,
}

impl Daemon {
    async fn live(
        &mut self,
        found: bool,
        mut orders: mpsc::Receiver<Order>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), DaemonError> {
        self.boot(found).await?;
        system::notify_service_manager("READY=1");
        tokio::pin!(stop);
        loop {
            match self.turn(&mut orders, &mut stop).await {
                Turn::Stop => return Ok(()),
                Turn::Death(death) => return Err(death.into()),
                Turn::Gone => self.be_gone().await?,
                Turn::Order(Order::Down(reply)) => {
                    self.say_goodbye();
                    self.stop(Ending::Node).await;
                    let _ = reply.send(Ok(DownReply { daemon_pid: std::process::id() }));
                    tokio::time::sleep(LAST_REPLY_TIME).await;
                    return Ok(());
                }
                Turn::Order(Order::Create(reply)) => {
                    let _ = reply.send(self.create().await);
                }
                Turn::Order(Order::Join { request, reply }) => {
                    let _ = reply.send(self.join(request).await);
                }
                Turn::Order(Order::Leave { force, reply }) => {
                    let _ = reply.send(self.leave(force).await);
                }
            }
        }
    }

    /// Goes on with the cluster that this machine belongs to, if any.
    async fn boot(&mut self, found: bool) -> Result<(), DaemonError> {
        match self.credentials.load_current(self.settings.certificate_lifetime)? {
            Some((identity, name)) => {
                tracing::info!(node = %identity.node(), cluster = %identity.cluster(), "starts");
                self.start(identity, name, Vec::new(), None).await?;
            }
            None if found => {
                self.create().await.map_err(DaemonError::Found)?;
            }
            None => self.shared.set(Phase::Solitary, None),
        }
        Ok(())
    }

    async fn turn(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Turn {
        let standing = self.running.as_ref().map(|running| running.parts.standing.clone());
        let death = async {
            match &mut self.running {
                Some(running) => running.death().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop => Turn::Stop,
            death = death => Turn::Death(death),
            () = gone(standing) => Turn::Gone,
            order = orders.recv() => order.map_or(Turn::Stop, Turn::Order),
        }
    }

    async fn start(
        &mut self,
        identity: Identity,
        name: String,
        peers: Vec<Peer>,
        found: Option<Found>,
    ) -> Result<(), RunError> {
        self.shared.set(Phase::Starting, None);
        let address = self.settings.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| RunError::Listen { address, error })?;
        let plan = Plan {
            settings: self.settings.clone(),
            credentials: self.credentials.clone(),
            identity,
            name,
            peers,
            run: self.run,
            boot: self.boot.clone(),
            listener,
        };
        let running = Running::start(plan, found).await?;
        self.shared.set(Phase::Running, Some(Arc::new(running.parts.clone())));
        self.running = Some(running);
        Ok(())
    }

    async fn create(&mut self) -> Result<CreateReply, Status> {
        self.require_solitude()?;
        let step = Step::begin("making the cluster's secrets");
        // What a half-made cluster left would be in the way of the new one.
        self.forget().map_err(|error| Status::internal(error.to_string()))?;
        let new = founding::found(&self.settings, &self.credentials)
            .map_err(|error| Status::internal(error.to_string()))?;
        drop(step);
        let (node, cluster) = (new.identity.node(), new.identity.cluster().to_string());
        let name = self.settings.name.clone();
        if let Err(error) = self.start(new.identity, name, Vec::new(), Some(new.found)).await {
            self.start_failed().await;
            return Err(Status::internal(error.to_string()));
        }
        self.wait_until_up().await;
        tracing::info!(cluster, "founded");
        Ok(CreateReply { node: node.0, cluster })
    }

    async fn join(&mut self, request: JoinRequest) -> Result<JoinReply, Status> {
        self.require_solitude()?;
        self.forget().map_err(|error| Status::internal(error.to_string()))?;
        let joined = joining::join(&self.settings, &request).await?;
        let (node, cluster) = (joined.identity.node(), joined.identity.cluster().to_string());
        let name = joined.accepted.name.clone();
        self.credentials
            .save(&joined.identity, &name)
            .map_err(|error| Status::internal(error.to_string()))?;
        if let Err(error) = self.start(joined.identity, name, joined.accepted.peers, None).await {
            return Err(Status::internal(format!(
                "this machine was admitted as {node}, but cannot start: {error}; restart unumd \
                 when that is cured"
            )));
        }
        self.wait_until_up().await;
        tracing::info!(%node, cluster, "joined");
        Ok(JoinReply { node: node.0, cluster })
    }

    async fn leave(&mut self, force: bool) -> Result<LeaveReply, Status> {
        let running = self
            .running
            .as_ref()
            .ok_or_else(|| Status::new(Code::Unavailable, "this machine belongs to no cluster"))?;
        departure::depart(&running.parts, force).await?;
        running.parts.membership.say_goodbye();
        self.become_solitary().await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(LeaveReply {})
    }

    /// The others have removed this node, or a former run of it has left.
    async fn be_gone(&mut self) -> Result<(), DaemonError> {
        tracing::warn!("this node is no member of its cluster any more; it forgets what it kept");
        self.become_solitary().await
    }

    async fn become_solitary(&mut self) -> Result<(), DaemonError> {
        self.stop(Ending::Node).await;
        self.forget()?;
        self.shared.set(Phase::Solitary, None);
        Ok(())
    }

    /// Credentials last: until then a crash leaves a node that can start again.
    fn forget(&self) -> Result<(), DaemonError> {
        let directory =
            |error| StartError::Directory { path: self.settings.data_dir.clone(), error };
        stores::forget(&self.settings.data_dir).map_err(directory)?;
        Ok(self.credentials.forget()?)
    }

    async fn start_failed(&mut self) {
        self.shared.set(Phase::Solitary, None);
        if let Err(error) = self.forget() {
            tracing::error!(%error, "cannot clean up after a start that failed");
        }
    }

    fn require_solitude(&self) -> Result<(), Status> {
        match &self.running {
            None => Ok(()),
            Some(running) => Err(Status::new(
                Code::Exists,
                format!(
                    "this machine is {} of the cluster {} already; take it out with `unum leave` \
                     first",
                    running.parts.name,
                    running.parts.identity.cluster()
                ),
            )),
        }
    }

    async fn wait_until_up(&self) {
        let Some(running) = &self.running else { return };
        let _step = Step::begin("coming up in the registry");
        let mut standing = running.parts.standing.clone();
        let up = standing.wait_for(|standing| matches!(standing, Standing::Up(_)));
        if tokio::time::timeout(UP_TIME_MAX, up).await.is_err() {
            tracing::warn!("this node has not come up in the registry yet");
        }
    }

    fn say_goodbye(&self) {
        if let Some(running) = &self.running {
            running.parts.membership.say_goodbye();
        }
    }

    async fn stop(&mut self, ending: Ending) {
        self.shared.set(Phase::Stopping, None);
        if let Some(running) = self.running.take() {
            running.stop(ending).await;
        }
    }
}

async fn gone(standing: Option<watch::Receiver<Standing>>) {
    let Some(mut standing) = standing else { return std::future::pending().await };
    if standing.wait_for(|standing| matches!(standing, Standing::Gone(_))).await.is_err() {
        // The task that tells is gone; its death says why.
        std::future::pending().await
    }
}
