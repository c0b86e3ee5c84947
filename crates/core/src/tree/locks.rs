//! Locks on files: fcntl's byte ranges and flock's whole files, as two tables that do not know of
//! each other, with one queue of waiting requests per inode.
//!
//! Invariants: two locks of one table on one inode overlap only if both are shared or both have one
//! owner; one owner's record locks never overlap, and those of one kind never touch. A request waits
//! only while a lock of another owner is in its way. Whoever changes locks grants what has become
//! possible, oldest request first, and reports it.
//!
//! A deadlock is looked for among record locks when a request is about to wait, as fcntl promises;
//! flock promises nothing. Open file description locks are record locks whose owner is the
//! description; the search includes them, though Linux does not look for theirs.
//!
//! # Contract with the shells
//!
//! A request that may wait carries a waiter id, never used twice by a node. `Queued` means: wait
//! until [`Locks::is_waiting`] is false after the applied state has advanced ([`Locks::version`]
//! grows whenever a wait may have ended). A wait that ends without a `CancelWait` of its node was
//! granted: nothing else ends it while the node lives. To give up, propose `CancelWait`: if its reply
//! says that the wait was not there any more, the lock was granted before; then hand it to the
//! program, or unlock it. `ReleaseNode` ends everything that a node had.
//!
//! The holder of a write lease locks what it covers without asking: [`super::leased_locks`].

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use unum_proto::ids::{Ino, NodeId};
use unum_proto::tree::{
    self as proto, Lock, LockRange, LockState, LockTable, Locked, ReleaseOwner, Unlock, WaitEnded,
    Waiter,
};

use super::error::TreeError;
use crate::limits::{
    DEADLOCK_SEARCH_MAX, LOCKS_PER_INODE_MAX, LOCKS_RESERVED_MAX, WAITS_PER_INODE_MAX,
};

/// The last byte that a lock can cover: it stands for the end of any file.
pub const LOCK_END_MAX: u64 = i64::MAX as u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner {
    pub node: NodeId,
    /// The kernel's number for it on that node.
    pub id: u64,
}

/// A lock, held or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    pub table: LockTable,
    pub owner: LockOwner,
    pub exclusive: bool,
    pub start: u64,
    /// Inclusive.
    pub end: u64,
    /// Shown by F_GETLK only.
    pub pid: u32,
}

impl HeldLock {
    pub(super) fn from_proto(
        node: NodeId,
        range: Option<&LockRange>,
        exclusive: bool,
        pid: u32,
    ) -> Result<Self, TreeError> {
        let range = range.ok_or(TreeError::Invalid)?;
        let table = valid_table(range.table)?;
        let (start, end) = match table {
            LockTable::Flock => (0, LOCK_END_MAX),
            _ => (range.start, range.end),
        };
        if start > end || end > LOCK_END_MAX {
            return Err(TreeError::Invalid);
        }
        let owner = LockOwner { node, id: range.owner };
        Ok(Self { table, owner, exclusive, start, end, pid })
    }

    pub fn to_proto(&self) -> proto::HeldLock {
        proto::HeldLock {
            node: self.owner.node.0,
            range: Some(LockRange {
                table: self.table as i32,
                owner: self.owner.id,
                start: self.start,
                end: self.end,
            }),
            exclusive: self.exclusive,
            pid: self.pid,
        }
    }

    fn is_same_owner(&self, other: &Self) -> bool {
        self.table == other.table && self.owner == other.owner
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.table == other.table && self.start <= other.end && other.start <= self.end
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.overlaps(other) && self.owner != other.owner && (self.exclusive || other.exclusive)
    }

    /// Whether the two are one lock: same owner, same kind, overlapping or side by side.
    fn joins(&self, other: &Self) -> bool {
        self.is_same_owner(other)
            && self.exclusive == other.exclusive
            && self.start <= other.end.saturating_add(1)
            && other.start <= self.end.saturating_add(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub waiter: u64,
    pub lock: HeldLock,
}

impl Wait {
    fn key(&self) -> (LockOwner, u64) {
        (self.lock.owner, self.waiter)
    }

    fn name(&self) -> Waiter {
        Waiter { node: self.lock.owner.node.0, waiter: self.waiter }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct InodeLocks {
    pub held: Vec<HeldLock>,
    /// Oldest first.
    pub waits: Vec<Wait>,
}

impl InodeLocks {
    fn conflict(&self, lock: &HeldLock) -> Option<&HeldLock> {
        self.held.iter().find(|held| held.conflicts(lock))
    }

    fn has_room(&self, most: usize) -> bool {
        // A new range splits one old range in two at most; waits will need their room too.
        self.held.len() + 2 * self.waits.len() + 2 <= most
    }

    /// Takes the owner's hold off a range, splitting what reaches beyond it.
    fn clear(&mut self, range: &HeldLock) {
        let mut kept = Vec::with_capacity(self.held.len() + 1);
        for held in &self.held {
            if !(held.is_same_owner(range) && held.overlaps(range)) {
                kept.push(*held);
                continue;
            }
            if held.start < range.start {
                kept.push(HeldLock { end: range.start - 1, ..*held });
            }
            if held.end > range.end {
                kept.push(HeldLock { start: range.end + 1, ..*held });
            }
        }
        self.held = kept;
        self.sort();
    }

    /// In whichever order locks came and went, those that are left are listed alike.
    fn sort(&mut self) {
        self.held.sort_by_key(|held| (held.table, held.start, held.end, held.owner));
    }

    /// Gives the owner the range, in place of what it had there.
    fn place(&mut self, lock: HeldLock) {
        self.clear(&lock);
        let mut merged = lock;
        self.held.retain(|held| {
            let joins = held.joins(&merged);
            if joins {
                merged.start = merged.start.min(held.start);
                merged.end = merged.end.max(held.end);
            }
            !joins
        });
        self.held.push(merged);
        self.sort();
    }

    /// Grants what nothing stands in the way of, oldest first, until nothing more can be granted.
    fn grant(&mut self) -> Vec<Wait> {
        let mut granted = Vec::new();
        while let Some(at) = self.waits.iter().position(|w| self.conflict(&w.lock).is_none()) {
            let wait = self.waits.remove(at);
            self.place(wait.lock);
            granted.push(wait);
        }
        granted
    }

    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waits.is_empty()
    }
}

#[derive(Clone, Debug, Default)]
pub struct Locks {
    inodes: OrdMap<Ino, Arc<InodeLocks>>,
    /// Every wait in every queue, by owner, so that deadlocks are found.
    by_owner: OrdMap<(LockOwner, u64), Ino>,
    /// The same by the waiter's name.
    by_waiter: OrdMap<(NodeId, u64), Ino>,
    version: u64,
}

impl Locks {
    /// Grows whenever a wait has ended.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn is_waiting(&self, node: NodeId, waiter: u64) -> bool {
        self.by_waiter.contains_key(&(node, waiter))
    }

    /// F_GETLK: the first lock in the way of this one, if any.
    pub fn conflict(&self, ino: Ino, lock: &HeldLock) -> Option<HeldLock> {
        self.inodes.get(&ino)?.conflict(lock).copied()
    }

    /// The locks that an inode has, by table and start.
    pub fn held(&self, ino: Ino) -> &[HeldLock] {
        self.inodes.get(&ino).map_or(&[], |locks| &locks.held)
    }

    /// What the owners of a node hold or wait for, on whichever inodes.
    pub fn of_node(&self, node: NodeId) -> impl Iterator<Item = (Ino, LockTable, u64)> {
        self.inodes.iter().flat_map(move |(&ino, locks)| {
            let all = locks.held.iter().chain(locks.waits.iter().map(|wait| &wait.lock));
            let ours = all.filter(move |lock| lock.owner.node == node);
            ours.map(move |lock| (ino, lock.table, lock.owner.id))
        })
    }

    /// Whether anybody waits for a lock on the inode.
    pub fn is_awaited(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|locks| !locks.waits.is_empty())
    }

    /// Whether an owner holds anything on the inode.
    pub fn holds(&self, ino: Ino, table: LockTable, owner: LockOwner) -> bool {
        self.held(ino).iter().any(|held| held.table == table && held.owner == owner)
    }

    /// Whether a request would be granted as it comes.
    pub(super) fn would_grant(&self, node: NodeId, command: &Lock) -> bool {
        let ino = Ino(command.ino);
        let lock =
            HeldLock::from_proto(node, command.range.as_ref(), command.exclusive, command.pid);
        lock.is_ok_and(|lock| self.conflict(ino, &lock).is_none())
            && self.room(ino, LOCKS_PER_INODE_MAX).is_ok()
    }

    /// Whether the inode has locks or waits.
    pub fn is_used(&self, ino: Ino) -> bool {
        self.inodes.contains_key(&ino)
    }

    pub(super) fn lock(
        &mut self,
        node: NodeId,
        command: &Lock,
        most: usize,
        granted: &mut Vec<Waiter>,
    ) -> Result<Locked, TreeError> {
        let ino = Ino(command.ino);
        let lock =
            HeldLock::from_proto(node, command.range.as_ref(), command.exclusive, command.pid)?;
        if command.waiter.is_some_and(|waiter| self.is_waiting(node, waiter)) {
            return Err(TreeError::Invalid);
        }
        let conflict = self.conflict(ino, &lock);
        match (conflict, command.waiter) {
            (None, _) => {
                self.room(ino, most)?;
                self.change(ino, granted, |locks| locks.place(lock));
                Ok(locked(LockState::Granted, None))
            }
            (Some(conflict), None) => Ok(locked(LockState::Conflict, Some(conflict))),
            (Some(conflict), Some(waiter)) => {
                self.enqueue(ino, Wait { waiter, lock }, granted)?;
                Ok(locked(LockState::Queued, Some(conflict)))
            }
        }
    }

    fn enqueue(
        &mut self,
        ino: Ino,
        wait: Wait,
        granted: &mut Vec<Waiter>,
    ) -> Result<(), TreeError> {
        self.room(ino, LOCKS_PER_INODE_MAX)?;
        let waits = self.inodes.get(&ino).map_or(0, |locks| locks.waits.len());
        if waits >= WAITS_PER_INODE_MAX {
            return Err(TreeError::TooManyLocks);
        }
        if wait.lock.table == LockTable::Record && self.would_deadlock(ino, &wait.lock) {
            return Err(TreeError::Deadlock);
        }
        self.index(ino, &wait);
        self.change(ino, granted, |locks| {
            // As flock(2) has it: who waits for a conversion gives up the old lock first, else
            // two that hold it shared and both want it exclusive would wait for ever.
            if wait.lock.table == LockTable::Flock {
                locks.clear(&wait.lock);
            }
            locks.waits.push(wait);
        });
        Ok(())
    }

    pub(super) fn unlock(
        &mut self,
        node: NodeId,
        command: &Unlock,
        most: usize,
        granted: &mut Vec<Waiter>,
    ) -> Result<(), TreeError> {
        let ino = Ino(command.ino);
        let range = HeldLock::from_proto(node, command.range.as_ref(), false, 0)?;
        let splits = |held: &HeldLock| {
            held.is_same_owner(&range) && held.start < range.start && held.end > range.end
        };
        if self.held(ino).iter().any(splits) {
            self.room(ino, most)?;
        }
        self.change(ino, granted, |locks| locks.clear(&range));
        Ok(())
    }

    pub(super) fn cancel(
        &mut self,
        node: NodeId,
        waiter: u64,
        granted: &mut Vec<Waiter>,
    ) -> WaitEnded {
        let Some(ino) = self.by_waiter.get(&(node, waiter)).copied() else {
            return WaitEnded { cancelled: false };
        };
        self.end_waits(ino, granted, |wait| wait.waiter == waiter && wait.lock.owner.node == node);
        WaitEnded { cancelled: true }
    }

    pub(super) fn release_owner(
        &mut self,
        node: NodeId,
        command: &ReleaseOwner,
        granted: &mut Vec<Waiter>,
    ) -> Result<(), TreeError> {
        let table = valid_table(command.table)?;
        let owner = LockOwner { node, id: command.owner };
        let ends = |lock: &HeldLock| lock.table == table && lock.owner == owner;
        self.release_where(Ino(command.ino), granted, ends);
        Ok(())
    }

    pub(super) fn release_node(&mut self, node: NodeId, granted: &mut Vec<Waiter>) {
        let ends = |lock: &HeldLock| lock.owner.node == node;
        let touched = |locks: &InodeLocks| {
            locks.held.iter().any(ends) || locks.waits.iter().any(|wait| ends(&wait.lock))
        };
        let inos: Vec<Ino> =
            self.inodes.iter().filter(|(_, locks)| touched(locks)).map(|(&ino, _)| ino).collect();
        for ino in inos {
            self.release_where(ino, granted, ends);
        }
    }

    fn release_where(
        &mut self,
        ino: Ino,
        granted: &mut Vec<Waiter>,
        ends: impl Fn(&HeldLock) -> bool,
    ) {
        self.end_waits(ino, &mut Vec::new(), |wait| ends(&wait.lock));
        self.change(ino, granted, |locks| locks.held.retain(|held| !ends(held)));
    }

    fn end_waits(&mut self, ino: Ino, granted: &mut Vec<Waiter>, ends: impl Fn(&Wait) -> bool) {
        let Some(locks) = self.inodes.get(&ino) else { return };
        let ended: Vec<Wait> = locks.waits.iter().filter(|wait| ends(wait)).copied().collect();
        for wait in &ended {
            self.unindex(wait);
        }
        self.change(ino, granted, |locks| locks.waits.retain(|wait| !ends(wait)));
    }

    fn room(&self, ino: Ino, most: usize) -> Result<(), TreeError> {
        match self.inodes.get(&ino) {
            Some(locks) if !locks.has_room(most) => Err(TreeError::TooManyLocks),
            Some(_) | None => Ok(()),
        }
    }

    /// Changes an inode's locks, then grants what that has made possible.
    fn change(
        &mut self,
        ino: Ino,
        granted: &mut Vec<Waiter>,
        change: impl FnOnce(&mut InodeLocks),
    ) {
        let mut locks = self.inodes.remove(&ino).unwrap_or_default();
        let inner = Arc::make_mut(&mut locks);
        change(inner);
        for wait in inner.grant() {
            self.unindex(&wait);
            granted.push(wait.name());
        }
        if !locks.is_empty() {
            self.inodes.insert(ino, locks);
        }
    }

    fn index(&mut self, ino: Ino, wait: &Wait) {
        self.by_owner.insert(wait.key(), ino);
        self.by_waiter.insert((wait.lock.owner.node, wait.waiter), ino);
    }

    fn unindex(&mut self, wait: &Wait) {
        self.by_owner.remove(&wait.key());
        self.by_waiter.remove(&(wait.lock.owner.node, wait.waiter));
        self.version += 1;
    }

    /// Whether somebody in whose way the owner stands would, through others, be waited for.
    fn would_deadlock(&self, ino: Ino, lock: &HeldLock) -> bool {
        let mut seen = BTreeSet::new();
        let mut open: Vec<LockOwner> = self.blockers(ino, lock).collect();
        while let Some(owner) = open.pop() {
            if owner == lock.owner {
                return true;
            }
            if seen.len() < DEADLOCK_SEARCH_MAX && seen.insert(owner) {
                open.extend(self.waits_for(owner));
            }
        }
        false
    }

    /// The owners of locks in the way of this one.
    fn blockers(&self, ino: Ino, lock: &HeldLock) -> impl Iterator<Item = LockOwner> {
        let held = self.held(ino).iter();
        held.filter(|held| held.conflicts(lock)).map(|held| held.owner)
    }

    fn waits_for(&self, owner: LockOwner) -> BTreeSet<LockOwner> {
        let mut owners = BTreeSet::new();
        for (&(_, waiter), &ino) in self.by_owner.range((owner, 0)..=(owner, u64::MAX)) {
            let Some(locks) = self.inodes.get(&ino) else { continue };
            let is_it = |wait: &&Wait| wait.waiter == waiter && wait.lock.owner == owner;
            let records = locks.waits.iter().filter(is_it);
            for wait in records.filter(|wait| wait.lock.table == LockTable::Record) {
                owners.extend(self.blockers(ino, &wait.lock));
            }
        }
        owners
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, &InodeLocks)> {
        self.inodes.iter().map(|(&ino, locks)| (ino, locks.as_ref()))
    }

    pub(super) fn restore_version(&mut self, version: u64) {
        self.version = version;
    }

    /// Adds locks of a snapshot behind those that are there.
    pub(super) fn restore_held(&mut self, ino: Ino, held: impl Iterator<Item = HeldLock>) {
        let mut locks = self.inodes.remove(&ino).unwrap_or_default();
        Arc::make_mut(&mut locks).held.extend(held);
        if !locks.is_empty() {
            self.inodes.insert(ino, locks);
        }
    }

    pub(super) fn restore_wait(&mut self, ino: Ino, wait: Wait) {
        self.index(ino, &wait);
        let mut locks = self.inodes.remove(&ino).unwrap_or_default();
        Arc::make_mut(&mut locks).waits.push(wait);
        self.inodes.insert(ino, locks);
    }

    /// What is wrong with the locks.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut waits = 0;
        for (ino, locks) in self.iter() {
            waits += locks.waits.len();
            faults.extend(locks.faults().into_iter().map(|fault| format!("{ino}: {fault}")));
            for wait in &locks.waits {
                if self.by_owner.get(&wait.key()) != Some(&ino) {
                    faults.push(format!("{ino}: wait {} is not known by owner", wait.waiter));
                }
                if self.by_waiter.get(&(wait.lock.owner.node, wait.waiter)) != Some(&ino) {
                    faults.push(format!("{ino}: wait {} is not known by name", wait.waiter));
                }
            }
        }
        if waits != self.by_owner.len() || waits != self.by_waiter.len() {
            faults.push(format!("{waits} waits, but others in the indexes"));
        }
        faults
    }
}

impl InodeLocks {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.is_empty() {
            faults.push("an empty list of locks is kept".to_owned());
        }
        if self.held.len() > LOCKS_RESERVED_MAX || self.waits.len() > WAITS_PER_INODE_MAX {
            faults.push(format!("{} locks, {} waits", self.held.len(), self.waits.len()));
        }
        for (at, lock) in self.held.iter().enumerate() {
            if lock.start > lock.end || lock.end > LOCK_END_MAX {
                faults.push(format!("a lock from {} to {}", lock.start, lock.end));
            }
            for other in &self.held[at + 1..] {
                if lock.conflicts(other) {
                    faults.push(format!("{lock:?} and {other:?} are both held"));
                }
                if lock.joins(other) || (lock.is_same_owner(other) && lock.overlaps(other)) {
                    faults.push(format!("{lock:?} and {other:?} should be one"));
                }
            }
        }
        for wait in &self.waits {
            if self.conflict(&wait.lock).is_none() {
                faults.push(format!("wait {} waits for nothing", wait.waiter));
            }
        }
        faults
    }
}

fn locked(state: LockState, conflict: Option<HeldLock>) -> Locked {
    Locked { state: state as i32, conflict: conflict.map(|lock| lock.to_proto()) }
}

fn valid_table(raw: i32) -> Result<LockTable, TreeError> {
    match LockTable::try_from(raw) {
        Ok(table @ (LockTable::Record | LockTable::Flock)) => Ok(table),
        Ok(LockTable::Unspecified) | Err(_) => Err(TreeError::Invalid),
    }
}
