//! Locks under a write lease: taken and given back without asking anybody, and drained with the other changes.
//!
//! Rules, and why they suffice:
//! - Nobody but the holder gets a new lock on a covered inode: a request of another node is refused with
//!   [`TreeError::Held`](super::TreeError::Held), as a change is, so its issuer has the lease given back first. With
//!   the lease goes the log, so that what is still locked is in the registry by then.
//! - What others hold from before they may give back at any time. That only makes room: what the holder granted by
//!   its own view stays granted, and the two commute, since owners of two nodes are never one.
//! - Where anybody waits, nothing is locked or unlocked unheard: an unlock grants, and a grant has to be
//!   seen by all. Whoever waits has asked the registry, and nobody can begin to wait on what is locked
//!   unheard (a foreign request is refused, one of the holder's own comes behind the drained log). So whatever can be
//!   waited for is in the registry, and deadlocks are found there.
//! - A request that would not be granted at once is the registry's: of what is in its way some may be
//!   gone already.
//!
//! Invariant: an inode with locks or unlocks that are not drained yet has no waits.

use std::collections::BTreeMap;

use unum_proto::ids::{Ino, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{Lock, LockRange, LockTable, LoggedChange};

use super::Tree;
use super::locks::{HeldLock, LOCK_END_MAX, LockOwner, Locks};
use crate::limits::LOCKS_RESERVED_MAX;

/// Whether a command does nothing but end locks of its issuer.
pub fn gives_locks_back(command: &Command) -> bool {
    matches!(command, Command::Unlock(_) | Command::ReleaseOwner(_))
}

/// The inode whose locks a command is about.
pub fn locked_inode(command: &Command) -> Option<Ino> {
    Span::of(command).map(|span| span.ino)
}

/// What a node holds after these changes of its locks, if it had none before.
pub fn locks_left<'a>(
    node: NodeId,
    commands: impl IntoIterator<Item = &'a Command>,
) -> Vec<(Ino, LockTable, u64)> {
    let mut locks = Locks::default();
    let mut granted = Vec::new();
    for command in commands {
        // They were granted: none is refused for what others had.
        let _ = match command {
            Command::Lock(lock) => {
                let lock = Lock { waiter: None, ..*lock };
                locks.lock(node, &lock, LOCKS_RESERVED_MAX, &mut granted).map(drop)
            }
            Command::Unlock(unlock) => locks.unlock(node, unlock, LOCKS_RESERVED_MAX, &mut granted),
            Command::ReleaseOwner(release) => locks.release_owner(node, release, &mut granted),
            _ => Ok(()),
        };
    }
    let mut left: Vec<_> = locks.of_node(node).collect();
    left.dedup();
    left
}

impl Tree {
    /// Whether a change of locks may stay unheard under a lease on its inode.
    pub(super) fn may_lock_unheard(&self, node: NodeId, command: &Command) -> bool {
        let Some(span) = Span::of(command) else { return false };
        if self.locks.is_awaited(span.ino) {
            return false;
        }
        match command {
            Command::Lock(lock) => {
                self.inode(span.ino).is_ok() && self.locks.would_grant(node, lock)
            }
            _ => true,
        }
    }

    /// Whether a change of locks leaves everything as it is.
    pub(super) fn is_idle(&self, node: NodeId, command: &Command) -> bool {
        let Some(span) = Span::of(command) else { return false };
        let owner = LockOwner { node, id: span.owner };
        let held = self.locks.held(span.ino).iter();
        let mut theirs =
            held.filter(|held| held.owner == owner && held.table == span.table && span.meets(held));
        match command {
            Command::Lock(lock) => theirs.any(|held| {
                held.exclusive == lock.exclusive && held.pid == lock.pid && span.is_within(held)
            }),
            _ => theirs.next().is_none(),
        }
    }
}

/// What a change of locks is about: whatever the owner had there is as the change says from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    ino: Ino,
    table: LockTable,
    owner: u64,
    start: u64,
    end: u64,
}

impl Span {
    /// None: it is no such change, or none that the tree accepts.
    fn of(command: &Command) -> Option<Self> {
        let (ino, range) = match command {
            Command::Lock(lock) => (lock.ino, lock.range?),
            Command::Unlock(unlock) => (unlock.ino, unlock.range?),
            Command::ReleaseOwner(release) => {
                let (table, owner) = (release.table, release.owner);
                (release.ino, LockRange { table, owner, start: 0, end: LOCK_END_MAX })
            }
            _ => return None,
        };
        let lock = HeldLock::from_proto(NodeId(0), Some(&range), false, 0).ok()?;
        let HeldLock { table, owner, start, end, .. } = lock;
        Some(Self { ino: Ino(ino), table, owner: owner.id, start, end })
    }

    fn meets(&self, held: &HeldLock) -> bool {
        self.start <= held.end && held.start <= self.end
    }

    fn is_within(&self, held: &HeldLock) -> bool {
        held.start <= self.start && self.end <= held.end
    }

    fn covers(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// Takes out of the changes of one drain what later ones of it undo. A drain is one command, so nobody but the
/// node that locked sees what is between two of its changes.
pub fn fold_locks(changes: &mut [LoggedChange]) {
    let mut later: BTreeMap<(Ino, LockTable, u64), Vec<Span>> = BTreeMap::new();
    for change in changes.iter_mut().rev() {
        let command = change.command.as_ref().and_then(|command| command.command.as_ref());
        let Some(span) = command.and_then(Span::of) else { continue };
        let spans = later.entry((span.ino, span.table, span.owner)).or_default();
        if spans.iter().any(|later| later.covers(&span)) {
            change.command = None;
            change.undone = true;
        } else {
            spans.push(span);
        }
    }
}
