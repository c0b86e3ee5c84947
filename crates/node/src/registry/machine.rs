//! The state machine's shell: applies committed entries to the state that everybody reads.
//!
//! Invariants: the state and its log position change under one lock, so a reader never sees one
//! without the other; whoever waits for an index is woken after the state has it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::alias::SnapshotOf;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AsyncRuntime, OptionalSend, Snapshot};
use prost::Message;
use tokio::sync::{oneshot, watch};
use unum_core::registry::{History, State};
use unum_core::tree::{Local, Tree};
use unum_proto::registry as wire;

use super::leases::Leases;
use super::limits::DISK_RETRY;
use super::mutation::Mutation;
use super::offload::Offload;
use super::room::Room;
use super::snapshots::{SnapshotError, SnapshotFile, Snapshots, load};
use super::types::{
    Entry, LogId, Payload, Replies, SnapshotMeta, StoredMembership, Types, meta_from_wire,
    meta_to_wire,
};

/// The registry as far as it is applied here.
#[derive(Default)]
pub struct Applied {
    pub state: State,
    pub last: Option<LogId>,
    pub membership: StoredMembership,
    /// What this node changed in the file tree and the log does not have yet.
    pub local: Option<Local>,
    /// What it had changed so when its write lease was ended.
    pub lost: Vec<Local>,
}

impl Applied {
    /// What the log made: a copy without what is only here.
    pub fn confirmed(&self) -> Self {
        Self {
            state: self.state.clone(),
            last: self.last,
            membership: self.membership.clone(),
            ..Self::default()
        }
    }

    /// The file tree as programs of this node see it.
    pub fn tree(&self) -> &Tree {
        self.local.as_ref().map_or(self.state.tree(), Local::tree)
    }

    /// Whether the looks at its trees have taken memory that should be given back.
    pub fn wants_tidying(&self) -> bool {
        self.state.tree().wants_tidying()
            || self.local.as_ref().is_some_and(|local| local.tree().wants_tidying())
    }

    fn execute(&mut self, batch: &wire::Batch) -> Vec<Bytes> {
        self.state.record_tree(self.local.is_some());
        let replies = self.state.execute(batch);
        let executed = self.state.take_executed();
        self.keep_local(|local, tree| local.follow(tree, executed));
        replies
    }

    /// `follow`: whether the local view is good still.
    fn keep_local(&mut self, follow: impl FnOnce(&mut Local, &Tree) -> bool) {
        let Some(mut local) = self.local.take() else { return };
        if !follow(&mut local, self.state.tree()) {
            self.lost.push(local);
        } else if !local.pending().is_empty() {
            self.local = Some(local);
        }
    }
}

/// One entry as it was applied, for whoever watches.
pub struct AppliedEntry<'a> {
    pub log_id: LogId,
    pub batch: &'a wire::Batch,
    pub replies: &'a [Bytes],
    pub history: History,
}

pub type Observe = Arc<dyn Fn(&AppliedEntry<'_>) + Send + Sync>;

/// The applied registry, shared with its readers.
pub struct Shared {
    applied: RwLock<Applied>,
    waiters: Mutex<Waiters>,
    index: watch::Sender<u64>,
}

#[derive(Default)]
struct Waiters {
    /// By index and arrival.
    map: BTreeMap<(u64, u64), oneshot::Sender<()>>,
    arrivals: u64,
}

impl Shared {
    pub fn new(applied: Applied) -> Self {
        let index = watch::Sender::new(applied.last.map_or(0, |id| id.index));
        Self { applied: RwLock::new(applied), waiters: Mutex::default(), index }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Applied> {
        self.applied.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    pub fn index(&self) -> u64 {
        *self.index.borrow()
    }

    /// Waits until the entry with this index is applied.
    pub async fn reached(&self, index: u64) {
        let woken = {
            let mut waiters = self.waiters();
            if self.index() >= index {
                return;
            }
            let (wake, woken) = oneshot::channel();
            waiters.arrivals += 1;
            let key = (index, waiters.arrivals);
            // Those who went away leave their places; they are few and go with the index.
            waiters.map.insert(key, wake);
            woken
        };
        // The sender lives as long as this registry.
        let _ = woken.await;
    }

    /// Gives back what looks at the trees have taken, if nobody is looking or changing just now: who is does so later.
    pub fn tidy(&self) {
        if let Ok(mut applied) = self.applied.try_write() {
            let applied = &mut *applied;
            applied.state.tidy();
            applied.local.iter_mut().for_each(Local::tidy);
        }
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, Applied> {
        self.applied.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> std::sync::MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, index: u64) {
        self.index.send_replace(index);
        let woken = {
            let mut waiters = self.waiters();
            let later = waiters.map.split_off(&(index + 1, 0));
            std::mem::replace(&mut waiters.map, later)
        };
        for wake in woken.into_values() {
            let _ = wake.send(());
        }
    }
}

/// A snapshot that is on disk.
type Current = Arc<Mutex<Option<(SnapshotMeta, SnapshotFile)>>>;

pub struct Machine<RT: AsyncRuntime> {
    pub shared: Arc<Shared>,
    pub snapshots: Snapshots,
    pub current: Current,
    pub room: Arc<Room>,
    pub offload: Offload,
    pub observe: Option<Observe>,
    pub mutation: Mutation,
    pub leases: Arc<Leases<RT>>,
}

impl<RT: AsyncRuntime> Machine<RT> {
    fn apply_one(&self, entry: &Entry) -> io::Result<Replies> {
        let batch = match &entry.payload {
            Payload::Normal(encoded) => {
                Some(wire::Batch::decode(encoded.0.clone()).map_err(io::Error::other)?)
            }
            Payload::Blank | Payload::Membership(_) => None,
        };
        let (replies, history) = {
            let mut applied = self.shared.write();
            applied.last = Some(entry.log_id);
            if let Payload::Membership(membership) = &entry.payload {
                applied.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
            let replies = match &batch {
                Some(batch) => applied.execute(batch),
                None => Vec::new(),
            };
            if self.mutation == Mutation::ForgetReplies {
                applied.state.forget_replies();
            }
            // Before the lock goes: whoever reads this entry's work finds it to be unsettled.
            let LogId { index, leader_id } = entry.log_id;
            self.leases.applied(index, leader_id.term, applied.state.take_changes());
            (replies, applied.state.history())
        };
        if let (Some(observe), Some(batch)) = (&self.observe, &batch) {
            let log_id = entry.log_id;
            observe(&AppliedEntry { log_id, batch, replies: &replies, history });
        }
        self.shared.publish(entry.log_id.index);
        Ok(replies)
    }

    fn current(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<RT: AsyncRuntime> RaftStateMachine<Types<RT>> for Machine<RT> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<RT>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.shared.read();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types<RT>>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let replies = self.apply_one(&entry)?;
            if let Some(responder) = responder {
                responder.send(replies);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder<RT>> {
        if self.room.is_full() && !force {
            return None;
        }
        Some(RaftStateMachine::<Types<RT>>::get_snapshot_builder(self).await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder<RT> {
        Builder {
            applied: self.shared.read().confirmed(),
            snapshots: self.snapshots.clone(),
            current: self.current.clone(),
            offload: self.offload,
            runtime: std::marker::PhantomData,
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let source = snapshot.clone();
        let loaded = self.offload.run(move || load(&source)).await.map_err(io::Error::other)?;
        let index = {
            let mut applied = self.shared.write();
            applied.state = loaded.state;
            applied.keep_local(Local::replaced);
            applied.last = meta.last_log_id;
            applied.membership = meta.last_membership.clone();
            let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
            self.leases.replaced(index, term);
            index
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((meta.clone(), snapshot));
        self.shared.publish(index);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<Types<RT>, SnapshotFile>>> {
        Ok(self.current().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes a snapshot of the state as it was when the builder was made.
pub struct Builder<RT> {
    applied: Applied,
    snapshots: Snapshots,
    current: Current,
    offload: Offload,
    runtime: std::marker::PhantomData<fn() -> RT>,
}

impl<RT: AsyncRuntime> RaftSnapshotBuilder<Types<RT>> for Builder<RT> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types<RT>, SnapshotFile>> {
        let meta = SnapshotMeta {
            last_log_id: self.applied.last,
            last_membership: self.applied.membership.clone(),
        };
        let head = meta_to_wire(&meta);
        let snapshot = loop {
            let (snapshots, head) = (self.snapshots.clone(), head.clone());
            let state = self.applied.state.clone();
            match self.offload.run(move || snapshots.write(&head, &state)).await {
                Ok(snapshot) => break snapshot,
                // A failure would end consensus on this node; a snapshot can wait for room.
                Err(SnapshotError::Disk(error)) if error.is_full() => RT::sleep(DISK_RETRY).await,
                Err(error) => return Err(io::Error::other(error)),
            }
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((meta.clone(), snapshot.clone()));
        Ok(Snapshot { meta, snapshot })
    }
}

/// The state that a snapshot holds, as consensus sees it.
pub fn applied_from(
    head: &wire::SnapshotHead,
    state: State,
) -> Result<(Applied, SnapshotMeta), super::types::Malformed> {
    let meta = meta_from_wire(head)?;
    let applied = Applied {
        state,
        last: meta.last_log_id,
        membership: meta.last_membership.clone(),
        ..Applied::default()
    };
    Ok((applied, meta))
}
