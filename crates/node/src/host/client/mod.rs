//! The kernel's calls on `/n`, passed on to the home of what they are about.
//!
//! What the home grants is kept (see `memory`) and answered without asking it; whatever else has no time to live, and
//! its files are opened past the page cache. Names are never given to the kernel to keep: nothing could take one
//! back for certain while a call that renews it is on its way. So each walk of a path comes here.
//!
//! A home that is away makes a call wait for `file_patience`, or until it is known to be dead, and then fail
//! with EHOSTDOWN. Which signals end the wait before: [`crate::signals`].
//!
//! - here: the mount's state, what the homes grant and take back, asking a home
//! - `calls`: one call of the kernel
//! - `names`, `attributes`, `contents`, `locks`: what such a call does
//! - `messages`: from the words of the kernel to those of the nodes

mod attributes;
mod calls;
mod contents;
mod locks;
mod messages;
mod names;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::time::Instant;
use unum_net::{CallOptions, Client, Code, Incoming, Method, Name, Router, RpcError, Status};
use unum_proto::host as wire;
use unum_proto::ids::{Lane, NodeId};
use unum_sys::fuse::{
    Attr, AttrFlags, Capabilities, Ino, MountFlags, MountOptions, Notifier, Request, Timestamp,
    Wishes,
};

use super::memory::{Memory, TTL_MAX};
use super::table::{LockKey, Table, Target};
use super::{Recall, Release, Renew};
use crate::membership::{MemberState, Membership};
use crate::registry::Registry;
use calls::Call;

/// For so long the kernel may remember what no home has a say in: the root, and the own node's link.
const OWN_TTL: Duration = Duration::from_secs(1);
/// For so long it may remember what a home says.
const HOME_TTL: Duration = Duration::ZERO;
/// How long telling a home of closed files may take.
const RELEASE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a recall waits for reads in flight.
const RECALL_PATIENCE: Duration = Duration::from_millis(50);
/// How often a lease is prolonged, and how long that may take.
const RENEW_PAUSE: Duration = Duration::from_millis(512);
const RENEW_TIME_MAX: Duration = Duration::from_millis(1536);

/// What the trees are made of.
pub struct Parts {
    pub node: NodeId,
    pub registry: Registry,
    pub membership: Membership,
    pub client: Client,
    /// Of the FUSE connection: lives as long as the mount.
    pub lane: Lane,
    /// How long a call waits for its home.
    pub patience: Duration,
    /// Of the FUSE connection.
    pub notifier: Notifier,
}

/// The trees of the other nodes, for this node's kernel.
pub struct HostTrees {
    parts: Parts,
    /// Protects what the kernel knows by number, and its journal. Never held across an await.
    table: Mutex<Table>,
    memory: Memory,
    mounted: Timestamp,
    /// By file: no lock of an owner is asked for while its home is told that its locks have ended.
    turns: Vec<tokio::sync::RwLock<()>>,
    /// Owners of locks that have ended, which their homes do not know yet.
    told_later: Mutex<HashSet<LockKey>>,
    /// From then on the kernel trusts nothing on the word of an earlier daemon.
    alone: Instant,
}

/// What the daemon wants of the kernel for `/n`.
pub fn wishes() -> Wishes {
    let wishes = Wishes::default();
    let capabilities = wishes.capabilities
        | Capabilities::AUTO_INVAL_DATA
        | Capabilities::HANDLE_KILLPRIV_V2
        | Capabilities::DIRECT_IO_ALLOW_MMAP
        | Capabilities::DONT_MASK
        | Capabilities::POSIX_ACL;
    Wishes { capabilities, ..wishes }
}

/// Neither devices nor setuid bits of another machine count here.
pub fn mount_options() -> MountOptions {
    MountOptions {
        source: "unum-host".into(),
        flags: MountFlags::NOSUID | MountFlags::NODEV,
        ..MountOptions::default()
    }
}

impl HostTrees {
    /// `journal` is where a daemon's death does not reach, but a machine's does. `fresh`: the mount is new. To be called in a
    /// runtime.
    pub fn new(parts: Parts, journal: &Path, fresh: bool) -> std::io::Result<Arc<Self>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let secs = now.map_or(0, |now| now.as_secs() as i64);
        let table = Mutex::new(Table::restore(journal, fresh)?);
        let mounted = Timestamp { secs, nanos: 0 };
        let inherits = if fresh { Duration::ZERO } else { TTL_MAX };
        let alone = Instant::now() + inherits;
        let trees = Arc::new(Self {
            parts,
            table,
            memory: Memory::default(),
            mounted,
            turns: (0..locks::TURNS).map(|_| tokio::sync::RwLock::default()).collect(),
            told_later: Mutex::default(),
            alone,
        });
        trees.end_locks_of_closed();
        Ok(trees)
    }

    /// What homes call.
    pub fn routes(self: &Arc<Self>) -> Router {
        let trees = self.clone();
        Router::new().call::<Recall>(move |incoming: Incoming, request| {
            let trees = trees.clone();
            async move { trees.recall(incoming, request).await }
        })
    }

    async fn recall(
        self: Arc<Self>,
        incoming: Incoming,
        request: wire::Recall,
    ) -> Result<wire::Nothing, Status> {
        let denied = || Status::denied("only nodes of the cluster may ask this");
        let home = incoming.caller.node.ok_or_else(denied)?;
        tokio::time::sleep_until(self.alone).await;
        self.memory.recall(home, &request.handles, request.all);
        let numbers = match request.all {
            true => self.table().numbers(|node| node == home),
            false => {
                let table = self.table();
                let handles = request.handles.into_iter();
                let targets = handles.map(|handle| Target { node: home, handle });
                targets.filter_map(|target| table.number(&target)).collect()
            }
        };
        let trees = self.clone();
        let dropping = tokio::task::spawn_blocking(move || {
            trees.distrust(&numbers);
            numbers
        });
        let numbers = dropping.await.map_err(|_| Status::internal("a recall was lost"))?;
        // Dropping pages waits for reads in flight, and these may wait for whoever waits for this answer. What stays
        // for that reason is not shown: each read asks for the attributes first. But an answer to that which crosses
        // the dropping is ignored by the kernel, so it is waited for as long as it makes sense.
        let trees = self.clone();
        let dropping = tokio::task::spawn_blocking(move || trees.drop_pages(&numbers));
        let _ = tokio::time::timeout(RECALL_PATIENCE, dropping).await;
        self.give_back();
        Ok(wire::Nothing {})
    }

    /// Has the kernel ask for attributes anew. Waits for nobody. It ignores answers to what it has asked already, and
    /// then shows the pages that it has: so this is for before a recall is confirmed, and for nothing else.
    fn distrust(&self, numbers: &[u64]) {
        for number in numbers {
            // What the kernel does not know it does not trust either.
            let _ = self.parts.notifier.inval_inode(Ino(*number), -1, 0);
        }
    }

    fn drop_pages(&self, numbers: &[u64]) {
        for number in numbers {
            let _ = self.parts.notifier.inval_inode(Ino(*number), 0, 0);
        }
    }

    /// Prolongs the lease of a home for as long as somebody uses it.
    async fn keep_lease(self: Arc<Self>, home: NodeId) {
        // A new lease ends what the home granted to an earlier daemon.
        tokio::time::sleep_until(self.alone).await;
        while let Some(lease) = self.memory.to_renew(home) {
            let asked = Instant::now();
            let options = CallOptions::until(asked + RENEW_TIME_MAX);
            let request = wire::Renew { lease };
            let client = &self.parts.client;
            if let Ok(reply) = client.call::<Renew>(&Name::Node(home), request, &options).await {
                self.memory.renewed(home, asked, &reply);
            }
            self.give_back();
            tokio::time::sleep_until(asked + RENEW_PAUSE).await;
        }
        self.give_back();
    }

    /// Tells homes which warrants are not needed any more.
    fn give_back(&self) {
        let mut by_home: HashMap<NodeId, Vec<Bytes>> = HashMap::new();
        for (home, warrant) in self.memory.take_released() {
            by_home.entry(home).or_default().push(warrant);
        }
        for (home, warrants) in by_home {
            let client = self.parts.client.clone();
            drop(tokio::spawn(async move {
                let options = CallOptions::within(RELEASE_TIME_MAX).fail_fast();
                // A home that is not told closes the file when it takes this node for dead, or needs the room.
                let request = wire::Release { warrants };
                let _ = client.call::<Release>(&Name::Node(home), request, &options).await;
            }));
        }
    }

    /// Answers one request of the kernel.
    pub async fn answer(self: Arc<Self>, request: Request) {
        let Request { header, operation, responder } = request;
        let deadline = Instant::now() + self.parts.patience;
        let call = Call { trees: &self, header, deadline };
        call.dispatch(operation, responder).await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the home's answer no longer than it may be alive.
    async fn ask<M: Method>(
        &self,
        home: NodeId,
        request: M::Request,
        options: &CallOptions,
    ) -> Result<M::Reply, Errno> {
        let to = Name::Node(home);
        let dead = async {
            let mut view = self.parts.membership.watch();
            loop {
                if self.is_dead(home) {
                    return;
                }
                if view.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            biased;
            () = dead => Err(Errno::HOSTDOWN),
            reply = self.parts.client.call::<M>(&to, request, options) => {
                reply.map_err(|error| self.failure(home, &error))
            }
        }
    }

    fn is_dead(&self, home: NodeId) -> bool {
        let view = self.parts.membership.view();
        let state = view.get(&home).map(|member| member.state);
        !self.is_member(home) || state == Some(MemberState::Down)
    }

    fn is_member(&self, home: NodeId) -> bool {
        let registry = &self.parts.registry;
        registry.read(|state| state.nodes().get(home).is_some_and(|node| node.is_member()))
    }

    fn failure(&self, home: NodeId, error: &RpcError) -> Errno {
        let errno = match error {
            RpcError::DeadlineExceeded => Errno::TIMEDOUT,
            RpcError::Unreachable { .. } => Errno::HOSTDOWN,
            RpcError::Denied(_) => Errno::ACCESS,
            RpcError::Overloaded(_) => Errno::BUSY,
            RpcError::Status(status) if status.code == Code::UnknownMethod => Errno::OPNOTSUPP,
            _ => Errno::IO,
        };
        tracing::warn!(%home, %error, "a call on a host tree failed");
        errno
    }

    /// The cluster's nodes by name.
    fn nodes(&self) -> Vec<(NodeId, String)> {
        self.parts.registry.read(|state| {
            let workers = state.nodes().members().filter(|node| node.is_worker());
            workers.map(|node| (node.id, node.name.clone())).collect()
        })
    }

    /// What stands for the mount's root and for a node's root while nobody asks the node.
    fn made_up(&self, ino: u64, kind: u32, size: u64) -> Attr {
        Attr {
            ino: Ino(ino),
            size,
            mode: kind,
            nlink: 2,
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            blksize: 4096,
            flags: AttrFlags::NONE,
            ..Attr::default()
        }
    }
}
