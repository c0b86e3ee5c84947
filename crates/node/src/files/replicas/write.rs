//! Storing chunks: offered to all of their nodes at once, many in one message.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prost::Message as _;
use tokio::time::{Instant, sleep, timeout_at};
use unum_net::{CallOptions, Class, Code, Method, Name, Outgoing, Status};
use unum_proto::file::{
    CHUNK_SIZE_MAX, HASH_SIZE, PUT_CHUNKS_BYTES_MAX, PUT_CHUNKS_MAX, PutChunk, PutChunkReply,
    PutChunks, PutChunksReply, REFUSAL_CHARS_MAX, RefusedChunk,
};
use unum_proto::ids::{ChunkId, NodeId};

use super::spread::{Message, Nodes, Spread, Wanted};
use super::{
    ContentError, RETRY_PAUSE, Replicas, STRAGGLER_WAIT, Stored, rpc_status, store_status,
};
use crate::store::{ChunkError, ChunkQueue};

/// What the id, the hash and the framing of one chunk add to a message, in bytes, at most.
const CHUNK_OVERHEAD_BYTES: usize = 128;

const _: () = assert!(CHUNK_SIZE_MAX <= PUT_CHUNKS_BYTES_MAX);
const _: () = assert!(
    PUT_CHUNKS_BYTES_MAX + PUT_CHUNKS_MAX * CHUNK_OVERHEAD_BYTES
        <= unum_net::limits::MESSAGE_SIZE_MAX
);
const _: () = assert!(
    PUT_CHUNKS_MAX * (4 * REFUSAL_CHARS_MAX + CHUNK_OVERHEAD_BYTES)
        <= unum_net::limits::MESSAGE_SIZE_MAX
);

/// Stores a chunk durably.
#[derive(Clone, Copy, Debug)]
pub struct PutChunkMethod;

/// Stores several chunks durably.
#[derive(Clone, Copy, Debug)]
pub struct PutChunksMethod;

impl Method for PutChunkMethod {
    const NAME: &'static str = "file.put-chunk";
    const CLASS: Class = Class::Bulk;
    const IDEMPOTENT: bool = true;
    type Request = PutChunk;
    type Reply = PutChunkReply;

    fn encode(request: &PutChunk, out: &mut Outgoing<'_>) {
        encode_put(request, out);
    }
}

impl Method for PutChunksMethod {
    const NAME: &'static str = "file.put-chunks";
    const CLASS: Class = Class::Bulk;
    const IDEMPOTENT: bool = true;
    type Request = PutChunks;
    type Reply = PutChunksReply;

    fn encode(request: &PutChunks, out: &mut Outgoing<'_>) {
        for put in &request.chunks {
            out.field(CHUNKS_TAG, put.encoded_len());
            encode_put(put, out);
        }
    }
}

/// Of `PutChunks::chunks`.
const CHUNKS_TAG: u32 = 1;
/// Of `PutChunk::data`.
const DATA_TAG: u32 = 3;

/// The content goes as it is, behind all else.
fn encode_put(put: &PutChunk, out: &mut Outgoing<'_>) {
    out.message(&PutChunk { chunk: put.chunk, hash: put.hash.clone(), data: Bytes::new() });
    if !put.data.is_empty() {
        out.field(DATA_TAG, put.data.len());
        out.bytes(put.data.clone());
    }
}

/// A chunk that waits to be stored. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub id: ChunkId,
    pub hash: [u8; HASH_SIZE],
    /// At most [`CHUNK_SIZE_MAX`] bytes.
    pub data: Bytes,
}

impl Draft {
    fn stored(self, replicas: Vec<NodeId>) -> Stored {
        Stored { id: self.id, length: self.data.len() as u32, hash: self.hash, replicas }
    }

    fn from_proto(put: PutChunk) -> Result<Self, Status> {
        let invalid = |what: &str| Status::new(Code::Invalid, format!("a chunk with {what}"));
        let id = put.chunk.ok_or_else(|| invalid("no id"))?.into();
        let hash = put.hash.as_ref().try_into().map_err(|_| invalid("no blake3 hash"))?;
        if put.data.is_empty() || put.data.len() > CHUNK_SIZE_MAX {
            return Err(invalid("a wrong size"));
        }
        Ok(Self { id, hash, data: put.data })
    }

    pub(super) fn into_proto(self) -> PutChunk {
        let hash = Bytes::copy_from_slice(&self.hash);
        PutChunk { chunk: Some(self.id.into()), hash, data: self.data }
    }
}

impl Replicas {
    /// Writes `data` (at most [`CHUNK_SIZE_MAX`] bytes) as a new chunk with so many replicas.
    pub async fn write(
        &self,
        data: Bytes,
        replicas: usize,
        deadline: Instant,
    ) -> Result<Stored, ContentError> {
        let draft = Draft { id: self.name(), hash: *blake3::hash(&data).as_bytes(), data };
        let mut stored = self.write_all(vec![(draft, replicas)], deadline).await?;
        let nothing = ContentError::TooFewReplicas { durable: 0, needed: 1, why: "nothing".into() };
        stored.pop().ok_or(nothing)
    }

    /// Stores chunks under ids that were given before ([`Self::name`]), each with so many replicas, and tells
    /// in the same order where they are: each is as durable as `write` makes it. Storing again what is stored
    /// does no harm.
    ///
    /// After an error some of them may be stored. What no committed write names is deleted as garbage
    /// some time after it was last stored: who needs longer to commit stores it again.
    pub async fn write_all(
        &self,
        drafts: Vec<(Draft, usize)>,
        deadline: Instant,
    ) -> Result<Vec<Stored>, ContentError> {
        let mut stored = Vec::with_capacity(drafts.len());
        let mut left: Vec<(usize, (Draft, usize))> = drafts.into_iter().enumerate().collect();
        loop {
            let results = self.try_write_all(&left, deadline).await;
            let mut again = Vec::new();
            let mut too_few = None;
            for ((at, (draft, wanted)), result) in left.into_iter().zip(results) {
                match result {
                    Ok(replicas) => stored.push((at, draft.stored(replicas))),
                    Err(error @ ContentError::TooFewReplicas { .. }) => {
                        again.push((at, (draft, wanted)));
                        too_few.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            match too_few {
                Some(error) if Instant::now() + RETRY_PAUSE >= deadline => return Err(error),
                Some(_) => sleep(RETRY_PAUSE).await,
                None => break,
            }
            left = again;
        }
        stored.sort_by_key(|(at, _)| *at);
        Ok(stored.into_iter().map(|(_, stored)| stored).collect())
    }

    async fn try_write_all(
        &self,
        drafts: &[(usize, (Draft, usize))],
        deadline: Instant,
    ) -> Vec<Result<Vec<NodeId>, ContentError>> {
        let candidates = &self.shared.candidates;
        let most = drafts.iter().map(|(_, (_, wanted))| *wanted).max().unwrap_or(1);
        let nodes = Nodes { alive: candidates.alive(most), total: candidates.total() };
        let wanted = drafts.iter().map(|(_, (draft, replicas))| Wanted {
            id: draft.id,
            bytes: draft.data.len(),
            replicas: *replicas,
        });
        let mut spread = Spread::new(wanted, &nodes);
        let mut puts = FuturesUnordered::new();
        let mut patience = deadline;
        loop {
            while let Some(message) = spread.next() {
                puts.push(self.send(message, drafts, deadline));
            }
            let Ok(Some((message, outcomes))) = timeout_at(patience, puts.next()).await else {
                break;
            };
            let progress = spread.answered(&message, &outcomes);
            // Who goes on storing is no straggler.
            if spread.is_decided() && (progress || patience == deadline) {
                patience = deadline.min(Instant::now() + STRAGGLER_WAIT);
            }
        }
        spread.finish().collect()
    }

    async fn send(
        &self,
        message: Message,
        drafts: &[(usize, (Draft, usize))],
        deadline: Instant,
    ) -> (Message, Vec<Result<(), Status>>) {
        let drafts = message.chunks.iter().filter_map(|at| drafts.get(*at));
        let drafts = drafts.map(|(_, (draft, _))| draft.clone()).collect();
        let outcomes = self.put_all(message.node, drafts, deadline).await;
        let mut refusals = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        if let Some(status) = refusals.next() {
            let chunks = 1 + refusals.count();
            tracing::warn!(node = %message.node, chunks, %status, "chunks could not be stored");
        }
        (message, outcomes)
    }

    /// Stores a chunk on one node.
    pub(super) async fn put(
        &self,
        node: NodeId,
        draft: Draft,
        deadline: Instant,
    ) -> Result<(), Status> {
        if node == self.shared.node {
            let put = self.shared.store.put(draft.id, draft.data, draft.hash.into());
            return put.await.map_err(|error| store_status(&error));
        }
        let (to, options) = (Name::Node(node), CallOptions::until(deadline).fail_fast());
        let request = draft.into_proto();
        let call = self.shared.client.call::<PutChunkMethod>(&to, request, &options);
        call.await.map(|PutChunkReply {}| ()).map_err(rpc_status)
    }

    /// Stores chunks on one node, as many as one message takes, and tells the outcome of each.
    async fn put_all(
        &self,
        node: NodeId,
        mut drafts: Vec<Draft>,
        deadline: Instant,
    ) -> Vec<Result<(), Status>> {
        if node == self.shared.node {
            let outcomes = store_all(&self.shared.store, drafts).await;
            return outcomes.into_iter().map(|o| o.map_err(|error| store_status(&error))).collect();
        }
        if drafts.len() == 1
            && let Some(draft) = drafts.pop()
        {
            return vec![self.put(node, draft, deadline).await];
        }
        let ids: Vec<ChunkId> = drafts.iter().map(|draft| draft.id).collect();
        let chunks = drafts.into_iter().map(Draft::into_proto).collect();
        let (to, options) = (Name::Node(node), CallOptions::until(deadline).fail_fast());
        let call = self.shared.client.call::<PutChunksMethod>(&to, PutChunks { chunks }, &options);
        match call.await.map_err(rpc_status) {
            Ok(reply) => ids.iter().map(|id| outcome_of(*id, &reply)).collect(),
            Err(status) => vec![Err(status); ids.len()],
        }
    }
}

fn outcome_of(id: ChunkId, reply: &PutChunksReply) -> Result<(), Status> {
    let of_id = |refused: &&RefusedChunk| refused.chunk.is_some_and(|chunk| id == chunk.into());
    match reply.refused.iter().find(of_id) {
        Some(refused) => Err(Status::new(Code::from_wire(refused.code), refused.why.clone())),
        None => Ok(()),
    }
}

async fn store_all(store: &ChunkQueue, drafts: Vec<Draft>) -> Vec<Result<(), ChunkError>> {
    let puts = drafts.into_iter().map(|draft| (draft.id, draft.data, draft.hash.into()));
    store.put_all(puts.collect()).await
}

pub(super) async fn serve_put(
    store: ChunkQueue,
    request: PutChunk,
) -> Result<PutChunkReply, Status> {
    let Draft { id, hash, data } = Draft::from_proto(request)?;
    store.put(id, data, hash.into()).await.map_err(|error| store_status(&error))?;
    Ok(PutChunkReply {})
}

pub(super) async fn serve_put_all(
    store: ChunkQueue,
    request: PutChunks,
) -> Result<PutChunksReply, Status> {
    let bytes: usize = request.chunks.iter().map(|chunk| chunk.data.len()).sum();
    if request.chunks.len() > PUT_CHUNKS_MAX || bytes > PUT_CHUNKS_BYTES_MAX {
        return Err(Status::new(Code::Invalid, "more chunks than one message may bring"));
    }
    let drafts = request.chunks.into_iter().map(Draft::from_proto);
    let drafts: Vec<Draft> = drafts.collect::<Result<_, _>>()?;
    let ids: Vec<ChunkId> = drafts.iter().map(|draft| draft.id).collect();
    let outcomes = store_all(&store, drafts).await;
    let refused = ids.into_iter().zip(outcomes).filter_map(|(id, outcome)| {
        let status = store_status(&outcome.err()?);
        let why = status.message.chars().take(REFUSAL_CHARS_MAX).collect();
        Some(RefusedChunk { chunk: Some(id.into()), code: status.code as u32, why })
    });
    Ok(PutChunksReply { refused: refused.collect() })
}
