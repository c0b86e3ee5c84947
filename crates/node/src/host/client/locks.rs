//! fcntl and flock locks: set at the home, remembered here until they end.
//!
//! An owner is entered in the table before its home is asked, so whatever it may have got is ended with its file, also by
//! the next daemon.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::Instant;
use unum_net::CallOptions;
use unum_proto::host as wire;
use unum_proto::ids::NodeId;
use unum_sys::fuse::{Fh, LockFamily, LockKind, LockOwner, LockRange, LockRequest};

use super::HostTrees;
use super::calls::Call;
use super::messages::{check, journal_failed};
use crate::host::table::{LockEntry, LockKey, OpenFile};
use crate::host::{EndLocks, Lock};
use crate::signals::Signal;

/// How long the home waits for a lock before it answers. While it does, or is not reached, no signal is heard: whether the
/// lock was granted has to be known.
const WAIT_AT_HOME: Duration = Duration::from_millis(200);
/// The pause before a home that could not be told is told again of locks that have ended.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// How long telling it may take.
const TELL_TIME_MAX: Duration = Duration::from_secs(10);
/// How many turns there are for all files: those of different homes seldom wait for each other.
pub(super) const TURNS: usize = 256;
/// The end of a file, wherever it goes.
const END: u64 = i64::MAX as u64;

impl Call<'_> {
    pub(super) async fn getlk(&self, request: LockRequest) -> Result<LockRange, Errno> {
        let file = self.open_file(request.fh)?;
        let asked = self.lock_message(&file, &request, 0, Duration::ZERO);
        let asked = wire::Lock { test: true, ..asked };
        let options = self.options_of_none();
        let reply = self.trees.ask::<Lock>(file.node, asked, &options).await?;
        check(reply.errno)?;
        let kind = match reply.kind() {
            wire::LockKind::Unlock => {
                return Ok(LockRange { kind: LockKind::Unlock, ..request.range });
            }
            wire::LockKind::Read => LockKind::Read,
            wire::LockKind::Write => LockKind::Write,
        };
        // No process of this node has the home's PID.
        Ok(LockRange { start: reply.start, end: reply.end, kind, pid: 0 })
    }

    pub(super) async fn setlk(
        &self,
        request: LockRequest,
        wait: bool,
        signal: &Signal,
    ) -> Result<(), Errno> {
        let file = self.open_file(request.fh)?;
        let key = self.lock_key(request.family, request.owner);
        if request.range.kind == LockKind::Unlock {
            return self.unlock(&file, &request, key).await;
        }
        let signalled = signal.taken();
        tokio::pin!(signalled);
        loop {
            match self.lock_once(&file, &request, key, wait).await {
                Err(Errno::AGAIN) if wait => {}
                done => return done,
            }
            tokio::select! {
                biased;
                () = &mut signalled => return Err(Errno::INTR),
                () = std::future::ready(()) => {}
            }
        }
    }

    /// Asks once; EAGAIN when others were in the way for as long as the home waits.
    async fn lock_once(
        &self,
        file: &OpenFile,
        request: &LockRequest,
        key: LockKey,
        wait: bool,
    ) -> Result<(), Errno> {
        // The end of this owner's locks waits for the answer: it may have to be told, too.
        let _asking = self.trees.asking(&key).await?;
        let known = self.trees.table().lock_of(&key).copied();
        let began = known.map_or(0, |entry| entry.fence);
        let entry = LockEntry { home: file.node, through: request.fh.0, fence: began };
        self.trees.enter_lock(key, entry)?;
        let patience = if wait { WAIT_AT_HOME } else { Duration::ZERO };
        let asked = self.lock_message(file, request, began, patience);
        // Each time is a call of its own: a lock may be waited for without a bound.
        let until = Instant::now() + self.trees.parts.patience;
        let options = CallOptions { deadline: Some(until), ..self.options_of_none() };
        let reply = self.trees.ask::<Lock>(file.node, asked, &options).await?;
        check(reply.errno)?;
        self.trees.enter_lock(key, LockEntry { fence: reply.fence, ..entry })
    }

    async fn unlock(
        &self,
        file: &OpenFile,
        request: &LockRequest,
        key: LockKey,
    ) -> Result<(), Errno> {
        if self.trees.table().lock_of(&key).is_none() {
            return Ok(());
        }
        if request.family == LockFamily::Flock
            || (request.range.start, request.range.end) == (0, END)
        {
            self.trees.end_locks(vec![key]).await;
            return Ok(());
        }
        let asked = self.lock_message(file, request, 0, Duration::ZERO);
        let options = self.options_of_none();
        check(self.trees.ask::<Lock>(file.node, asked, &options).await?.errno)
    }

    /// A close ends what its process has locked of the file, whichever descriptor it was.
    pub(super) async fn flush(&self, owner: LockOwner) {
        let key = self.lock_key(LockFamily::Fcntl, owner);
        let known = self.trees.table().lock_of(&key).is_some();
        if known {
            self.trees.end_locks(vec![key]).await;
        }
    }

    /// The end of an open file ends all locks that came through it.
    pub(super) async fn end_locks_through(&self, fh: Fh) {
        let ended = self.trees.table().locked_through(fh.0);
        if !ended.is_empty() {
            self.trees.end_locks(ended).await;
        }
    }

    fn lock_key(&self, family: LockFamily, owner: LockOwner) -> LockKey {
        let flock = family == LockFamily::Flock;
        LockKey { file: self.header.ino.0, owner: owner.0, flock }
    }

    fn lock_message(
        &self,
        file: &OpenFile,
        request: &LockRequest,
        fence: u64,
        patience: Duration,
    ) -> wire::Lock {
        let kind = match request.range.kind {
            LockKind::Unlock => wire::LockKind::Unlock,
            LockKind::Read => wire::LockKind::Read,
            LockKind::Write => wire::LockKind::Write,
        };
        wire::Lock {
            warrant: file.warrant.clone(),
            owner: Some(self.trees.lock_owner(&self.lock_key(request.family, request.owner))),
            kind: kind.into(),
            start: request.range.start,
            end: request.range.end,
            wait_ms: patience.as_millis() as u32,
            fence,
            test: false,
        }
    }
}

impl HostTrees {
    fn enter_lock(&self, key: LockKey, entry: LockEntry) -> Result<(), Errno> {
        let entered = self.table().lock(key, entry).map_err(|error| journal_failed(&error))?;
        entered.map_err(|_full| Errno::NOLCK)
    }

    fn lock_owner(&self, key: &LockKey) -> wire::LockOwner {
        wire::LockOwner {
            lane: self.parts.lane.0,
            file: key.file,
            owner: key.owner,
            flock: key.flock,
        }
    }

    /// Ends all locks of these owners. A home that cannot be told now is told later.
    async fn end_locks(self: &Arc<Self>, keys: Vec<LockKey>) {
        let mut left = Vec::new();
        for key in keys {
            let _ending = self.turn(&key).write().await;
            if !self.tell_ended(&key, self.parts.patience).await {
                self.told_later().insert(key);
                left.push(key);
            }
        }
        if !left.is_empty() {
            self.end_later(left);
        }
    }

    /// Tells of owners whose open files an earlier daemon saw closed, or could not tell of.
    pub(super) fn end_locks_of_closed(self: &Arc<Self>) {
        let keys = self.table().locked_through_closed();
        if !keys.is_empty() {
            self.told_later().extend(&keys);
            self.end_later(keys);
        }
    }

    fn end_later(self: &Arc<Self>, mut keys: Vec<LockKey>) {
        let trees = self.clone();
        drop(tokio::spawn(async move {
            while !keys.is_empty() {
                tokio::time::sleep(TELL_AGAIN).await;
                let mut left = Vec::new();
                for key in keys {
                    let _ending = trees.turn(&key).write().await;
                    // Whoever wanted locks again has told them meanwhile.
                    let ended = !trees.told_later().contains(&key);
                    if !ended && !trees.tell_ended(&key, TELL_TIME_MAX).await {
                        left.push(key);
                    }
                }
                keys = left;
            }
        }));
    }

    /// A turn to ask for locks of this owner, when its home knows which have ended.
    async fn asking(&self, key: &LockKey) -> Result<RwLockReadGuard<'_, ()>, Errno> {
        loop {
            let asking = self.turn(key).read().await;
            if !self.told_later().contains(key) {
                return Ok(asking);
            }
            drop(asking);
            let _ending = self.turn(key).write().await;
            let ended = !self.told_later().contains(key);
            if !ended && !self.tell_ended(key, self.parts.patience).await {
                return Err(Errno::HOSTDOWN);
            }
        }
    }

    /// Read to ask for locks, written to end them.
    fn turn(&self, key: &LockKey) -> &RwLock<()> {
        &self.turns[key.file as usize % TURNS]
    }

    fn told_later(&self) -> MutexGuard<'_, HashSet<LockKey>> {
        self.told_later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: the home did not hear it. One that is down has them still, and has to be told when it is back.
    async fn tell_ended(&self, key: &LockKey, patience: Duration) -> bool {
        let entry = self.table().lock_of(key).copied();
        let told = match entry {
            Some(entry) if self.is_member(entry.home) => {
                !self.is_dead(entry.home) && self.tell_home(entry.home, key, patience).await
            }
            _ => true,
        };
        if told {
            self.told_later().remove(key);
            if let Err(error) = self.table().unlock(key) {
                journal_failed(&error);
            }
        }
        told
    }

    async fn tell_home(&self, home: NodeId, key: &LockKey, patience: Duration) -> bool {
        let request = wire::EndLocks { owner: Some(self.lock_owner(key)) };
        let options = CallOptions::within(patience);
        self.ask::<EndLocks>(home, request, &options).await.is_ok()
    }
}
