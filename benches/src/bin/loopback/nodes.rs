//! What the kernel knows: inodes with their lookup counts, and open files.
//!
//! Invariants: an inode that the kernel knows is held by a descriptor, so its number cannot go to
//! another one meanwhile; a node leaves the table with its last lookup.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unum_sys::fuse::{Errno, Fh, Ino};

struct Node {
    /// O_PATH.
    fd: Arc<OwnedFd>,
    lookups: u64,
}

/// Inodes by the kernel's number: 1 is the root, all others have their number below.
pub struct Nodes {
    root_below: u64,
    table: Mutex<HashMap<Ino, Node>>,
}

impl Nodes {
    pub fn new(root: OwnedFd, root_below: u64) -> Self {
        let root = Node { fd: Arc::new(root), lookups: 1 };
        Self { root_below, table: Mutex::new(HashMap::from([(Ino::ROOT, root)])) }
    }

    pub fn number(&self, below: u64) -> Ino {
        if below == self.root_below { Ino::ROOT } else { Ino(below) }
    }

    pub fn get(&self, ino: Ino) -> Result<Arc<OwnedFd>, Errno> {
        lock(&self.table).get(&ino).map(|node| node.fd.clone()).ok_or(Errno::STALE)
    }

    /// Counts one lookup of an inode that `fd` names.
    pub fn looked_up(&self, ino: Ino, fd: OwnedFd) {
        let mut table = lock(&self.table);
        let node = table.entry(ino).or_insert_with(|| Node { fd: Arc::new(fd), lookups: 0 });
        node.lookups += 1;
    }

    pub fn forget(&self, ino: Ino, lookups: u64) {
        let mut table = lock(&self.table);
        let Some(node) = table.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 && ino != Ino::ROOT {
            table.remove(&ino);
        }
    }
}

/// A name in a listing: number below, type as in `st_mode`, name.
pub struct Name {
    pub below: u64,
    pub kind: u32,
    pub name: Vec<u8>,
}

#[derive(Clone)]
pub enum Handle {
    File(Arc<File>),
    /// The names are those at the time of the first READDIR.
    Directory(Arc<Mutex<Vec<Name>>>),
}

#[derive(Default)]
pub struct Handles {
    last: AtomicU64,
    table: Mutex<HashMap<Fh, Handle>>,
}

impl Handles {
    pub fn add(&self, handle: Handle) -> Fh {
        let fh = Fh(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        lock(&self.table).insert(fh, handle);
        fh
    }

    pub fn remove(&self, fh: Fh) {
        // Closed after the table is free again.
        let removed = lock(&self.table).remove(&fh);
        drop(removed);
    }

    pub fn file(&self, fh: Fh) -> Result<Arc<File>, Errno> {
        match lock(&self.table).get(&fh) {
            Some(Handle::File(file)) => Ok(file.clone()),
            _ => Err(Errno::BADF),
        }
    }

    pub fn directory(&self, fh: Fh) -> Result<Arc<Mutex<Vec<Name>>>, Errno> {
        match lock(&self.table).get(&fh) {
            Some(Handle::Directory(names)) => Ok(names.clone()),
            _ => Err(Errno::BADF),
        }
    }
}

/// A panic elsewhere leaves these tables whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
