//! A disk that forgets what was not synced when its process dies: the playground's power cut.
//!
//! Killing a process keeps the kernel's page cache, so it proves nothing about durability. Here
//! unsynced bytes live in this process and die with it. A random part of them is written through
//! early and torn at sectors, as a kernel's writeback does, so that a store cannot rely on their
//! absence either. Names behave alike: a file that is created stays under a hidden name, and
//! renamings and removals wait, until `sync_dir`; sometimes the first few are done early.
//!
//! Invariants: what was synced is on the disk below; the operations on names reach it in order.
//!
//! Left out on purpose: directories, which are durable at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;

use super::fault::FaultPlan;
use super::overlay::Overlay;
use super::{Disk, DiskError, DiskFile, DiskLock, Op, Open, Space, check_name, held};
use crate::store::limits::VOLATILE_BYTES_MAX;

/// A created file has such a name until its directory is synced.
const HIDDEN_PREFIX: &str = ".unsynced-";
/// One write in so many is followed by some writeback.
const EARLY_ONE_IN: u32 = 16;

pub struct VolatileDisk {
    below: Arc<dyn Disk>,
    power: Arc<Power>,
    names: Mutex<Names>,
}

/// What all directories and files of one disk share while its power is on.
pub(super) struct Power {
    on: AtomicBool,
    rng: Mutex<StdRng>,
    held_bytes: AtomicUsize,
    hidden: AtomicU64,
    pub(super) faults: FaultPlan,
}

#[derive(Default)]
struct Names {
    files: BTreeMap<String, Arc<Node>>,
    dirs: BTreeMap<String, Arc<VolatileDisk>>,
    /// Not yet done on the disk below, oldest first.
    pending: Vec<NameOp>,
}

enum NameOp {
    Rename { from: String, to: String },
    Remove { name: String },
}

/// One file, whatever names it has or had.
struct Node {
    overlay: Mutex<Overlay>,
    power: Arc<Power>,
}

impl Drop for Node {
    fn drop(&mut self) {
        let held_bytes = held(&self.overlay).held_bytes();
        self.power.held_bytes.fetch_sub(held_bytes, Ordering::Relaxed);
    }
}

impl Node {
    fn over(file: Arc<dyn DiskFile>, power: &Arc<Power>) -> Result<Arc<Self>, DiskError> {
        let overlay = Mutex::new(Overlay::over(file)?);
        Ok(Arc::new(Self { overlay, power: power.clone() }))
    }
}

impl VolatileDisk {
    /// Boots: what an earlier life created and did not sync is gone.
    pub fn over(below: Arc<dyn Disk>, seed: u64) -> Result<Self, DiskError> {
        let power = Power {
            on: AtomicBool::new(true),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            held_bytes: AtomicUsize::new(0),
            hidden: AtomicU64::new(0),
            faults: FaultPlan::default(),
        };
        Self::boot(below, Arc::new(power))
    }

    fn boot(below: Arc<dyn Disk>, power: Arc<Power>) -> Result<Self, DiskError> {
        let mut files = BTreeMap::new();
        for name in below.list()? {
            if name.starts_with(HIDDEN_PREFIX) {
                below.remove(&name)?;
            } else {
                let file = below.open(&name, Open::Existing)?;
                files.insert(name, Node::over(file, &power)?);
            }
        }
        Ok(Self { below, power, names: Mutex::new(Names { files, ..Names::default() }) })
    }

    pub(super) fn power(&self) -> &Power {
        &self.power
    }

    /// The end of this life: a random part of what is unsynced reaches the disk below, and from
    /// then on every call fails. A process that is killed needs no such call.
    pub(super) fn cut_power(&self) {
        self.power.on.store(false, Ordering::SeqCst);
        self.write_everywhere();
    }

    fn write_everywhere(&self) {
        let mut rng = held(&self.power.rng);
        let mut names = held(&self.names);
        for node in names.files.values() {
            // A disk that fails while the power goes has written a smaller part: no difference.
            let _ = held(&node.overlay).write_some(&mut rng);
        }
        let share = rng.random_range(0..=names.pending.len());
        let _ = names.apply(&*self.below, share);
        let dirs: Vec<_> = names.dirs.values().cloned().collect();
        drop(rng);
        drop(names);
        dirs.iter().for_each(|dir| dir.write_everywhere());
    }

    fn check(&self, op: Op, name: &str) -> Result<(), DiskError> {
        let path = self.shown(name);
        self.power.check(op, &path)
    }

    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.below.path())
    }

    fn not_found(&self, name: &str) -> DiskError {
        DiskError::NotFound { path: self.shown(name) }
    }

    fn handle(&self, name: &str, node: Arc<Node>) -> Arc<dyn DiskFile> {
        let (power, below) = (self.power.clone(), self.below.clone());
        Arc::new(VolatileFile { node, power, below, path: self.shown(name) })
    }

    fn create(&self, names: &mut Names, name: &str) -> Result<Arc<Node>, DiskError> {
        let hidden =
            format!("{HIDDEN_PREFIX}{:x}", self.power.hidden.fetch_add(1, Ordering::Relaxed));
        let file = self.below.open(&hidden, Open::New)?;
        let node = Node::over(file, &self.power)?;
        names.files.insert(name.to_owned(), node.clone());
        names.pending.push(NameOp::Rename { from: hidden, to: name.to_owned() });
        Ok(node)
    }

    fn apply_some(&self, names: &mut Names) -> Result<(), DiskError> {
        let mut rng = held(&self.power.rng);
        if rng.random_ratio(1, EARLY_ONE_IN) {
            let share = rng.random_range(0..=names.pending.len());
            names.apply(&*self.below, share)?;
        }
        Ok(())
    }
}

impl Power {
    fn check(&self, op: Op, path: &str) -> Result<(), DiskError> {
        if !self.on.load(Ordering::SeqCst) {
            return Err(DiskError::from_errno(op, path, Errno::NODEV));
        }
        self.faults.strike(op, path)
    }
}

impl Names {
    fn apply(&mut self, below: &dyn Disk, count: usize) -> Result<(), DiskError> {
        for _ in 0..count.min(self.pending.len()) {
            match &self.pending[0] {
                NameOp::Rename { from, to } => below.rename(from, to)?,
                NameOp::Remove { name } => below.remove(name)?,
            }
            self.pending.remove(0);
        }
        Ok(())
    }
}

impl Disk for VolatileDisk {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn DiskFile>, DiskError> {
        check_name(name)?;
        let mut names = held(&self.names);
        match (names.files.get(name).cloned(), how) {
            (Some(_), Open::New) => Err(DiskError::Exists { path: self.shown(name) }),
            (Some(node), Open::Existing | Open::Any) => {
                self.check(Op::Open, name)?;
                Ok(self.handle(name, node))
            }
            (None, Open::Existing) => Err(self.not_found(name)),
            (None, Open::New | Open::Any) => {
                self.check(Op::Create, name)?;
                let node = self.create(&mut names, name)?;
                self.apply_some(&mut names)?;
                Ok(self.handle(name, node))
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        check_name(to)?;
        self.check(Op::Rename, from)?;
        let mut names = held(&self.names);
        let node = names.files.remove(from).ok_or_else(|| self.not_found(from))?;
        names.files.insert(to.to_owned(), node);
        names.pending.push(NameOp::Rename { from: from.to_owned(), to: to.to_owned() });
        self.apply_some(&mut names)
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.check(Op::Remove, name)?;
        let mut names = held(&self.names);
        names.files.remove(name).ok_or_else(|| self.not_found(name))?;
        names.pending.push(NameOp::Remove { name: name.to_owned() });
        self.apply_some(&mut names)
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.check(Op::List, "")?;
        Ok(held(&self.names).files.keys().cloned().collect())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        self.check(Op::SyncDir, "")?;
        let mut names = held(&self.names);
        let all = names.pending.len();
        names.apply(&*self.below, all)?;
        self.below.sync_dir()
    }

    fn dir(&self, name: &str) -> Result<Arc<dyn Disk>, DiskError> {
        self.check(Op::MakeDir, name)?;
        let mut names = held(&self.names);
        if let Some(dir) = names.dirs.get(name) {
            return Ok(dir.clone());
        }
        let dir = Arc::new(Self::boot(self.below.dir(name)?, self.power.clone())?);
        names.dirs.insert(name.to_owned(), dir.clone());
        Ok(dir)
    }

    fn lock(&self, name: &str) -> Result<DiskLock, DiskError> {
        self.check(Op::Lock, name)?;
        self.below.lock(name)
    }

    fn space(&self) -> Result<Space, DiskError> {
        let space = self.below.space()?;
        let held_bytes = self.power.held_bytes.load(Ordering::Relaxed) as u64;
        Ok(Space { free_bytes: space.free_bytes.saturating_sub(held_bytes), ..space })
    }

    fn path(&self) -> &str {
        self.below.path()
    }
}

struct VolatileFile {
    node: Arc<Node>,
    power: Arc<Power>,
    below: Arc<dyn Disk>,
    path: String,
}

impl VolatileFile {
    /// Changes the unsynced part and keeps count of what it holds.
    fn change<T>(
        &self,
        op: Op,
        change: impl FnOnce(&mut Overlay) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        self.power.check(op, &self.path)?;
        let mut overlay = held(&self.node.overlay);
        let before = overlay.held_bytes();
        let outcome = change(&mut overlay);
        let after = overlay.held_bytes();
        self.power.held_bytes.fetch_add(after, Ordering::Relaxed);
        self.power.held_bytes.fetch_sub(before, Ordering::Relaxed);
        outcome
    }

    /// As a kernel that reserves room when it takes the bytes, not when it writes them.
    fn check_room(&self, overlay: &Overlay, end: u64) -> Result<(), DiskError> {
        let grown = end.saturating_sub(overlay.len());
        let held_bytes = self.power.held_bytes.load(Ordering::Relaxed) as u64;
        if grown > 0 && grown.saturating_add(held_bytes) > self.below.space()?.free_bytes {
            return Err(DiskError::from_errno(Op::Write, &self.path, Errno::NOSPC));
        }
        Ok(())
    }

    fn write_early(&self, overlay: &mut Overlay) -> Result<(), DiskError> {
        let held_bytes = self.power.held_bytes.load(Ordering::Relaxed);
        if held_bytes > VOLATILE_BYTES_MAX {
            return overlay.sync();
        }
        let mut rng = held(&self.power.rng);
        if rng.random_ratio(1, EARLY_ONE_IN) { overlay.write_some(&mut rng) } else { Ok(()) }
    }
}

impl DiskFile for VolatileFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, DiskError> {
        self.power.check(Op::Read, &self.path)?;
        held(&self.node.overlay).read(buf, offset)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<(), DiskError> {
        let fault = self.power.faults.strike_part(Op::Write, &self.path);
        self.change(Op::Write, |overlay| {
            let len: usize = parts.iter().map(|part| part.len()).sum();
            if let Some(error) = fault {
                // As much as a failing disk takes before it fails.
                let part = parts.first().map_or(&[][..], |part| &part[..part.len() / 2]);
                overlay.write(part, offset)?;
                return Err(error);
            }
            self.check_room(overlay, offset.saturating_add(len as u64))?;
            let mut at = offset;
            for part in parts {
                overlay.write(part, at)?;
                at += part.len() as u64;
            }
            self.write_early(overlay)
        })
    }

    fn sync(&self) -> Result<(), DiskError> {
        let fault = self.power.faults.strike_part(Op::Sync, &self.path);
        self.change(Op::Sync, |overlay| {
            let outcome = match fault {
                None => overlay.sync(),
                Some(error) => overlay.write_some(&mut held(&self.power.rng)).and(Err(error)),
            };
            if outcome.is_err() {
                overlay.lose();
            }
            outcome
        })
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.change(Op::SetLen, |overlay| {
            self.check_room(overlay, len)?;
            overlay.set_len(len);
            Ok(())
        })
    }

    fn size(&self) -> Result<u64, DiskError> {
        self.power.check(Op::Size, &self.path)?;
        Ok(held(&self.node.overlay).len())
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        held(&self.node.overlay).drop_cached(offset, len);
    }
}
