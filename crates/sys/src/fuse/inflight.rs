//! The requests that were read and are not answered, and who wants to know that one's caller got a
//! signal.
//!
//! The kernel may hand an INTERRUPT to one reader before another reader has entered its target here.
//! Such an INTERRUPT is answered EAGAIN: the kernel sends it again if the target still waits, and
//! forgets it if not. So nothing about unknown targets is kept, and an interrupt is neither lost nor
//! kept for ever.
//!
//! Size: one record per waiting request, a number that the kernel limits (one per blocked thread and
//! `max_background`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;

type Callback = Box<dyn FnOnce() + Send>;

enum Record {
    Running,
    Watched(Callback),
    Interrupted,
}

/// What an INTERRUPT came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Found,
    Unknown,
}

/// Keyed by the request's number as the kernel writes it (with the bit of a resent one).
#[derive(Default)]
pub(super) struct InFlight {
    /// Each protects the requests whose number falls into it; never held while a callback runs.
    shards: [Mutex<HashMap<u64, Record>>; SHARDS],
}

impl InFlight {
    fn shard(&self, unique: u64) -> MutexGuard<'_, HashMap<u64, Record>> {
        // The kernel's lowest bit marks interrupts.
        let shard = &self.shards[(unique >> 1) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, unique: u64) {
        self.shard(unique).insert(unique, Record::Running);
    }

    pub fn end(&self, unique: u64) {
        let record = self.shard(unique).remove(&unique);
        // A callback's drop is foreign code too: it runs with the lock released.
        drop(record);
    }

    /// `callback` runs once if the caller gets a signal while the request is in flight: at once if
    /// that has happened already.
    pub fn watch(&self, unique: u64, callback: Callback) {
        let mut shard = self.shard(unique);
        let replaced = match shard.get_mut(&unique) {
            Some(Record::Interrupted) => {
                drop(shard);
                return callback();
            }
            Some(record) => Some(std::mem::replace(record, Record::Watched(callback))),
            None => None,
        };
        drop(shard);
        drop(replaced);
    }

    pub fn is_interrupted(&self, unique: u64) -> bool {
        matches!(self.shard(unique).get(&unique), Some(Record::Interrupted))
    }

    pub fn interrupt(&self, unique: u64) -> Target {
        let mut shard = self.shard(unique);
        let Some(record) = shard.get_mut(&unique) else { return Target::Unknown };
        let before = std::mem::replace(record, Record::Interrupted);
        drop(shard);
        if let Record::Watched(callback) = before {
            callback();
        }
        Target::Found
    }

    pub fn len(&self) -> usize {
        let count = |shard: &Mutex<HashMap<u64, Record>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).len()
        };
        self.shards.iter().map(count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn counter() -> (Arc<AtomicU32>, Callback) {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        (
            calls,
            Box::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
        )
    }

    #[test]
    fn an_interrupt_before_the_watch_is_seen_by_the_watch() {
        let table = InFlight::default();
        let (calls, callback) = counter();
        assert_eq!(table.interrupt(8), Target::Unknown);
        table.begin(8);
        assert_eq!(table.interrupt(8), Target::Found);
        assert!(table.is_interrupted(8));
        table.watch(8, callback);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_watch_fires_once_and_never_after_the_end() {
        let table = InFlight::default();
        let (calls, callback) = counter();
        table.begin(8);
        table.watch(8, callback);
        assert_eq!(table.interrupt(8), Target::Found);
        assert_eq!(table.interrupt(8), Target::Found);
        assert_eq!(calls.load(Ordering::SeqCst), 1);

        let (calls, callback) = counter();
        table.begin(10);
        table.watch(10, callback);
        table.end(10);
        assert_eq!(table.interrupt(10), Target::Unknown);
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        table.end(8);
        assert_eq!(table.len(), 0);
    }
}
