//! Who of this node may hold locks on what: most closes have none to release, and need no command.
//!
//! Also: who holds something for sure. If that is in the tree no more, it was ended without its owner, who has to be
//! told before it goes on as if it had the lock.

use std::collections::BTreeMap;

use unum_proto::ids::Ino;
use unum_proto::tree::LockTable;
use unum_sys::fuse::Fh;

/// Inode, table, and the kernel's number of the owner.
pub(super) type OwnerKey = (Ino, LockTable, u64);

#[derive(Debug, Default)]
pub(super) struct LockOwners {
    owners: BTreeMap<OwnerKey, Owner>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    /// The open file that the last lock came through, if this daemon saw it come.
    through: Option<Fh>,
    /// Calls about its locks that are under way: until they end it is not told for sure what it has.
    busy: u32,
    /// Several were under way at once.
    mixed: bool,
    held: bool,
}

impl LockOwners {
    /// A call about an owner's locks begins; it may get one `through` an open file.
    pub fn begin(&mut self, key: OwnerKey, through: Option<Fh>) {
        let owner = self.owners.entry(key).or_default();
        owner.through = through.or(owner.through);
        owner.mixed |= owner.busy > 0;
        owner.busy += 1;
        owner.held = false;
    }

    /// It ends. `holds`: the tree has locks of the owner; `granted`: the owner was given one.
    pub fn end(&mut self, key: OwnerKey, holds: bool, granted: bool) {
        let Some(owner) = self.owners.get_mut(&key) else { return };
        owner.busy = owner.busy.saturating_sub(1);
        owner.held = holds || granted && !owner.mixed;
        owner.mixed &= owner.busy > 0;
    }

    /// After the death of a daemon: the owner may hold something.
    pub fn recall(&mut self, key: OwnerKey) {
        self.owners.entry(key).or_default();
    }

    /// After the death of a daemon: the owner was granted something and did not give it back.
    pub fn resume(&mut self, key: OwnerKey) {
        let owner = self.owners.entry(key).or_default();
        owner.held |= owner.busy == 0;
    }

    pub fn forget(&mut self, key: OwnerKey) {
        self.owners.remove(&key);
    }

    /// The same unless calls about its locks are under way.
    pub fn forget_idle(&mut self, key: OwnerKey) {
        if self.owners.get(&key).is_some_and(|owner| owner.busy == 0) {
            self.forget(key);
        }
    }

    pub fn is_known(&self, key: OwnerKey) -> bool {
        self.owners.contains_key(&key)
    }

    pub fn is_held(&self, key: OwnerKey) -> bool {
        self.owners.get(&key).is_some_and(|owner| owner.held && owner.busy == 0)
    }

    /// Those who hold something on an inode for sure.
    pub fn held(&self, ino: Ino) -> Vec<OwnerKey> {
        let of_inode = self.of_inode(ino).map(|(key, _)| *key);
        of_inode.filter(|key| self.is_held(*key)).collect()
    }

    /// Owners of record locks on an inode, by the open file that these came through.
    pub fn of_records(&self, ino: Ino, through: impl Fn(Option<Fh>) -> bool) -> Vec<u64> {
        let of_inode = self.of_inode(ino);
        let records = of_inode.filter(|((_, table, _), _)| *table == LockTable::Record);
        let wanted = records.filter(|(_, owner)| through(owner.through));
        wanted.map(|((_, _, id), _)| *id).collect()
    }

    fn of_inode(&self, ino: Ino) -> impl Iterator<Item = (&OwnerKey, &Owner)> {
        let first = (ino, LockTable::Unspecified, 0);
        self.owners.range(first..).take_while(move |((of, ..), _)| *of == ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: OwnerKey = (Ino(7), LockTable::Record, 1);

    #[test]
    fn what_is_held_for_sure_is_known_between_calls_only() {
        let mut owners = LockOwners::default();
        owners.begin(KEY, Some(Fh(3)));
        assert!(owners.is_known(KEY) && !owners.is_held(KEY), "it is not granted yet");
        // Granted, and lost before the call ended: the owner will be told.
        owners.end(KEY, false, true);
        assert_eq!(owners.held(Ino(7)), [KEY]);
        assert_eq!(owners.held(Ino(8)), []);
        // While another call is under way nobody knows.
        owners.begin(KEY, None);
        assert!(!owners.is_held(KEY));
        owners.end(KEY, false, false);
        assert!(!owners.is_held(KEY) && owners.is_known(KEY));
        assert_eq!(owners.of_records(Ino(7), |through| through == Some(Fh(3))), [1]);
        assert_eq!(owners.of_records(Ino(7), |through| through.is_none()), [] as [u64; 0]);
    }

    #[test]
    fn of_calls_at_once_the_tree_tells_what_came_out() {
        let mut owners = LockOwners::default();
        owners.begin(KEY, None);
        owners.begin(KEY, None);
        // The unlock came behind the lock, but its call ended first.
        owners.end(KEY, false, false);
        owners.forget_idle(KEY);
        assert!(owners.is_known(KEY), "another call is under way");
        owners.end(KEY, false, true);
        assert!(!owners.is_held(KEY));
        owners.forget_idle(KEY);
        assert!(!owners.is_known(KEY));
    }

    #[test]
    fn what_a_former_daemon_knew_waits_for_calls_under_way() {
        let mut owners = LockOwners::default();
        owners.recall(KEY);
        assert!(!owners.is_held(KEY));
        owners.begin(KEY, None);
        owners.resume(KEY);
        owners.end(KEY, false, false);
        assert!(!owners.is_held(KEY), "it was unlocked meanwhile");
        owners.resume(KEY);
        assert!(owners.is_held(KEY));
    }
}
