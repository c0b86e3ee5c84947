//! Chunks on several nodes: written to all of their replicas at once, read from the nearest that
//! has them.
//!
//! Invariants: a chunk's id is never used for two contents; `write` returns only when as many replicas are
//! durable as the loss of any minority of the nodes asks for; `read` never returns bytes whose
//! checksum is wrong, and has a replica of this node that was found damaged looked at.
//!
//! - `write`: storing chunks, one or many
//! - `spread`: which go to which nodes in which messages
//!
//! Leaves out on purpose: which file a chunk belongs to, and repair (see `upkeep`).

mod spread;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use unum_core::placement::chunks::Place;
use unum_core::tree::{Chunk, Tree};
use unum_net::{CallOptions, Client, Code, Name, Router, RpcError, Status};
use unum_proto::file::{CHUNK_SIZE_MAX, GetChunk, GetChunkReply, HASH_SIZE};
use unum_proto::ids::{ChunkId, Ino, NodeId};

use crate::store::{ChunkError, ChunkQueue};

pub use write::{Draft, PutChunkMethod, PutChunksMethod};

/// How long a straggling replica is waited for once enough others are durable. It is then left to
/// repair.
const STRAGGLER_WAIT: Duration = Duration::from_millis(50);

/// How long one replica may take to answer a read before the next one is asked as well.
const READ_TRY: Duration = Duration::from_secs(2);

/// Pause before content that found too few nodes is offered again: a connection may just be made
/// anew, or a daemon start again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Damaged chunks that may wait to be looked at.
const SUSPECTS_MAX: usize = 1 << 16;

unum_net::methods! {
    /// Reads a part of a chunk.
    pub GetChunkMethod = "file.get-chunk", Bulk, idempotent, GetChunk => GetChunkReply;
}

/// A chunk that is durable on `replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub id: ChunkId,
    pub length: u32,
    pub hash: [u8; HASH_SIZE],
    pub replicas: Vec<NodeId>,
}

/// What came of copying a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub to: Vec<NodeId>,
    /// Why the last node that did not take it did not.
    pub refusal: String,
}

/// Why content could not be written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ContentError {
    #[error("no room for chunks on {nodes:?}: free some space there or add a node")]
    NoSpace { nodes: Vec<NodeId> },
    #[error("only {durable} of the {needed} nodes that must hold the data could store it: {why}")]
    TooFewReplicas { durable: usize, needed: usize, why: String },
    #[error("chunk {chunk} cannot be read from any of its nodes {replicas:?}: {why}")]
    Unreadable { chunk: ChunkId, replicas: Vec<NodeId>, why: String },
    #[error("none of the nodes {replicas:?} that hold chunk {chunk} can be reached: {why}")]
    Unreached { chunk: ChunkId, replicas: Vec<NodeId>, why: String },
}

impl ContentError {
    /// Whether asking again is of no use: every node has said that its replica is gone or damaged.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }
}

/// Which nodes can take chunks now.
pub trait Candidates: Send + Sync {
    /// Those that live, with their weights, for chunks with so many replicas.
    fn alive(&self, replicas: usize) -> Vec<Place>;
    /// How many nodes of the cluster store chunks, dead ones included.
    fn total(&self) -> usize;
}

/// The chunk service of this node.
#[derive(Clone)]
pub struct Replicas {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeId,
    client: Client,
    store: ChunkQueue,
    candidates: Box<dyn Candidates>,
    factor: usize,
    lane: u64,
    next: AtomicU64,
    /// Protects the chunks that a read here found damaged or missing. Never held across an await.
    suspects: Mutex<BTreeSet<ChunkId>>,
    suspected: Notify,
}

impl Replicas {
    /// `factor`: replicas of each chunk whose volume has no number of its own. `lane` is random: it makes
    /// the ids of this run's chunks unique.
    pub fn new(
        node: NodeId,
        client: Client,
        store: ChunkQueue,
        candidates: Box<dyn Candidates>,
        factor: usize,
        lane: u64,
    ) -> Self {
        let next = AtomicU64::new(1);
        let (suspects, suspected) = (Mutex::default(), Notify::new());
        let shared =
            Shared { node, client, store, candidates, factor, lane, next, suspects, suspected };
        Self { shared: Arc::new(shared) }
    }

    /// Waits until reads have found chunks of this node damaged or missing, and takes them.
    pub async fn suspects(&self) -> BTreeSet<ChunkId> {
        loop {
            let suspected = self.shared.suspected.notified();
            let taken = std::mem::take(&mut *self.shared.suspects());
            if !taken.is_empty() {
                return taken;
            }
            suspected.await;
        }
    }

    /// Has a chunk of this node looked at soon.
    pub fn suspect(&self, chunk: ChunkId) {
        self.shared.suspect(chunk);
    }

    pub fn store(&self) -> &ChunkQueue {
        &self.shared.store
    }

    /// Replicas of each chunk whose volume has no number of its own.
    pub fn factor(&self) -> usize {
        self.shared.factor
    }

    /// Replicas that a chunk should have.
    pub fn wanted_of(&self, tree: &Tree, chunk: &Chunk) -> usize {
        tree.wanted_in(chunk.volume, self.shared.factor)
    }

    /// Replicas that chunks of this inode should have.
    pub fn wanted(&self, tree: &Tree, ino: Ino) -> usize {
        tree.wanted_replicas(ino, self.shared.factor)
    }

    /// Nodes that live and store chunks.
    pub fn alive(&self) -> BTreeSet<NodeId> {
        let alive = self.shared.candidates.alive(self.shared.factor);
        alive.iter().map(|place| place.node).collect()
    }

    /// A new chunk's id.
    pub fn name(&self) -> ChunkId {
        let seq = self.shared.next.fetch_add(1, Ordering::Relaxed);
        ChunkId { lane: self.shared.lane, seq }
    }

    /// Copies a chunk to the first `count` of `to` that take it.
    pub async fn copy(
        &self,
        id: ChunkId,
        chunk: &Chunk,
        from: &[NodeId],
        to: impl Iterator<Item = NodeId>,
        count: usize,
        deadline: Instant,
    ) -> Result<Copied, String> {
        let data = self.read_whole(id, chunk, from, deadline).await;
        let data = data.map_err(|error| error.to_string())?;
        let mut copied = Copied { to: Vec::new(), refusal: "no other node is there".into() };
        for node in to {
            if copied.to.len() >= count {
                break;
            }
            let draft = Draft { id, hash: chunk.hash, data: data.clone() };
            match self.put(node, draft, deadline).await {
                Ok(()) => copied.to.push(node),
                Err(status) => copied.refusal = format!("{node}: {status}"),
            }
        }
        Ok(copied)
    }

    /// Reads all of a chunk and compares it with its hash; a replica that does not match is as good
    /// as none.
    pub async fn read_whole(
        &self,
        id: ChunkId,
        chunk: &Chunk,
        from: &[NodeId],
        deadline: Instant,
    ) -> Result<Bytes, ContentError> {
        let mut failed = None;
        for node in self.nearest_first(from) {
            match self.read(id, &chunk.hash, &[node], 0, chunk.length, deadline).await {
                Ok(data) if *blake3::hash(&data).as_bytes() == chunk.hash => return Ok(data),
                Ok(_) => {
                    let why = format!("{node}: its hash does not match");
                    let replicas = vec![node];
                    failed.get_or_insert(ContentError::Unreadable { chunk: id, replicas, why });
                }
                // That one cannot be reached outweighs that others are damaged.
                Err(error) if failed.is_none() || !error.is_final() => failed = Some(error),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| ContentError::Unreadable {
            chunk: id,
            replicas: from.to_vec(),
            why: "no other node holds it".into(),
        }))
    }

    /// Reads a part of a chunk from the first of its nodes that has it: this one before others. A
    /// node that has another content under this id has damaged content.
    pub async fn read(
        &self,
        chunk: ChunkId,
        hash: &[u8; HASH_SIZE],
        replicas: &[NodeId],
        offset: u32,
        length: u32,
        deadline: Instant,
    ) -> Result<Bytes, ContentError> {
        let result = self.try_read(chunk, hash, replicas, offset, length, deadline).await;
        // A pause for the caller, who looks at the registry again: the replicas may be others now.
        if matches!(result, Err(ContentError::Unreached { .. })) {
            sleep_until(deadline.min(Instant::now() + RETRY_PAUSE)).await;
        }
        result
    }

    async fn try_read(
        &self,
        chunk: ChunkId,
        hash: &[u8; HASH_SIZE],
        replicas: &[NodeId],
        offset: u32,
        length: u32,
        deadline: Instant,
    ) -> Result<Bytes, ContentError> {
        let mut why = String::from("no node holds it");
        let mut undecided = false;
        for node in self.nearest_first(replicas) {
            let until = deadline.min(Instant::now() + READ_TRY);
            match self.read_from(node, chunk, hash, offset, length, until).await {
                Ok(data) if data.len() == length as usize => return Ok(data),
                Ok(data) => why = format!("{node} sent {} of {length} bytes", data.len()),
                Err(status) => {
                    undecided |= !is_verdict(status.code);
                    why = format!("{node}: {status}");
                }
            }
            tracing::debug!(%chunk, %why, "a replica could not be read");
            if Instant::now() >= deadline {
                break;
            }
        }
        let replicas = replicas.to_vec();
        match undecided {
            true => Err(ContentError::Unreached { chunk, replicas, why }),
            false => Err(ContentError::Unreadable { chunk, replicas, why }),
        }
    }

    async fn read_from(
        &self,
        node: NodeId,
        chunk: ChunkId,
        hash: &[u8; HASH_SIZE],
        offset: u32,
        length: u32,
        deadline: Instant,
    ) -> Result<Bytes, Status> {
        if node == self.shared.node {
            return self.shared.read_here(chunk, Some(*hash), offset, length).await;
        }
        let hash = Bytes::copy_from_slice(hash);
        let request = GetChunk { chunk: Some(chunk.into()), offset, length, hash };
        let options = CallOptions::until(deadline).fail_fast();
        let to = Name::Node(node);
        let call = self.shared.client.call::<GetChunkMethod>(&to, request, &options);
        call.await.map(|reply| reply.data).map_err(rpc_status)
    }

    fn nearest_first(&self, replicas: &[NodeId]) -> Vec<NodeId> {
        let alive = self.alive();
        let mut order = replicas.to_vec();
        let own = self.shared.node;
        order.sort_by_key(|node| (*node != own, !alive.contains(node)));
        order
    }

    /// What this node answers to the others.
    pub fn routes(&self) -> Router {
        let (put, get) = (self.shared.store.clone(), self.shared.clone());
        let put_all = put.clone();
        Router::new()
            .call::<PutChunkMethod>(move |_, request| write::serve_put(put.clone(), request))
            .call::<PutChunksMethod>(move |_, request| {
                write::serve_put_all(put_all.clone(), request)
            })
            .call::<GetChunkMethod>(move |_, request: GetChunk| serve_get(get.clone(), request))
    }
}

impl Shared {
    async fn read_here(
        &self,
        chunk: ChunkId,
        hash: Option<[u8; HASH_SIZE]>,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, Status> {
        let read = self.store.get_known(chunk, hash, offset.into(), length as usize).await;
        if let Err(ChunkError::Rotten { .. } | ChunkError::NotFound { .. }) = &read {
            self.suspect(chunk);
        }
        read.map_err(|error| store_status(&error))
    }

    fn suspect(&self, chunk: ChunkId) {
        let mut suspects = self.suspects();
        // The scrub finds what is too much for now.
        if suspects.len() < SUSPECTS_MAX && suspects.insert(chunk) {
            self.suspected.notify_one();
        }
    }

    fn suspects(&self) -> MutexGuard<'_, BTreeSet<ChunkId>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve_get(shared: Arc<Shared>, request: GetChunk) -> Result<GetChunkReply, Status> {
    let id = request.chunk.ok_or_else(|| Status::new(Code::Invalid, "no chunk named"))?.into();
    if request.length as usize > CHUNK_SIZE_MAX {
        return Err(Status::new(Code::Invalid, "more than a chunk holds"));
    }
    let hash = match request.hash.is_empty() {
        true => None,
        false => {
            let hash = request.hash.as_ref().try_into();
            Some(hash.map_err(|_| Status::new(Code::Invalid, "a hash of another length"))?)
        }
    };
    Ok(GetChunkReply { data: shared.read_here(id, hash, request.offset, request.length).await? })
}

fn store_status(error: &ChunkError) -> Status {
    let code = match error {
        ChunkError::NotFound { .. } => Code::NotFound,
        ChunkError::Mismatch { .. } | ChunkError::OutOfRange { .. } => Code::Invalid,
        ChunkError::Full(_) => Code::NoSpace,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// Whether a node's refusal says something of its replica: that it is missing or damaged. All else
/// (too busy, just starting, no answer in time) may pass, so it is no reason to give a chunk up.
fn is_verdict(code: Code) -> bool {
    matches!(code, Code::NotFound | Code::Invalid | Code::Internal)
}

fn rpc_status(error: RpcError) -> Status {
    match error {
        RpcError::Status(status) => status,
        other => Status::new(Code::Unavailable, other.to_string()),
    }
}
