//! What commands changed, for caches of what the tree says: which inodes, and which names.
//!
//! An inode that is new, or that is gone, is none that anybody has a copy of; the name that led or now leads
//! to it is. Names of a removed directory are none, since it was empty.

use std::sync::Arc;

use unum_proto::ids::{Ino, NodeId};

/// A change, and the node whose program made it: that one's kernel knows of it already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub by: NodeId,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Attributes or content of an inode.
    Inode(Ino),
    /// What a name in a directory leads to, if anything.
    Name(Ino, Arc<[u8]>),
    /// Nothing yet, but a write lease covers the inode: its holder may change it and, in a directory, its
    /// names unheard.
    Covered(Ino),
    /// A write lease was ended: what its holder shows may be what never came to be.
    Fenced,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    by: NodeId,
    list: Vec<Change>,
}

impl Changes {
    /// Whose command is next.
    pub fn by(&mut self, node: NodeId) {
        self.by = node;
    }

    pub fn inode(&mut self, ino: Ino) {
        let change = Change { by: self.by, what: What::Inode(ino) };
        // One command touches an inode several times.
        if !self.list.iter().rev().take(4).any(|known| *known == change) {
            self.list.push(change);
        }
    }

    pub fn name(&mut self, parent: Ino, name: &[u8]) {
        self.list.push(Change { by: self.by, what: What::Name(parent, name.into()) });
    }

    pub fn covered(&mut self, ino: Ino) {
        self.list.push(Change { by: self.by, what: What::Covered(ino) });
    }

    pub fn fenced(&mut self) {
        self.list.push(Change { by: self.by, what: What::Fenced });
    }

    pub fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.list)
    }
}
