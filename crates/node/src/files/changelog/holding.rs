//! Getting a write lease and more under it, giving it back, and asking another node for its own.
//!
//! A lease is given back as a whole: it is one command whatever it covers, and whoever came for one inode
//! often comes for its neighbours. What two nodes want in turn is left alone by both for a while: changes of it are
//! commands to the registry then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep, timeout_at};
use unum_core::tree::TreeError;
use unum_net::{CallOptions, Name, Router, Status};
use unum_proto::file::{GiveBack, GiveBackReply};
use unum_proto::ids::{Ino, NodeId};
use unum_proto::registry::{command, reply};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{AcquireLease, ReleaseLease, TreeCommand};

use super::{ChangeLog, LeaseClock, left};
use crate::files::errno::FileError;
use crate::files::tree_outcome;

/// Inodes below those that are asked for that a lease covers along.
const BELOW: u32 = 1024;
/// Inodes in one question for a lease.
const INODES_MAX: usize = 64;
/// How long a holder may take to give its lease back before it is asked again.
pub(super) const GIVE_BACK_TIME: Duration = Duration::from_secs(2);
/// Pause before a holder that did not answer is asked again; it may be declared down meanwhile.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long an inode that another node wanted, too, is left alone; doubled while that goes on.
const CONTENDED_MIN: Duration = Duration::from_millis(250);
const CONTENDED_MAX: Duration = Duration::from_secs(8);
/// Inodes that are watched so.
const CONTENDED_INODES_MAX: usize = 1 << 12;
/// For so long after another node asked for anything, a lease covers only what is named.
const NARROW_TIME: Duration = Duration::from_secs(1);

unum_net::methods! {
    /// Asks the called node to drain its changes and give its write lease back.
    pub GiveBackMethod = "file.give-back", Control, idempotent, GiveBack => GiveBackReply;
}

/// What who asks for a write lease is after.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    Some(&'a [Ino]),
    /// Something that concerns all of them.
    All,
}

/// What this node and others wanted to change in turn, lately.
#[derive(Debug, Default)]
pub struct Contention {
    inodes: HashMap<Ino, Contended>,
    all: Option<Contended>,
    last: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Contended {
    until: Instant,
    pause: Duration,
}

impl Contention {
    /// Another node wanted these, or had them.
    pub fn note(&mut self, inos: &[Ino], now: Instant) {
        self.last = Some(now);
        if self.inodes.len() + inos.len() > CONTENDED_INODES_MAX {
            self.inodes.retain(|_, contended| now < contended.until + contended.pause);
        }
        for &ino in inos {
            let before = self.inodes.get(&ino).filter(|was| now < was.until + was.pause);
            let pause = before.map_or(CONTENDED_MIN, |was| (was.pause * 2).min(CONTENDED_MAX));
            if before.is_some() || self.inodes.len() < CONTENDED_INODES_MAX {
                self.inodes.insert(ino, Contended { until: now + pause, pause });
            }
        }
    }

    /// Somebody else wanted everything.
    pub fn note_all(&mut self, now: Instant) {
        self.last = Some(now);
        let before = self.all.filter(|was| now < was.until + was.pause);
        let pause = before.map_or(CONTENDED_MIN, |was| (was.pause * 2).min(CONTENDED_MAX));
        self.all = Some(Contended { until: now + pause, pause });
    }

    pub fn is_on(&self, inos: &[Ino], now: Instant) -> bool {
        if self.all.is_some_and(|all| now < all.until) {
            return true;
        }
        inos.iter().any(|ino| self.inodes.get(ino).is_some_and(|contended| now < contended.until))
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last + NARROW_TIME)
    }
}

impl ChangeLog {
    pub(super) async fn turn(&self, deadline: Instant) -> Result<MutexGuard<'_, ()>, FileError> {
        timeout_at(deadline, self.turn.lock()).await.map_err(|_| self.late())
    }

    /// Has the write lease cover these inodes, if nobody else's does. The caller looks at what came of it.
    pub(super) async fn acquire(&self, inos: &[Ino], deadline: Instant) -> Result<(), FileError> {
        let _turn = self.turn(deadline).await?;
        let registry = &self.parts.registry;
        let node = self.parts.node;
        if registry.read_tree(|tree| inos.iter().all(|ino| tree.holder_of(*ino) == Some(node))) {
            return Ok(());
        }
        let narrow = self.inner().contention.is_recent(Instant::now());
        let below = if narrow { 0 } else { BELOW };
        // What is being granted must not be used before all others have dropped it from their caches.
        let _closed = self.close();
        // A directory that is covered already is named, too: its neighbours are covered along.
        let inos = inos.iter().map(|ino| ino.0).collect();
        let acquire = Command::AcquireLease(AcquireLease { inos, below });
        match self.command(acquire, deadline).await {
            Ok((Outcome::Leased(leased), index)) => {
                registry.settle(index, left(deadline)).await?;
                let base = unum_core::time::Time(leased.time_ns);
                self.inner().clock = LeaseClock { base, at: Instant::now() };
                Ok(())
            }
            // Another node was first, or the inode is gone.
            Err(FileError::Tree(TreeError::Held | TreeError::Stale)) => Ok(()),
            Ok(_) => Err(FileError::Strange),
            Err(error) => Err(error),
        }
    }

    /// Drains the log and gives the write lease back. Tells the entry behind which it is over.
    pub(super) async fn give_back(
        &self,
        wanted: Wanted<'_>,
        deadline: Instant,
    ) -> Result<u64, FileError> {
        self.resume(deadline).await?;
        let _turn = self.turn(deadline).await?;
        let registry = &self.parts.registry;
        let node = self.parts.node;
        match wanted {
            Wanted::Some([]) => {}
            Wanted::Some(inos) => self.inner().contention.note(inos, Instant::now()),
            Wanted::All => self.inner().contention.note_all(Instant::now()),
        }
        let _closed = self.close();
        self.drained(deadline).await?;
        let lease = registry.read(|state| state.tree().lease_of(node));
        let Some((lease, _)) = lease else { return Ok(registry.applied()) };
        let release = Command::ReleaseLease(ReleaseLease { lease: lease.0 });
        match self.command(release, deadline).await {
            Ok((_, index)) => {
                // Whatever is in the journal when a daemon starts without the lease was lost with it.
                if let Err(error) = self.inner().journal.clear() {
                    tracing::warn!(%error, "the change log cannot be emptied");
                }
                Ok(index)
            }
            Err(FileError::Tree(TreeError::Stale)) => Ok(registry.applied()),
            Err(error) => Err(error),
        }
    }

    /// A command of the lease's own; it is applied here when this returns.
    async fn command(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<(Outcome, u64), FileError> {
        let kind = command::Kind::Tree(TreeCommand::from(command));
        let proposed = self.parts.proposer.propose_indexed(kind, left(deadline)).await;
        let (reply, index): (reply::Kind, u64) = proposed?;
        self.parts.registry.reached(index, left(deadline)).await?;
        Ok((tree_outcome(reply)?, index))
    }

    /// Returns once `holder` has no write lease on these inodes any more as far as this node knows: it
    /// gave it back, or is gone.
    pub async fn reclaim(
        &self,
        holder: NodeId,
        inos: &[Ino],
        deadline: Instant,
    ) -> Result<(), FileError> {
        let registry = &self.parts.registry;
        let wanted: Vec<u64> = inos.iter().take(INODES_MAX).map(|ino| ino.0).collect();
        let holds = || {
            let has = |ino: &Ino| registry.read(|s| s.tree().holder_of(*ino)) == Some(holder);
            inos.iter().any(has)
        };
        while holds() {
            let until = deadline.min(Instant::now() + GIVE_BACK_TIME);
            let options = CallOptions::until(until).fail_fast();
            let request = GiveBack { inodes: wanted.clone(), all: false };
            let to = Name::Node(holder);
            match self.parts.client.call::<GiveBackMethod>(&to, request, &options).await {
                Ok(reply) => registry.reached(reply.index, left(deadline)).await?,
                Err(error) => {
                    tracing::debug!(%holder, %error, "a write lease is not given back yet");
                    sleep(ASK_AGAIN).await;
                }
            }
            if Instant::now() >= deadline {
                return Err(TreeError::Held.into());
            }
        }
        Ok(())
    }
}

/// What this node answers to the others.
pub fn routes(log: &Arc<ChangeLog>) -> Router {
    let log = log.clone();
    Router::new().call::<GiveBackMethod>(move |_, request: GiveBack| {
        let log = log.clone();
        async move {
            let inos: Vec<Ino> = request.inodes.into_iter().take(INODES_MAX).map(Ino).collect();
            let deadline = Instant::now() + GIVE_BACK_TIME;
            let wanted = if request.all { Wanted::All } else { Wanted::Some(&inos) };
            let given = log.give_back(wanted, deadline).await;
            let index = given.map_err(|error| Status::internal(error.to_string()))?;
            Ok(GiveBackReply { index })
        }
    })
}
