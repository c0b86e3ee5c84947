//! A directory in memory: what the simulator's disk keeps its durable bytes in.
//!
//! Invariants: deterministic; never more than its capacity.
//!
//! Left out on purpose: forgetting. `VolatileDisk` on top of it does that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::{Disk, DiskError, DiskFile, DiskLock, Op, Open, Space, check_name, held};

pub struct MemoryDisk {
    path: String,
    store: Arc<Store>,
    names: Mutex<Names>,
}

/// The room that all directories of one disk share.
struct Store {
    total_bytes: AtomicU64,
    used_bytes: AtomicU64,
    locks_taken: AtomicU64,
}

#[derive(Default)]
struct Names {
    files: BTreeMap<String, Arc<MemoryFile>>,
    dirs: BTreeMap<String, Arc<MemoryDisk>>,
    locks: Arc<Mutex<BTreeMap<String, u64>>>,
}

pub(super) struct MemoryFile {
    path: String,
    store: Arc<Store>,
    bytes: Mutex<Vec<u8>>,
    /// Bytes that a real disk would have been asked to keep no copy of.
    dropped_bytes: AtomicU64,
}

impl MemoryDisk {
    pub fn new(total_bytes: u64) -> Self {
        let store = Store {
            total_bytes: AtomicU64::new(total_bytes),
            used_bytes: AtomicU64::new(0),
            locks_taken: AtomicU64::new(0),
        };
        Self::at("sim:".to_owned(), Arc::new(store))
    }

    fn at(path: String, store: Arc<Store>) -> Self {
        Self { path, store, names: Mutex::default() }
    }

    pub fn set_total_bytes(&self, total_bytes: u64) {
        self.store.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Frees the locks of processes that died.
    pub fn forget_locks(&self) {
        let names = held(&self.names);
        held(&names.locks).clear();
        names.dirs.values().for_each(|dir| dir.forget_locks());
    }

    /// The file at a path like `chunks/name`.
    pub(super) fn file(&self, path: &str) -> Option<Arc<MemoryFile>> {
        let names = held(&self.names);
        match path.split_once('/') {
            Some((dir, rest)) => names.dirs.get(dir)?.file(rest),
            None => names.files.get(path).cloned(),
        }
    }

    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    fn subdir(&self, name: &str) -> Arc<MemoryDisk> {
        held(&self.names)
            .dirs
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Self::at(self.shown(name), self.store.clone())))
            .clone()
    }
}

impl Disk for MemoryDisk {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn DiskFile>, DiskError> {
        check_name(name)?;
        let mut names = held(&self.names);
        match (names.files.get(name), how) {
            (Some(_), Open::New) => Err(DiskError::Exists { path: self.shown(name) }),
            (Some(file), Open::Existing | Open::Any) => Ok(file.clone()),
            (None, Open::Existing) => Err(DiskError::NotFound { path: self.shown(name) }),
            (None, Open::New | Open::Any) => {
                let (path, store) = (self.shown(name), self.store.clone());
                let (bytes, dropped_bytes) = (Mutex::default(), AtomicU64::new(0));
                let file = Arc::new(MemoryFile { path, store, bytes, dropped_bytes });
                names.files.insert(name.to_owned(), file.clone());
                Ok(file)
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        check_name(to)?;
        let mut names = held(&self.names);
        let file = names
            .files
            .remove(from)
            .ok_or_else(|| DiskError::NotFound { path: self.shown(from) })?;
        names.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        match held(&self.names).files.remove(name) {
            Some(_) => Ok(()),
            None => Err(DiskError::NotFound { path: self.shown(name) }),
        }
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        Ok(held(&self.names).files.keys().cloned().collect())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn dir(&self, name: &str) -> Result<Arc<dyn Disk>, DiskError> {
        check_name(name)?;
        Ok(self.subdir(name))
    }

    fn lock(&self, name: &str) -> Result<DiskLock, DiskError> {
        check_name(name)?;
        let locks = held(&self.names).locks.clone();
        let taken = self.store.locks_taken.fetch_add(1, Ordering::Relaxed);
        let mut table = held(&locks);
        if table.contains_key(name) {
            let holder = "another daemon of the simulation".to_owned();
            return Err(DiskError::Locked { path: self.shown(name), holder });
        }
        table.insert(name.to_owned(), taken);
        drop(table);
        Ok(DiskLock::new(MemoryLock { locks, name: name.to_owned(), taken }))
    }

    fn space(&self) -> Result<Space, DiskError> {
        Ok(self.store.space())
    }

    fn path(&self) -> &str {
        &self.path
    }
}

/// Gives up the lock unless it was forgotten and taken by somebody else meanwhile.
struct MemoryLock {
    locks: Arc<Mutex<BTreeMap<String, u64>>>,
    name: String,
    taken: u64,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut locks = held(&self.locks);
        if locks.get(&self.name) == Some(&self.taken) {
            locks.remove(&self.name);
        }
    }
}

impl Store {
    fn space(&self) -> Space {
        let total_bytes = self.total_bytes.load(Ordering::Relaxed);
        let used = self.used_bytes.load(Ordering::Relaxed);
        Space { total_bytes, free_bytes: total_bytes.saturating_sub(used) }
    }
}

impl MemoryFile {
    /// Damages one byte; whether there was one.
    pub(super) fn flip(&self, offset: u64, bits: u8) -> bool {
        let mut bytes = held(&self.bytes);
        let byte = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at));
        byte.map(|byte| *byte ^= bits).is_some()
    }

    pub(super) fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes.load(Ordering::Relaxed)
    }

    fn resize(&self, bytes: &mut Vec<u8>, len: u64, op: Op) -> Result<(), DiskError> {
        let grown = len.saturating_sub(bytes.len() as u64);
        if grown > self.store.space().free_bytes {
            return Err(DiskError::from_errno(op, &self.path, Errno::NOSPC));
        }
        let shrunk = (bytes.len() as u64).saturating_sub(len);
        bytes.resize(len as usize, 0);
        self.store.used_bytes.fetch_add(grown, Ordering::Relaxed);
        self.store.used_bytes.fetch_sub(shrunk, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let len = held(&self.bytes).len() as u64;
        self.store.used_bytes.fetch_sub(len, Ordering::Relaxed);
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, DiskError> {
        let bytes = held(&self.bytes);
        let from = (offset as usize).min(bytes.len());
        let len = buf.len().min(bytes.len() - from);
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<(), DiskError> {
        let mut bytes = held(&self.bytes);
        let mut at = offset as usize;
        for part in parts {
            let end = at + part.len();
            if end > bytes.len() {
                self.resize(&mut bytes, end as u64, Op::Write)?;
            }
            bytes[at..end].copy_from_slice(part);
            at = end;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.resize(&mut held(&self.bytes), len, Op::SetLen)
    }

    fn size(&self) -> Result<u64, DiskError> {
        Ok(held(&self.bytes).len() as u64)
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn drop_cached(&self, _offset: u64, len: u64) {
        self.dropped_bytes.fetch_add(len, Ordering::Relaxed);
    }
}
