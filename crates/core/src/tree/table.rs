//! The inodes of a state of the tree, by number, and those of them that are lent.
//!
//! Inodes are packed (see [`crate::packed`]). Whoever looks at one that is gets a copy, which stays as long as nobody
//! changes anything, so that the tree can hand out references; [`Lent`] has the copies.

use std::borrow::Cow;

use elsa::sync::FrozenMap;
use unum_proto::ids::Ino;

use super::inode::Inode;
use crate::packed::PackedMap;

/// All inodes of a state.
pub(super) type Table = PackedMap<Inode>;

/// As many copies as stay from one change to the next.
const LENT_MAX: usize = if cfg!(debug_assertions) { 16 } else { 4096 };

/// Copies of packed inodes. A clone begins without any.
#[derive(Debug, Default)]
pub(super) struct Lent(FrozenMap<Ino, Box<Inode>>);

impl Clone for Lent {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Lent {
    /// The inode that `ino` is in `table` under the number `plain`.
    pub fn get<'a>(&'a self, ino: Ino, table: &'a Table, plain: Ino) -> Option<&'a Inode> {
        if let Some(lent) = self.0.get(&ino) {
            return Some(lent);
        }
        match table.get(&plain)? {
            Cow::Borrowed(inode) => Some(inode),
            Cow::Owned(inode) => Some(self.0.insert(ino, Box::new(inode))),
        }
    }

    /// Whether there are more than should stay.
    pub fn is_full(&self) -> bool {
        self.0.len() > LENT_MAX
    }

    pub fn clear(&mut self) {
        self.0 = FrozenMap::default();
    }

    fn forget(&mut self, ino: Ino) {
        self.0.as_mut().remove(&ino);
    }
}

/// The inodes of today. Invariant: what is lent is what the table has.
#[derive(Clone, Debug, Default)]
pub(super) struct Inodes {
    table: Table,
    lent: Lent,
}

impl Inodes {
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The same, with all blocks packed: who shares them shares them for long.
    pub fn packed(&mut self) -> &Table {
        self.table.pack();
        &self.table
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.lent.get(ino, &self.table, ino)
    }

    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.lent.forget(ino);
        self.table.get_mut(&ino)
    }

    pub fn insert(&mut self, ino: Ino, inode: Inode) -> Option<Inode> {
        self.lent.forget(ino);
        self.table.insert(ino, inode)
    }

    pub fn remove(&mut self, ino: Ino) -> Option<Inode> {
        self.lent.forget(ino);
        self.table.remove(&ino)
    }

    /// All of them, lazily, as values of their own: a walk lends nothing.
    pub fn iter(&self) -> impl Iterator<Item = (Ino, Inode)> {
        self.table.iter()
    }

    pub fn values(&self) -> impl Iterator<Item = Inode> {
        self.table.values()
    }

    pub fn has_lent_much(&self) -> bool {
        self.lent.is_full()
    }

    pub fn tidy(&mut self) {
        if self.lent.is_full() {
            self.lent.clear();
        }
    }
}
