//! fcntl and flock locks. They hold on all nodes: each is a change of the tree, in the change log where this
//! node's write lease covers the inode (`unum_core::tree::leased_locks` has the rules), else a command to the
//! registry behind all that is pending here.

use std::sync::PoisonError;

use rustix::io::Errno;
use unum_core::tree::TreeError;
use unum_core::tree::locks::{HeldLock, LockOwner as Owner};
use unum_proto::ids::Ino;
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{
    CancelWait, Lock, LockRange as ProtoRange, LockState, LockTable, ReleaseOwner, Unlock,
};
use unum_sys::fuse::{Fh, LockFamily, LockKind, LockOwner, LockRange, LockRequest};

use super::errno::FileError;
use super::handles::HandleId;
use super::lock_owners::{LockOwners, OwnerKey};
use super::{Call, Files};
use crate::signals::Signal;

impl Call<'_> {
    pub(super) async fn getlk(&self, request: LockRequest) -> Result<LockRange, FileError> {
        let wanted = HeldLock {
            table: table(request.family),
            owner: Owner { node: self.files.parts.node, id: request.owner.0 },
            exclusive: request.range.kind == LockKind::Write,
            start: request.range.start,
            end: request.range.end,
            pid: request.range.pid,
        };
        let conflict = self.conflict(&wanted).await?;
        Ok(match conflict {
            None => LockRange { kind: LockKind::Unlock, ..request.range },
            Some(lock) => self.shown(&lock),
        })
    }

    async fn conflict(&self, wanted: &HeldLock) -> Result<Option<HeldLock>, FileError> {
        let node = self.files.parts.node;
        self.files.log.resume(self.deadline).await?;
        loop {
            self.fresh().await?;
            let (holder, conflict) = self
                .look(|tree| (tree.holder_of(self.ino), tree.locks().conflict(self.ino, wanted)));
            match holder.filter(|holder| *holder != node) {
                // It alone knows what is locked.
                Some(other) => self.files.log.reclaim(other, &[self.ino], self.deadline).await?,
                None => return Ok(conflict),
            }
        }
    }

    /// PIDs are unique in the cluster only inside the worlds, so one of another node is not shown.
    fn shown(&self, lock: &HeldLock) -> LockRange {
        let here = lock.owner.node == self.files.parts.node;
        LockRange {
            start: lock.start,
            end: lock.end,
            kind: if lock.exclusive { LockKind::Write } else { LockKind::Read },
            pid: if here { lock.pid } else { 0 },
        }
    }

    pub(super) async fn setlk(
        &self,
        request: LockRequest,
        wait: bool,
        signal: &Signal,
    ) -> Result<(), FileError> {
        if let Some(locked) = self.lock_past(request.range.kind) {
            return locked;
        }
        let key = (self.ino, table(request.family), request.owner.0);
        let unlocks = request.range.kind == LockKind::Unlock;
        if self.files.has_lost(key) {
            // An unlock is told once, and there is nothing to be unlocked.
            if unlocks {
                self.files.lock_owners().forget(key);
            }
            return Err(Errno::IO.into());
        }
        self.files.lock_owners().begin(key, (!unlocks).then_some(request.fh));
        let done = match request.range.kind {
            LockKind::Unlock => self.unlock(&request).await,
            LockKind::Write => self.lock(&request, true, wait, signal).await,
            LockKind::Read => self.lock(&request, false, wait, signal).await,
        };
        let holds = self.files.holds(key);
        self.files.lock_owners().end(key, holds, done.is_ok() && !unlocks);
        done
    }

    async fn lock(
        &self,
        request: &LockRequest,
        exclusive: bool,
        wait: bool,
        signal: &Signal,
    ) -> Result<(), FileError> {
        if self.resent && wait {
            // A former daemon may have queued it.
            self.fresh().await?;
            let node = self.files.parts.node;
            if self.look(|tree| tree.locks().is_waiting(node, self.unique)) {
                return self.wait(request, signal).await;
            }
        }
        let lock = Lock {
            ino: self.ino.0,
            range: Some(range(request)),
            exclusive,
            pid: self.pid,
            waiter: wait.then_some(self.unique),
        };
        let Outcome::Locked(locked) = self.change_locks(Command::Lock(lock)).await? else {
            return Err(FileError::Strange);
        };
        match locked.state() {
            LockState::Granted => Ok(()),
            LockState::Queued => self.wait(request, signal).await,
            LockState::Conflict | LockState::Unspecified => Err(Errno::AGAIN.into()),
        }
    }

    async fn unlock(&self, request: &LockRequest) -> Result<(), FileError> {
        let unlock = Unlock { ino: self.ino.0, range: Some(range(request)) };
        self.change_locks(Command::Unlock(unlock)).await.map(drop)
    }

    /// A change of locks: in the change log, or a command to the registry behind all that is in there.
    async fn change_locks(&self, command: Command) -> Result<Outcome, FileError> {
        match self.change_unheard(&command, &[]).await? {
            Some(outcome) => Ok(outcome),
            None => Box::pin(self.change_locks_heard(command)).await,
        }
    }

    async fn change_locks_heard(&self, command: Command) -> Result<Outcome, FileError> {
        loop {
            let outcome = {
                let _pass = self.files.log.pass_locks(&command, self.deadline).await?;
                self.change(command.clone()).await
            };
            match outcome {
                Err(FileError::Tree(TreeError::Held)) => {
                    self.files.reclaim_for(&command, self.deadline).await?;
                }
                Ok(Outcome::Locked(locked)) if locked.state() == LockState::Granted => {
                    // If it was a lost node's, that one locks nothing unheard any more by then.
                    self.files.settled(&[self.ino], self.deadline).await?;
                    return Ok(Outcome::Locked(locked));
                }
                outcome => return outcome,
            }
        }
    }

    /// Waits without a bound, as fcntl(2) promises; a signal ends it.
    async fn wait(&self, request: &LockRequest, signal: &Signal) -> Result<(), FileError> {
        tokio::select! {
            biased;
            () = self.granted() => self.files.settled(&[self.ino], self.files.deadline()).await,
            () = signal.taken() => self.give_up(request).await,
        }
    }

    async fn granted(&self) {
        let node = self.files.parts.node;
        let mut applied = self.files.parts.registry.watch();
        // Until the queueing itself is applied here, nobody seems to wait.
        while self.files.fresh(self.files.deadline()).await.is_err() {}
        while self.look(|tree| tree.locks().is_waiting(node, self.unique)) {
            if applied.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn give_up(&self, request: &LockRequest) -> Result<(), FileError> {
        let deadline = self.files.deadline();
        let cancel = CancelWait { waiter: self.unique };
        match self.files.change(Command::CancelWait(cancel), deadline).await? {
            Outcome::WaitEnded(ended) if ended.cancelled => Err(FileError::Interrupted),
            // It had been granted when the signal came: it is the program's.
            Outcome::WaitEnded(_) => Ok(()),
            _ => {
                self.unlock(request).await?;
                Err(FileError::Interrupted)
            }
        }
    }

    /// A close releases the record locks of its owner on the file, whichever descriptor it was.
    /// It also tells that changes were lost, and what the kernel wrote back before it is seen by all.
    pub(super) async fn flush(&self, fh: Fh, owner: LockOwner) -> Result<(), FileError> {
        self.release_locks(LockFamily::Fcntl, owner).await?;
        if let Err(error) = self.files.shown_to_all(self.ino, self.deadline).await {
            // It is made all the same, and others who look wait for it.
            tracing::debug!(%error, "a file is closed before its last bytes are seen by all");
        }
        // An open file may have descriptors in several processes, and the close of one, of which perhaps nobody
        // looks at the outcome, must not spare the others what fsync tells.
        self.files.log.bury();
        match self.files.handles().has_failed(HandleId(fh.0)) {
            true => Err(FileError::Errno(Errno::IO)),
            false => Ok(()),
        }
    }

    pub(super) async fn release_flock(&self, owner: LockOwner) -> Result<(), FileError> {
        self.release_locks(LockFamily::Flock, owner).await
    }

    /// The end of an open file, when no descriptor is left, releases the record locks that came
    /// through it. The kernel does not tell of those that belong to the open file itself; those of
    /// processes ended with their closes.
    pub(super) async fn release_open_file(&self, fh: Fh) -> Result<(), FileError> {
        let last = self.files.handles().is_last(HandleId(fh.0));
        let ends = |through: Option<Fh>| through.map_or(last, |through| through == fh);
        let owners: Vec<u64> = self.files.lock_owners().of_records(self.ino, ends);
        for owner in owners {
            self.release_locks(LockFamily::Fcntl, LockOwner(owner)).await?;
        }
        Ok(())
    }

    async fn release_locks(&self, family: LockFamily, owner: LockOwner) -> Result<(), FileError> {
        let key = (self.ino, table(family), owner.0);
        if !self.files.lock_owners().is_known(key) {
            return Ok(());
        }
        if self.files.has_lost(key) {
            self.files.lock_owners().forget(key);
            return Err(Errno::IO.into());
        }
        let release = ReleaseOwner { ino: self.ino.0, table: table(family) as i32, owner: owner.0 };
        self.files.lock_owners().begin(key, None);
        let done = self.change_locks(Command::ReleaseOwner(release)).await;
        let holds = self.files.holds(key);
        let mut owners = self.files.lock_owners();
        owners.end(key, holds, false);
        if done.is_ok() {
            owners.forget_idle(key);
        }
        done.map(drop)
    }

    /// Fails if anybody here had a lock on the inode that was lost, and was not told by an unlock or a close.
    pub(super) fn keeps_locks(&self, ino: Ino) -> Result<(), FileError> {
        let held = self.files.lock_owners().held(ino);
        match held.into_iter().any(|key| self.files.has_lost(key)) {
            true => Err(Errno::IO.into()),
            false => Ok(()),
        }
    }
}

impl Files {
    pub(super) fn lock_owners(&self) -> std::sync::MutexGuard<'_, LockOwners> {
        self.lock_owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self, (ino, table, owner): OwnerKey) -> bool {
        let owner = Owner { node: self.parts.node, id: owner };
        self.look(|tree| tree.locks().holds(ino, table, owner))
    }

    /// Whether what an owner holds was ended without it: this node was declared down.
    fn has_lost(&self, key: OwnerKey) -> bool {
        let held = || self.lock_owners().is_held(key);
        // What it has is told for sure only if no call about it came between.
        held() && !self.holds(key) && held()
    }

    /// After the death of a daemon: its lock owners are those that the registry knows on the files
    /// that are open here, and those that locked something that was not drained.
    pub(super) fn recall_lock_owners(&self) {
        let node = self.parts.node;
        let inodes: Vec<Ino> = self.handles().inodes().collect();
        let mut keys = self.log.left_locked();
        self.look(|tree| {
            for ino in inodes {
                let held = tree.locks().held(ino).iter().filter(|lock| lock.owner.node == node);
                keys.extend(held.map(|lock| (ino, lock.table, lock.owner.id)));
            }
        });
        let mut owners = self.lock_owners();
        keys.into_iter().for_each(|key| owners.recall(key));
    }
}

fn range(request: &LockRequest) -> ProtoRange {
    ProtoRange {
        table: table(request.family) as i32,
        owner: request.owner.0,
        start: request.range.start,
        end: request.range.end,
    }
}

pub(super) fn table(family: LockFamily) -> LockTable {
    match family {
        LockFamily::Flock => LockTable::Flock,
        LockFamily::Fcntl => LockTable::Record,
    }
}
