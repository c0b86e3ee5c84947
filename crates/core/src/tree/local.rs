//! The tree as a node sees it that has made changes which the log does not have yet.
//!
//! It is the confirmed tree with the node's pending changes on top, kept up by applying what the log brings
//! to both. That is right because they commute: a pending change touches only inodes that the node's
//! write lease covers, and commands of others that touch these are refused. What does not depend on inodes alone
//! is taken care of: inode numbers and times are part of a change, room is promised from a reserve, and a
//! directory that goes to another parent is never a pending change (see [`Tree::may_change_unheard`]).
//!
//! Invariants: pending changes have numbers without gaps, in the order in which they were made; with
//! none of them pending the local tree is the confirmed one.

use std::collections::{BTreeSet, VecDeque};

use unum_proto::ids::{Ino, LeaseId, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{
    Drain, Drained, FallocateMode, Leased, Lock, LoggedChange, TreeCommand, TreeReply, Write,
};

use super::folding::Unfolding;
use super::{Tree, outcome};
use crate::limits::PENDING_CHANGES_MAX;
use crate::time::Time;

/// A change that waits to be drained.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    pub number: u64,
    pub time: Time,
    pub command: TreeCommand,
}

impl Pending {
    pub fn to_proto(&self) -> LoggedChange {
        LoggedChange {
            time_ns: self.time.0,
            command: Some(self.command.clone()),
            ..LoggedChange::default()
        }
    }
}

/// Why a change cannot be made unheard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The write lease does not cover all that it touches.
    NotCovered,
    /// The lease has no inode number left: it has to be given back for a new one.
    NoNumber,
    /// Too many changes are pending.
    Full,
}

/// A command as it was executed on the confirmed tree.
#[derive(Clone, Debug)]
pub struct Executed {
    pub now: Time,
    pub issuer: NodeId,
    pub command: TreeCommand,
    pub reply: TreeReply,
}

#[derive(Debug)]
pub struct Local {
    node: NodeId,
    lease: LeaseId,
    tree: Tree,
    pending: VecDeque<Pending>,
}

impl Local {
    /// A node's view with these changes pending, of which some may be drained already. None: it has no
    /// write lease.
    pub fn resume(
        confirmed: &Tree,
        node: NodeId,
        pending: impl IntoIterator<Item = Pending>,
    ) -> Option<Self> {
        let (lease, state) = confirmed.lease_of(node)?;
        let behind = |change: &Pending| change.number > state.drained;
        let pending = pending.into_iter().filter(behind).collect();
        let mut local = Self { node, lease, tree: Tree::new(), pending };
        local.rebuild(confirmed);
        Some(local)
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Gives back the memory that looks at it have taken.
    pub fn tidy(&mut self) {
        self.tree.tidy();
    }

    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    pub fn pending(&self) -> &VecDeque<Pending> {
        &self.pending
    }

    /// Applies a change here and puts it behind those that are pending. A change that the tree refuses is
    /// answered and not kept, as is one that changes nothing.
    pub fn change(
        &mut self,
        time: Time,
        command: Command,
    ) -> Result<(TreeReply, Option<Pending>), Refusal> {
        if self.pending.len() >= PENDING_CHANGES_MAX {
            return Err(Refusal::Full);
        }
        if !self.tree.may_change_unheard(self.node, &command) {
            return Err(Refusal::NotCovered);
        }
        let state = *self.tree.leases.live.get(&self.lease).ok_or(Refusal::NotCovered)?;
        let command = match command {
            Command::Create(mut create) => {
                if state.next_ino >= state.end_ino {
                    return Err(Refusal::NoNumber);
                }
                create.ino = state.next_ino.0;
                Command::Create(create)
            }
            Command::Write(write) => Command::Write(self.placed(write)),
            // It is granted here, and nobody can come before it until it is drained.
            Command::Lock(lock) => Command::Lock(Lock { waiter: None, ..lock }),
            command => command,
        };
        let idle = self.tree.is_idle(self.node, &command);
        let mut command = TreeCommand::from(command);
        let reply = self.tree.apply(time, self.node, &command);
        self.tree.take_changes();
        let found = matches!(&command.command, Some(Command::Create(_)))
            && matches!(&reply.outcome, Some(Outcome::Inode(inode)) if !inode.created);
        let nothing = matches!(&reply.outcome, Some(Outcome::Copied(copied)) if copied.bytes == 0);
        if let (Some(Command::CopyRange(copy)), Some(Outcome::Copied(copied))) =
            (&mut command.command, &reply.outcome)
        {
            // The source may have fewer extents when this is drained, but no more is to be copied then.
            copy.length = copied.bytes;
        }
        if found || nothing || idle || outcome(&reply).is_err() {
            return Ok((reply, None));
        }
        let last = self.pending.back().map_or(state.drained, |change| change.number);
        let change = Pending { number: last + 1, time, command };
        self.pending.push_back(change.clone());
        Ok((reply, Some(change)))
    }

    /// Where a file ends is known here: nobody else changes it.
    fn placed(&self, mut write: Write) -> Write {
        if !std::mem::take(&mut write.append) {
            return write;
        }
        let end = self.tree.inode(Ino(write.ino)).map_or(0, |inode| inode.length);
        for extent in &mut write.extents {
            extent.offset = extent.offset.saturating_add(end);
        }
        write
    }

    /// Undoes the last change, which nobody has heard of.
    pub fn take_back(&mut self, confirmed: &Tree) {
        self.pending.pop_back();
        self.rebuild(confirmed);
    }

    /// Follows what was executed on the confirmed tree. False: the write lease is gone, and what is
    /// pending with it.
    pub fn follow(&mut self, confirmed: &Tree, executed: Vec<Executed>) -> bool {
        let mut diverged = false;
        for done in executed {
            let Ok(result) = outcome(&done.reply) else { continue };
            let Some(command) = &done.command.command else { continue };
            match (command, result) {
                (Command::Drain(drain), Outcome::Drained(drained)) if done.issuer == self.node => {
                    diverged |= self.drained(drain, drained);
                }
                (Command::AcquireLease(_), Outcome::Leased(leased)) => {
                    self.acquired(done.issuer, leased);
                }
                (command, _) => self.tree.execute_again(done.now, done.issuer, command),
            }
        }
        self.tree.take_changes();
        let live = confirmed.lease_of(self.node).is_some_and(|(id, _)| id == self.lease);
        if live && diverged {
            self.rebuild(confirmed);
        }
        live
    }

    /// The confirmed tree was replaced as a whole. False: see [`Self::follow`].
    pub fn replaced(&mut self, confirmed: &Tree) -> bool {
        let lease = confirmed.lease_of(self.node).filter(|(id, _)| *id == self.lease);
        let Some((_, state)) = lease else { return false };
        self.pending.retain(|change| change.number > state.drained);
        self.rebuild(confirmed);
        true
    }

    /// Takes drained changes off. True: some were refused, or their contents cannot be found again in what
    /// was drained, so the local tree shows what is not so.
    fn drained(&mut self, drain: &Drain, drained: &Drained) -> bool {
        let mut folding = Unfolding::among(self.copied_to());
        for (number, change) in (drain.first..).zip(&drain.changes) {
            let original = match self.pending.front() {
                Some(front) if front.number == number => self.pending.pop_front(),
                _ => None,
            };
            folding.follow(&mut self.tree, change, original.as_ref());
        }
        while self.pending.front().is_some_and(|change| change.number <= drained.last) {
            self.pending.pop_front();
        }
        if let Some(lease) = self.tree.leases.live.get_mut(&self.lease) {
            lease.drained = drained.last;
        }
        folding.is_astray() || !drained.refused.is_empty()
    }

    /// The inodes that may share chunks which are not drained yet.
    fn copied_to(&self) -> BTreeSet<Ino> {
        let target = |change: &Pending| match change.command.command.as_ref()? {
            Command::CopyRange(copy) => Some(Ino(copy.to)),
            _ => None,
        };
        self.pending.iter().filter_map(target).collect()
    }

    fn acquired(&mut self, issuer: NodeId, leased: &Leased) {
        let lease = LeaseId(leased.lease);
        if !self.tree.leases.live.contains_key(&lease) {
            // It cannot fail: it did not on the confirmed tree, whose counters are the same.
            let _ = self.tree.new_lease(issuer);
        }
        for &ino in &leased.inos {
            self.tree.cover(Ino(ino), lease);
        }
    }

    fn rebuild(&mut self, confirmed: &Tree) {
        self.tree = confirmed.clone();
        self.tree.record(false);
        // They were promised room when they were made.
        self.tree.reserved = true;
        for change in &self.pending {
            self.tree.apply(change.time, self.node, &change.command);
        }
        self.tree.reserved = false;
        self.tree.take_changes();
    }
}

impl Tree {
    /// Whether a node may make this change without anybody else hearing of it before it is drained: its write
    /// lease covers all that the change touches, the outcome depends on nothing else, and none of it is
    /// in the class `strict`.
    pub fn may_change_unheard(&self, node: NodeId, command: &Command) -> bool {
        let covered = |ino: &Ino| {
            self.holder_of(*ino) == Some(node) && self.inode(*ino).is_ok_and(|inode| !inode.strict)
        };
        self.touched(command).is_some_and(|inos| inos.iter().all(covered))
            && self.may_be_unheard(node, command)
    }

    /// Whether a lease on all that the command touches would do.
    pub fn may_be_unheard(&self, node: NodeId, command: &Command) -> bool {
        let once = match command {
            Command::Lock(_) | Command::Unlock(_) | Command::ReleaseOwner(_) => {
                !self.may_lock_unheard(node, command)
            }
            Command::Write(write) => write.relayout || self.takes_unbounded_room(write),
            Command::CreateUnnamed(_) | Command::CreateVolume(_) => true,
            Command::CopyRange(copy) => self.limits_bytes(Ino(copy.to)),
            // How much waits to be drained is bounded for what comes with contents only.
            Command::Fallocate(fallocate) => {
                fallocate.mode != FallocateMode::PunchHole as i32
                    && self.limits_bytes(Ino(fallocate.ino))
            }
            _ => false,
        };
        !once && self.is_confined(command)
    }

    /// Whether a write may allocate more than it brings along, in a volume with a limit.
    fn takes_unbounded_room(&self, write: &Write) -> bool {
        let brought: u64 = write.chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        let lengths = write.extents.iter().map(|extent| extent.length);
        lengths.fold(0, u64::saturating_add) > brought && self.limits_bytes(Ino(write.ino))
    }

    /// Executes again here what succeeded on the confirmed tree.
    fn execute_again(&mut self, now: Time, issuer: NodeId, command: &Command) {
        self.changes.by(issuer);
        self.reserved = true;
        let _ = self.dispatch(now, issuer, command, &mut Vec::new());
        self.reserved = false;
    }

    /// Whether what is executed from now on is kept for [`Self::take_executed`].
    pub fn record(&mut self, on: bool) {
        self.executed = on.then(Vec::new);
    }

    /// What was executed since the last call.
    pub fn take_executed(&mut self) -> Vec<Executed> {
        self.executed.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
