//! What the kernel knows: inodes with their lookup counts, and open files.
//!
//! A process has too few descriptors to hold each file that the kernel knows. So a directory is held,
//! and of other files we know a name in a directory, which only this program changes.
//!
//! Invariants: a name kept here leads to its inode, also while it is being changed: whoever is about
//! to take a name away holds the inode first. A held inode's number goes to no other one. A node
//! leaves the table with its last lookup.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unum_sys::fuse::{Errno, Fh, Ino};

#[derive(Clone)]
pub enum Place {
    /// By an O_PATH descriptor.
    Held(Arc<OwnedFd>),
    At(Arc<OwnedFd>, Arc<CStr>),
}

struct Node {
    place: Place,
    lookups: u64,
}

/// Inodes by the kernel's number: 1 is the root, all others have their number below.
pub struct Nodes {
    root_below: u64,
    table: Mutex<HashMap<Ino, Node>>,
}

impl Nodes {
    pub fn new(root: OwnedFd, root_below: u64) -> Self {
        let root = Node { place: Place::Held(Arc::new(root)), lookups: 1 };
        Self { root_below, table: Mutex::new(HashMap::from([(Ino::ROOT, root)])) }
    }

    pub fn number(&self, below: u64) -> Ino {
        if below == self.root_below { Ino::ROOT } else { Ino(below) }
    }

    pub fn place(&self, ino: Ino) -> Result<Place, Errno> {
        lock(&self.table).get(&ino).map(|node| node.place.clone()).ok_or(Errno::STALE)
    }

    pub fn directory(&self, ino: Ino) -> Result<Arc<OwnedFd>, Errno> {
        match self.place(ino)? {
            Place::Held(fd) => Ok(fd),
            Place::At(..) => Err(Errno::NOTDIR),
        }
    }

    /// Counts one lookup of an inode that is found at `place`.
    pub fn looked_up(&self, ino: Ino, place: Place) {
        let mut table = lock(&self.table);
        table.entry(ino).or_insert(Node { place, lookups: 0 }).lookups += 1;
    }

    /// From now on the inode, if the kernel knows it, is found at `place`.
    pub fn moved(&self, ino: Ino, place: Place) {
        if let Some(node) = lock(&self.table).get_mut(&ino) {
            node.place = place;
        }
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

impl Place {
    pub fn at(dir: &Arc<OwnedFd>, name: CString) -> Self {
        Place::At(dir.clone(), name.into())
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
