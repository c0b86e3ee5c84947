//! Inodes without a name, and which nodes hold what.
//!
//! Invariants: an inode is in `since` exactly while it has no name; `order` has the same inodes by
//! the sequence in which they lost it; sequences are never given twice. Holders are sorted and never
//! an empty list. The protocol around it is in the module comment of the tree.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;
use unum_proto::ids::{Ino, NodeId};
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{Hold, Reap, Reaped, Release};

use super::Tree;
use super::error::TreeError;
use super::inode::Body;
use crate::limits::{INODE_BATCH_MAX, ORPHAN_GRACE};
use crate::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub since: Time,
    pub sequence: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Orphans {
    pub since: OrdMap<Ino, Orphan>,
    pub order: OrdMap<u64, Ino>,
    pub holders: OrdMap<Ino, Arc<[NodeId]>>,
    pub next_sequence: u64,
}

impl Orphans {
    pub fn add(&mut self, now: Time, ino: Ino) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.restore(ino, Orphan { since: now, sequence });
    }

    pub fn restore(&mut self, ino: Ino, orphan: Orphan) {
        self.since.insert(ino, orphan);
        self.order.insert(orphan.sequence, ino);
    }

    /// The inode has a name again, or is gone.
    pub fn remove(&mut self, ino: Ino) {
        if let Some(orphan) = self.since.remove(&ino) {
            self.order.remove(&orphan.sequence);
        }
    }

    pub fn hold(&mut self, node: NodeId, ino: Ino) {
        let mut holders = self.holders_of(ino).to_vec();
        if let Err(place) = holders.binary_search(&node) {
            holders.insert(place, node);
            self.holders.insert(ino, holders.into());
        }
    }

    pub fn release(&mut self, node: NodeId, ino: Ino) {
        let left: Arc<[NodeId]> =
            self.holders_of(ino).iter().copied().filter(|&holder| holder != node).collect();
        if left.is_empty() {
            self.holders.remove(&ino);
        } else {
            self.holders.insert(ino, left);
        }
    }

    pub fn release_node(&mut self, node: NodeId) {
        let held: Vec<Ino> = self
            .holders
            .iter()
            .filter(|(_, holders)| holders.contains(&node))
            .map(|(&ino, _)| ino)
            .collect();
        for ino in held {
            self.release(node, ino);
        }
    }

    pub fn holders_of(&self, ino: Ino) -> &[NodeId] {
        self.holders.get(&ino).map_or(&[], AsRef::as_ref)
    }
}

impl Tree {
    /// Inodes that lost their last name, in that order, behind a place in it (None: all). Those that
    /// got a name again or are gone are not among them.
    pub fn orphans_after(&self, after: Option<u64>) -> impl Iterator<Item = (u64, Ino)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.orphans.order.range((from, Bound::Unbounded)).map(|(&at, &ino)| (at, ino))
    }

    /// Whether the inode exists without a name.
    pub fn is_orphan(&self, ino: Ino) -> bool {
        self.orphans.since.contains_key(&ino)
    }

    pub fn holders(&self, ino: Ino) -> &[NodeId] {
        self.orphans.holders_of(ino)
    }

    /// What a node holds.
    pub fn held_by(&self, node: NodeId) -> impl Iterator<Item = Ino> {
        let all = self.orphans.holders.iter();
        all.filter(move |(_, holders)| holders.contains(&node)).map(|(&ino, _)| ino)
    }

    /// The oldest orphans, `max` at most, that `Reap` would drop now.
    pub fn reapable(&self, now: Time, max: usize) -> Vec<Ino> {
        let all = self.orphans.order.values().copied();
        all.filter(|&ino| self.may_reap(now, ino)).take(max).collect()
    }

    fn may_reap(&self, now: Time, ino: Ino) -> bool {
        let old = |orphan: &Orphan| now.since(orphan.since) >= ORPHAN_GRACE;
        self.orphans.since.get(&ino).is_some_and(old)
            && self.orphans.holders_of(ino).is_empty()
            && !self.locks.is_used(ino)
    }

    /// All or nothing: `Stale` if one of the inodes is gone.
    pub(super) fn hold(&mut self, node: NodeId, command: &Hold) -> Result<(), TreeError> {
        valid_batch(&command.inos)?;
        if node == NodeId(0) {
            return Err(TreeError::Invalid);
        }
        for &ino in &command.inos {
            self.inode(Ino(ino))?;
        }
        for &ino in &command.inos {
            self.orphans.hold(node, Ino(ino));
        }
        Ok(())
    }

    pub(super) fn release(&mut self, node: NodeId, command: &Release) -> Result<(), TreeError> {
        valid_batch(&command.inos)?;
        for &ino in &command.inos {
            self.orphans.release(node, Ino(ino));
        }
        Ok(())
    }

    /// Drops what may be dropped and says which it was.
    pub(super) fn reap(&mut self, now: Time, command: &Reap) -> Result<Outcome, TreeError> {
        valid_batch(&command.inos)?;
        let mut inos = Vec::new();
        for &ino in &command.inos {
            if self.may_reap(now, Ino(ino)) {
                self.destroy(Ino(ino));
                inos.push(ino);
            }
        }
        Ok(Outcome::Reaped(Reaped { inos }))
    }

    fn destroy(&mut self, ino: Ino) {
        self.orphans.remove(ino);
        let Some(inode) = self.inodes.remove(ino) else { return };
        self.allocated -= inode.allocated();
        self.volumes.remove_inode(inode.volume, inode.allocated());
        if self.volume(inode.volume).is_none() {
            self.snapshots.forget(inode.volume);
        }
        if let Body::Regular(extents) = &inode.body {
            let removed: Vec<_> = extents.iter().collect();
            self.release_extents(&removed);
        }
    }
}

fn valid_batch(inos: &[u64]) -> Result<(), TreeError> {
    if inos.len() <= INODE_BATCH_MAX { Ok(()) } else { Err(TreeError::Invalid) }
}
