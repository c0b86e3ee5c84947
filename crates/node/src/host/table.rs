//! What the kernel knows of `/n` by number: the inodes that it was shown, the files that it has open, and what their
//! homes have locked for it.
//!
//! An inode's number stands for a handle of some home, an open file's for a warrant. The kernel never says again
//! what a number meant, so each is appended to a journal under the run directory (tmpfs: it lives as long as
//! the machine) *before* the kernel is answered, and the next daemon reads it and goes on.
//!
//! Invariants: a number is never given twice in the life of a mount; one handle of one home has one number
//! while the kernel knows it.
//!
//! What is left out on purpose: syncing; and what the kernel forgot in the moment of a daemon's death is
//! kept until the mount goes.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use unum_proto::host::HANDLE_SIZE_MAX;
use unum_proto::ids::NodeId;

/// Inodes that the kernel may know. More are refused with ENFILE.
pub const INODES_MAX: usize = 1 << 22;
/// Open files of the mount. More are refused with ENFILE.
pub const OPEN_MAX: usize = 1 << 20;
/// Owners of locks of the mount. More are refused with ENOLCK.
pub const LOCK_OWNERS_MAX: usize = 1 << 16;
/// The journal is written anew when it holds this many records more than twice what is alive.
const RECORDS_SLACK_MAX: usize = 1 << 14;

/// The number 1 is the mount's root, 2 the link of the own node.
pub const ROOT: u64 = 1;
pub const OWN_LINK: u64 = 2;
const FIRST: u64 = 16;

/// A file of a home. An empty handle: the root of what it exports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub node: NodeId,
    pub handle: Bytes,
}

/// An open file of a home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    pub node: NodeId,
    pub warrant: Bytes,
}

/// Whose locks: what the kernel calls the owner, on one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockKey {
    /// The file's number.
    pub file: u64,
    pub owner: u64,
    pub flock: bool,
}

/// That an owner may have locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockEntry {
    pub home: NodeId,
    /// The open file that the last one came through.
    pub through: u64,
    /// The home's, when they began; 0: it has not answered yet.
    pub fence: u64,
}

struct Shown {
    target: Target,
    lookups: u64,
}

pub struct Table {
    path: PathBuf,
    journal: File,
    records: usize,
    next: u64,
    shown: HashMap<u64, Shown>,
    by_target: HashMap<Target, u64>,
    open: HashMap<u64, OpenFile>,
    locks: HashMap<LockKey, LockEntry>,
    /// The same by the open file that they came through.
    locks_through: HashMap<u64, HashSet<LockKey>>,
}

/// There is no room for more.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Table {
    /// Reads the journal at `path`, if there is one, and goes on. `fresh`: the mount is new, and its kernel knows
    /// nothing.
    pub fn restore(path: &Path, fresh: bool) -> io::Result<Self> {
        let mut table = Self {
            path: path.to_owned(),
            journal: OpenOptions::new().create(true).append(true).open(path)?,
            records: 0,
            next: FIRST,
            shown: HashMap::new(),
            by_target: HashMap::new(),
            open: HashMap::new(),
            locks: HashMap::new(),
            locks_through: HashMap::new(),
        };
        if !fresh {
            table.replay(&std::fs::read(path)?);
        }
        table.rewrite()?;
        Ok(table)
    }

    pub fn target(&self, number: u64) -> Option<&Target> {
        self.shown.get(&number).map(|shown| &shown.target)
    }

    /// The number under which the kernel knows it.
    pub fn number(&self, target: &Target) -> Option<u64> {
        self.by_target.get(target).copied()
    }

    /// All inodes of these homes that the kernel knows.
    pub fn numbers(&self, of: impl Fn(NodeId) -> bool) -> Vec<u64> {
        let of = self.shown.iter().filter(|(_, shown)| of(shown.target.node));
        of.map(|(number, _)| *number).collect()
    }

    /// The inode's number; the kernel may be told once this has returned, and then looked it up once more.
    pub fn show(&mut self, target: Target) -> io::Result<Result<u64, Full>> {
        if let Some(&number) = self.by_target.get(&target) {
            self.append(&Record::Looked { number })?;
            self.look(number);
            return Ok(Ok(number));
        }
        if self.shown.len() >= INODES_MAX {
            return Ok(Err(Full));
        }
        let number = self.next;
        self.append(&Record::Shown { number, lookups: 1, target: target.clone() })?;
        self.next += 1;
        self.enter(number, 1, target);
        Ok(Ok(number))
    }

    /// The kernel dropped so many of its lookups.
    pub fn forget(&mut self, number: u64, lookups: u64) -> io::Result<()> {
        self.append(&Record::Forgot { number, lookups })?;
        self.unlook(number, lookups);
        self.keep_small()
    }

    pub fn open(&mut self, file: OpenFile) -> io::Result<Result<u64, Full>> {
        if self.open.len() >= OPEN_MAX {
            return Ok(Err(Full));
        }
        let number = self.next;
        self.append(&Record::Opened { number, file: file.clone() })?;
        self.next += 1;
        self.open.insert(number, file);
        Ok(Ok(number))
    }

    pub fn opened(&self, number: u64) -> Option<&OpenFile> {
        self.open.get(&number)
    }

    pub fn close(&mut self, number: u64) -> io::Result<Option<OpenFile>> {
        let Some(file) = self.open.remove(&number) else { return Ok(None) };
        self.append(&Record::Closed { number })?;
        self.keep_small()?;
        Ok(Some(file))
    }

    /// The home may be asked for a lock once this has returned.
    pub fn lock(&mut self, key: LockKey, entry: LockEntry) -> io::Result<Result<(), Full>> {
        let known = self.locks.get(&key);
        if known == Some(&entry) {
            return Ok(Ok(()));
        }
        if known.is_none() && self.locks.len() >= LOCK_OWNERS_MAX {
            return Ok(Err(Full));
        }
        self.append(&Record::Locked { key, entry })?;
        self.enter_lock(key, entry);
        self.keep_small()?;
        Ok(Ok(()))
    }

    pub fn lock_of(&self, key: &LockKey) -> Option<&LockEntry> {
        self.locks.get(key)
    }

    /// The owner has no locks any more, and its home knows.
    pub fn unlock(&mut self, key: &LockKey) -> io::Result<()> {
        if !self.locks.contains_key(key) {
            return Ok(());
        }
        self.leave_lock(key);
        self.append(&Record::Unlocked { key: *key })?;
        self.keep_small()
    }

    /// Those who may have locks that came through an open file.
    pub fn locked_through(&self, open: u64) -> Vec<LockKey> {
        self.keys_through(open).copied().collect()
    }

    /// Those who may have locks that came through open files that are closed.
    pub fn locked_through_closed(&self) -> Vec<LockKey> {
        let closed = self.locks.iter().filter(|(_, entry)| !self.open.contains_key(&entry.through));
        closed.map(|(key, _)| *key).collect()
    }

    /// Under which fence the locks of an open file began; 0: it has none. The oldest of several counts: what
    /// it protected is not protected by a later one.
    pub fn fence(&self, open: u64) -> u64 {
        let of = self.keys_through(open).filter_map(|key| self.locks.get(key));
        of.map(|entry| entry.fence).filter(|fence| *fence != 0).min().unwrap_or(0)
    }

    fn keys_through(&self, open: u64) -> impl Iterator<Item = &LockKey> {
        self.locks_through.get(&open).into_iter().flatten()
    }

    fn enter_lock(&mut self, key: LockKey, entry: LockEntry) {
        self.leave_lock(&key);
        self.locks.insert(key, entry);
        self.locks_through.entry(entry.through).or_default().insert(key);
    }

    fn leave_lock(&mut self, key: &LockKey) {
        let Some(entry) = self.locks.remove(key) else { return };
        if let Some(through) = self.locks_through.get_mut(&entry.through) {
            through.remove(key);
            if through.is_empty() {
                self.locks_through.remove(&entry.through);
            }
        }
    }

    fn enter(&mut self, number: u64, lookups: u64, target: Target) {
        self.by_target.insert(target.clone(), number);
        self.shown.insert(number, Shown { target, lookups });
    }

    fn look(&mut self, number: u64) {
        if let Some(shown) = self.shown.get_mut(&number) {
            shown.lookups += 1;
        }
    }

    fn unlook(&mut self, number: u64, lookups: u64) {
        let Some(shown) = self.shown.get_mut(&number) else { return };
        shown.lookups = shown.lookups.saturating_sub(lookups);
        if shown.lookups == 0
            && let Some(shown) = self.shown.remove(&number)
        {
            self.by_target.remove(&shown.target);
        }
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        self.journal.write_all(&record.encode())?;
        self.records += 1;
        Ok(())
    }

    fn alive(&self) -> usize {
        self.shown.len() + self.open.len() + self.locks.len()
    }

    fn keep_small(&mut self) -> io::Result<()> {
        match self.records > 2 * self.alive() + RECORDS_SLACK_MAX {
            true => self.rewrite(),
            false => Ok(()),
        }
    }

    /// A record that a crash cut short is the last one, and the kernel was never told of it.
    fn replay(&mut self, mut bytes: &[u8]) {
        while let Some((record, rest)) = Record::decode(bytes) {
            bytes = rest;
            match record {
                Record::Next { number } => self.next = self.next.max(number),
                Record::Shown { number, lookups, target } => {
                    self.next = self.next.max(number.saturating_add(1));
                    self.enter(number, lookups, target);
                }
                Record::Looked { number } => self.look(number),
                Record::Forgot { number, lookups } => self.unlook(number, lookups),
                Record::Opened { number, file } => {
                    self.next = self.next.max(number.saturating_add(1));
                    self.open.insert(number, file);
                }
                Record::Closed { number } => drop(self.open.remove(&number)),
                Record::Locked { key, entry } => self.enter_lock(key, entry),
                Record::Unlocked { key } => self.leave_lock(&key),
            }
        }
    }

    /// Replaces the journal by one that holds just what is alive.
    fn rewrite(&mut self) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut bytes = Record::Next { number: self.next }.encode();
        for (&number, shown) in &self.shown {
            let (lookups, target) = (shown.lookups, shown.target.clone());
            bytes.extend(Record::Shown { number, lookups, target }.encode());
        }
        for (&number, file) in &self.open {
            bytes.extend(Record::Opened { number, file: file.clone() }.encode());
        }
        for (&key, &entry) in &self.locks {
            bytes.extend(Record::Locked { key, entry }.encode());
        }
        std::fs::write(&fresh, &bytes)?;
        std::fs::rename(&fresh, &self.path)?;
        self.journal = OpenOptions::new().append(true).open(&self.path)?;
        self.records = 1 + self.alive();
        Ok(())
    }
}

/// A kind, the length of the bytes at the end, a number; then by kind.
#[derive(Debug, PartialEq, Eq)]
enum Record {
    /// All numbers below it were given.
    Next {
        number: u64,
    },
    Shown {
        number: u64,
        lookups: u64,
        target: Target,
    },
    Looked {
        number: u64,
    },
    Forgot {
        number: u64,
        lookups: u64,
    },
    Opened {
        number: u64,
        file: OpenFile,
    },
    Closed {
        number: u64,
    },
    Locked {
        key: LockKey,
        entry: LockEntry,
    },
    Unlocked {
        key: LockKey,
    },
}

const HEAD_SIZE: usize = 4 + 4 + 8 + 8 + 8;

impl Record {
    fn encode(&self) -> Vec<u8> {
        let nothing = Bytes::new();
        let lock;
        let (kind, number, lookups, node, bytes) = match self {
            Record::Next { number } => (1, *number, 0, 0, &nothing),
            Record::Shown { number, lookups, target } => {
                (2, *number, *lookups, target.node.0, &target.handle)
            }
            Record::Looked { number } => (3, *number, 0, 0, &nothing),
            Record::Forgot { number, lookups } => (4, *number, *lookups, 0, &nothing),
            Record::Opened { number, file } => (5, *number, 0, file.node.0, &file.warrant),
            Record::Closed { number } => (6, *number, 0, 0, &nothing),
            Record::Locked { key, entry } => {
                lock = key.encode(entry.fence);
                (7, entry.through, key.file, entry.home.0, &lock)
            }
            Record::Unlocked { key } => {
                lock = key.encode(0);
                (8, 0, key.file, 0, &lock)
            }
        };
        let mut record = Vec::with_capacity(HEAD_SIZE + bytes.len());
        record.extend(u32::to_le_bytes(kind));
        record.extend((bytes.len() as u32).to_le_bytes());
        for field in [number, lookups, node] {
            record.extend(field.to_le_bytes());
        }
        record.extend(bytes);
        record
    }

    /// The first record, and what comes behind it. None: there is none, or it is cut.
    fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (kind, rest) = split_u32(bytes)?;
        let (length, rest) = split_u32(rest)?;
        let (number, rest) = split_u64(rest)?;
        let (lookups, rest) = split_u64(rest)?;
        let (node, rest) = split_u64(rest)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= HANDLE_SIZE_MAX)?;
        let (bytes, rest) = rest.split_at_checked(length)?;
        let (node, bytes) = (NodeId(node), Bytes::copy_from_slice(bytes));
        let record = match kind {
            1 => Record::Next { number },
            2 => Record::Shown { number, lookups, target: Target { node, handle: bytes } },
            3 => Record::Looked { number },
            4 => Record::Forgot { number, lookups },
            5 => Record::Opened { number, file: OpenFile { node, warrant: bytes } },
            6 => Record::Closed { number },
            7 => {
                let (key, fence) = LockKey::decode(lookups, &bytes)?;
                Record::Locked { key, entry: LockEntry { home: node, through: number, fence } }
            }
            8 => Record::Unlocked { key: LockKey::decode(lookups, &bytes)?.0 },
            _ => return None,
        };
        Some((record, rest))
    }
}

impl LockKey {
    fn encode(&self, fence: u64) -> Bytes {
        let mut bytes = Vec::with_capacity(8 + 8 + 1);
        bytes.extend(self.owner.to_le_bytes());
        bytes.extend(fence.to_le_bytes());
        bytes.push(self.flock.into());
        bytes.into()
    }

    fn decode(file: u64, bytes: &[u8]) -> Option<(Self, u64)> {
        let (owner, rest) = split_u64(bytes)?;
        let (fence, rest) = split_u64(rest)?;
        let &[flock] = rest else { return None };
        Some((Self { file, owner, flock: flock != 0 }, fence))
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*head), rest))
}

fn split_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*head), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(name: &'static str) -> Target {
        Target { node: NodeId(3), handle: Bytes::from_static(name.as_bytes()) }
    }

    fn file(name: &'static str) -> OpenFile {
        OpenFile { node: NodeId(3), warrant: Bytes::from_static(name.as_bytes()) }
    }

    fn path(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("table")
    }

    #[test]
    fn what_the_kernel_knows_is_known_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::restore(&path(&dir), true).unwrap();
        let a = table.show(target("a")).unwrap().unwrap();
        assert_eq!(table.show(target("a")).unwrap(), Ok(a));
        let b = table.show(target("b")).unwrap().unwrap();
        table.forget(a, 1).unwrap();
        table.forget(b, 1).unwrap();
        let (x, y) = (table.open(file("x")).unwrap().unwrap(), table.open(file("y")).unwrap());
        assert_eq!(table.close(x).unwrap(), Some(file("x")));
        drop(table);

        // A record that the crash cut short.
        let cut = &Record::Closed { number: y.unwrap() }.encode()[..9];
        File::options().append(true).open(path(&dir)).unwrap().write_all(cut).unwrap();
        let mut table = Table::restore(&path(&dir), false).unwrap();
        assert_eq!((table.target(a), table.target(b)), (Some(&target("a")), None));
        assert_eq!(table.opened(x), None);
        assert_eq!(table.alive(), 2);
        let c = table.show(target("c")).unwrap().unwrap();
        assert!(c > b && c > x, "a number is never given twice");
        table.forget(a, 1).unwrap();
        assert_eq!(table.target(a), None);
        assert!(Table::restore(&path(&dir), true).unwrap().shown.is_empty());
    }

    #[test]
    fn locks_are_known_after_a_crash_and_give_their_open_file_a_fence() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::restore(&path(&dir), true).unwrap();
        let fh = table.open(file("x")).unwrap().unwrap();
        let key = |owner| LockKey { file: 17, owner, flock: false };
        let entry = |fence| LockEntry { home: NodeId(3), through: fh, fence };
        for (owner, fence) in [(1, 0), (1, 5), (2, 6)] {
            table.lock(key(owner), entry(fence)).unwrap().unwrap();
        }
        assert_eq!(table.fence(fh), 5);
        let records = table.records;
        table.lock(key(2), entry(6)).unwrap().unwrap();
        assert_eq!(table.records, records, "nothing new, nothing written");
        let mut table = Table::restore(&path(&dir), false).unwrap();
        assert_eq!(
            (table.lock_of(&key(1)), table.lock_of(&key(2))),
            (Some(&entry(5)), Some(&entry(6)))
        );
        assert_eq!((table.locked_through(fh + 1), table.locked_through_closed()), (vec![], vec![]));
        assert_eq!(table.locked_through(fh).len(), 2);
        assert_eq!(table.fence(fh), 5, "the oldest counts");
        table.unlock(&key(1)).unwrap();
        assert_eq!(table.fence(fh), 6);
        table.unlock(&key(2)).unwrap();
        assert_eq!(table.fence(fh), 0);
        let mut table = Table::restore(&path(&dir), false).unwrap();
        assert_eq!((table.locked_through(fh), table.fence(fh)), (vec![], 0));
        table.lock(key(3), entry(7)).unwrap().unwrap();
        table.close(fh).unwrap();
        let table = Table::restore(&path(&dir), false).unwrap();
        assert_eq!(table.locked_through_closed(), [key(3)]);
    }

    #[test]
    fn the_journal_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::restore(&path(&dir), true).unwrap();
        let kept = table.show(target("kept")).unwrap().unwrap();
        for _ in 0..2 * RECORDS_SLACK_MAX {
            let number = table.show(target("x")).unwrap().unwrap();
            table.forget(number, 1).unwrap();
        }
        let size = std::fs::metadata(path(&dir)).unwrap().len() as usize;
        assert!(size < (RECORDS_SLACK_MAX + 8) * (HEAD_SIZE + 8), "{size} bytes");
        let table = Table::restore(&path(&dir), false).unwrap();
        assert_eq!(table.target(kept), Some(&target("kept")));
    }

    proptest! {
        #[test]
        fn records_come_back_and_rubbish_does_no_harm(
            number: u64, lookups: u64, node: u64, bytes in prop::collection::vec(any::<u8>(), 0..64),
            rubbish: Vec<u8>,
        ) {
            let (node, bytes) = (NodeId(node), Bytes::from(bytes));
            let records = [
                Record::Shown { number, lookups, target: Target { node, handle: bytes.clone() } },
                Record::Opened { number, file: OpenFile { node, warrant: bytes } },
                Record::Forgot { number, lookups },
                Record::Locked {
                    key: LockKey { file: lookups, owner: number, flock: true },
                    entry: LockEntry { home: node, through: number, fence: lookups },
                },
                Record::Unlocked { key: LockKey { file: lookups, owner: number, flock: false } },
            ];
            for record in records {
                let encoded = record.encode();
                for cut in 0..encoded.len() {
                    prop_assert_eq!(Record::decode(&encoded[..cut]), None);
                }
                prop_assert_eq!(Record::decode(&encoded), Some((record, &[][..])));
            }
            let mut rest = &rubbish[..];
            while let Some((_, after)) = Record::decode(rest) {
                rest = after;
            }
        }
    }
}
