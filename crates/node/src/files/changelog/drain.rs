//! From the change log to the registry: contents to their replicas first, then the changes as one command.
//!
//! A batch that cannot be drained now is tried again until it can, or until the write lease is over; what
//! waits for the log is told why. Nothing is lost while this node lives and is a member.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use unum_core::tree::{Folded, TreeError, fold, fold_locks};
use unum_proto::file::{CHUNK_SIZE_MAX, HASH_SIZE};
use unum_proto::ids::{ChunkId, Ino, LeaseId};
use unum_proto::registry::command;
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{Drain, Drained, LoggedChange, NewChunk, TreeCommand, Write};

use super::holding::Wanted;
use super::{ChangeLog, JOURNAL_IDLE_MAX, left, length_of};
use crate::files::errno::FileError;
use crate::files::replicas::{ContentError, Draft, Stored};
use crate::files::tree_outcome;

/// How long a change waits for company.
const DELAY: Duration = Duration::from_millis(200);
/// Changes in one command.
pub const BATCH_CHANGES_MAX: usize = 512;
/// Bytes of changes in one command.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes of contents that go to the replicas at once.
const BATCH_CONTENT_MAX: u64 = 8 << 20;
/// Bytes of contents beyond which draining does not wait for company.
const CONTENT_WAITING_MAX: u64 = 4 << 20;
/// Pause before a batch is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long one try may take.
const TRY_TIME: Duration = Duration::from_secs(10);
/// A lease that was not used for so long is given back: others need not ask for it then.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// Why draining does not get on.
#[derive(Clone, Debug)]
pub struct Trouble {
    content: Option<ContentError>,
    waited: Duration,
}

impl Trouble {
    fn of(error: &FileError, waited: Duration) -> Self {
        let content = match error {
            FileError::Content(error) => Some(error.clone()),
            _ => None,
        };
        Self { content, waited }
    }

    /// There is no room for the contents, and only other changes may make some.
    pub fn is_room(&self) -> bool {
        matches!(self.content, Some(ContentError::NoSpace { .. }))
    }

    pub fn error(&self) -> FileError {
        match &self.content {
            Some(error) => error.clone().into(),
            None => crate::registry::RegistryError::NoQuorum { waited: self.waited }.into(),
        }
    }
}

/// Changes that are drained by one command.
pub(super) struct Batch {
    lease: LeaseId,
    first: u64,
    changes: Vec<LoggedChange>,
    /// Contents that are on no replica yet.
    drafts: Vec<Draft>,
    /// Bytes of all its contents.
    content: u64,
}

impl Batch {
    fn last(&self) -> u64 {
        self.first + self.changes.len() as u64 - 1
    }
}

/// Drains the log whenever it is time. Ends when the caller drops it.
pub async fn run(log: Arc<ChangeLog>) {
    // Nothing is drained before the local view has what a former daemon left.
    while log.resume(Instant::now() + log.parts.patience).await.is_err() {
        sleep(RETRY_PAUSE).await;
    }
    loop {
        log.bury();
        if log.is_empty() {
            log.rest().await;
            continue;
        }
        log.gather().await;
        match log.drain_batch().await {
            Ok(()) => log.inner().trouble = None,
            Err(error) => {
                tracing::debug!(%error, "changes are drained later");
                log.inner().trouble = Some(Trouble::of(&error, TRY_TIME));
                sleep(RETRY_PAUSE).await;
            }
        }
        log.advance();
    }
}

impl ChangeLog {
    fn is_empty(&self) -> bool {
        self.parts.registry.read_local(|local| local.is_none())
    }

    /// Waits for a change. A lease that nobody uses is given back.
    async fn rest(&self) {
        let node = self.parts.node;
        let leased = self.parts.registry.read(|state| state.tree().lease_of(node).is_some());
        let idle = async {
            if leased {
                sleep(IDLE_TIME).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.work.notified() => {}
            () = idle => {
                let used = self.inner().changed.is_some_and(|at| at.elapsed() < IDLE_TIME);
                if !used
                    && let Err(error) = self.give_back(Wanted::Some(&[]), Instant::now() + TRY_TIME).await
                {
                    tracing::debug!(%error, "an unused write lease is given back later");
                }
            }
        }
    }

    /// Waits until the log is worth draining.
    async fn gather(&self) {
        loop {
            let (ready, due) = {
                let mut inner = self.inner();
                let due = *inner.oldest.get_or_insert_with(Instant::now) + DELAY;
                // Who still waits after a batch demands the next one.
                let demanded = std::mem::take(&mut inner.demanded);
                (demanded || inner.content > CONTENT_WAITING_MAX, due)
            };
            let pending = self
                .parts
                .registry
                .read_local(|local| local.map_or(BATCH_CHANGES_MAX, |local| local.pending().len()));
            if ready || pending >= BATCH_CHANGES_MAX || Instant::now() >= due {
                return;
            }
            tokio::select! {
                () = self.work.notified() => {}
                () = sleep_until(due) => {}
            }
        }
    }

    /// Drains everything and gives the write lease back: the daemon goes.
    pub async fn hand_in(&self, deadline: Instant) -> Result<(), FileError> {
        if self.has_nothing() {
            return Ok(());
        }
        let handed_in = timeout_at(deadline, Box::pin(self.hand_in_at_last(deadline))).await;
        handed_in.map_err(|_| self.late())?
    }

    /// Neither a change nor a lease, as far as this node knows.
    fn has_nothing(&self) -> bool {
        let node = self.parts.node;
        let leased = self.parts.registry.read(|state| state.tree().lease_of(node).is_some());
        !leased && self.is_empty() && self.inner().left.is_empty()
    }

    async fn hand_in_at_last(&self, deadline: Instant) -> Result<(), FileError> {
        self.resume(deadline).await?;
        let _closed = self.close();
        while !self.is_empty() {
            if let Err(error) = self.drain_batch().await {
                self.inner().trouble = Some(Trouble::of(&error, TRY_TIME));
                sleep(RETRY_PAUSE).await;
            }
            self.moved.notify_waiters();
        }
        self.give_back(Wanted::Some(&[]), deadline).await.map(drop)
    }

    /// Drains the oldest changes. The contents of those behind them go to their replicas meanwhile.
    async fn drain_batch(&self) -> Result<(), FileError> {
        let mut ahead = self.draining.lock().await;
        let deadline = Instant::now() + TRY_TIME;
        let batch = match ahead.take().filter(|batch| self.is_next(batch)) {
            Some(batch) => batch,
            None => match self.next_batch(0) {
                Some(batch) => self.store(batch, deadline).await?,
                None => return Ok(()),
            },
        };
        let last = batch.last();
        let behind = self.inner().content.saturating_sub(batch.content);
        let next = async {
            let next = (behind > CONTENT_WAITING_MAX).then(|| self.next_batch(last)).flatten()?;
            // What fails here is tried again when it is next.
            self.store(next, deadline).await.ok()
        };
        let (committed, next) = tokio::join!(self.commit(batch, deadline), next);
        committed?;
        *ahead = next;
        Ok(())
    }

    fn is_next(&self, batch: &Batch) -> bool {
        self.parts.registry.read_local(|local| {
            local.is_some_and(|local| {
                let first = local.pending().front().map(|change| change.number);
                local.lease() == batch.lease && first == Some(batch.first)
            })
        })
    }

    /// Puts a batch's contents on their replicas and writes down in its changes where they are.
    async fn store(&self, mut batch: Batch, deadline: Instant) -> Result<Batch, FileError> {
        let drafts = self.with_wanted(&batch.changes, std::mem::take(&mut batch.drafts));
        let stored = self.parts.replicas.write_all(drafts, deadline).await?;
        let places: HashMap<ChunkId, Stored> =
            stored.into_iter().map(|stored| (stored.id, stored)).collect();
        for chunk in batch.changes.iter_mut().flat_map(new_chunks_mut) {
            let id = chunk.id.map(ChunkId::from);
            if let Some(stored) = id.and_then(|id| places.get(&id)) {
                chunk.replicas = stored.replicas.iter().map(|node| node.0).collect();
            }
        }
        Ok(batch)
    }

    /// How many replicas each of the contents of these changes should have.
    fn with_wanted(&self, changes: &[LoggedChange], drafts: Vec<Draft>) -> Vec<(Draft, usize)> {
        let replicas = &self.parts.replicas;
        let writes = changes.iter().filter_map(|change| {
            match change.command.as_ref()?.command.as_ref()? {
                Command::Write(write) => Some(write),
                _ => None,
            }
        });
        let wanted: HashMap<ChunkId, usize> = self.parts.registry.read_tree(|tree| {
            let of = |write: &Write| {
                let wanted = replicas.wanted(tree, Ino(write.ino));
                let ids = write.chunks.iter().filter_map(|chunk| chunk.id.map(ChunkId::from));
                ids.map(move |id| (id, wanted)).collect::<Vec<_>>()
            };
            writes.flat_map(of).collect()
        });
        let usual = replicas.factor();
        let with = |draft: Draft| {
            let wanted = wanted.get(&draft.id).copied().unwrap_or(usual);
            (draft, wanted)
        };
        drafts.into_iter().map(with).collect()
    }

    /// Has the registry make a batch's changes.
    async fn commit(&self, batch: Batch, deadline: Instant) -> Result<(), FileError> {
        let (lease, last) = (batch.lease, batch.last());
        let drain = Drain { lease: lease.0, first: batch.first, changes: batch.changes.clone() };
        let command = command::Kind::Tree(TreeCommand::from(Command::Drain(drain)));
        let (reply, index) = self.parts.proposer.propose_indexed(command, left(deadline)).await?;
        self.parts.registry.reached(index, left(deadline)).await?;
        match tree_outcome(reply) {
            Ok(Outcome::Drained(drained)) => self.report(&batch, &drained),
            Ok(_) => return Err(FileError::Strange),
            // The lease is over: what was pending is lost, which is looked at elsewhere.
            Err(FileError::Tree(TreeError::Stale)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut inner = self.inner();
        inner.content = inner.content.saturating_sub(batch.content);
        if let Err(error) = inner.journal.drained(lease, last) {
            tracing::warn!(%error, "the change log cannot be cut");
        }
        drop(inner);
        self.advance();
        Ok(())
    }

    /// The oldest changes behind number `after`, as many as go at once, with their contents.
    fn next_batch(&self, after: u64) -> Option<Batch> {
        let mut batch = self.parts.registry.read_local(|local| {
            let local = local?;
            let first = local.pending().front()?.number;
            let skip = (after + 1).saturating_sub(first) as usize;
            let mut bytes = 0;
            let changes = local.pending().iter().skip(skip).take(BATCH_CHANGES_MAX);
            let changes: Vec<LoggedChange> = changes
                .map(unum_core::tree::Pending::to_proto)
                .take_while(|change| {
                    let alone = bytes == 0;
                    bytes += change.encoded_len();
                    alone || bytes <= BATCH_BYTES_MAX
                })
                .collect();
            let first = first + skip as u64;
            Some(Batch { lease: local.lease(), first, changes, drafts: Vec::new(), content: 0 })
        })?;
        let mut fit = 0;
        for change in &mut batch.changes {
            let drafts = self.drafts(change);
            let length: u64 = drafts.iter().map(|draft| draft.data.len() as u64).sum();
            if fit > 0 && batch.content + length > BATCH_CONTENT_MAX {
                break;
            }
            batch.content += length;
            fit += 1;
            batch.drafts.extend(drafts);
        }
        batch.changes.truncate(fit);
        self.fold(&mut batch);
        fold_locks(&mut batch.changes);
        (fit > 0).then_some(batch)
    }

    /// What was written to a file piece by piece goes as one chunk.
    fn fold(&self, batch: &mut Batch) {
        let name = || self.parts.replicas.name();
        let folded = fold(&mut batch.changes, CHUNK_SIZE_MAX as u64, name);
        if folded.is_empty() {
            return;
        }
        let mut pieces: HashMap<ChunkId, Bytes> =
            batch.drafts.iter().map(|draft| (draft.id, draft.data.clone())).collect();
        for Folded { at, parts } in folded {
            let Some(chunk) = batch.changes.get_mut(at).and_then(|c| new_chunks_mut(c).next())
            else {
                continue;
            };
            let mut data = BytesMut::with_capacity(chunk.length as usize);
            for part in parts {
                data.extend_from_slice(&pieces.remove(&part).unwrap_or_default());
            }
            let hash = blake3::hash(&data);
            chunk.hash = Bytes::copy_from_slice(hash.as_bytes());
            if let Some(id) = chunk.id.map(ChunkId::from) {
                pieces.insert(id, data.freeze());
            }
        }
        let chunks = batch.changes.iter_mut().flat_map(new_chunks_mut);
        batch.drafts = chunks.filter_map(|chunk| draft_of(chunk, &mut pieces)).collect();
    }

    /// The contents that come with a change. If they cannot be read back, neither can the change be made.
    fn drafts(&self, change: &mut LoggedChange) -> Vec<Draft> {
        let drafts: Option<Vec<Draft>> =
            new_chunks_mut(change).map(|chunk| self.draft(chunk)).collect();
        drafts.unwrap_or_else(|| {
            tracing::error!("the contents of a change are gone from the change log: it is dropped");
            change.command = None;
            Vec::new()
        })
    }

    fn draft(&self, chunk: &NewChunk) -> Option<Draft> {
        let id = ChunkId::from(chunk.id?);
        let hash: [u8; HASH_SIZE] = chunk.hash.as_ref().try_into().ok()?;
        let kept = self.chunk(id)?;
        let data: Bytes = kept
            .read(0, chunk.length)
            .inspect_err(|error| tracing::error!(%error, "the change log cannot be read"))
            .ok()?;
        Some(Draft { id, hash, data })
    }

    fn report(&self, batch: &Batch, drained: &Drained) {
        let mut lost = BTreeSet::new();
        for refused in &drained.refused {
            let why = TreeError::from_code(refused.why);
            let at = refused.number.wrapping_sub(batch.first) as usize;
            let change = batch.changes.get(at);
            let command = change.and_then(|change| change.command.as_ref());
            lost.extend(change.map(|change| Ino(change.folded)).filter(|ino| ino.0 != 0));
            // An orphan that was reaped meanwhile has no bytes to lose.
            if why != TreeError::Stale {
                tracing::error!(%why, ?command, "a change that was made here was refused");
            }
            lost.extend(inodes_of(command));
        }
        self.fail(&lost);
    }

    /// A write lease was ended with changes pending: says so to the programs that made them. What was
    /// changed under a later lease stays.
    pub fn bury(&self) {
        let lost = self.parts.registry.take_lost();
        if lost.is_empty() {
            return;
        }
        for local in lost {
            tracing::error!(
                changes = local.pending().len(),
                "this node was declared down: what its programs changed last is lost, as after a crash"
            );
            let commands = local.pending().iter().map(|change| &change.command);
            self.fail(&commands.clone().flat_map(|command| inodes_of(Some(command))).collect());
            let content: u64 = commands.filter_map(|c| c.command.as_ref()).map(length_of).sum();
            let mut inner = self.inner();
            inner.content = inner.content.saturating_sub(content);
            if let Err(error) = inner.journal.drained(local.lease(), u64::MAX) {
                tracing::warn!(%error, "the change log cannot be cut");
            }
        }
        self.moved.notify_waiters();
    }

    pub(super) fn fail(&self, inodes: &BTreeSet<Ino>) {
        if !inodes.is_empty() {
            self.parts.handles.lock().unwrap_or_else(PoisonError::into_inner).fail(inodes);
        }
    }

    fn advance(&self) {
        // Changes are made under the same lock.
        let mut inner = self.inner();
        let empty = self.is_empty();
        if empty {
            // What is dropped by the way is not counted off.
            inner.content = 0;
        }
        if empty
            && inner.journal.bytes() > JOURNAL_IDLE_MAX
            && let Err(error) = inner.journal.clear()
        {
            tracing::warn!(%error, "the change log cannot be emptied");
        }
        inner.oldest = (!empty).then(Instant::now);
        drop(inner);
        self.moved.notify_waiters();
    }
}

fn draft_of(chunk: &NewChunk, contents: &mut HashMap<ChunkId, Bytes>) -> Option<Draft> {
    let id = ChunkId::from(chunk.id?);
    let hash: [u8; HASH_SIZE] = chunk.hash.as_ref().try_into().ok()?;
    Some(Draft { id, hash, data: contents.remove(&id)? })
}

fn new_chunks_mut(change: &mut LoggedChange) -> impl Iterator<Item = &mut NewChunk> {
    let command = change.command.as_mut().and_then(|command| command.command.as_mut());
    let write = match command {
        Some(Command::Write(write)) => Some(write),
        _ => None,
    };
    write.into_iter().flat_map(|write| &mut write.chunks)
}

/// Those that a change names.
pub(super) fn inodes_of(command: Option<&TreeCommand>) -> Vec<Ino> {
    let Some(command) = command.and_then(|command| command.command.as_ref()) else {
        return Vec::new();
    };
    let raw = match command {
        Command::Create(create) => vec![create.parent, create.ino],
        Command::Link(link) => vec![link.ino, link.parent],
        Command::Unlink(unlink) => vec![unlink.parent],
        Command::Rmdir(rmdir) => vec![rmdir.parent],
        Command::Rename(rename) => vec![rename.parent, rename.new_parent],
        Command::SetAttributes(set) => vec![set.ino],
        Command::Write(write) => vec![write.ino],
        Command::Fallocate(fallocate) => vec![fallocate.ino],
        Command::CopyRange(copy) => vec![copy.to],
        Command::SetXattr(set) => vec![set.ino],
        Command::RemoveXattr(remove) => vec![remove.ino],
        _ => Vec::new(),
    };
    raw.into_iter().map(Ino).collect()
}
