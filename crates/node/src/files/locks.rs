//! fcntl and flock locks, asked of the registry so that they hold on all nodes.

use std::collections::HashMap;
use std::sync::PoisonError;

use rustix::io::Errno;
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
use super::{Call, Files};
use crate::signals::Signal;

/// Who of this node may hold locks on what: most closes have none to release, and need no command.
/// With each goes the open file that the last lock came through, if this daemon saw it come.
pub(super) type LockOwners = HashMap<OwnerKey, Option<Fh>>;

type OwnerKey = (Ino, LockFamily, u64);

impl Call<'_> {
    pub(super) async fn getlk(&self, request: LockRequest) -> Result<LockRange, FileError> {
        self.fresh().await?;
        let wanted = HeldLock {
            table: table(request.family),
            owner: Owner { node: self.files.parts.node, id: request.owner.0 },
            exclusive: request.range.kind == LockKind::Write,
            start: request.range.start,
            end: request.range.end,
            pid: request.range.pid,
        };
        let conflict = self.look(|tree| tree.locks().conflict(self.ino, &wanted));
        Ok(match conflict {
            None => LockRange { kind: LockKind::Unlock, ..request.range },
            Some(lock) => self.shown(&lock),
        })
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
        let exclusive = match request.range.kind {
            LockKind::Unlock => return self.unlock(&request).await,
            LockKind::Write => true,
            LockKind::Read => false,
        };
        let key = (self.ino, request.family, request.owner.0);
        self.files.lock_owners().insert(key, Some(request.fh));
        let lock = Lock {
            ino: self.ino.0,
            range: Some(range(&request)),
            exclusive,
            pid: self.pid,
            waiter: wait.then_some(self.unique),
        };
        self.make_known().await?;
        let Outcome::Locked(locked) = self.change(Command::Lock(lock)).await? else {
            return Err(FileError::Strange);
        };
        match locked.state() {
            LockState::Granted => Ok(()),
            LockState::Queued => self.wait(&request, signal).await,
            LockState::Conflict | LockState::Unspecified => Err(Errno::AGAIN.into()),
        }
    }

    async fn unlock(&self, request: &LockRequest) -> Result<(), FileError> {
        let unlock = Unlock { ino: self.ino.0, range: Some(range(request)) };
        self.change(Command::Unlock(unlock)).await.map(drop)
    }

    /// Waits without a bound, as fcntl(2) promises; a signal ends it.
    async fn wait(&self, request: &LockRequest, signal: &Signal) -> Result<(), FileError> {
        tokio::select! {
            biased;
            () = self.granted() => Ok(()),
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
        self.failure(fh)
    }

    pub(super) async fn release_flock(&self, owner: LockOwner) -> Result<(), FileError> {
        self.release_locks(LockFamily::Flock, owner).await
    }

    /// The end of an open file, when no descriptor is left, releases the record locks that came
    /// through it. The kernel does not tell of those that belong to the open file itself; those of
    /// processes ended with their closes.
    pub(super) async fn release_open_file(&self, fh: Fh) -> Result<(), FileError> {
        let last = self.files.handles().is_last(HandleId(fh.0));
        let owners: Vec<u64> = {
            let owners = self.files.lock_owners();
            let ends = |through: &Option<Fh>| through.map_or(last, |through| through == fh);
            let ours = owners.iter().filter(|((ino, family, _), through)| {
                *ino == self.ino && *family == LockFamily::Fcntl && ends(through)
            });
            ours.map(|((_, _, owner), _)| *owner).collect()
        };
        for owner in owners {
            self.release_locks(LockFamily::Fcntl, LockOwner(owner)).await?;
        }
        Ok(())
    }

    async fn release_locks(&self, family: LockFamily, owner: LockOwner) -> Result<(), FileError> {
        let key = (self.ino, family, owner.0);
        if !self.files.lock_owners().contains_key(&key) {
            return Ok(());
        }
        let release = ReleaseOwner { ino: self.ino.0, table: table(family) as i32, owner: owner.0 };
        self.change(Command::ReleaseOwner(release)).await?;
        self.files.lock_owners().remove(&key);
        Ok(())
    }
}

impl Files {
    pub(super) fn lock_owners(&self) -> std::sync::MutexGuard<'_, LockOwners> {
        self.lock_owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After the death of a daemon: its lock owners are those that the registry knows on the files
    /// that are open here.
    pub(super) fn recall_lock_owners(&self) {
        let node = self.parts.node;
        let inodes: Vec<Ino> = self.handles().inodes().collect();
        let mut owners = LockOwners::new();
        self.look(|tree| {
            for ino in inodes {
                let held = tree.locks().held(ino).iter().filter(|lock| lock.owner.node == node);
                owners.extend(held.map(|lock| ((ino, family(lock.table), lock.owner.id), None)));
            }
        });
        self.lock_owners().extend(owners);
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

fn family(table: LockTable) -> LockFamily {
    match table {
        LockTable::Flock => LockFamily::Flock,
        LockTable::Record | LockTable::Unspecified => LockFamily::Fcntl,
    }
}
