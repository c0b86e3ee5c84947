//! What was changed here lately and may not be stable yet: whoever reads it waits.
//!
//! Invariant: an inode whose newest change is not known to be stable is found, if need be because all
//! are.

use std::collections::{HashMap, VecDeque};

use unum_proto::ids::Ino;

/// Changes that are kept apart. Beyond it all inodes count as changed with the newest.
const UNSETTLED_MAX: usize = 1 << 16;

#[derive(Default)]
pub struct Unsettled {
    newest: HashMap<Ino, u64>,
    /// In the order of the log.
    queue: VecDeque<(u64, Ino)>,
    /// All inodes count as changed by this entry.
    floor: u64,
}

impl Unsettled {
    pub fn changed(&mut self, index: u64, ino: Ino) {
        if self.newest.insert(ino, index) != Some(index) {
            self.queue.push_back((index, ino));
        }
        if self.queue.len() > UNSETTLED_MAX {
            self.all_changed(index);
        }
    }

    /// Any inode may have been changed by this entry.
    pub fn all_changed(&mut self, index: u64) {
        self.newest.clear();
        self.queue.clear();
        self.floor = self.floor.max(index);
    }

    /// The log is stable up to this entry.
    pub fn settled(&mut self, stable: u64) {
        while let Some(&(index, ino)) = self.queue.front() {
            if index > stable {
                return;
            }
            self.queue.pop_front();
            if self.newest.get(&ino) == Some(&index) {
                self.newest.remove(&ino);
            }
        }
    }

    /// The entry that must be stable before what is here of these inodes may be shown.
    pub fn newest_of(&self, inodes: &[Ino]) -> u64 {
        let newest = inodes.iter().filter_map(|ino| self.newest.get(ino)).max();
        newest.copied().unwrap_or(0).max(self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_found_until_it_is_stable() {
        let mut unsettled = Unsettled::default();
        unsettled.changed(5, Ino(1));
        unsettled.changed(6, Ino(1));
        unsettled.changed(6, Ino(2));
        assert_eq!(unsettled.newest_of(&[Ino(1)]), 6);
        unsettled.settled(5);
        assert_eq!(unsettled.newest_of(&[Ino(3), Ino(1)]), 6);
        unsettled.settled(6);
        assert_eq!(unsettled.newest_of(&[Ino(1), Ino(2)]), 0);
    }

    #[test]
    fn too_many_changes_are_one_of_everything() {
        let mut unsettled = Unsettled::default();
        for index in 1..=UNSETTLED_MAX as u64 + 1 {
            unsettled.changed(index, Ino(index));
        }
        assert_eq!(unsettled.newest_of(&[Ino(1)]), UNSETTLED_MAX as u64 + 1);
        unsettled.changed(UNSETTLED_MAX as u64 + 2, Ino(7));
        assert_eq!(unsettled.newest_of(&[Ino(7)]), UNSETTLED_MAX as u64 + 2);
    }
}
