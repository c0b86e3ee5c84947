//! Programs of the cluster: starting them on any node, their streams, signals and ends.
//!
//! Every daemon serves the same methods to `unum` and to other daemons. A call about a program that
//! is elsewhere is passed on to the node that leased the PID's block; a call about one that is here
//! goes to unum-init, which owns the program. This service keeps nothing that must survive it: after
//! its death callers attach again to the next daemon and go on at the byte where they were.
//!
//! - `start`: where a program shall run, and its start there
//! - `attach`: the streams of a program
//! - `table`: the processes of this node's world
//! - `calls`: the other methods
//!
//! Authorization: a program runs as the user that its caller is; signals follow kill(2). A caller of
//! another node is whom that node says, which only members of the cluster can.

mod attach;
mod calls;
mod start;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use unum_core::placement::programs::Candidate;
use unum_net::{Client, Code, Incoming, Name, Router, RpcError, Status};
use unum_proto::ids::{NodeId, Pid};
use unum_proto::init::{Ask, PidBlock, SetBlocks};
use unum_proto::process as wire;

use crate::registry::Registry;
use crate::world::{World, WorldError};

/// How long another node may take to answer a call that does not wait for a program.
const PEER_TIME_MAX: Duration = Duration::from_secs(10);

unum_net::methods! {
    /// Runs a program. Its own key makes it safe to ask again.
    pub Start = "process.start", Control, wire::StartRequest => wire::StartReply;
    /// The streams of a program.
    pub Attach = "process.attach", Bulk, wire::AttachRequest => wire::AttachReply;
    /// The processes of the cluster.
    pub List = "process.list", Control, idempotent, wire::ListRequest => wire::ListReply;
    /// Sends a signal.
    pub Signal = "process.signal", Control, wire::SignalRequest => wire::SignalReply;
    /// Waits for the end of a program.
    pub Wait = "process.wait", Control, idempotent, wire::WaitRequest => wire::WaitReply;
    /// What a detached program wrote.
    pub Logs = "process.logs", Bulk, idempotent, wire::LogsRequest => wire::LogsReply;
    /// Where a process runs.
    pub Where = "process.where", Control, idempotent, wire::WhereRequest => wire::WhereReply;
}

/// What the service asks of the rest of the daemon.
pub trait Nodes: Send + Sync {
    /// Nodes that can run programs now, with their loads.
    fn candidates(&self) -> Vec<Candidate>;
}

/// The process service of a node. Cheap to clone.
#[derive(Clone)]
pub struct Processes {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeId,
    registry: Registry,
    client: Client,
    world: World,
    nodes: Box<dyn Nodes>,
    /// Programs sent to each node since its load was last heard of. Never held across an await.
    placed: Mutex<BTreeMap<NodeId, start::Placed>>,
    /// Programs whose callers here have not attached to them yet.
    unattended: start::Unattended,
}

impl Processes {
    pub fn new(
        node: NodeId,
        registry: Registry,
        client: Client,
        world: World,
        nodes: Box<dyn Nodes>,
    ) -> Self {
        let (placed, unattended) = Default::default();
        let shared = Shared { node, registry, client, world, nodes, placed, unattended };
        Self { shared: Arc::new(shared) }
    }

    /// Tells the world which PIDs are this node's. To be called whenever its blocks change.
    pub async fn use_blocks(&self, blocks: Vec<PidBlock>) -> Result<(), WorldError> {
        self.shared.world.ask(Ask::SetBlocks(SetBlocks { blocks })).await.map(drop)
    }

    /// The node whose block the PID is from.
    fn owner(&self, pid: Pid) -> Result<NodeId, Status> {
        let owner = self.shared.registry.read(|state| state.pids().owner(pid));
        owner.ok_or_else(|| no_such_process(pid))
    }

    fn node_name(&self, node: NodeId) -> String {
        self.shared.registry.read(|state| {
            state.nodes().get(node).map_or_else(|| node.to_string(), |node| node.name.clone())
        })
    }

    fn is_here(&self, node: NodeId) -> bool {
        node == self.shared.node
    }
}

/// The methods, for `unum` and for other daemons. `find` gives the service, or why there is none now.
pub fn routes(
    find: impl Fn() -> Result<Processes, Status> + Clone + Send + Sync + 'static,
) -> Router {
    macro_rules! answer {
        ($method:ident) => {{
            let find = find.clone();
            move |incoming: Incoming, request| {
                let service = find();
                async move { service?.$method(incoming, request).await }
            }
        }};
    }
    let attach = find.clone();
    Router::new()
        .call::<Start>(answer!(start))
        .call::<List>(answer!(list))
        .call::<Signal>(answer!(signal))
        .call::<Wait>(answer!(wait))
        .call::<Logs>(answer!(logs))
        .call::<Where>(answer!(locate))
        .stream::<Attach>(move |incoming, request, sender, receiver| {
            let service = attach();
            async move { service?.attach(incoming, request, sender, receiver).await }
        })
}

fn no_such_process(pid: Pid) -> Status {
    Status::new(Code::NotFound, format!("there is no process {pid} in the cluster"))
}

/// A refusal of unum-init, for whoever called.
fn world_status(error: WorldError) -> Status {
    use unum_proto::init::Fault;
    let code = match error.fault() {
        Some(Fault::NoSuchProcess) => Code::NotFound,
        Some(Fault::NotPermitted) => Code::Denied,
        Some(Fault::BadRequest | Fault::NoTerminal | Fault::OffsetGone) => Code::Invalid,
        Some(Fault::OutOfPids | Fault::OutOfResources | Fault::LimitReached) => Code::Overloaded,
        Some(_) => Code::Service,
        None => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// What another node answered, or why it could not.
fn peer_status(node: &str, error: RpcError) -> Status {
    match error {
        RpcError::Status(status) => status,
        RpcError::DeadlineExceeded => {
            Status::new(Code::DeadlineExceeded, format!("{node} did not answer in time"))
        }
        other => Status::new(Code::Unavailable, format!("{node}: {other}")),
    }
}

fn to(node: NodeId) -> Name {
    Name::Node(node)
}
