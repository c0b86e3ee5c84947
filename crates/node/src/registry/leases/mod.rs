//! Read leases on this node, as holder and as lessor. What they mean is in `unum_core::lease`; here are
//! the clock, the log's changes, and who waits for what.
//!
//! - here: what both sides share, and the holder
//! - `lessor`: the leader's side
//! - `feed`: the changes of the log, for whoever keeps caches and says when they are dropped, which is
//!   what this node confirms
//! - `stability`: asking the leader, waiting, answering
//! - `unsettled`, `watermark`: what was changed lately; the entry up to which the log is stable

mod feed;
mod lessor;
mod stability;
mod unsettled;
mod watermark;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::{AsyncRuntime, Instant};
use tokio::sync::{Notify, watch};
use unum_core::lease::{Heard, Holder, LEASE, Mark};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::mutation::Mutation;
use feed::FeedState;
use lessor::Leading;
use stability::Due;
use unsettled::Unsettled;
use watermark::Watermark;

pub use feed::{Changed, Feed};
pub use lessor::{Lead, Voters};
pub use stability::{answer, ask_for_stability, resign};

/// What a moment may be off when it is told by a clock of another speed.
const ROUNDING: Duration = Duration::from_nanos(1);

/// Both sides of the leases of one node.
pub struct Leases<RT: AsyncRuntime> {
    own: NodeId,
    started: RT::Instant,
    /// Of this node's clock; 1 but in simulations.
    speed: f64,
    mutation: Mutation,
    inner: Mutex<Inner>,
    /// Up to where the log is known to be stable.
    stable: Watermark,
    due: watch::Sender<Due>,
    fed: Notify,
}

struct Inner {
    holder: Holder,
    feed: FeedState,
    unsettled: Unsettled,
    /// The newest entry that put inodes under this node's write lease.
    granted: u64,
    heard: Heard,
    leading: Option<Leading>,
}

impl<RT: AsyncRuntime> Leases<RT> {
    pub fn new(own: NodeId, mutation: Mutation, speed: f64, life: u64, applied: u64) -> Self {
        let feed = FeedState { index: applied, ..FeedState::default() };
        let inner = Inner {
            holder: Holder::new(life),
            feed,
            unsettled: Unsettled::default(),
            granted: 0,
            heard: Heard::default(),
            leading: None,
        };
        Self {
            own,
            started: RT::Instant::now(),
            speed,
            mutation,
            inner: Mutex::new(inner),
            stable: Watermark::default(),
            due: watch::Sender::default(),
            fed: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed().mul_f64(self.speed)
    }

    /// When this clock has gone for so long, never earlier.
    fn instant(&self, at: Duration) -> RT::Instant {
        self.started + at.div_f64(self.speed) + ROUNDING
    }

    /// Whether what was read before this call may be shown without asking anybody.
    pub fn holds(&self) -> bool {
        let inner = self.inner();
        inner.holder.holds(self.now())
    }

    /// When the lease ends unless it is renewed.
    pub fn until(&self) -> Option<RT::Instant> {
        self.inner().holder.until().map(|until| self.instant(until))
    }

    pub fn renewed(&self, mark: wire::LeaseMark) {
        self.inner().holder.renew(mark_from_wire(mark));
    }

    /// A leader's message came. To be told before consensus sees it.
    pub fn heard(&self, term: u64) {
        let now = self.now();
        let mut inner = self.inner();
        inner.obey(term, now);
        inner.heard.leader(term, now);
    }

    /// Consensus has voted. To be told before the candidate is.
    pub fn voted(&self, term: u64) {
        let now = self.now();
        self.inner().obey(term, now);
    }

    /// For the answer to a message of the leader that is followed: how long ago an earlier one was heard.
    pub fn former_ns(&self, term: u64) -> Option<u64> {
        let (now, inner) = (self.now(), self.inner());
        let at = inner.heard.before(term)?;
        Some(now.saturating_sub(at).as_nanos() as u64)
    }

    /// For the answer to a message of the leader.
    pub fn mark(&self) -> Option<(wire::LeaseMark, u64)> {
        let (now, inner) = (self.now(), self.inner());
        let mark = inner.mark(now)?;
        Some((mark_to_wire(mark), inner.holder.confirmed()?))
    }

    /// Gives the lease back; the caller's caches are empty and it shows nothing from now on.
    pub fn resign(&self) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        inner.holder.resign();
        let index = inner.feed.index;
        inner.feed = FeedState { on: true, unheeded: true, index, ..FeedState::default() };
        let now = self.now();
        self.answer_own(inner, now);
        if let Some(leading) = &mut inner.leading {
            leading.lessor.confirmed(self.own, inner.holder.life(), u64::MAX);
        }
        self.advance(inner);
    }

    fn settled(&self, inner: &mut Inner, stable: u64) {
        if self.stable.raise(stable) {
            inner.unsettled.settled(stable);
        }
    }
}

impl Inner {
    /// A node whose caches do not keep up holds up the changes of all others: it shall have no lease.
    fn mark(&self, now: Duration) -> Option<Mark> {
        let keeps_up = self.feed.since.is_none_or(|since| now < since + LEASE);
        self.holder.mark(now).filter(|_| keeps_up)
    }

    /// This term has begun. If that is a later one, this node leads no more: it gives no leases, and
    /// what it knows of holders says nothing about the entries of that term.
    fn obey(&mut self, term: u64, now: Duration) {
        if self.leading.as_ref().is_some_and(|leading| leading.term < term) {
            self.resign_lead(now);
        }
        self.heard.begin(term);
    }

    /// A leader has heard itself as long as it led.
    fn resign_lead(&mut self, now: Duration) {
        if let Some(leading) = self.leading.take() {
            self.heard.leader(leading.term, now);
        }
    }
}

fn mark_to_wire(mark: Mark) -> wire::LeaseMark {
    wire::LeaseMark { life: mark.life, at_ns: mark.at.as_nanos() as u64 }
}

fn mark_from_wire(mark: wire::LeaseMark) -> Mark {
    Mark { life: mark.life, at: Duration::from_nanos(mark.at_ns) }
}
