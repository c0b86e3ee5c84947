//! A node that holds a lease, or wants one.

use std::time::Duration;

use super::{LEASE, Mark};

/// The holder's side: what one node knows of its own lease.
#[derive(Clone, Debug)]
pub struct Holder {
    life: u64,
    /// None: it wants no lease.
    confirmed: Option<u64>,
    until: Option<Duration>,
    resigned: bool,
}

impl Holder {
    pub fn new(life: u64) -> Self {
        Self { life, confirmed: None, until: None, resigned: false }
    }

    pub fn life(&self) -> u64 {
        self.life
    }

    /// From now on a lease is wanted. What was cached before is gone, and what is read from now on
    /// has `applied`.
    pub fn begin(&mut self, applied: u64) {
        self.confirmed.get_or_insert(applied);
    }

    /// No lease is wanted any more, and what is cached is not kept true.
    pub fn end(&mut self) {
        if !self.resigned {
            (self.confirmed, self.until) = (None, None);
        }
    }

    /// The lease is given back: no cache holds anything, and nothing is shown from now on. Whoever
    /// confirms all that may come is waited for by nobody, neither by this leader nor by the next.
    pub fn resign(&mut self) {
        (self.confirmed, self.until, self.resigned) = (Some(u64::MAX), None, true);
    }

    /// All entries up to this one are applied, and no cache holds what was before them.
    pub fn confirm(&mut self, index: u64) {
        if let Some(confirmed) = &mut self.confirmed {
            *confirmed = index.max(*confirmed);
        }
    }

    /// How far this node has confirmed. None: it wants no lease.
    pub fn confirmed(&self) -> Option<u64> {
        self.confirmed
    }

    /// For the answer to a message of the leader.
    pub fn mark(&self, now: Duration) -> Option<Mark> {
        self.confirmed.map(|_| Mark { life: self.life, at: now })
    }

    /// The leader brought a mark back.
    pub fn renew(&mut self, mark: Mark) {
        if mark.life == self.life && self.confirmed.is_some() && !self.resigned {
            self.until = self.until.max(Some(mark.at + LEASE));
        }
    }

    /// When the lease ends unless it is renewed. What the caches hold must be gone by then.
    pub fn until(&self) -> Option<Duration> {
        self.until
    }

    /// Whether what was read up to `now` may be shown.
    pub fn holds(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
