//! The state's own fsck: every invariant that the modules promise, checked from scratch.

use std::collections::{BTreeMap, BTreeSet};

use unum_proto::ids::{ChunkId, Ino};

use super::directory::Entry;
use super::inode::{Body, Inode, Kind, MODE_MASK};
use super::{ROOT, Tree};
use crate::limits::{
    ALLOCATED_MAX, CHUNK_SIZE_MAX, EXTENTS_PER_INODE_MAX, FILE_SIZE_MAX, LINKS_MAX,
};
use crate::packed::Finder;

/// What the names of the tree say of its inodes.
#[derive(Default)]
pub(super) struct Names {
    /// How many names each inode has.
    pub links: BTreeMap<Ino, u32>,
    /// How many subdirectories each directory has.
    subdirectories: BTreeMap<Ino, u32>,
    /// Where each directory's name is.
    parents: BTreeMap<Ino, Ino>,
}

impl Names {
    pub fn add(&mut self, directory: Ino, entry: Entry) {
        *self.links.entry(entry.ino).or_default() += 1;
        if entry.kind == Kind::Directory {
            *self.subdirectories.entry(directory).or_default() += 1;
            self.parents.insert(entry.ino, directory);
        }
    }

    /// One that was added.
    pub fn remove(&mut self, directory: Ino, entry: Entry) {
        let less = |of: &mut BTreeMap<Ino, u32>, ino| {
            of.entry(ino).and_modify(|count| *count = count.saturating_sub(1));
        };
        less(&mut self.links, entry.ino);
        if entry.kind == Kind::Directory {
            less(&mut self.subdirectories, directory);
            // It may have got another place first.
            if self.parents.get(&entry.ino) == Some(&directory) {
                self.parents.remove(&entry.ino);
            }
        }
    }
}

impl Tree {
    /// What is wrong with the state, one sentence each; nothing if all is well. Looks at everything,
    /// so it is meant for tests, the simulator and whoever has doubts.
    pub fn check(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let names = self.collect_names(&mut faults);
        for (ino, inode) in self.inodes.iter() {
            let mut own = self.inode_faults(ino, &inode, &names);
            faults.extend(own.drain(..).map(|fault| format!("{ino}: {fault}")));
        }
        self.check_reachable(&mut faults);
        self.check_orphans(&mut faults);
        let used = self.used_chunks(&mut faults);
        faults.extend(self.chunks.faults(&used, &self.dead_chunks()));
        faults.extend(self.locks.faults());
        self.check_sums(&mut faults);
        self.check_volumes(&mut faults);
        self.check_snapshots(&mut faults);
        faults
    }

    fn collect_names(&self, faults: &mut Vec<String>) -> Names {
        let mut names = Names::default();
        let mut targets = Finder::new(self.inodes.table());
        for (ino, inode) in self.inodes.iter() {
            let Body::Directory(directory) = &inode.body else { continue };
            faults.extend(directory.faults().into_iter().map(|fault| format!("{ino}: {fault}")));
            for (name, entry) in directory.after(0) {
                let shown = String::from_utf8_lossy(&name);
                names.add(ino, entry);
                match targets.get(&entry.ino) {
                    None => faults.push(format!("{ino}: {shown} leads to a missing inode")),
                    Some(target) if target.kind() != entry.kind => {
                        faults.push(format!("{ino}: {shown} has the wrong kind"));
                    }
                    Some(target) if !self.may_be_named(inode.volume, entry.ino, target.volume) => {
                        faults.push(format!("{ino}: {shown} is in another volume"));
                    }
                    Some(_) => {}
                }
            }
        }
        names
    }

    pub(super) fn inode_faults(&self, ino: Ino, inode: &Inode, names: &Names) -> Vec<String> {
        let mut faults = Vec::new();
        let links = names.links.get(&ino).copied().unwrap_or(0);
        let expected = match &inode.body {
            Body::Directory(_) if links == 0 && ino != ROOT => 0,
            Body::Directory(_) => 2 + names.subdirectories.get(&ino).copied().unwrap_or(0),
            _ => links,
        };
        if inode.nlink != expected {
            faults.push(format!("nlink is {}, should be {expected}", inode.nlink));
        }
        if inode.mode & !MODE_MASK != 0 {
            faults.push(format!("mode is {:o}", inode.mode));
        }
        faults.extend(inode.acl_faults());
        if ino >= self.next_ino {
            faults.push("its number was never given".to_owned());
        }
        match &inode.body {
            Body::Directory(directory) => {
                let parent = names.parents.get(&ino).copied();
                let parent = if ino == ROOT { Some(ROOT) } else { parent };
                if parent.is_some_and(|parent| parent != directory.parent) {
                    faults.push(format!("its parent is not {}", directory.parent));
                }
                if links > u32::from(ino != ROOT) {
                    faults.push(format!("a directory with {links} names"));
                }
                if inode.nlink == 0 && !directory.is_empty() {
                    faults.push("a removed directory has names".to_owned());
                }
            }
            Body::Regular(extents) => {
                faults.extend(extents.faults());
                let end = extents.iter().last().map_or(0, |extent| extent.end());
                if inode.length > FILE_SIZE_MAX || end > FILE_SIZE_MAX {
                    faults.push(format!("{} bytes long, extents to {end}", inode.length));
                }
                if extents.len() > EXTENTS_PER_INODE_MAX {
                    faults.push(format!("{} extents", extents.len()));
                }
            }
            Body::Symlink(_) | Body::Fifo | Body::Socket | Body::Character(_) | Body::Block(_) => {}
        }
        if !inode.is_directory() && inode.nlink > LINKS_MAX {
            faults.push(format!("{} names", inode.nlink));
        }
        faults
    }

    /// Every directory with a name leads up to the root.
    fn check_reachable(&self, faults: &mut Vec<String>) {
        let mut seen = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(ino) = open.pop() {
            let found = self.inodes.table().get(&ino);
            let Some(Ok(directory)) = found.as_ref().map(|inode| inode.directory()) else {
                continue;
            };
            let below = directory.after(0).filter(|(_, entry)| entry.kind == Kind::Directory);
            open.extend(below.map(|(_, entry)| entry.ino).filter(|&ino| seen.insert(ino)));
        }
        for (ino, inode) in self.inodes.iter() {
            if inode.is_directory() && inode.nlink > 0 && !seen.contains(&ino) {
                faults.push(format!("{ino}: a directory that cannot be reached"));
            }
        }
    }

    fn check_orphans(&self, faults: &mut Vec<String>) {
        let orphans = &self.orphans;
        if orphans.since.len() != orphans.order.len() {
            faults.push("the orphans and their order differ".to_owned());
        }
        for (&ino, orphan) in orphans.since.iter() {
            if self.inode(ino).map_or(true, |inode| inode.nlink != 0) {
                faults.push(format!("{ino}: an orphan with a name, or missing"));
            }
            if orphans.order.get(&orphan.sequence) != Some(&ino)
                || orphan.sequence >= orphans.next_sequence
            {
                faults.push(format!("{ino}: not in the order of orphans"));
            }
        }
        for (ino, inode) in self.inodes.iter() {
            if inode.nlink == 0 && !orphans.since.contains_key(&ino) {
                faults.push(format!("{ino}: has no name and is no orphan"));
            }
            if inode.linkable && inode.nlink != 0 {
                faults.push(format!("{ino}: has a name and is still to get one"));
            }
        }
        for (ino, holders) in orphans.holders.iter() {
            if self.inode(*ino).is_err() {
                faults.push(format!("{ino}: held, but missing"));
            }
            if holders.is_empty() || !holders.is_sorted() {
                faults.push(format!("{ino}: its list of holders is empty or unsorted"));
            }
        }
    }

    /// Bytes that extents take from each chunk, and extents that go beyond theirs.
    fn used_chunks(&self, faults: &mut Vec<String>) -> BTreeMap<ChunkId, u64> {
        let mut used = BTreeMap::<ChunkId, u64>::new();
        let mut chunks = self.chunks.finder();
        for (ino, inode) in self.inodes.iter() {
            let Body::Regular(extents) = &inode.body else { continue };
            for extent in extents.iter() {
                let Some(source) = extent.source else { continue };
                let used = used.entry(source.chunk).or_default();
                *used = used.saturating_add(extent.length);
                let chunk = chunks.get(&source.chunk);
                if chunk.is_some_and(|chunk| chunk.volume != inode.volume) {
                    faults.push(format!("{ino}: takes bytes from a chunk of another volume"));
                }
                let length = chunk.map_or(CHUNK_SIZE_MAX, |c| c.length);
                if u64::from(source.offset) + extent.length > u64::from(length) {
                    faults.push(format!("{ino}: extent at {} leaves its chunk", extent.offset));
                }
            }
        }
        used
    }

    fn check_sums(&self, faults: &mut Vec<String>) {
        let each = self.inodes.values().map(|inode| inode.allocated());
        let allocated = each.fold(0, u64::saturating_add);
        if allocated != self.allocated || allocated > ALLOCATED_MAX {
            faults.push(format!("{} bytes allocated, {allocated} in inodes", self.allocated));
        }
        if !matches!(self.inode(ROOT), Ok(root) if root.is_directory()) {
            faults.push("there is no root directory".to_owned());
        }
        for (ino, _) in self.locks.iter() {
            if self.inode(ino).is_err() {
                faults.push(format!("{ino}: locked, but missing"));
            }
        }
    }
}
