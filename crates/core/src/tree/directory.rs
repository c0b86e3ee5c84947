//! A directory's content: names, and the order in which readdir shows them.
//!
//! Invariants: each entry has one cookie, never given twice in the directory's life, so an iteration
//! that goes on from a cookie shows every entry that was there all the time exactly once. Cookies 1
//! and 2 are `.` and `..`. The parent of the root is the root.

use std::sync::Arc;

use unum_proto::ids::Ino;

use super::error::TreeError;
use super::inode::Kind;
use super::packing::Listing;
use crate::limits::NAME_LENGTH_MAX;
use crate::packed::PackedMap;

pub const COOKIE_SELF: u64 = 1;
pub const COOKIE_PARENT: u64 = 2;
pub const COOKIE_FIRST: u64 = 3;

pub type Name = Arc<[u8]>;

/// Names with what they stand for.
pub type Named = Vec<(Name, Entry)>;

/// What a name stands for. The kind spares readdir a look at the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub ino: Ino,
    pub kind: Kind,
    pub cookie: u64,
}

#[derive(Clone, Debug)]
pub struct Directory {
    pub parent: Ino,
    entries: PackedMap<Entry>,
    /// The same by cookie.
    order: PackedMap<Listing>,
    next_cookie: u64,
}

impl Directory {
    pub fn new(parent: Ino) -> Self {
        Self {
            parent,
            entries: PackedMap::default(),
            order: PackedMap::default(),
            next_cookie: COOKIE_FIRST,
        }
    }

    /// With cookies going on where a snapshot says.
    pub fn restored(parent: Ino, next_cookie: u64) -> Self {
        Self { next_cookie: next_cookie.max(COOKIE_FIRST), ..Self::new(parent) }
    }

    /// Takes over all names of another state of this directory, to be changed into those of this one.
    pub fn begin_as(&mut self, other: &Self) {
        self.entries = other.entries.clone();
        self.order = other.order.clone();
    }

    /// What another state of this directory does not have of this one, and what it has that this one has not.
    pub fn differences(&self, other: &Self) -> (Named, Named) {
        let (mut gone, mut added) = (Vec::new(), Vec::new());
        for (name, here, there) in self.entries.differences(&other.entries) {
            gone.extend(here.map(|entry| (name.clone(), entry)));
            added.extend(there.map(|entry| (name, entry)));
        }
        (gone, added)
    }

    /// Packs what is open of it.
    pub fn pack(&mut self) {
        self.entries.pack();
        self.order.pack();
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn next_cookie(&self) -> u64 {
        self.next_cookie
    }

    pub fn get(&self, name: &[u8]) -> Option<Entry> {
        self.entries.get(name).map(|entry| *entry)
    }

    /// The name must be new; a replacement keeps its place through `replace`.
    pub fn insert(&mut self, name: &[u8], ino: Ino, kind: Kind) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.put(name, Entry { ino, kind, cookie });
    }

    /// Gives an existing name another meaning, at the same place in the order.
    pub fn replace(&mut self, name: &[u8], ino: Ino, kind: Kind) {
        let Some(entry) = self.entries.get_mut(name) else {
            return self.insert(name, ino, kind);
        };
        (entry.ino, entry.kind) = (ino, kind);
        if let Some(listing) = self.order.get_mut(&entry.cookie) {
            (listing.ino, listing.kind) = (ino, kind);
        }
    }

    /// Puts an entry of a snapshot back. False if its name or cookie is taken or cannot be.
    pub fn restore(&mut self, name: &[u8], entry: Entry) -> bool {
        let fits = entry.cookie >= COOKIE_FIRST
            && entry.cookie < self.next_cookie
            && !self.entries.contains(name)
            && !self.order.contains(&entry.cookie);
        if fits {
            self.put(name, entry);
        }
        fits
    }

    fn put(&mut self, name: &[u8], entry: Entry) {
        let name: Name = name.into();
        let listing = Listing { name: name.clone(), ino: entry.ino, kind: entry.kind };
        self.order.insert(entry.cookie, listing);
        self.entries.insert(name, entry);
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Entry> {
        let entry = self.entries.remove(name)?;
        self.order.remove(&entry.cookie);
        Some(entry)
    }

    /// Entries whose cookie is larger than `after`, in the order of cookies, without dots.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (Name, Entry)> {
        let first = after.saturating_add(1);
        self.order
            .iter_from(first)
            .map(|(cookie, Listing { name, ino, kind })| (name, Entry { ino, kind, cookie }))
    }

    /// What is wrong inside of this directory.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.entries.len() != self.order.len() {
            faults.push(format!("{} names, {} cookies", self.entries.len(), self.order.len()));
        }
        for (name, entry) in self.entries.iter() {
            let shown = String::from_utf8_lossy(&name);
            let leads = self.order.get(&entry.cookie).is_some_and(|listing| {
                (&listing.name, listing.ino, listing.kind) == (&name, entry.ino, entry.kind)
            });
            if !leads {
                faults.push(format!("cookie {} of {shown} leads elsewhere", entry.cookie));
            }
            if entry.cookie < COOKIE_FIRST || entry.cookie >= self.next_cookie {
                faults.push(format!("cookie {} of {shown} was never given", entry.cookie));
            }
            if valid_name(&name).is_err() {
                faults.push(format!("{shown:?} is no valid name"));
            }
        }
        faults
    }
}

/// A name as a directory may hold it.
pub fn valid_name(name: &[u8]) -> Result<&[u8], TreeError> {
    if name.len() > NAME_LENGTH_MAX {
        return Err(TreeError::NameTooLong);
    }
    let reserved = name.is_empty() || name == b"." || name == b"..";
    if reserved || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(TreeError::Invalid);
    }
    Ok(name)
}
