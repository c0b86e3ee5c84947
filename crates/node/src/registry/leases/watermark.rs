//! A number that only grows, and whoever waits for it.
//!
//! Invariant: those who wait are woken in the order in which they came, so that a simulated run repeats
//! itself.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

#[derive(Default)]
pub struct Watermark {
    value: AtomicU64,
    risen: Notify,
}

impl Watermark {
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Returns whether it has risen.
    pub fn raise(&self, value: u64) -> bool {
        let risen = self.value.fetch_max(value, Ordering::AcqRel) < value;
        if risen {
            self.risen.notify_waiters();
        }
        risen
    }

    /// Whoever waits looks again how long.
    pub fn stir(&self) {
        self.risen.notify_waiters();
    }

    /// Completes when it rises after this call.
    pub fn risen(&self) -> Notified<'_> {
        self.risen.notified()
    }
}
