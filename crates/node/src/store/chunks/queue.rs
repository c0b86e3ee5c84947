//! The chunk store for many tasks at once: a thread writes, and whatever waits when a sync ends
//! goes into the next groups.
//!
//! Invariants: changes take effect in the order in which they were queued; requests that wait are bounded
//! in number and in bytes; a caller that goes away takes nothing back.

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use unum_proto::ids::ChunkId;

use super::write::Change;
use super::{ChunkError, ChunkStore, Compacted, Draft, Outline};
use crate::store::limits::{CHUNK_QUEUE_BYTES_MAX, CHUNK_QUEUE_MAX};

/// Content up to this is hashed in the calling task; more would keep its thread for too long.
const HASH_INLINE_BYTES_MAX: usize = 32 << 10;

/// Gives changes to the thread that writes, and reads aside of the runtime's threads; cheap to
/// clone. The thread ends when the last clone is gone and the queue is empty; the last clone waits
/// for it. Needs a tokio runtime.
#[derive(Clone)]
pub struct ChunkQueue {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    store: Arc<ChunkStore>,
    /// Dropped after `requests`: the thread ends because there are no senders.
    _thread: Arc<Joined>,
}

struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic of the thread has been printed; its callers have got `Stopped`.
            let _ = thread.join();
        }
    }
}

struct Request {
    changes: Vec<Change>,
    done: oneshot::Sender<Vec<Outcome>>,
    /// The bytes that the changes take in the queue.
    _room: OwnedSemaphorePermit,
}

type Outcome = Result<(), ChunkError>;

impl ChunkQueue {
    pub fn start(store: Arc<ChunkStore>) -> std::io::Result<Self> {
        let (requests, queue) = mpsc::channel(CHUNK_QUEUE_MAX);
        let room = Arc::new(Semaphore::new(CHUNK_QUEUE_BYTES_MAX));
        let writer = store.clone();
        let thread = std::thread::Builder::new()
            .name("chunks".to_owned())
            .spawn(move || write_all(&writer, queue))?;
        Ok(Self { requests, room, store, _thread: Arc::new(Joined(Some(thread))) })
    }

    /// For what does not wait for the disk: `contains`, `size`, `list`, `stamp`.
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// Stores a chunk; it is durable when this returns. Putting it again is no error.
    pub async fn put(
        &self,
        chunk: ChunkId,
        content: Bytes,
        hash: blake3::Hash,
    ) -> Result<(), ChunkError> {
        one(self.put_all(vec![(chunk, content, hash)]).await)
    }

    /// Stores chunks with as few syncs as their size allows and tells the outcome of each, in order.
    pub async fn put_all(
        &self,
        puts: Vec<(ChunkId, Bytes, blake3::Hash)>,
    ) -> Vec<Result<(), ChunkError>> {
        let count = puts.len();
        let bytes: usize = puts.iter().map(|(_, content, _)| content.len()).sum();
        let check = move || {
            let drafts =
                puts.into_iter().map(|(chunk, content, hash)| Draft::new(chunk, content, &hash));
            drafts.collect::<Vec<_>>()
        };
        let drafts = match bytes <= HASH_INLINE_BYTES_MAX {
            true => check(),
            false => aside(|| Ok(check())).await.unwrap_or_else(|error| vec![Err(error); count]),
        };
        let mut changes = Vec::with_capacity(count);
        let checked: Vec<Outcome> = drafts
            .into_iter()
            .map(|draft| draft.map(|draft| changes.push(Change::Put(draft))))
            .collect();
        let mut outcomes = self.change_all(changes).await.into_iter();
        let outcome = |checked: Outcome| {
            checked.and_then(|()| outcomes.next().unwrap_or(Err(ChunkError::Stopped)))
        };
        checked.into_iter().map(outcome).collect()
    }

    /// Deletes a chunk; deleting what is not there is no error.
    pub async fn delete(&self, chunk: ChunkId) -> Result<(), ChunkError> {
        self.change(Change::Delete(chunk)).await
    }

    /// Exactly `len` bytes of the chunk from `offset` on, checked.
    pub async fn get(&self, chunk: ChunkId, offset: u64, len: usize) -> Result<Bytes, ChunkError> {
        let store = self.store.clone();
        aside(move || store.get(chunk, offset, len)).await
    }

    /// Deletes a chunk unless it was put again after `stamp_max`; tells whether it is gone.
    pub async fn expire(&self, chunk: ChunkId, stamp_max: u64) -> Result<bool, ChunkError> {
        self.change(Change::Expire(chunk, stamp_max)).await?;
        Ok(self.store.list_one(chunk).is_none())
    }

    /// The same of a chunk whose hash is known: content that was put under another is rotten.
    pub async fn get_known(
        &self,
        chunk: ChunkId,
        known: Option<[u8; 32]>,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, ChunkError> {
        let store = self.store.clone();
        aside(move || store.get_known(chunk, known.as_ref(), offset, len)).await
    }

    /// Length and hash of a chunk as its head tells them; the content is not read.
    pub async fn outline(&self, chunk: ChunkId) -> Result<Outline, ChunkError> {
        let store = self.store.clone();
        aside(move || store.outline(chunk)).await
    }

    /// Reads a whole chunk from the disk itself and compares it with its hash.
    pub async fn verify(&self, chunk: ChunkId) -> Result<Outline, ChunkError> {
        let store = self.store.clone();
        aside(move || store.verify(chunk)).await
    }

    pub async fn compact(&self, bytes_max: u64) -> Result<Compacted, ChunkError> {
        let store = self.store.clone();
        aside(move || store.compact(bytes_max)).await
    }

    async fn change(&self, change: Change) -> Result<(), ChunkError> {
        one(self.change_all(vec![change]).await)
    }

    async fn change_all(&self, changes: Vec<Change>) -> Vec<Outcome> {
        let count = changes.len();
        match self.queue(changes).await {
            Ok(outcomes) => outcomes,
            Err(error) => vec![Err(error); count],
        }
    }

    async fn queue(&self, changes: Vec<Change>) -> Result<Vec<Outcome>, ChunkError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: usize = changes.iter().map(Change::span).sum();
        // More than there is room for has all of it.
        let bytes = bytes.min(CHUNK_QUEUE_BYTES_MAX) as u32;
        let permit = self.room.clone().acquire_many_owned(bytes).await;
        let room = permit.map_err(|_| ChunkError::Stopped)?;
        let (done, outcomes) = oneshot::channel();
        let request = Request { changes, done, _room: room };
        self.requests.send(request).await.map_err(|_| ChunkError::Stopped)?;
        outcomes.await.map_err(|_| ChunkError::Stopped)
    }
}

fn one(mut outcomes: Vec<Outcome>) -> Outcome {
    outcomes.pop().unwrap_or(Err(ChunkError::Stopped))
}

async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ChunkError> + Send + 'static,
) -> Result<T, ChunkError> {
    spawn_blocking(work).await.unwrap_or(Err(ChunkError::Stopped))
}

fn write_all(store: &ChunkStore, mut queue: mpsc::Receiver<Request>) {
    let mut waiting = Vec::with_capacity(CHUNK_QUEUE_MAX);
    while queue.blocking_recv_many(&mut waiting, CHUNK_QUEUE_MAX) > 0 {
        let mut all = Vec::with_capacity(waiting.len());
        let mut callers = Vec::with_capacity(waiting.len());
        for Request { changes, done, _room } in waiting.drain(..) {
            callers.push((changes.len(), done, _room));
            all.extend(changes);
        }
        let mut outcomes = store.commit(&all).into_iter();
        for (count, done, _room) in callers {
            // A caller that went away does not want its outcomes.
            let _ = done.send(outcomes.by_ref().take(count).collect());
        }
    }
}
